//! First contact: TLS without a certificate, to a control plane under a root that the token, or `--ca-root`, names.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use webpki::KeyUsage;

use super::options::{Error, Options};
use crate::tls::verify::{Allowed, signatures, verify};
use crate::tls::{Credentials, provider, server};
use leno_rules::spiffe::SpiffeId;

/// Largest token or root file, in bytes. A token is far smaller.
const MAX_FILE: u64 = 64 * 1024;

/// Token and trusted roots for the time before there is a certificate.
#[derive(Debug)]
pub(super) struct FirstContact {
    /// The token, sent to the CA as a bearer token.
    pub(super) token: String,
    trust: Trust,
    control_plane: SpiffeId,
}

#[derive(Debug, Clone)]
enum Trust {
    /// SHA-256 of roots, in hexadecimal.
    Pins(Vec<String>),
    /// Roots.
    Roots(Vec<CertificateDer<'static>>),
}

/// Fields of a token's payload that the proxy reads.
#[derive(Debug, Deserialize)]
struct Payload {
    #[serde(default)]
    roots: Vec<String>,
}

impl FirstContact {
    pub(super) async fn read(options: &Options) -> Result<FirstContact, Error> {
        let Some(path) = &options.token_file else {
            let text = "there is no valid certificate and no --token-file to get one with";
            return Err(Error::Refused(text.to_owned()));
        };
        let token = read(path).await?.trim().to_owned();
        let trust = match &options.ca_root {
            Some(path) => {
                let pem = read(path).await?;
                let roots: Result<Vec<_>, _> =
                    CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
                Trust::Roots(roots.map_err(|error| Error::File {
                    path: path.clone(),
                    reason: error.to_string(),
                })?)
            }
            None => Trust::Pins(pins(&token).map_err(|reason| Error::File {
                path: path.clone(),
                reason,
            })?),
        };
        Ok(FirstContact {
            token,
            trust,
            control_plane: options.target.identity.clone(),
        })
    }

    /// TLS configuration that accepts only the control plane under a trusted root, and presents no certificate.
    pub(super) fn tls(&self, credentials: &Arc<Credentials>) -> Result<Arc<ClientConfig>, String> {
        let verifier = Verifier {
            trust: self.trust.clone(),
            control_plane: self.control_plane.clone(),
            domain: credentials.trust_domain().to_owned(),
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

async fn read(path: &Path) -> Result<String, Error> {
    let failed = |reason: String| Error::File {
        path: path.to_owned(),
        reason,
    };
    let size = tokio::fs::metadata(path)
        .await
        .map_err(|error| failed(error.to_string()))?
        .len();
    if size > MAX_FILE {
        return Err(failed(format!("larger than {MAX_FILE} bytes")));
    }
    tokio::fs::read_to_string(path)
        .await
        .map_err(|error| failed(error.to_string()))
}

/// The roots that a token pins. Only the CA verifies its signature.
fn pins(token: &str) -> Result<Vec<String>, String> {
    let (payload, _) = token.split_once('.').ok_or("is not a join token")?;
    let json = URL_SAFE_NO_PAD
        .decode(payload)
        .map_err(|_| "is not a join token")?;
    let payload: Payload = serde_json::from_slice(&json).map_err(|_| "is not a join token")?;
    match payload.roots.is_empty() {
        true => Err("pins no root; give --ca-root".to_owned()),
        false => Ok(payload.roots),
    }
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    control_plane: SpiffeId,
    domain: String,
}

impl Verifier {
    /// The roots to verify against: the configured ones, or those of the presented chain that the token pins.
    fn roots(&self, presented: &[CertificateDer<'_>]) -> RootCertStore {
        let mut store = RootCertStore::empty();
        match &self.trust {
            Trust::Roots(roots) => {
                store.add_parsable_certificates(roots.iter().cloned());
            }
            Trust::Pins(pins) => {
                let pinned = presented
                    .iter()
                    .filter(|cert| pins.contains(&fingerprint(cert)));
                store.add_parsable_certificates(pinned.cloned());
            }
        }
        store
    }
}

fn fingerprint(cert: &CertificateDer<'_>) -> String {
    let digest = digest(&SHA256, cert);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify(
            leaf,
            intermediates,
            &self.roots(intermediates),
            KeyUsage::server_auth(),
            now,
            &self.domain,
            Allowed::Ids(std::slice::from_ref(&self.control_plane)),
        )
        .map_err(server::refusal)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}
