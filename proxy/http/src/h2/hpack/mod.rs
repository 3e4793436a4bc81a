//! HPACK (RFC 7541), the compression of header sections: a field line that repeats from message to message is sent once
//! and then as an index.

mod decoder;
mod encoder;
mod huffman;

use std::sync::LazyLock;

use crate::h1;
use crate::head::FieldName;

pub(super) use decoder::{Decoder, indexed};
pub(super) use encoder::{Encoder, VOLATILE};

/// Size of a dynamic table in bytes, in either direction: the initial value (section 6.5.2 of RFC 9113).
pub(super) const TABLE: usize = 4096;
/// Size of an entry beyond the bytes of its name and value (section 4.1).
const OVERHEAD: usize = 32;

/// The role of a field line in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Method,
    Scheme,
    Authority,
    Path,
    Status,
    Protocol,
    Cookie,
    Field(FieldName),
    /// A message that holds it is malformed (RFC 9113, section 8.1.1).
    Malformed(MalformedReason),
}

/// The reason for which a line makes its message malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MalformedReason {
    Value,
    Pseudo,
    Name,
    Connection,
    Te,
}

impl MalformedReason {
    pub(super) fn text(self) -> &'static str {
        match self {
            MalformedReason::Value => "invalid field value",
            MalformedReason::Pseudo => "unknown pseudo-header",
            MalformedReason::Name => "invalid field name",
            MalformedReason::Connection => "a field of one HTTP/1 connection",
            MalformedReason::Te => "TE other than trailers",
        }
    }
}

/// The case of field names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Case {
    /// In lower case, as HTTP/2 requires (RFC 9113, section 8.2.1).
    #[default]
    Lower,
    /// As the sender of the message wrote them: between two sidecars of ours.
    Kept,
}

impl Kind {
    fn of(name: &[u8], value: &[u8], case: Case) -> Kind {
        if !h1::is_text(value) {
            return Kind::Malformed(MalformedReason::Value);
        }
        if name.starts_with(b":") {
            // Around a field's value whitespace is cut off, as in HTTP/1; what routes a request is taken as it is.
            if h1::trimmed(value).len() != value.len() {
                return Kind::Malformed(MalformedReason::Value);
            }
            return match name {
                b":method" => Kind::Method,
                b":scheme" => Kind::Scheme,
                b":authority" => Kind::Authority,
                b":path" => Kind::Path,
                b":status" => Kind::Status,
                b":protocol" => Kind::Protocol,
                _ => Kind::Malformed(MalformedReason::Pseudo),
            };
        }
        let is_lower = || !name.iter().any(u8::is_ascii_uppercase);
        if !h1::is_token(name) || !(case == Case::Kept || is_lower()) {
            return Kind::Malformed(MalformedReason::Name);
        }
        match FieldName::of(name) {
            FieldName::Connection
            | FieldName::KeepAlive
            | FieldName::ProxyConnection
            | FieldName::TransferEncoding
            | FieldName::Upgrade => Kind::Malformed(MalformedReason::Connection),
            FieldName::Te if !value.eq_ignore_ascii_case(b"trailers") => {
                Kind::Malformed(MalformedReason::Te)
            }
            FieldName::Other if name.eq_ignore_ascii_case(b"cookie") => Kind::Cookie,
            known => Kind::Field(known),
        }
    }
}

/// A field line, with its role in the message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) kind: Kind,
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    /// The whole line in HTTP/1 form, if it comes from a table.
    pub(super) whole: Option<&'a [u8]>,
}

/// A table entry: a field line in HTTP/1 form.
#[derive(Debug)]
struct Entry {
    text: Vec<u8>,
    name: usize,
    kind: Kind,
    /// Its size in a table (section 4.1), counted before the value was trimmed.
    size: usize,
}

impl Entry {
    fn new(line: &Line<'_>) -> Entry {
        let value = &line.value[h1::trimmed(line.value)];
        Entry {
            text: [line.name, b": ", value, b"\r\n"].concat(),
            name: line.name.len(),
            kind: line.kind,
            size: line.name.len() + line.value.len() + OVERHEAD,
        }
    }

    fn name(&self) -> &[u8] {
        &self.text[..self.name]
    }

    #[inline]
    fn line(&self) -> Line<'_> {
        Line {
            kind: self.kind,
            name: self.name(),
            value: &self.text[self.name + 2..self.text.len() - 2],
            whole: Some(&self.text),
        }
    }
}

/// The static table (appendix A); its first entry has the index 1.
static STATIC: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let entry = |(name, value): &(&str, &str)| {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        let kind = Kind::of(name, value, Case::Lower);
        Entry::new(&Line {
            kind,
            name,
            value,
            whole: None,
        })
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

/// Static table indices of pseudo-header fields.
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
