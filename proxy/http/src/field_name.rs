//! Field names that the data path handles, recognised once, when a field is parsed.

/// A field name that the data path handles; `Other` is any other name, `Removed` a field that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FieldName {
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

impl FieldName {
    /// Recognises the field `name`, ignoring its case.
    pub fn of(name: &[u8]) -> FieldName {
        let Some(first) = name.first().map(|first| first | 0x20) else {
            return FieldName::Other;
        };
        // The first byte rules out most of the comparisons, of which there are many per request.
        let is = |other: &str| first == other.as_bytes()[0] && name_eq(name, other.as_bytes());
        match name.len() {
            2 if is("te") => FieldName::Te,
            2 if is("b3") => FieldName::B3,
            4 if is("host") => FieldName::Host,
            6 if is("expect") => FieldName::Expect,
            6 if is("server") => FieldName::Server,
            7 if is("upgrade") => FieldName::Upgrade,
            7 if is("trailer") => FieldName::Trailer,
            10 if is("connection") => FieldName::Connection,
            10 if is("keep-alive") => FieldName::KeepAlive,
            11 if is("traceparent") => FieldName::Traceparent,
            11 if is("grpc-status") => FieldName::GrpcStatus,
            12 if is("x-request-id") => FieldName::RequestId,
            12 if is("proxy-status") => FieldName::ProxyStatus,
            12 if is("x-leno-http1") => FieldName::Http1,
            14 if is("content-length") => FieldName::ContentLength,
            14 if is("http2-settings") => FieldName::Http2Settings,
            15 if is("x-forwarded-for") => FieldName::ForwardedFor,
            16 if is("proxy-connection") => FieldName::ProxyConnection,
            17 if is("transfer-encoding") => FieldName::TransferEncoding,
            17 if is("x-forwarded-proto") => FieldName::ForwardedProto,
            18 if is("proxy-authenticate") => FieldName::ProxyAuthenticate,
            19 if is("proxy-authorization") => FieldName::ProxyAuthorization,
            21 if is("x-envoy-attempt-count") => FieldName::AttemptCount,
            21 if is("x-envoy-peer-metadata") => FieldName::PeerMetadata,
            24 if is("x-envoy-peer-metadata-id") => FieldName::PeerMetadataId,
            23 if is("x-forwarded-client-cert") => FieldName::ClientCert,
            5.. if first == b'x' && name_eq(&name[..5], b"x-b3-") => FieldName::B3Multiple,
            8.. if first == b'x' && name_eq(&name[..8], b"x-envoy-") => FieldName::Envoy,
            _ => FieldName::Other,
        }
    }
}

/// A set of field names, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldSet(u32);

impl FieldSet {
    /// The empty set.
    pub const NONE: FieldSet = FieldSet(0);

    /// The set of `fields`.
    pub const fn of(fields: &[FieldName]) -> FieldSet {
        let (mut set, mut at) = (FieldSet::NONE, 0);
        while at < fields.len() {
            set = set.with(fields[at]);
            at += 1;
        }
        set
    }

    /// This set with `known` added.
    #[must_use]
    pub const fn with(self, known: FieldName) -> FieldSet {
        FieldSet(self.0 | 1 << known as u32)
    }

    /// The union with `others`.
    #[must_use]
    pub const fn union(self, others: FieldSet) -> FieldSet {
        FieldSet(self.0 | others.0)
    }

    /// True when `known` is in the set.
    pub const fn has(self, known: FieldName) -> bool {
        self.0 >> known as u32 & 1 != 0
    }

    /// True when the set has any of `others`.
    pub const fn intersects(self, others: FieldSet) -> bool {
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
pub fn name_eq(name: &[u8], in_lower: &[u8]) -> bool {
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
pub(super) const HOP_BY_HOP: FieldSet = FieldSet::of(&[
    FieldName::Connection,
    FieldName::TransferEncoding,
    FieldName::Te,
    FieldName::Upgrade,
    FieldName::KeepAlive,
    FieldName::ProxyConnection,
    FieldName::ProxyAuthorization,
    FieldName::ProxyAuthenticate,
    FieldName::Trailer,
    FieldName::Http1,
    FieldName::Http2Settings,
    FieldName::PeerMetadata,
    FieldName::PeerMetadataId,
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
            assert_eq!(name_eq(&name, &own), expected, "{name:?} {own:?}");
        }
    }
}
