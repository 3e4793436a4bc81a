//! Configuration of the identity, and the ways in which it can fail.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leno_rules::spiffe::SpiffeId;

use crate::control::channel::ControlPlane;
use crate::control::state_dir::StateDir;

/// Configuration of the identity.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address and SPIFFE ID of the CA.
    pub target: ControlPlane,
    /// SPIFFE ID of the workload.
    pub id: SpiffeId,
    /// File with the token for the first certificate: a join token, or a service account's.
    pub token_file: Option<PathBuf>,
    /// File with the roots that the control plane must chain to at first contact; by default the token pins them.
    pub ca_root: Option<PathBuf>,
    /// Lifetime to request; 0 is the CA's own default.
    pub ttl: Duration,
    /// State directory that keeps the certificate for a restart.
    pub state: Option<Arc<StateDir>>,
}

/// Failure to obtain a certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the configuration can't be used.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The CA could not be reached, or broke the call.
    #[error("no answer from the CA: {0}")]
    Unreachable(String),
    /// The CA refuses.
    #[error("the CA refuses: {0}")]
    Refused(String),
    /// The key, the chain or its root can't be used for this workload.
    #[error("the CA's certificate is not usable: {0}")]
    Unusable(String),
}
