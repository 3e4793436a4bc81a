//! The workload's identity: a key that never leaves the process, a certificate for it, and its renewal in time.

mod csr;
mod first_contact;
mod options;
pub mod rotate;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leno_proto::ca::IstioCertificateRequest;
use leno_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use leno_proto::tonic::metadata::MetadataValue;
use leno_proto::tonic::transport::{Channel, Endpoint};
use leno_proto::tonic::{Code, Request};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::control::channel::{self};
use crate::drain::Watch;
use crate::observe::metrics::Metrics;
use crate::tls::verify::{self, Allowed};
use crate::tls::{Credentials, Identity};
use first_contact::FirstContact;
pub use options::{Error, Options};

/// Timeout of a call to the CA.
const CALL: Duration = Duration::from_secs(10);
/// A failed request is repeated after this, then after twice as long…
const MIN_BACKOFF: Duration = Duration::from_millis(500);
/// … but no longer than this.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Key and chain in PEM, as saved for a restart.
#[derive(Debug, Serialize, Deserialize)]
struct SavedIdentity {
    key: String,
    chain: Vec<String>,
}

/// Name of its file in the state directory.
const FILE: &str = "identity";

/// Obtains and renews the workload's certificate until the proxy ends.
#[derive(Debug)]
pub struct Renewal {
    /// Configuration.
    pub options: Options,
    /// Credentials that certificates are swapped into.
    pub credentials: Arc<Credentials>,
    /// Counter of certificates, and gauge of their expiry.
    pub metrics: Arc<Metrics>,
}

impl Renewal {
    /// Keeps a valid certificate in place until the proxy ends. The current one stays until it is replaced.
    pub async fn run(self, watch: Watch) {
        tokio::select! {
            () = self.renew_for_ever(async || self.obtain().await) => {}
            () = watch.ended() => {}
        }
    }

    /// Installs the certificate saved before a restart; returns its remaining lifetime. One that can't be used is
    /// ignored: a new one is obtained.
    fn restore(&self) -> Option<Duration> {
        let state = self.options.state.as_ref()?;
        let kept: SavedIdentity = match state.load(FILE) {
            Ok(kept) => kept?,
            Err(reason) => {
                tracing::warn!(reason, "the kept certificate is refused");
                return None;
            }
        };
        let key = csr::Key::from_pem(&kept.key).map_err(Error::Unusable);
        match key.and_then(|key| self.install(key, &kept.chain, true)) {
            Ok(lives) => Some(lives),
            Err(error) => {
                tracing::warn!(%error, "the kept certificate is refused");
                None
            }
        }
    }

    /// Calls `obtain`, which installs a certificate and returns its remaining lifetime, whenever one is due.
    async fn renew_for_ever(&self, obtain: impl AsyncFn() -> Result<Duration, Error>) {
        let mut backoff = MIN_BACKOFF;
        if let Some(lives) = self.restore() {
            sleep(rotate::renew_after(lives, fastrand::f64())).await;
        }
        loop {
            let pause = match obtain().await {
                Ok(lives) => {
                    backoff = MIN_BACKOFF;
                    rotate::renew_after(lives, fastrand::f64())
                }
                Err(error) => {
                    let left = self.credentials.identity().map(|i| {
                        let left = i.not_after.duration_since(SystemTime::now());
                        left.unwrap_or_default()
                    });
                    let seconds = left.map(|left| left.as_secs());
                    tracing::warn!(%error, certificate_seconds_left = seconds, "no new certificate");
                    let left = left.unwrap_or_default();
                    let pause = rotate::retry_after(backoff, left, MIN_BACKOFF);
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
                }
            };
            sleep(pause).await;
        }
    }

