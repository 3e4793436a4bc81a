//! Failures on the path: kind, side and progress, and the one table that turns them into a response.
//!
//! The retry decision is computed from `side`, `kind` and `progress`, never stored beside them.

use std::fmt;
use std::sync::Arc;

use leno_http::h1::{InvalidHead, ReadError};

/// A failure on the path of one connection or request.
#[derive(Debug, Clone)]
pub struct Error {
    /// Kind of failure.
    pub kind: Kind,
    /// The side that failed.
    pub side: Side,
    /// Progress of the exchange when it failed.
    pub progress: Progress,
    /// Cause, as text.
    pub detail: String,
    /// The configuration object, rule or endpoint behind it.
    pub object: Option<Arc<str>>,
}

/// Kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request isn't well-formed HTTP, or not in the strict form that Leno accepts.
    BadRequest,
    /// The protocol of an extended CONNECT (RFC 8441) isn't passed on.
    Upgrade,
    /// The request's head is larger than the limit, or has too many fields.
    HeadTooLarge,
    /// The request's head did not arrive in time.
    HeadTimeout,
    /// The configuration has no such authority.
    UnknownAuthority,
    /// No configuration arrived for this authority in time.
    NotConfigured,
    /// No route of the virtual host matches.
    NoRoute,
    /// The route names a cluster that doesn't exist: an undefined subset.
    NoCluster,
    /// The cluster has no endpoint that takes requests.
    NoEndpoint,
    /// A policy denies the request.
    Denied,
    /// The destination is this proxy.
    Loop,
    /// The TCP connection was refused or broke while it was made.
    Connect,
    /// The connection wasn't made in time.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// The peer's certificate isn't one that is allowed here.
    Peer,
    /// The peer violated HTTP.
    Protocol,
    /// The peer closed or reset the connection.
    Reset,
    /// The response did not come in time.
    Timeout,
    /// A limit is reached.
    Overload,
}

/// The side that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Downstream: the peer that sent the request.
    Down,
    /// Upstream: the peer that should answer it.
    Up,
    /// Leno: its configuration, its policies, its limits.
    Own,
}

/// Progress of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Not a byte of the request had been written upstream, or the upstream reported that it processed none.
    Nothing,
    /// At least a byte of the request had been written upstream.
    Sent,
    /// An informational response had been passed on.
    Informed,
    /// At least a byte of the response had been passed on.
    Answered,
}

/// The response that a failure becomes: Envoy's status, text and flag, and RFC 9209's error type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorResponse {
    /// HTTP status.
    pub status: u16,
    /// Body text; Envoy's where Envoy has one.
    pub text: &'static str,
    /// Envoy's response flag.
    pub flag: &'static str,
    /// Proxy error type of RFC 9209, section 2.3.
    pub error: &'static str,
}

impl Error {
    /// An error that is Leno's own: its configuration, policy or limit.
    pub fn own(kind: Kind, detail: impl Into<String>) -> Error {
        Error::new(kind, Side::Own, detail)
    }

    /// An error of the peer that sent the request.
    pub fn down(kind: Kind, detail: impl Into<String>) -> Error {
        Error::new(kind, Side::Down, detail)
    }

    /// An error of the peer that should answer.
    pub fn up(kind: Kind, detail: impl Into<String>) -> Error {
        Error::new(kind, Side::Up, detail)
    }

    fn new(kind: Kind, side: Side, detail: impl Into<String>) -> Error {
        Error {
            kind,
            side,
            progress: Progress::Nothing,
            detail: detail.into(),
            object: None,
        }
    }

    /// Names the object behind the error, unless a closer one is named already.
    #[must_use]
    pub fn behind(mut self, object: &Arc<str>) -> Error {
        if self.object.is_none() {
            self.object = Some(Arc::clone(object));
        }
        self
    }

    /// Sets the progress of the exchange.
    #[must_use]
    pub fn at(mut self, progress: Progress) -> Error {
        self.progress = progress;
        self
    }

    /// True if the client disconnected, so that no response can be sent.
    pub fn is_client_disconnect(&self) -> bool {
        self.side == Side::Down && self.kind == Kind::Reset
    }

    /// Envoy's response flag, also for a client that disconnected.
    pub fn flag(&self) -> &'static str {
        match self.is_client_disconnect() {
            true => "DC",
            false => self.answer().flag,
        }
    }

    /// The response that this failure becomes.
    pub fn answer(&self) -> ErrorResponse {
        self.kind.answer()
    }
}

