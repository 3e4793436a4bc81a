//! Field names that the data path handles, recognised once, when a field is parsed.

/// A field name that the data path handles; `Other` is any other name, `Removed` a field that was removed.
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
    Http2Settings,
}

impl Known {
    /// Recognises the field `name`, ignoring its case.
    pub fn of(name: &[u8]) -> Known {
        let Some(first) = name.first().map(|first| first | 0x20) else {
            return Known::Other;
        };
        // The first byte rules out most of the comparisons, of which there are many per request.
        let is = |other: &str| first == other.as_bytes()[0] && is_called(name, other.as_bytes());
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
            14 if is("http2-settings") => Known::Http2Settings,
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
            5.. if first == b'x' && is_called(&name[..5], b"x-b3-") => Known::B3Multiple,
            8.. if first == b'x' && is_called(&name[..8], b"x-envoy-") => Known::Envoy,
            _ => Known::Other,
        }
    }
}

/// A set of field names, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set(u32);

impl Set {
    /// The empty set.
    pub const NONE: Set = Set(0);

    /// The set of `fields`.
    pub const fn of(fields: &[Known]) -> Set {
        let (mut set, mut at) = (Set::NONE, 0);
        while at < fields.len() {
            set = set.with(fields[at]);
            at += 1;
        }
        set
    }

    /// This set with `known` added.
    #[must_use]
    pub const fn with(self, known: Known) -> Set {
        Set(self.0 | 1 << known as u32)
    }

    /// The union with `others`.
    #[must_use]
    pub const fn and(self, others: Set) -> Set {
        Set(self.0 | others.0)
    }

    /// True when `known` is in the set.
    pub const fn has(self, known: Known) -> bool {
        self.0 >> known as u32 & 1 != 0
    }

    /// True when the set has any of `others`.
    pub const fn has_any(self, others: Set) -> bool {
        self.0 & others.0 != 0
    }
}

/// Eight bytes with their ASCII letters in lower case; bytes that aren't ASCII stay.
fn lower(eight: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let low = eight & (0x7f * ONES);
    let from_a = low + u64::from(0x80 - b'A') * ONES;
    let beyond_z = low + u64::from(0x7f - b'Z') * ONES;
    let capitals = from_a & !beyond_z & !eight & (0x80 * ONES);
    eight | capitals >> 2
}

/// True when `name`, in any case, is the lower-case name `in_lower`. Eight bytes at a time, the last eight perhaps
/// twice.
pub fn is_called(name: &[u8], in_lower: &[u8]) -> bool {
    if name.len() != in_lower.len() {
        return false;
    }
    let halves = |text: &[u8]| {
        let (first, last) = (text.first_chunk::<4>()?, text.last_chunk::<4>()?);
        let half = |half: &[u8; 4]| u64::from(u32::from_le_bytes(*half));
        Some(half(first) << 32 | half(last))
    };
    match (name.last_chunk(), in_lower.last_chunk()) {
        (Some(last), Some(own)) => {
            let same = |(one, other): (&[u8; 8], &[u8; 8])| {
                lower(u64::from_le_bytes(*one)) == u64::from_le_bytes(*other)
            };
            same((last, own))
                && name
                    .as_chunks()
                    .0
                    .iter()
                    .zip(in_lower.as_chunks().0)
                    .all(same)
        }
        _ => match (halves(name), halves(in_lower)) {
            (Some(name), Some(own)) => lower(name) == own,
            _ => name.eq_ignore_ascii_case(in_lower),
        },
    }
}

/// Fields that belong to one connection and are never forwarded (RFC 9110, section 7.6.1), and the fields that sidecars
/// send to each other.
pub(super) const HOP_BY_HOP: Set = Set::of(&[
    Known::Connection,
    Known::TransferEncoding,
    Known::Te,
    Known::Upgrade,
    Known::KeepAlive,
    Known::ProxyConnection,
    Known::ProxyAuthorization,
    Known::ProxyAuthenticate,
    Known::Trailer,
    Known::Http1,
    Known::Http2Settings,
    Known::PeerMetadata,
    Known::PeerMetadataId,
]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_whatever_their_case() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let length = rng.usize(0..20);
            let own: Vec<u8> = (0..length)
                .map(|_| rng.u8(..).to_ascii_lowercase())
                .collect();
            let mut name = own.clone();
            if rng.bool() {
                name.make_ascii_uppercase();
            }
            if length > 0 && rng.bool() {
                let at = rng.usize(..length);
                name[at] ^= [0x20, 0x80, 1][rng.usize(..3)];
            }
            let expected = name.eq_ignore_ascii_case(&own);
            assert_eq!(is_called(&name, &own), expected, "{name:?} {own:?}");
        }
    }
}