    /// Obtains a certificate and swaps it in; returns its remaining lifetime.
    async fn obtain(&self) -> Result<Duration, Error> {
        let key = csr::Key::generate().map_err(Error::Unusable)?;
        let request = IstioCertificateRequest {
            csr: key.request(&self.options.id).map_err(Error::Unusable)?,
            validity_duration: i64::try_from(self.options.ttl.as_secs()).unwrap_or(0),
            metadata: None,
        };
        let (channel, token) = self.connect().await?;
        let first = token.is_some();
        let mut request = Request::new(request);
        if let Some(token) = token {
            let value = MetadataValue::try_from(format!("Bearer {token}"));
            let value = value.map_err(|error| Error::Refused(error.to_string()))?;
            request.metadata_mut().insert("authorization", value);
        }
        let call = IstioCertificateServiceClient::new(channel);
        let answer = timeout(CALL, { call }.create_certificate(request)).await;
        let answer = answer.map_err(|_| Error::Unreachable("it took too long".to_owned()))?;
        let chain = answer
            .map_err(|status| match status.code() {
                Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument => {
                    Error::Refused(status.message().to_owned())
                }
                code => Error::Unreachable(format!("{code:?}: {}", status.message())),
            })?
            .into_inner()
            .cert_chain;
        let kept = SavedIdentity {
            key: key.pem(),
            chain,
        };
        let lives = self.install(key, &kept.chain, first)?;
        if let Some(state) = &self.options.state
            && let Err(error) = state.save(FILE, &kept)
        {
            tracing::warn!(%error, "the certificate can't be kept for a restart");
        }
        Ok(lives)
    }

    /// Connects to the CA: with the current certificate if it is valid, else without one and with the token to send.
    async fn connect(&self) -> Result<(Channel, Option<String>), Error> {
        let target = &self.options.target;
        let valid = self.credentials.identity();
        let valid = valid.is_some_and(|identity| SystemTime::now() < identity.not_after);
        let (dialer, token) = if valid {
            (target.mtls_dialer(&self.credentials), None)
        } else {
            let first = FirstContact::read(&self.options).await?;
            let config = first.tls(&self.credentials).map_err(Error::Unusable)?;
            (target.dialer(config), Some(first.token))
        };
        let channel = Endpoint::from_static("http://control-plane")
            .connect_with_connector(dialer.map_err(Error::Unreachable)?)
            .await
            .map_err(|error| Error::Unreachable(channel::error_text(&error)))?;
        Ok((channel, token))
    }

    /// Checks that the chain is this workload's and valid, and swaps it in. With `first` its own root becomes the
    /// trusted one: at first contact TLS has just verified the control plane, at a restart the chain is the saved one.
    fn install(&self, key: csr::Key, chain: &[String], first: bool) -> Result<Duration, Error> {
        let unusable = |error: &dyn ToString| Error::Unusable(error.to_string());
        let mut certificates = Vec::new();
        for pem in chain {
            for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                certificates.push(cert.map_err(|error| unusable(&error))?);
            }
        }
        let [leaf, .., root] = certificates.as_slice() else {
            return Err(Error::Unusable("the chain has no leaf and root".to_owned()));
        };
        let (not_before, not_after) = verify::validity(leaf).map_err(|error| unusable(&error))?;
        let lives = not_after
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        if lives.is_zero() {
            return Err(Error::Unusable("it has expired".to_owned()));
        }
        // At first contact, or once the old certificate has expired, the token or `--ca-root` named the root to trust.
        if first {
            self.credentials
                .set_roots(std::slice::from_ref(root))
                .map_err(Error::Unusable)?;
        }
        let allowed = [self.options.id.clone()];
        self.credentials
            .verify_own(&certificates, Allowed::Ids(&allowed))
            .map_err(|error| unusable(&error))?;
        let serial = verify::serial(leaf).map_err(|error| unusable(&error))?;
        let key = key.certified(certificates).map_err(Error::Unusable)?;
        tracing::info!(id = %self.options.id, serial, lives = ?lives, "certificate obtained");
        self.metrics.health.set_certificate_expiry(not_after);
        self.metrics.rotations.inc();
        self.credentials.set_identity(Identity {
            key,
            id: self.options.id.clone(),
            serial,
            not_before,
            not_after,
        });
        Ok(lives)
    }
}

#[cfg(test)]
mod tests;
