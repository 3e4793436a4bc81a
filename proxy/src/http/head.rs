//! The head of a message: method, target or status, and fields, as ranges of one owned buffer plus edits.
//!
//! HTTP/1 reads straight into the buffer; what Leno adds is appended to it. The order and the case of fields are kept.
//! Invariant: every range lies inside `bytes`, and every byte of a field passed the strict grammar of `h1::parse`.

use std::ops::Range;

use super::buffers;

/// A range of the head's buffer. Heads are limited to far less than 4 GiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The range `start..end`; positions beyond 4 GiB can't occur, heads are limited to a few hundred KiB.
    pub fn new(start: usize, end: usize) -> Span {
        let narrow = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Span {
            start: narrow(start),
            end: narrow(end),
        }
    }

    /// Its first `end` bytes, and what comes `skip` bytes after them.
    pub fn split(self, end: usize, skip: usize) -> (Span, Span) {
        let start = self.start as usize;
        let (first, rest) = (start + end, (start + end + skip).min(self.end()));
        (Span::new(start, first), Span::new(rest, self.end()))
    }

    /// Where it ends.
    pub fn end(self) -> usize {
        self.end as usize
    }

    fn len(self) -> usize {
        self.range().len()
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// Fields that most messages have no more of.
const USUAL: usize = 16;

/// One field line.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: Span,
    value: Span,
    known: Known,
    /// Whether the buffer holds it as `name: value`, CR and LF.
    is_plain: bool,
    /// Whether its name may have upper-case letters.
    is_mixed: bool,
}

/// Fields that the path looks at, told apart once, when the field is read.
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
    HeaderCase,
}

impl Known {
    /// Tells which field `name` is, whatever its case.
    pub fn of(name: &[u8]) -> Known {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
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
            14 if is("content-length") => Known::ContentLength,
            15 if is("x-forwarded-for") => Known::ForwardedFor,
            16 if is("proxy-connection") => Known::ProxyConnection,
            17 if is("transfer-encoding") => Known::TransferEncoding,
            17 if is("x-forwarded-proto") => Known::ForwardedProto,
            18 if is("x-leno-header-case") => Known::HeaderCase,
            18 if is("proxy-authenticate") => Known::ProxyAuthenticate,
            19 if is("proxy-authorization") => Known::ProxyAuthorization,
            21 if is("x-envoy-attempt-count") => Known::AttemptCount,
            21 if is("x-envoy-peer-metadata") => Known::PeerMetadata,
            24 if is("x-envoy-peer-metadata-id") => Known::PeerMetadataId,
            23 if is("x-forwarded-client-cert") => Known::ClientCert,
            // One byte tells it from most names, of which there are many a request.
            5.. if name[2] | 0x20 == b'b' && name[..5].eq_ignore_ascii_case(b"x-b3-") => {
                Known::B3Multiple
            }
            8.. if name[..8].eq_ignore_ascii_case(b"x-envoy-") => Known::Envoy,
            _ => Known::Other,
        }
    }

    /// Its place in [`Head::known`].
    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Fields that belong to one connection and never travel on (RFC 9110, section 7.6.1), and what sidecars tell each other: a bit
/// each.
const HOP_BY_HOP: u32 = Known::Connection.bit()
    | Known::TransferEncoding.bit()
    | Known::Te.bit()
    | Known::Upgrade.bit()
    | Known::KeepAlive.bit()
    | Known::ProxyConnection.bit()
    | Known::ProxyAuthorization.bit()
    | Known::ProxyAuthenticate.bit()
    | Known::Trailer.bit()
    | Known::HeaderCase.bit()
    | Known::PeerMetadata.bit()
    | Known::PeerMetadataId.bit();

/// The HTTP version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

/// The head of a request or a response.
#[derive(Debug, Clone)]
pub struct Head {
    bytes: Vec<u8>,
    fields: Vec<Field>,
    /// The fields that were ever there, a bit each: most that are asked for are not.
    known: u32,
    /// A request's method; a response's reason phrase.
    first: Span,
    /// A request's target.
    target: Span,
    /// A response's status; 0 for requests.
    status: u16,
    version: Version,
}

impl Default for Head {
    fn default() -> Head {
        Head {
            bytes: Vec::new(),
            fields: Vec::new(),
            known: 0,
            first: Span::default(),
            target: Span::default(),
            status: 0,
            version: Version::Http11,
        }
    }
}

impl Head {
    /// A response made here, without fields.
    pub fn response(status: u16) -> Head {
        Head {
            status,
            ..Head::default()
        }
    }

