//! Records of finished requests and connections, as access log, spans and the live map take them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use leno_http::head::{FieldName, Head};

use super::labels::Labels;
use super::standard::RequestProtocol;
use crate::error::Error;

/// The sidecar that reports a request: `reporter` of Istio's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reporter {
    /// The caller's sidecar.
    Source,
    /// The destination's.
    Destination,
}

/// The reporter of a request or connection, and the downstream connection that it came on.
#[derive(Debug, Clone, Copy)]
pub struct LogContext<'a> {
    /// The reporting sidecar.
    pub reporter: Reporter,
    /// Address of the client.
    pub peer: SocketAddr,
    /// Local address of the connection; with interception, the original destination.
    pub local: Option<SocketAddr>,
    /// Server name (SNI) of its TLS handshake.
    pub server_name: Option<&'a str>,
}

/// A share of requests, sampled at random.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// The share as a count of 2³².
    threshold: u64,
}

impl Share {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share is 0 to 1
    pub(super) fn new(share: f64) -> Share {
        Share {
            threshold: (share.clamp(0.0, 1.0) * 4_294_967_296.0) as u64,
        }
    }

    pub(super) fn has(self, dice: u32) -> bool {
        u64::from(dice) < self.threshold
    }
}

/// Upstream of a request or connection.
#[derive(Debug, Clone)]
pub struct UpstreamInfo {
    /// The cluster.
    pub cluster: Arc<str>,
    /// The endpoint.
    pub address: SocketAddr,
    /// Local address of the connection to it.
    pub local: Option<SocketAddr>,
    /// Rule that chose it.
    pub rule: Option<Arc<str>>,
}

/// Record of a finished request or connection.
#[derive(Debug)]
pub struct RequestRecord<'a> {
    /// The reporter, and the downstream connection.
    pub log_context: LogContext<'a>,
    /// The request's head, as it was sent on; empty for a TCP connection.
    pub request: &'a Head,
    /// The response's head.
    pub response: &'a Head,
    /// Labels of both peers.
    pub labels: &'a Labels,
    /// Application protocol.
    pub protocol: RequestProtocol,
    /// HTTP status.
    pub status: u16,
    /// Envoy's response flag.
    pub flag: &'static str,
    /// gRPC status.
    pub grpc: Option<u8>,
    /// Duration.
    pub took: Duration,
    /// Bytes received and sent: of the bodies, or of a TCP connection.
    pub bodies: (u64, u64),
    /// The upstream, if one was chosen.
    pub reached: Option<&'a UpstreamInfo>,
    /// The error, if there was one.
    pub error: Option<&'a Error>,
    /// True if it is sampled for the access log, even without an error.
    pub is_logged: bool,
}

impl RequestRecord<'_> {
    /// The path without the query, which may hold secrets.
    pub(super) fn path(&self) -> String {
        let target = self.request.target();
        let path = target.split(|b| *b == b'?').next().unwrap_or_default();
        String::from_utf8_lossy(path).into_owned()
    }

    pub(super) fn authority(&self) -> String {
        let host = self.request.get(FieldName::Host).unwrap_or_default();
        String::from_utf8_lossy(host).into_owned()
    }
}
