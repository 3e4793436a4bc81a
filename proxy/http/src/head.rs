//! The head of a message: method, target or status, and fields, as ranges of one owned buffer plus edits.
//!
//! HTTP/1 reads straight into the buffer; text that Leno adds is appended to it. The order and the case of fields are
//! kept. Invariant: every range lies inside `bytes`, and every byte of a field passed the strict grammar of
//! `h1::parse`.

use std::cell::RefCell;
use std::{iter, mem};

pub use super::field::{FieldRun, Line, Section, Span};
pub use super::field_name::{FieldName, FieldSet, name_eq};

use super::buffers;
use super::field::Field;
use super::field_name::HOP_BY_HOP;

/// Capacity that suffices for the fields of most messages.
const USUAL: usize = 16;
/// Lists of fields that a thread keeps for reuse.
const SPARE: usize = 256;

thread_local! {
    static ROOMS: RefCell<Vec<Vec<Field>>> = const { RefCell::new(Vec::new()) };
}

/// Frees the lists of fields that no head uses now.
pub fn trim() {
    ROOMS.with_borrow_mut(mem::take);
}

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

/// The head of a request or a response. Its allocations are reused by the next one when it is dropped.
#[derive(Debug, Clone)]
pub struct Head {
    bytes: Vec<u8>,
    fields: Vec<Field>,
    /// Names of the fields that were ever present: most look-ups are for absent ones.
    known: FieldSet,
    /// Index plus one of the first field of each name, at most 255; 0 when there never was one.
    places: [u8; 32],
    /// Range of all fields in the buffer, if there are any and the whole range can be written as it is.
    contiguous: Option<Span>,
    /// Bytes of the names and values of the present fields.
    size: u32,
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
            known: FieldSet::NONE,
            places: [0; 32],
            contiguous: None,
            size: 0,
            first: Span::default(),
            target: Span::default(),
            status: 0,
            version: Version::Http11,
        }
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        if self.bytes.capacity() > 0 {
            buffers::give_back(&mut self.bytes);
        }
        if (USUAL..=4 * USUAL).contains(&self.fields.capacity()) {
            self.fields.clear();
            let room = mem::take(&mut self.fields);
            // A thread that ends keeps nothing.
            let _ = ROOMS.try_with(|rooms| {
                let mut rooms = rooms.borrow_mut();
                if rooms.len() < SPARE {
                    rooms.push(room);
                }
            });
        }
    }
}

impl Head {
    /// A response made here, without fields.
    pub fn response(status: u16) -> Head {
        let mut head = Head::default();
        head.status = status;
        head
    }

    /// A request made here, without fields. For tests and for the requests of `leno explain`.
    pub fn request(method: &str, target: &str) -> Head {
        let mut head = Head::default();
        head.first = head.append(method.as_bytes());
        head.target = head.append(target.as_bytes());
        head
    }

    /// Clears the message and begins one of HTTP/2; its method, target and status are set later.
    pub fn begin_http2(&mut self) {
        self.clear();
        buffers::lend(&mut self.bytes);
        self.version = Version::Http2;
        (self.first, self.target) = Default::default();
    }

    /// Copies the buffer and the fields of `other`, after [`Head::begin_http2`].
    pub fn copy_from(&mut self, other: &Head) {
        self.bytes.extend_from_slice(&other.bytes);
        self.fields.extend_from_slice(&other.fields);
        (self.known, self.places, self.size) = (other.known, other.places, other.size);
        self.contiguous = other.contiguous;
    }

    /// Appends text that is not part of a field to the buffer, such as a pseudo-header's value.
    pub fn append_text(&mut self, text: &[u8]) -> Span {
        self.append(text)
    }

    /// Text that [`Head::append_text`] appended.
    pub fn text(&self, span: Span) -> &[u8] {
        &self.bytes[span.range()]
    }

