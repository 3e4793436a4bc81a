//! `envoy.extensions.transport_sockets.tls.v3.Secret`: the roots of trust.

use leno_proto::pb::envoy::config::core::v3::data_source::Specifier;
use leno_proto::pb::envoy::extensions::transport_sockets::tls::v3::{
    Secret as SecretMessage, secret,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{Invalid, Resource};

/// Resource name of the roots, as Istio's.
pub const ROOTS: &str = "ROOTCA";

/// Roots of trust; at least one.
#[derive(Debug, Clone)]
pub struct Roots {
    /// Its name.
    pub name: String,
    /// The certificates.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl Resource for Roots {
    type Message = SecretMessage;

    fn name(&self) -> &str {
        &self.name
    }

    fn validate(message: SecretMessage) -> Result<Roots, Invalid> {
        const FIELD: &str = "validation_context.trusted_ca";
        super::named(&message.name)?;
        let Some(secret::Type::ValidationContext(context)) = message.r#type else {
            return Err(Invalid::new("validation_context", "is required"));
        };
        let source = super::required(context.trusted_ca, FIELD)?.specifier;
        let pem = match source {
            Some(Specifier::InlineBytes(bytes)) => bytes,
            Some(Specifier::InlineString(text)) => text.into_bytes(),
            _ => return Err(Invalid::new(FIELD, "must be inline")),
        };
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(Roots {
                name: message.name,
                certificates,
            }),
            Ok(_) => Err(Invalid::new(FIELD, "holds no certificate")),
            Err(error) => Err(Invalid::new(FIELD, error.to_string())),
        }
    }
}
