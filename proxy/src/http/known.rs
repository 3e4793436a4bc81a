//! Fields that the path looks at, told apart once, when a field is read.

/// Fields that the path looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Known {
    Other,
    Removed,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Te,
    Upgrade,
    KeepAlive,
    ProxyConnection,
    ProxyAuthorization,
    ProxyAuthenticate,
    Expect,
    RequestId,
    AttemptCount,
    PeerMetadata,
    PeerMetadataId,
    GrpcStatus,
    Traceparent,
    B3,
    B3Multiple,
    ForwardedFor,
    ForwardedProto,
    ClientCert,
    Envoy,
    Server,
    ProxyStatus,
    Trailer,
    Http1,
}

impl Known {
    /// Tells which field `name` is, whatever its case.
    pub fn of(name: &[u8]) -> Known {
        let Some(first) = name.first().map(|first| first | 0x20) else {
            return Known::Other;
        };
        // One byte tells most names from most others, of which there are many a request.
        let is = |other: &str| {
            first == other.as_bytes()[0] && name.eq_ignore_ascii_case(other.as_bytes())
        };
        match name.len() {
            2 if is("te") => Known::Te,
            2 if is("b3") => Known::B3,
            4 if is("host") => Known::Host,
            6 if is("expect") => Known::Expect,
            6 if is("server") => Known::Server,
            7 if is("upgrade") => Known::Upgrade,
            7 if is("trailer") => Known::Trailer,
            10 if is("connection") => Known::Connection,
            10 if is("keep-alive") => Known::KeepAlive,
            11 if is("traceparent") => Known::Traceparent,
            11 if is("grpc-status") => Known::GrpcStatus,
            12 if is("x-request-id") => Known::RequestId,
            12 if is("proxy-status") => Known::ProxyStatus,
            12 if is("x-leno-http1") => Known::Http1,
            14 if is("content-length") => Known::ContentLength,
            15 if is("x-forwarded-for") => Known::ForwardedFor,
            16 if is("proxy-connection") => Known::ProxyConnection,
            17 if is("transfer-encoding") => Known::TransferEncoding,
            17 if is("x-forwarded-proto") => Known::ForwardedProto,
            18 if is("proxy-authenticate") => Known::ProxyAuthenticate,
            19 if is("proxy-authorization") => Known::ProxyAuthorization,
            21 if is("x-envoy-attempt-count") => Known::AttemptCount,
            21 if is("x-envoy-peer-metadata") => Known::PeerMetadata,
            24 if is("x-envoy-peer-metadata-id") => Known::PeerMetadataId,
            23 if is("x-forwarded-client-cert") => Known::ClientCert,
            5.. if first == b'x' && name[..5].eq_ignore_ascii_case(b"x-b3-") => Known::B3Multiple,
            8.. if first == b'x' && name[..8].eq_ignore_ascii_case(b"x-envoy-") => Known::Envoy,
            _ => Known::Other,
        }
    }

    /// Its place in a set.
    pub(super) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Fields that belong to one connection and never travel on (RFC 9110, section 7.6.1), and what sidecars tell each other: a bit
/// each.
pub(super) const HOP_BY_HOP: u32 = Known::Connection.bit()
    | Known::TransferEncoding.bit()
    | Known::Te.bit()
    | Known::Upgrade.bit()
    | Known::KeepAlive.bit()
    | Known::ProxyConnection.bit()
    | Known::ProxyAuthorization.bit()
    | Known::ProxyAuthenticate.bit()
    | Known::Trailer.bit()
    | Known::Http1.bit()
    | Known::PeerMetadata.bit()
    | Known::PeerMetadataId.bit();