impl Kind {
    /// The one table from failure to response.
    pub fn answer(self) -> ErrorResponse {
        let (status, text, flag, error) = match self {
            Kind::BadRequest => (400, "bad request", "DPE", "http_request_error"),
            Kind::Upgrade => (501, "upgrade not supported", "DPE", "http_request_error"),
            Kind::HeadTooLarge => (431, "request head too large", "DPE", "http_request_error"),
            Kind::HeadTimeout => (408, "request timeout", "SI", "http_request_error"),
            Kind::UnknownAuthority | Kind::NoRoute => (404, "", "NR", "destination_not_found"),
            Kind::NotConfigured => (503, "no configuration", "NC", "destination_unavailable"),
            Kind::NoCluster => (503, "", "NC", "destination_unavailable"),
            Kind::NoEndpoint => (503, "no healthy upstream", "UH", "destination_unavailable"),
            Kind::Denied => (403, "RBAC: access denied", "-", "http_request_denied"),
            Kind::Loop => (508, "loop detected", "NR", "proxy_loop_detected"),
            Kind::Connect => (503, upstream::CONNECT, "UF", "connection_refused"),
            Kind::ConnectTimeout => (503, upstream::TIMEOUT, "UF", "connection_timeout"),
            Kind::Tls => (503, upstream::CONNECT, "UF", "tls_protocol_error"),
            Kind::Peer => (503, upstream::CONNECT, "UF", "tls_certificate_error"),
            Kind::Protocol => (502, upstream::PROTOCOL, "UPE", "http_protocol_error"),
            Kind::Reset => (503, upstream::TERMINATED, "UC", "connection_terminated"),
            Kind::Timeout => (
                504,
                "upstream request timeout",
                "UT",
                "http_response_timeout",
            ),
            Kind::Overload => (503, upstream::OVERFLOW, "UO", "connection_limit_reached"),
        };
        ErrorResponse {
            status,
            text,
            flag,
            error,
        }
    }
}

/// Envoy's texts for failures between proxy and upstream, which people search for.
mod upstream {
    pub(super) const CONNECT: &str = "upstream connect error or disconnect/reset before headers. reset reason: connection failure";
    pub(super) const TIMEOUT: &str = "upstream connect error or disconnect/reset before headers. reset reason: connection timeout";
    pub(super) const PROTOCOL: &str =
        "upstream connect error or disconnect/reset before headers. reset reason: protocol error";
    pub(super) const TERMINATED: &str = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
    pub(super) const OVERFLOW: &str =
        "upstream connect error or disconnect/reset before headers. reset reason: overflow";
}

impl From<InvalidHead> for Error {
    fn from(invalid: InvalidHead) -> Error {
        let kind = match invalid {
            InvalidHead::TooLarge(_) | InvalidHead::TooMany(_) => Kind::HeadTooLarge,
            InvalidHead::Syntax(_) => Kind::BadRequest,
        };
        Error::down(kind, invalid.to_string())
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Error {
        match error {
            ReadError::Invalid(invalid) => invalid.into(),
            ReadError::HeadTimeout(_) => Error::down(Kind::HeadTimeout, error.to_string()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        match &self.object {
            Some(object) => write!(f, " ({object})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_named_once_and_the_closest_wins() {
        let error = Error::own(Kind::NoEndpoint, "none").behind(&"subset v2".into());
        let error = error.behind(&"route 1".into());
        assert_eq!(error.to_string(), "none (subset v2)");
    }

    #[test]
    fn answers_are_the_ones_that_envoys_users_search_for() {
        let table = [
            (Kind::NoRoute, 404, "NR"),
            (Kind::NoCluster, 503, "NC"),
            (Kind::NoEndpoint, 503, "UH"),
            (Kind::Connect, 503, "UF"),
            (Kind::Reset, 503, "UC"),
            (Kind::Protocol, 502, "UPE"),
            (Kind::Timeout, 504, "UT"),
            (Kind::Overload, 503, "UO"),
            (Kind::BadRequest, 400, "DPE"),
            (Kind::Upgrade, 501, "DPE"),
        ];
        for (kind, status, flag) in table {
            assert_eq!((kind.answer().status, kind.answer().flag), (status, flag));
        }
    }
}