    /// Clears the message, and makes room for the fields of another.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        if self.fields.capacity() == 0 {
            let room = ROOMS.with_borrow_mut(Vec::pop);
            self.fields = room.unwrap_or_else(|| Vec::with_capacity(USUAL));
        }
        self.known = FieldSet::NONE;
        self.places = [0; 32];
        self.contiguous = None;
        self.size = 0;
        self.status = 0;
    }

    /// Clears the message and gives the buffer back for reuse.
    pub fn release(&mut self) {
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

    /// The parsed fields, whose text begins at `at`.
    pub fn section(&self, at: usize) -> Section {
        let mut fields = self.fields.clone();
        for field in &mut fields {
            field.name = field.name.from(at);
            field.value = field.value.from(at);
        }
        Section {
            fields,
            known: self.known,
            places: self.places,
            contiguous: self.contiguous.map(|fields| fields.from(at)),
            size: self.size,
        }
    }

    /// Records the parsed fields of a section whose text begins at `at`.
    pub fn set_section(&mut self, section: &Section, at: usize) {
        (self.known, self.places, self.size) = (section.known, section.places, section.size);
        self.contiguous = section.contiguous.map(|fields| fields.behind(at));
        self.fields.extend(section.fields.iter().map(|field| Field {
            name: field.name.behind(at),
            value: field.value.behind(at),
            ..*field
        }));
    }

    /// Records a parsed field; `is_verbatim` when the buffer holds it just as [`Head::write_fields`] would write it.
    pub fn push_parsed(&mut self, name: Span, value: Span, known: FieldName, is_verbatim: bool) {
        self.push(name, value, known, (is_verbatim, true));
    }

    fn push(&mut self, name: Span, value: Span, known: FieldName, how: (bool, bool)) {
        self.known = self.known.with(known);
        let place = &mut self.places[known as usize % 32];
        if *place == 0 {
            *place = u8::try_from(self.fields.len() + 1).unwrap_or(u8::MAX);
        }
        self.contiguous = match self.contiguous {
            _ if self.fields.is_empty() && how.0 => Some(Span {
                start: name.start,
                end: value.end + 2,
            }),
            Some(Span { start, end }) if end == name.start && how.0 => Some(Span {
                start,
                end: value.end + 2,
            }),
            _ => None,
        };
        self.size += name.len() + value.len();
        self.fields.push(Field {
            name,
            value,
            known,
            verbatim: how.0,
            mixed_case: how.1,
        });
    }

    /// A response's reason phrase, if it has one other than the canonical one of its status.
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

    /// True when there are no fields.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first value of a known field.
    pub fn get(&self, known: FieldName) -> Option<&[u8]> {
        let place = usize::from(self.places[known as usize % 32]).checked_sub(1)?;
        let field = self.fields.get(place)?;
        let field = match field.known == known {
            true => field,
            // It was removed, or its index doesn't fit into `places`.
            false => self.fields[place..].iter().find(|f| f.known == known)?,
        };
        Some(&self.bytes[field.value.range()])
    }

    /// True when the field was ever present.
    fn may_have(&self, known: FieldName) -> bool {
        self.known.has(known)
    }

    /// Every value of a known field.
    pub fn get_all(&self, known: FieldName) -> impl Iterator<Item = &[u8]> {
        let fields = self.fields.iter().filter(move |f| f.known == known);
        fields.map(|field| &self.bytes[field.value.range()])
    }

    /// Every value of the field with the lower-case name `name`, in whatever case it was sent.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let has_length = move |f: &&Field| f.name.len() as usize == name.len();
        let text = |span: Span| &self.bytes[span.range()];
        let same = move |f: &&Field| name_eq(text(f.name), name.as_bytes());
        let named = self.kept().filter(has_length).filter(same);
        named.map(move |f| text(f.value))
    }

    /// Bytes of the method or reason phrase, the target, and the names and values of the fields, without the separators
    /// that the version adds.
    pub fn size(&self) -> u64 {
        u64::from(self.first.len() + self.target.len() + self.size)
    }

    /// Every field's name and value, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.kept()
            .map(|f| (&self.bytes[f.name.range()], &self.bytes[f.value.range()]))
    }

    /// The fields that aren't in `without`, in stretches as long as possible: adjacent lines that can be written as
    /// they are, or a single one.
    pub fn field_runs(&self, without: FieldSet) -> impl Iterator<Item = FieldRun<'_>> {
        let without = without.with(FieldName::Removed);
        let mut rest = self.fields.as_slice();
        iter::from_fn(move || {
            let from = rest.iter().position(|f| !without.has(f.known))?;
            let (first, more) = rest[from..].split_first()?;
            let mut end = first.value.end + 2;
            let follows = |f: &&Field| {
                let follows = first.verbatim && f.verbatim && f.name.start == end;
                end = f.value.end + 2;
                follows && !without.has(f.known)
            };
            let count = 1 + more.iter().take_while(follows).count();
            let (fields, after) = rest[from..].split_at(count);
            rest = after;
            Some(FieldRun {
                fields,
                bytes: &self.bytes,
            })
        })
    }

    /// The fields that are in `of`.
    pub fn lines(&self, of: FieldSet) -> impl Iterator<Item = Line<'_>> {
        let fields = self.fields.iter().filter(move |f| of.has(f.known));
        fields.map(|field| Line {
            field,
            bytes: &self.bytes,
        })
    }

    /// Removes fields that a trailer section must not carry: those that change the framing or the routing of the
    /// message (RFC 9110, section 6.5.1), or identify its sender.
    pub fn sanitise_trailers(&mut self) {
        for known in [
            FieldName::ContentLength,
            FieldName::Host,
            FieldName::ClientCert,
        ] {
            self.remove(known);
        }
        self.remove_hop_by_hop();
    }

    fn kept(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|f| f.known != FieldName::Removed)
    }

    /// Appends a field. `name` and `value` come from Leno or from another checked head, never from the wire.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        let name = name.as_bytes();
        self.add_known(name, FieldName::of(name), value);
        if name.iter().any(u8::is_ascii_uppercase)
            && let Some(field) = self.fields.last_mut()
        {
            field.mixed_case = true;
        }
    }

    /// Appends a checked field that is `known`, with a lower-case name.
    #[inline(always)]
    pub fn add_known(&mut self, name: &[u8], known: FieldName, value: &[u8]) {
        self.add_checked(name, known, value, false);
    }

    /// Appends a checked field that is `known`; its name is lower-case unless it is `mixed_case`.
    #[inline(always)]
    pub fn add_checked(&mut self, name: &[u8], known: FieldName, value: &[u8], mixed_case: bool) {
        let start = self.bytes.len();
        self.bytes.reserve(name.len() + value.len() + 4);
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(b": ");
        self.bytes.extend_from_slice(value);
        self.bytes.extend_from_slice(b"\r\n");
        self.push_line(start, name.len(), known, mixed_case);
    }

    /// Appends a field with a value that [`Head::append_text`] appended.
    pub fn add_with_text(&mut self, name: &[u8], known: FieldName, value: Span) {
        let name = self.append(name);
        self.bytes.extend_from_slice(b": ");
        let start = self.bytes.len();
        self.bytes.extend_from_within(value.range());
        let value = Span::new(start, self.bytes.len());
        self.bytes.extend_from_slice(b"\r\n");
        self.push(name, value, known, (true, false));
    }

    /// Appends a checked field from a line that is just as [`Head::write_fields`] writes it; its name has `name` bytes,
    /// and is lower-case unless it is `mixed_case`.
    #[inline]
    pub fn add_line(&mut self, line: &[u8], name: usize, known: FieldName, mixed_case: bool) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(line);
        self.push_line(start, name, known, mixed_case);
    }

    /// Records the line from `start` to the end of the buffer.
    #[inline]
    fn push_line(&mut self, start: usize, name: usize, known: FieldName, mixed_case: bool) {
        let value = Span::new(start + name + 2, self.bytes.len() - 2);
        self.push(
            Span::new(start, start + name),
            value,
            known,
            (true, mixed_case),
        );
    }

    /// Sets the only value of a field, keeping its position and the case of its name.
    #[inline(always)]
    pub fn set(&mut self, name: &str, known: FieldName, value: &[u8]) {
        if !self.may_have(known) || !self.replace(known, value) {
            self.add_known(name.as_bytes(), known, value);
        }
    }

    /// Replaces the first value of a field, and removes the others; false when there was none.
    fn replace(&mut self, known: FieldName, value: &[u8]) -> bool {
        let Some(at) = self.fields.iter().position(|f| f.known == known) else {
            return false;
        };
        let value = self.append(value);
        let field = &mut self.fields[at];
        self.size = self.size - field.value.len() + value.len();
        (field.value, field.verbatim) = (value, false);
        self.contiguous = None;
        self.drop_fields(at + 1, |field| field.known == known);
        true
    }

    /// Removes every occurrence of a known field.
    pub fn remove(&mut self, known: FieldName) {
        if !self.may_have(known) {
            return;
        }
        self.drop_fields(0, |field| field.known == known);
    }

    /// Removes the fields from index `from` on that satisfy `is_meant`.
    fn drop_fields(&mut self, from: usize, is_meant: impl Fn(&Field) -> bool) {
        for field in &mut self.fields[from..] {
            if field.known != FieldName::Removed && is_meant(field) {
                field.known = FieldName::Removed;
                self.contiguous = None;
                self.size -= field.name.len() + field.value.len();
            }
        }
    }

    /// Removes the fields that belong to one connection: the fixed set, and those that `Connection` names (RFC 9110,
    /// section 7.6.1).
    pub fn remove_hop_by_hop(&mut self) {
        if !self.known.intersects(HOP_BY_HOP) {
            return;
        }
        if self.get(FieldName::Connection).is_some() {
            self.remove_named_by_connection();
        }
        self.drop_fields(0, |field| HOP_BY_HOP.has(field.known));
    }

    /// `Connection: x` makes x hop-by-hop, but a client can't use it to strip fields that Leno or the framing relies
    /// on.
    fn remove_named_by_connection(&mut self) {
        let mut named = Vec::new();
        for value in self.get_all(FieldName::Connection) {
            for option in value.split(|&b| b == b',') {
                named.push(option.trim_ascii().to_vec());
            }
        }
        let bytes = mem::take(&mut self.bytes);
        self.drop_fields(0, |field| {
            let name = &bytes[field.name.range()];
            field.known == FieldName::Other && named.iter().any(|n| n.eq_ignore_ascii_case(name))
        });
        self.bytes = bytes;
    }

    /// True when a `Connection` field holds `option`.
    pub fn connection_has(&self, option: &str) -> bool {
        let has = |value: &[u8]| {
            let mut options = value.split(|&b| b == b',');
            options.any(|o| o.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
        };
        self.may_have(FieldName::Connection) && self.get_all(FieldName::Connection).any(has)
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

    /// Writes only the fields, of a head or a trailer section. Adjacent lines that can be written as they are in the
    /// buffer are copied in runs.
    pub fn write_fields(&self, out: &mut Vec<u8>) {
        if let Some(fields) = self.contiguous {
            return out.extend_from_slice(&self.bytes[fields.range()]);
        }
        let mut run = 0..0;
        for field in self.kept() {
            let (name, value) = (field.name.range(), field.value.range());
            if field.verbatim && name.start == run.end {
                run.end = value.end + 2;
                continue;
            }
            out.extend_from_slice(&self.bytes[run]);
            run = name.start..value.end + 2;
            if !field.verbatim {
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

/// The canonical reason phrase of a status, or `Unknown`.
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
        head.set("host", FieldName::Host, b"two");
        assert_eq!(
            written(&head),
            "GET /a HTTP/1.1\r\nHOST: two\r\nX-Custom: 1\r\nAccept: */*\r\n"
        );
    }

    #[test]
    fn its_size_is_that_of_what_is_there_after_any_change() {
        let mut head = Head::request("GET", "/a");
        head.add("HOST", b"one");
        head.add("X-Request-Id", b"1");
        head.add("x-request-id", b"22");
        head.add("Connection", b"x-gone");
        head.add("X-Gone", b"1");
        head.add("x-forwarded-for", b"1.1.1.1");
        head.set("x-request-id", FieldName::RequestId, b"4444");
        head.set("traceparent", FieldName::Traceparent, b"00");
        head.remove(FieldName::ForwardedFor);
        head.remove(FieldName::ForwardedFor);
        head.remove_hop_by_hop();
        let fields: usize = head
            .fields()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        assert_eq!(head.size(), (5 + fields) as u64);
        assert_eq!(head.len(), 3);
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

    #[test]
    fn a_known_field_is_found_wherever_it_stands() {
        for before in [0, 1, 252, 253, 254, 255, 256, 400] {
            let mut head = Head::response(200);
            (0..before).for_each(|_| head.add("x", b"y"));
            head.add("server", b"first");
            head.add("x", b"y");
            head.add("server", b"second");
            head.add("expect", b"else");
            assert_eq!(head.get(FieldName::Server), Some(&b"first"[..]), "{before}");
            assert_eq!(head.get(FieldName::Expect), Some(&b"else"[..]), "{before}");
            assert_eq!(head.get(FieldName::Host), None);
            let first = head
                .fields
                .iter_mut()
                .find(|f| f.known == FieldName::Server);
            first.expect("there").known = FieldName::Removed;
            assert_eq!(
                head.get(FieldName::Server),
                Some(&b"second"[..]),
                "{before}"
            );
            head.remove(FieldName::Server);
            assert_eq!(head.get(FieldName::Server), None);
            head.add("server", b"third");
            assert_eq!(head.get(FieldName::Server), Some(&b"third"[..]), "{before}");
        }
    }

    #[test]
    fn what_is_written_is_what_is_there() {
        let (mut rng, mut contiguous) = (fastrand::Rng::with_seed(5), 0);
        for round in 0..2_000 {
            let mut head = Head::response(200);
            for step in 0..rng.usize(..8) {
                let value = format!("{step}");
                match rng.u32(..6) {
                    0 => head.set("server", FieldName::Server, value.as_bytes()),
                    1 => head.remove(FieldName::Server),
                    2 => drop(head.append_text(b"no field")),
                    3 => {
                        let mut next = Head::default();
                        next.begin_http2();
                        next.copy_from(&head);
                        head = next;
                    }
                    4 => {
                        let section = head.section(0);
                        let mut next = Head::default();
                        next.buffer().extend_from_slice(b"moved ");
                        next.buffer().extend_from_slice(&head.bytes);
                        next.set_section(&section, 6);
                        head = next;
                    }
                    _ => head.add("x", value.as_bytes()),
                }
            }
            let (mut written, mut expected) = (Vec::new(), Vec::new());
            contiguous += usize::from(head.contiguous.is_some());
            head.write_fields(&mut written);
            for (name, value) in head.fields() {
                expected.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
            }
            assert_eq!(written, expected, "{round}");
        }
        assert!((200..1_800).contains(&contiguous), "{contiguous}");
    }
}