    /// A request made here, without fields. For tests and for what `leno explain` asks.
    pub fn request(method: &str, target: &str) -> Head {
        let mut head = Head::default();
        head.first = head.append(method.as_bytes());
        head.target = head.append(target.as_bytes());
        head
    }

    /// Forgets the message and begins one of HTTP/2, whose method, target and status follow.
    pub fn begin(&mut self) {
        self.clear();
        buffers::lend(&mut self.bytes);
        self.fields.reserve(USUAL);
        self.version = Version::Http2;
        (self.first, self.target) = Default::default();
    }

    /// Notes text that is not part of a field.
    pub fn note(&mut self, text: &[u8]) -> Span {
        self.append(text)
    }

    /// A text that was noted.
    pub fn noted(&self, span: Span) -> &[u8] {
        &self.bytes[span.range()]
    }

    /// Forgets the message and keeps the allocations.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.known = 0;
        self.status = 0;
    }

    /// Forgets the message and gives the buffer back to whoever needs it next.
    pub fn rest(&mut self) {
        self.clear();
        buffers::give_back(&mut self.bytes);
    }

    /// The buffer that a message is read into.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Records a parsed request line.
    pub fn set_request_line(&mut self, method: Span, target: Span, version: Version) {
        (self.first, self.target, self.version) = (method, target, version);
        self.status = 0;
    }

    /// Records a parsed status line.
    pub fn set_status_line(&mut self, status: u16, reason: Span, version: Version) {
        (self.status, self.first, self.version) = (status, reason, version);
    }

    /// Records a parsed field; `is_plain` when it stands in the buffer just as [`Head::write_fields`] would write it.
    pub fn push_parsed(&mut self, name: Span, value: Span, known: Known, is_plain: bool) {
        self.push(name, value, known, (is_plain, true));
    }

    fn push(&mut self, name: Span, value: Span, known: Known, how: (bool, bool)) {
        self.known |= known.bit();
        self.fields.push(Field {
            name,
            value,
            known,
            is_plain: how.0,
            is_mixed: how.1,
        });
    }

    /// The names that are written with upper-case letters.
    pub fn mixed_case_names(&self) -> impl Iterator<Item = &[u8]> {
        let mixed = self.kept().filter(|field| field.is_mixed);
        let names = mixed.map(|field| &self.bytes[field.name.range()]);
        names.filter(|name| name.iter().any(u8::is_ascii_uppercase))
    }

    /// A response's reason phrase, if it isn't the one that belongs to its status.
    pub fn unusual_reason(&self) -> Option<&[u8]> {
        let reason = &self.bytes[self.first.range()];
        let is_usual = self.status == 0
            || reason.is_empty()
            || (self.status == 200 && reason == b"OK")
            || reason == reason_phrase(self.status).as_bytes();
        (!is_usual).then_some(reason)
    }

    /// The request's method.
    pub fn method(&self) -> &[u8] {
        &self.bytes[self.first.range()]
    }

    /// The request's target, as it will be sent.
    pub fn target(&self) -> &[u8] {
        &self.bytes[self.target.range()]
    }

    /// Replaces the request's target.
    pub fn set_target(&mut self, target: &[u8]) {
        self.target = self.append(target);
    }

    /// The response's status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Replaces the response's status.
    pub fn set_status(&mut self, status: u16) {
        self.status = status;
    }

    /// The message's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.fields().count()
    }

    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first value of a field that the path knows.
    pub fn get(&self, known: Known) -> Option<&[u8]> {
        if !self.may_have(known) {
            return None;
        }
        let field = self.fields.iter().find(|field| field.known == known)?;
        Some(&self.bytes[field.value.range()])
    }

    /// Whether a field was ever there.
    fn may_have(&self, known: Known) -> bool {
        self.known & known.bit() != 0
    }

    /// Every value of a field that the path knows.
    pub fn get_all(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let fields = self.fields.iter().filter(move |f| f.known == known);
        fields.map(|field| &self.bytes[field.value.range()])
    }

    /// Every value of the field `name`, whatever its case.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let same = move |n: &[u8]| n.eq_ignore_ascii_case(name.as_bytes());
        self.fields().filter(move |(n, _)| same(n)).map(|(_, v)| v)
    }

    /// Bytes of the message's head but for what its version adds between them.
    pub fn size(&self) -> u64 {
        let fields = self.kept().map(|f| f.name.len() + f.value.len());
        (self.first.len() + self.target.len() + fields.sum::<usize>()) as u64
    }

    /// Every field's name and value, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.kept()
            .map(|f| (&self.bytes[f.name.range()], &self.bytes[f.value.range()]))
    }

    /// Every field with what the path knows it as.
    pub fn known_fields(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        let name = |f: &Field| &self.bytes[f.name.range()];
        self.kept()
            .map(move |f| (f.known, name(f), &self.bytes[f.value.range()]))
    }

    /// Writes the names of fields just as they are in the text `names`, which was noted, separated by commas, each for one
    /// field. Most stand in the order of the fields.
    pub fn set_case(&mut self, names: Span) {
        let (mut at, mut next) = (names.start as usize, 0);
        while at < names.end() {
            let mut others = (next + 1..self.fields.len()).chain(0..next);
            let field = match self.is_called(next, at, names.end()) {
                true => Some(next),
                false => others.find(|field| self.is_called(*field, at, names.end())),
            };
            let Some(field) = field else {
                let rest = &self.bytes[at..names.end()];
                at += memchr::memchr(b',', rest).unwrap_or(rest.len()) + 1;
                continue;
            };
            let own = self.fields[field].name.range();
            let end = at + own.len();
            self.bytes.copy_within(at..end, own.start);
            self.fields[field].is_mixed = true;
            (at, next) = (end + 1, field + 1);
        }
    }

    /// Whether a field's name is the one at the front of the text `at..end` of names.
    fn is_called(&self, field: usize, at: usize, end: usize) -> bool {
        let Some(field) = self.fields.get(field) else {
            return false;
        };
        let name = &self.bytes[field.name.range()];
        let names = &self.bytes[at..end];
        matches!(names.get(name.len()), None | Some(b','))
            && names.len() >= name.len()
            && names[..name.len()].eq_ignore_ascii_case(name)
    }

    /// Removes what a trailer section must not carry: fields that change how the message is framed or routed (RFC 9110,
    /// section 6.5.1), or say who sent it.
    pub fn sanitise_trailers(&mut self) {
        for known in [Known::ContentLength, Known::Host, Known::ClientCert] {
            self.remove(known);
        }
        self.remove_hop_by_hop();
    }

    fn kept(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|f| f.known != Known::Removed)
    }

    /// Appends a field. `name` and `value` come from Leno or from another checked head, never from the wire.
    #[inline]
    pub fn add(&mut self, name: &str, value: &[u8]) {
        let name = name.as_bytes();
        self.add_known(name, Known::of(name), value);
        if name.iter().any(u8::is_ascii_uppercase)
            && let Some(field) = self.fields.last_mut()
        {
            field.is_mixed = true;
        }
    }

    /// Appends a field that was checked, is told from others, and has a lower-case name.
    pub fn add_known(&mut self, name: &[u8], known: Known, value: &[u8]) {
        self.bytes.reserve(name.len() + value.len() + 4);
        let name = self.append(name);
        self.bytes.extend_from_slice(b": ");
        let value = self.append(value);
        self.bytes.extend_from_slice(b"\r\n");
        self.push(name, value, known, (true, false));
    }

    /// Appends a field with a text that was noted.
    pub fn add_noted(&mut self, name: &[u8], known: Known, value: Span) {
        let name = self.append(name);
        self.bytes.extend_from_slice(b": ");
        let start = self.bytes.len();
        self.bytes.extend_from_within(value.range());
        let value = Span::new(start, self.bytes.len());
        self.bytes.extend_from_slice(b"\r\n");
        self.push(name, value, known, (true, false));
    }

    /// Appends a field that was checked and stands there as [`Head::write_fields`] writes it; its name has `name` bytes.
    pub fn add_line(&mut self, line: &[u8], name: usize, known: Known) {
        let start = self.append(line).start as usize;
        let end = start + line.len() - 2;
        let (name, value) = (
            Span::new(start, start + name),
            Span::new(start + name + 2, end),
        );
        self.push(name, value, known, (true, false));
    }

    /// Sets the one value of a field, in the place and case that it had.
    pub fn set(&mut self, name: &str, known: Known, value: &[u8]) {
        let at = match self.may_have(known) {
            true => self.fields.iter().position(|f| f.known == known),
            false => None,
        };
        let Some(at) = at else {
            return self.add_known(name.as_bytes(), known, value);
        };
        let value = self.append(value);
        self.fields[at].value = value;
        self.fields[at].is_plain = false;
        for field in &mut self.fields[at + 1..] {
            if field.known == known {
                field.known = Known::Removed;
            }
        }
    }

    /// Removes every occurrence of a field that the path knows.
    pub fn remove(&mut self, known: Known) {
        if !self.may_have(known) {
            return;
        }
        for field in &mut self.fields {
            if field.known == known {
                field.known = Known::Removed;
            }
        }
    }

    /// Removes what belongs to one connection: the fixed set, and what `Connection` names (RFC 9110, section 7.6.1).
    pub fn remove_hop_by_hop(&mut self) {
        if self.known & HOP_BY_HOP == 0 {
            return;
        }
        if self.get(Known::Connection).is_some() {
            self.remove_named_by_connection();
        }
        for field in &mut self.fields {
            if field.known.bit() & HOP_BY_HOP != 0 {
                field.known = Known::Removed;
            }
        }
    }

    /// `Connection: x` makes x hop-by-hop, but a client can't use it to strip what Leno or the framing relies on.
    fn remove_named_by_connection(&mut self) {
        let mut named = Vec::new();
        for value in self.get_all(Known::Connection) {
            for option in value.split(|&b| b == b',') {
                named.push(option.trim_ascii().to_vec());
            }
        }
        for field in &mut self.fields {
            let name = &self.bytes[field.name.range()];
            let is_named = named.iter().any(|n| n.eq_ignore_ascii_case(name));
            if is_named && field.known == Known::Other {
                field.known = Known::Removed;
            }
        }
    }

    /// Whether a `Connection` field holds `option`.
    pub fn connection_has(&self, option: &str) -> bool {
        let has = |value: &[u8]| {
            let mut options = value.split(|&b| b == b',');
            options.any(|o| o.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
        };
        self.may_have(Known::Connection) && self.get_all(Known::Connection).any(has)
    }

    /// Writes the request line and the fields as HTTP/1.1, without the empty line that ends the head.
    pub fn write_request(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method());
        out.push(b' ');
        out.extend_from_slice(self.target());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        self.write_fields(out);
    }

    /// Writes the status line and the fields as HTTP/1.1, without the empty line that ends the head.
    pub fn write_response(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        let digit = |n: u16| b'0' + u8::try_from(n % 10).unwrap_or(0);
        let status = self.status;
        out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status), b' ']);
        let reason = &self.bytes[self.first.range()];
        if reason.is_empty() {
            out.extend_from_slice(reason_phrase(status).as_bytes());
        } else {
            out.extend_from_slice(reason);
        }
        out.extend_from_slice(b"\r\n");
        self.write_fields(out);
    }

    /// Writes the fields alone: a head's, or a trailer section's. What stands in the buffer as it is to be written is
    /// copied in runs.
    pub fn write_fields(&self, out: &mut Vec<u8>) {
        let mut run = 0..0;
        for field in self.kept() {
            let (name, value) = (field.name.range(), field.value.range());
            if field.is_plain && name.start == run.end {
                run.end = value.end + 2;
                continue;
            }
            out.extend_from_slice(&self.bytes[run]);
            run = name.start..value.end + 2;
            if !field.is_plain {
                out.extend_from_slice(&self.bytes[name]);
                out.extend_from_slice(b": ");
                out.extend_from_slice(&self.bytes[value]);
                out.extend_from_slice(b"\r\n");
                run = 0..0;
            }
        }
        out.extend_from_slice(&self.bytes[run]);
    }

    fn append(&mut self, bytes: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Span::new(start, self.bytes.len())
    }
}

