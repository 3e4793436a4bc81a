//! `istio.v1.auth.IstioCertificateService`: a signing request in, a chain out, for callers that prove their identity.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leno_proto::ca::istio_certificate_service_server::IstioCertificateService;
use leno_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use leno_proto::tonic::{Request, Response, Status};

use super::tls::Peer;
use crate::ca::{Bearer, Ca};
use crate::metrics::Metrics;

/// The certificate service.
#[derive(Debug)]
pub struct Certificates {
    ca: Arc<Ca>,
    metrics: Arc<Metrics>,
}

impl Certificates {
    /// The service over `ca`.
    pub fn new(ca: Arc<Ca>, metrics: Arc<Metrics>) -> Certificates {
        Certificates { ca, metrics }
    }

    /// The caller's identity, from its client certificate or else its bearer token.
    fn caller(
        &self,
        request: &Request<IstioCertificateRequest>,
        key: &[u8],
    ) -> Result<Bearer, String> {
        let peer = request
            .extensions()
            .get::<Peer>()
            .and_then(|peer| peer.identity.clone());
        if let Some(identity) = peer {
            self.ca
                .check_not_denied(&identity.namespace, &identity.account)?;
            return Ok(Bearer {
                namespace: identity.namespace,
                account: identity.account,
                labels: identity.labels,
            });
        }
        let header = request.metadata().get("authorization");
        let bearer = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let token = bearer.ok_or("neither a certificate of this mesh nor a token")?;
        self.ca.redeem(token, key, SystemTime::now())
    }
}

#[leno_proto::tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.asked.inc();
        let csr = &request.get_ref().csr;
        let key = self.ca.public_key(csr).map_err(Status::invalid_argument)?;
        let bearer = self.caller(&request, &key).map_err(|reason| {
            self.metrics.denied.inc();
            tracing::warn!(reason, "no certificate");
            Status::unauthenticated(reason)
        })?;
        let id = self.ca.id_of(&bearer);
        if id == self.ca.own_id() {
            self.metrics.denied.inc();
            // With it a workload could pose as the control plane to every sidecar.
            let reason = format!("{id} is the control plane's own identity");
            tracing::warn!(reason, "no certificate");
            return Err(Status::permission_denied(reason));
        }
        let seconds = u64::try_from(request.get_ref().validity_duration).unwrap_or(0);
        let issued = self.ca.issue(&bearer, csr, Duration::from_secs(seconds));
        let issued = issued.map_err(Status::invalid_argument)?;
        self.metrics.issued.inc();
        tracing::info!(id, "certificate issued");
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: issued.chain,
        }))
    }
}
