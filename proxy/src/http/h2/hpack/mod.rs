//! HPACK (RFC 7541), the compression of heads: what repeats from message to message is sent once and then as a number.

mod decoder;
mod encoder;
mod huffman;

use std::sync::LazyLock;

use crate::http::h1;
use crate::http::head::Known;

pub(super) use decoder::Decoder;
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
    Malformed(Why),
}

/// Why a message that holds a line is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Value,
    Pseudo,
    Name,
    Connection,
    Te,
}

impl Why {
    pub(super) fn text(self) -> &'static str {
        match self {
            Why::Value => "invalid field value",
            Why::Pseudo => "unknown pseudo-header",
            Why::Name => "invalid field name",
            Why::Connection => "a field of one HTTP/1 connection",
            Why::Te => "TE other than trailers",
        }
    }
}

/// How the names of fields are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Case {
    /// In lower case, as HTTP/2 wants it (RFC 9113, section 8.2.1).
    #[default]
    Lower,
    /// As whoever made the message wrote them: between two sidecars of ours.
    Kept,
}

impl Kind {
    fn of(name: &[u8], value: &[u8], case: Case) -> Kind {
        if !h1::is_text(value) {
            return Kind::Malformed(Why::Value);
        }
        if name.starts_with(b":") {
            return match name {
                b":method" => Kind::Method,
                b":scheme" => Kind::Scheme,
                b":authority" => Kind::Authority,
                b":path" => Kind::Path,
                b":status" => Kind::Status,
                b":protocol" => Kind::Protocol,
                _ => Kind::Malformed(Why::Pseudo),
            };
        }
        let is_lower = || !name.iter().any(u8::is_ascii_uppercase);
        if !h1::is_token(name) || !(case == Case::Kept || is_lower()) {
            return Kind::Malformed(Why::Name);
        }
        match Known::of(name) {
            Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Upgrade => Kind::Malformed(Why::Connection),
            Known::Te if !value.eq_ignore_ascii_case(b"trailers") => Kind::Malformed(Why::Te),
            Known::Other if name.eq_ignore_ascii_case(b"cookie") => Kind::Cookie,
            known => Kind::Field(known),
        }
    }
}

/// A field line as it stands in an HTTP/1 head, with what it is.
#[derive(Debug)]
pub(super) struct Entry {
    line: Vec<u8>,
    name: usize,
    kind: Kind,
    /// What it counts in a table, as it was sent.
    size: usize,
}

impl Entry {
    fn new(kind: Kind, name: &[u8], value: &[u8]) -> Entry {
        let mut entry = Entry::with_room(name.len() + value.len() + 4);
        entry.say(kind, name, value);
        entry
    }

    fn with_room(room: usize) -> Entry {
        Entry {
            line: Vec::with_capacity(room),
            name: 0,
            kind: Kind::Malformed(Why::Name),
            size: OVERHEAD,
        }
    }

    /// Says something else.
    fn say(&mut self, kind: Kind, name: &[u8], value: &[u8]) {
        self.line.clear();
        self.line.extend_from_slice(name);
        self.line.extend_from_slice(b": ");
        self.line.extend_from_slice(&value[h1::trimmed(value)]);
        self.line.extend_from_slice(b"\r\n");
        (self.kind, self.name) = (kind, name.len());
        self.size = name.len() + value.len() + OVERHEAD;
    }

    /// What it is to a message.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// All of it, as HTTP/1 has it.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.line[..self.name]
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.line[self.name + 2..self.line.len() - 2]
    }

    /// Bytes of name and value.
    pub(super) fn len(&self) -> usize {
        self.line.len() - 4
    }

    /// Bytes of the name.
    pub(super) fn name_len(&self) -> usize {
        self.name
    }
}

/// The table that never changes (appendix A); its first entry has the number 1.
static STATIC: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let entry = |(name, value): &(&str, &str)| {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        Entry::new(Kind::of(name, value, Case::Lower), name, value)
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