/// The phrase for a status that Leno answers with itself.
fn reason_phrase(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|code| code.canonical_reason())
        .unwrap_or("Unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(head: &Head) -> String {
        let mut out = Vec::new();
        head.write_request(&mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn order_and_case_are_kept_and_edits_apply() {
        let mut head = Head::request("GET", "/a");
        head.add("HOST", b"one");
        head.add("X-Custom", b"1");
        head.add("Accept", b"*/*");
        head.set("host", Known::Host, b"two");
        assert_eq!(
            written(&head),
            "GET /a HTTP/1.1\r\nHOST: two\r\nX-Custom: 1\r\nAccept: */*\r\n"
        );
    }

    #[test]
    fn hop_by_hop_fields_do_not_travel() {
        let mut head = Head::request("GET", "/");
        head.add("Connection", b"keep-alive, X-Secret, Host");
        head.add("Keep-Alive", b"timeout=5");
        head.add("X-Secret", b"1");
        head.add("Host", b"h");
        head.remove_hop_by_hop();
        assert_eq!(written(&head), "GET / HTTP/1.1\r\nHost: h\r\n");
    }

    #[test]
    fn a_connection_option_is_found_among_others() {
        let mut head = Head::request("GET", "/");
        head.add("Connection", b"foo, Close");
        assert!(head.connection_has("close"));
        assert!(!head.connection_has("keep-alive"));
    }
}
