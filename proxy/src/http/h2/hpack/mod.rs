//! HPACK (RFC 7541), the compression of heads: what repeats from message to message is sent once and then as a number.

mod decoder;
mod encoder;
mod huffman;

use std::sync::LazyLock;

use crate::http::h1;
use crate::http::head::Known;

pub(super) use decoder::{Decoder, Line};
pub(super) use encoder::Encoder;

/// Bytes of entries that a table holds, either way (section 6.5.2 of RFC 9113).
pub(super) const TABLE: usize = 4096;
/// What an entry counts besides its bytes (section 4.1).
const OVERHEAD: usize = 32;

/// What a field line is to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Method,
    Scheme,
    Authority,
    Path,
    Status,
    Protocol,
    Cookie,
    Field(Known),
    /// A message that holds it is malformed (RFC 9113, section 8.1.1).
    Malformed(&'static str),
}

impl Kind {
    fn of(name: &[u8], value: &[u8]) -> Kind {
        if !h1::is_text(value) {
            return Kind::Malformed("invalid field value");
        }
        if name.starts_with(b":") {
            return match name {
                b":method" => Kind::Method,
                b":scheme" => Kind::Scheme,
                b":authority" => Kind::Authority,
                b":path" => Kind::Path,
                b":status" => Kind::Status,
                b":protocol" => Kind::Protocol,
                _ => Kind::Malformed("unknown pseudo-header"),
            };
        }
        if !h1::is_token(name) || name.iter().any(u8::is_ascii_uppercase) {
            return Kind::Malformed("invalid field name");
        }
        match Known::of(name) {
            Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Upgrade => Kind::Malformed("a field of one HTTP/1 connection"),
            Known::Te if !value.eq_ignore_ascii_case(b"trailers") => {
                Kind::Malformed("TE other than trailers")
            }
            Known::Other if name == b"cookie" => Kind::Cookie,
            known => Kind::Field(known),
        }
    }
}

/// A value without the spaces around it, which mean nothing.
fn trimmed(value: &[u8]) -> &[u8] {
    let is_text = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let start = value.iter().position(is_text).unwrap_or(value.len());
    let end = value
        .iter()
        .rposition(is_text)
        .map_or(start, |last| last + 1);
    &value[start..end]
}

/// A field line as it stands in an HTTP/1 head, with what it is.
#[derive(Debug)]
struct Entry {
    line: Box<[u8]>,
    name: usize,
    kind: Kind,
    /// What it counts in a table, as it was sent.
    size: usize,
}

impl Entry {
    fn new(kind: Kind, name: &[u8], value: &[u8]) -> Entry {
        Entry {
            line: [name, b": ", trimmed(value), b"\r\n"].concat().into(),
            name: name.len(),
            kind,
            size: name.len() + value.len() + OVERHEAD,
        }
    }

    fn name(&self) -> &[u8] {
        &self.line[..self.name]
    }

    fn value(&self) -> &[u8] {
        &self.line[self.name + 2..self.line.len() - 2]
    }
}

/// The table that never changes (appendix A); its first entry has the number 1.
static STATIC: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let entry = |(name, value): &(&str, &str)| {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        Entry::new(Kind::of(name, value), name, value)
    };
    LINES.iter().map(entry).collect()
});

const LINES: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Numbers of lines of the static table that a head begins with.
pub(super) mod number {
    pub(crate) const AUTHORITY: u8 = 1;
    pub(crate) const METHOD: u8 = 2;
    pub(crate) const GET: u8 = 2;
    pub(crate) const POST: u8 = 3;
    pub(crate) const PATH: u8 = 4;
    pub(crate) const HTTP: u8 = 6;
    pub(crate) const STATUS: u8 = 8;
    pub(crate) const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
}
