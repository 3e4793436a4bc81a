//! Parses heads, in one pass and strictly: a line ends with CR LF and nothing else, there is one space where RFC 9112
//! has one, a target has one of its four forms, and HTTP/1.1 has exactly one `Host`.
//!
//! Bound: at most 1 KiB of fields is cached for a connection; the pool keeps those of the last closed one.

use std::ops::Range;
use std::rc::Rc;

use super::HeadLimits;
use crate::error::InvalidHead;
use crate::head::{FieldName, Head, Section, Span, Version};
use crate::method;

/// Cache of the fields of the last head that a peer sent: those of the next one are mostly the same, and aren't parsed
/// again then.
#[derive(Debug, Default, Clone)]
pub struct LastHead {
    /// Their text, to the end of the head, and its parsed form.
    fields: Option<Rc<(Vec<u8>, Section)>>,
    /// Consecutive heads that missed the cache.
    misses: u8,
}

impl LastHead {
    /// Larger sections, in bytes, are not worth their memory.
    const LARGE: usize = 1024;
    /// Misses in a row after which nothing is cached any more: such a peer never repeats its fields.
    const MAX_MISSES: u8 = 8;

    /// A copy for another connection, with no misses: its peer may be more constant.
    #[must_use]
    pub fn for_connection(&self) -> LastHead {
        let fields = self.fields.clone();
        LastHead { fields, misses: 0 }
    }

    /// Sets the cached fields in `head` if their text is at `at`; returns the end of the text.
    #[inline]
    fn get(&mut self, bytes: &[u8], at: usize, head: &mut Head) -> Option<usize> {
        let (text, section) = self.fields.as_deref()?;
        if !bytes[at..].starts_with(text) {
            return None;
        }
        self.misses = 0;
        head.set_section(section, at);
        Some(at + text.len())
    }

    /// Caches the fields that were parsed into `head` from `text`, which begins at `at`.
    #[cold]
    fn insert(&mut self, text: &[u8], at: usize, head: &Head) {
        if self.misses == LastHead::MAX_MISSES || text.len() > LastHead::LARGE {
            self.fields = None;
            return;
        }
        self.misses += 1;
        self.fields = Some(Rc::new((text.to_vec(), head.section(at))));
    }
}

/// The end of the head; `None` while it is incomplete.
type Parsed = Result<Option<usize>, InvalidHead>;

/// Parses the request head at the front of `head`'s buffer.
///
/// # Errors
/// [`InvalidHead`] when it isn't a request that Leno accepts: its syntax is checked as it is read, the rest by
/// [`check_request`] once the head is complete.
pub fn parse_request(head: &mut Head, limits: &HeadLimits, before: &mut LastHead) -> Parsed {
    let end = with_bytes(head, |bytes, head| {
        let Some((line, at)) = take_line(bytes, 0)? else {
            return Ok(None);
        };
        request_line(line, head)?;
        fields_again(bytes, at, head, limits, before)
    })?;
    if end.is_some() {
        check_request(head)?;
    }
    Ok(end)
}

/// True for a token (RFC 9110, section 5.6.2).
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && all(text, TOKEN)
}

/// True for a valid field value: without control characters but tabs.
pub fn is_text(value: &[u8]) -> bool {
    let is_control = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
    let has_one = |bytes: &[u8; 16]| {
        bytes
            .iter()
            .fold(false, |has, byte| has | is_control(*byte))
    };
    match value.last_chunk() {
        None => text(value) == value.len(),
        // Sixteen at a time, the last of them perhaps twice.
        Some(last) => !has_one(last) && !value.as_chunks().0.iter().any(has_one),
    }
}

/// True for the name of a method; the two most frequent aren't checked byte by byte.
pub fn is_token_method(name: &[u8]) -> bool {
    matches!(name, b"GET" | b"POST") || is_token(name)
}

/// Checks a request's head: its method, its target, its `Host`.
///
/// # Errors
/// [`InvalidHead`] when its method is a registered one in another case, its target isn't one that Leno accepts, or its
/// `Host` is invalid, repeated, or missing in HTTP/1.1.
pub fn check_request(head: &Head) -> Result<(), InvalidHead> {
    if method::is_registered_in_another_case(head.method()) {
        let text = "the method is a registered one in another case";
        return Err(InvalidHead::Syntax(text));
    }
    check_target(head)?;
    check_host(head)
}

/// Parses the response head at the front of `head`'s buffer.
///
/// # Errors
/// [`InvalidHead`] when it isn't a response that Leno accepts; its syntax is checked as it is read.
pub fn parse_response(head: &mut Head, limits: &HeadLimits, before: &mut LastHead) -> Parsed {
    with_bytes(head, |bytes, head| {
        let Some((line, at)) = take_line(bytes, 0)? else {
            return Ok(None);
        };
        status_line(line, head)?;
        fields_again(bytes, at, head, limits, before)
    })
}

/// Parses the trailer section at the front of `head`'s buffer, its empty line included.
///
/// # Errors
/// [`InvalidHead`] when a field isn't well-formed, or there are too many.
pub fn parse_trailers(head: &mut Head, limits: &HeadLimits) -> Parsed {
    with_bytes(head, |bytes, head| fields(bytes, 0, head, limits))
}

/// Lends the head's buffer to `parse`, which records the parsed parts in the head.
fn with_bytes(head: &mut Head, parse: impl FnOnce(&[u8], &mut Head) -> Parsed) -> Parsed {
    let bytes = std::mem::take(head.buffer());
    let parsed = parse(&bytes, head);
    *head.buffer() = bytes;
    parsed
}

const NO_CR_LF: InvalidHead = InvalidHead::Syntax("a line must end with CR LF");

const TOKEN: u8 = 1;
const TARGET: u8 = 2;
const HOST: u8 = 4;

/// The character classes of each byte.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0x21;
    while byte < 0x7f {
        let mut class = TARGET;
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => class |= TOKEN | HOST,
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'*' | b'+' | b'%' => {
                class |= TOKEN | HOST;
            }
            b'^' | b'|' => class |= TOKEN,
            b':' | b'[' | b']' | b'(' | b')' | b';' | b'=' => class |= HOST,
            b'#' => class = TOKEN,
            b'`' => class = TOKEN,
            b'"' | b'<' | b'>' => class = 0,
            _ => {}
        }
        classes[byte as usize] = class;
        byte += 1;
    }
    classes
};

fn all(bytes: &[u8], class: u8) -> bool {
    leading(bytes, class) == bytes.len()
}

/// Number of leading bytes of a class. A function of its own, since nested loops are compiled badly; four bytes at a
/// time.
#[inline(never)]
fn leading(bytes: &[u8], class: u8) -> usize {
    let is = |byte: u8| CLASSES[usize::from(byte)] & class != 0;
    let (fours, rest) = bytes.as_chunks::<4>();
    let mut length = 0;
    for four in fours {
        for (at, byte) in four.iter().enumerate() {
            if !is(*byte) {
                return length + at;
            }
        }
        length += 4;
    }
    length + rest.iter().take_while(|byte| is(**byte)).count()
}

/// Number of leading bytes of a field value or a reason phrase: no control character but tabs. Eight bytes at a time:
/// the lowest byte set in `marks` is the first that is below a space, or DEL.
#[inline(never)]
fn text(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    let is_text = |byte: u8| (byte >= b' ' && byte != 0x7f) || byte == b'\t';
    let mut at = 0;
    while let Some(eight) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*eight);
        let low = word.wrapping_sub(0x20 * ONES) & !word;
        let del = (word ^ (0x7f * ONES)).wrapping_sub(ONES) & !(word ^ (0x7f * ONES));
        let marks = (low | del) & HIGH;
        if marks == 0 {
            at += 8;
            continue;
        }
        at += marks.trailing_zeros() as usize / 8;
        if bytes[at] != b'\t' {
            return at;
        }
        at += 1;
    }
    at + bytes[at..]
        .iter()
        .take_while(|byte| is_text(**byte))
        .count()
}

/// The line that starts at `at`, without CR LF, and the start of the next one; `None` while it is incomplete.
fn take_line(bytes: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, InvalidHead> {
    let rest = &bytes[at..];
    let Some(end) = memchr::memchr(b'\n', rest) else {
        return Ok(None);
    };
    match rest[..end].strip_suffix(b"\r") {
        Some(line) => Ok(Some((line, at + end + 1))),
        None => Err(InvalidHead::Syntax("a line must end with CR LF")),
    }
}

fn version(text: &[u8]) -> Result<Version, InvalidHead> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        _ => Err(InvalidHead::Syntax("not HTTP/1.0 or HTTP/1.1")),
    }
}

/// RFC 9112, section 3: `method SP request-target SP HTTP-version`.
fn request_line(line: &[u8], head: &mut Head) -> Result<(), InvalidHead> {
    let shape = InvalidHead::Syntax("invalid method or target");
    let method = match line {
        [b'G', b'E', b'T', b' ', ..] => 3,
        line => memchr::memchr(b' ', line).ok_or(shape)?,
    };
    let target = line.len().checked_sub(9).filter(|end| *end > method + 1);
    let target = target.filter(|end| line[*end] == b' ').ok_or(shape)?;
    let version = version(&line[target + 1..])?;
    if !is_token_method(&line[..method]) {
        return Err(shape);
    }
    let span = Span::new(method + 1, target);
    head.set_request_line(Span::new(0, method), span, version);
    Ok(())
}

/// RFC 9112, section 4: `HTTP-version SP status-code SP [ reason-phrase ]`; the last space may be missing, as other
/// parsers allow.
fn status_line(line: &[u8], head: &mut Head) -> Result<(), InvalidHead> {
    let shape = InvalidHead::Syntax("invalid status line");
    let version = version(line.get(..8).ok_or(shape)?)?;
    let (Some(b' '), Some(code)) = (line.get(8), line.get(9..12)) else {
        return Err(shape);
    };
    let reason = match line.get(12) {
        None => Span::default(),
        Some(b' ') if text(&line[13..]) == line.len() - 13 => Span::new(13, line.len()),
        Some(_) => return Err(shape),
    };
    if !code.iter().all(u8::is_ascii_digit) || code[0] == b'0' {
        return Err(shape);
    }
    let digit = |at: usize| u16::from(code[at] - b'0');
    let code = digit(0) * 100 + digit(1) * 10 + digit(2);
    head.set_status_line(code, reason, version);
    Ok(())
}

/// Parses the fields, unless they are the cached ones.
fn fields_again(
    bytes: &[u8],
    at: usize,
    head: &mut Head,
    limits: &HeadLimits,
    before: &mut LastHead,
) -> Parsed {
    if let Some(end) = before.get(bytes, at, head) {
        return Ok(Some(end));
    }
    let end = fields(bytes, at, head, limits)?;
    if let Some(end) = end {
        before.insert(&bytes[at..end], at, head);
    }
    Ok(end)
}

/// RFC 9112, section 5: lines of `name ":" OWS value OWS`, and an empty one after the last.
fn fields(bytes: &[u8], mut at: usize, head: &mut Head, limits: &HeadLimits) -> Parsed {
    for _ in 0..=limits.headers {
        let line = &bytes[at..];
        let length = leading(line, TOKEN);
        if length == 0 || line.get(length) != Some(&b':') {
            return no_field(line, length).map(|end| end.map(|end| at + end));
        }
        let after = &line[length + 1..];
        let value = &after[..text(after)];
        if after.get(value.len()..value.len() + 2) != Some(b"\r\n") {
            return no_end_of_line(&after[value.len()..]).map(|()| None);
        }
        let known = FieldName::of(&line[..length]);
        let is_blank = |byte: u8| matches!(byte, b' ' | b'\t');
        let is_verbatim = match value {
            [b' ', first] => !is_blank(*first),
            [b' ', first, .., last] => !is_blank(*first) && !is_blank(*last),
            _ => false,
        };
        let start = at + length + 1;
        let text = match is_verbatim {
            true => 1..value.len(),
            false => trimmed(value),
        };
        let value_at = Span::new(start + text.start, start + text.end);
        head.push_parsed(Span::new(at, at + length), value_at, known, is_verbatim);
        at = start + value.len() + 2;
    }
    Err(InvalidHead::TooMany(limits.headers))
}

/// Classifies a line that begins with `length` bytes of a name and no colon after them: the end of the fields, an
/// incomplete line, or an error.
fn no_field(line: &[u8], length: usize) -> Parsed {
    match (length, line) {
        (0, [b'\r', b'\n', ..]) => Ok(Some(2)),
        (0, b"\r") => Ok(None),
        (length, line) if length == line.len() => Ok(None),
        (0, [b'\r' | b'\n', ..]) => Err(NO_CR_LF),
        _ => Err(InvalidHead::Syntax("invalid header name")),
    }
}

/// The range of a value without the whitespace around it, which is not part of it (RFC 9110, section 5.5).
pub fn trimmed(value: &[u8]) -> Range<usize> {
    let is_text = |byte: &u8| !matches!(byte, b' ' | b'\t');
    match value {
        [first, .., last] if is_text(first) && is_text(last) => 0..value.len(),
        _ => {
            let from = value.iter().position(is_text).unwrap_or(value.len());
            let to = value
                .iter()
                .rposition(is_text)
                .map_or(from, |last| last + 1);
            from..to
        }
    }
}

/// Checks that the bytes after a value may still become CR LF.
fn no_end_of_line(rest: &[u8]) -> Result<(), InvalidHead> {
    match rest {
        [] | b"\r" => Ok(()),
        [b'\n', ..] | [b'\r', _, ..] => Err(NO_CR_LF),
        _ => Err(InvalidHead::Syntax("invalid header value")),
    }
}

/// RFC 9112, section 3.2: origin-form, absolute-form, authority-form (CONNECT), asterisk-form (OPTIONS).
fn check_target(head: &Head) -> Result<(), InvalidHead> {
    let target = head.target();
    if !all(target, TARGET) {
        return Err(InvalidHead::Syntax("invalid character in the target"));
    }
    let fits = match (head.method(), target.first()) {
        (b"CONNECT", _) => is_host_port(target),
        (_, Some(b'/')) => true,
        (b"OPTIONS", _) if target == b"*" => true,
        _ => target
            .get(..7)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"http://")),
    };
    match fits {
        true => Ok(()),
        false => Err(InvalidHead::Syntax(
            "the target is neither a path nor an http:// URI",
        )),
    }
}

fn is_host_port(target: &[u8]) -> bool {
    let Some(colon) = target.iter().rposition(|&b| b == b':') else {
        return false;
    };
    let (host, port) = (&target[..colon], &target[colon + 1..]);
    !host.is_empty() && all(host, HOST) && !port.is_empty() && port.iter().all(u8::is_ascii_digit)
}

fn check_host(head: &Head) -> Result<(), InvalidHead> {
    let mut hosts = head.get_all(FieldName::Host);
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version() == Version::Http11 => {
            Err(InvalidHead::Syntax("no Host header"))
        }
        (Some(_), Some(_)) => Err(InvalidHead::Syntax("more than one Host header")),
        (Some(host), None) if !all(host, HOST) => Err(InvalidHead::Syntax("invalid Host header")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Head, InvalidHead> {
        let mut head = Head::default();
        head.buffer().extend_from_slice(text.as_bytes());
        match parse_request(&mut head, &HeadLimits::default(), &mut LastHead::default())? {
            Some(end) if end == text.len() => Ok(head),
            _ => Err(InvalidHead::Syntax("not whole")),
        }
    }

    #[test]
    fn a_plain_request_is_read_field_by_field() {
        let head = parsed("POST /a?b=c HTTP/1.1\r\nHOST: h:80\r\nX-Empty:\r\nA:  b \t\r\n\r\n")
            .expect("valid");
        assert_eq!(head.method(), b"POST");
        assert_eq!(head.target(), b"/a?b=c");
        let fields: Vec<_> = head.fields().collect();
        let expected: [(&[u8], &[u8]); 3] = [(b"HOST", b"h:80"), (b"X-Empty", b""), (b"A", b"b")];
        assert_eq!(fields, expected);
    }

    #[test]
    fn what_parsers_disagree_about_is_refused() {
        for text in [
            "GET / HTTP/1.1\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n\n",
            "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: h\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: h\r\n\r\n",
            "GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /#f HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /?\" HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET https://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
            "CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : h\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA\0: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nNoColon\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h/evil\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
        ] {
            assert!(parsed(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_registered_method_in_another_case_is_refused_and_other_methods_pass() {
        for (method, passes) in [
            ("get", false),
            ("Get", false),
            ("pOST", false),
            ("delete", false),
            ("version-Control", false),
            ("GET", true),
            ("PATCH", true),
            ("VERSION-CONTROL", true),
            ("purge", true),
            ("Purge", true),
            ("g", true),
            ("getx", true),
        ] {
            let text = format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(parsed(&text).is_ok(), passes, "{method}");
        }
    }

    #[test]
    fn the_number_of_fields_is_bounded_exactly() {
        for (limit, room) in [(2, 2), (150, 150)] {
            let limits = HeadLimits {
                headers: limit,
                ..HeadLimits::default()
            };
            let with = |count: usize| {
                let mut head = Head::default();
                let extra = "A: b\r\n".repeat(count - 1);
                let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{extra}\r\n");
                head.buffer().extend_from_slice(text.as_bytes());
                parse_request(&mut head, &limits, &mut LastHead::default())
            };
            assert!(matches!(with(room), Ok(Some(_))));
            assert_eq!(with(room + 1), Err(InvalidHead::TooMany(limit)));
        }
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_the_reads_were_cut() {
        let text = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nbody";
        for cut in 0..=text.len() {
            let mut head = Head::default();
            head.buffer().extend_from_slice(&text[..cut]);
            let end = parse_request(&mut head, &HeadLimits::default(), &mut LastHead::default());
            assert_eq!(end, Ok((cut >= 27).then_some(27)), "{cut}");
        }
    }

    #[test]
    fn a_head_is_read_the_same_whatever_came_before() {
        let sections = [
            "Host: h\r\nUser-Agent: a\r\n\r\n",
            "Host: h\r\nUser-Agent: a\r\nX: y\r\n\r\n",
            "Host: h\r\nUser-Agent: b\r\n\r\n",
            "Host: h\r\n\r\n",
        ];
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut before, mut recalled) = (LastHead::default(), 0);
        for round in 0..300 {
            // Resets the misses: at `MAX_MISSES` nothing would be cached any more.
            before = before.for_connection();
            let section = sections[rng.usize(..sections.len()) * usize::from(rng.bool())];
            let target = "/a".repeat(rng.usize(1..4));
            let text = format!("GET {target} HTTP/1.1\r\n{section}");
            let mut head = Head::default();
            // The bytes that follow are no part of the head, and one without its last byte is incomplete.
            for (cut, end) in [(1, None), (0, Some(text.len()))] {
                head.clear();
                head.buffer().clear();
                head.buffer()
                    .extend_from_slice(&text.as_bytes()[..text.len() - cut]);
                let more: &[u8] = if cut == 0 { b"Host: h\r\n" } else { b"" };
                head.buffer().extend_from_slice(more);
                let read = parse_request(&mut head, &HeadLimits::default(), &mut before);
                assert_eq!(read, Ok(end), "{round}");
                recalled += usize::from(end.is_some() && before.misses == 0);
            }
            let alone = parsed(&text).expect("valid");
            assert!(head.fields().eq(alone.fields()), "{round}");
            assert_eq!((head.size(), head.target()), (alone.size(), alone.target()));
            assert_eq!(head.get(FieldName::Host), Some(&b"h"[..]));
        }
        assert!((50..250).contains(&recalled), "{recalled}");
    }

    #[test]
    fn a_peer_that_never_says_the_same_is_given_up() {
        let mut before = LastHead::default();
        for round in 0..=LastHead::MAX_MISSES {
            assert_eq!(before.misses, round);
            let text = format!("GET / HTTP/1.1\r\nHost: h{round}\r\n\r\n");
            let mut head = Head::default();
            head.buffer().extend_from_slice(text.as_bytes());
            let read = parse_request(&mut head, &HeadLimits::default(), &mut before);
            assert_eq!(read, Ok(Some(text.len())));
        }
        assert_eq!(before.misses, LastHead::MAX_MISSES);
        assert!(before.fields.is_none());
        assert_eq!(before.for_connection().misses, 0);
    }

    #[test]
    fn text_ends_at_the_first_control_character_wherever_it_stands() {
        for length in 0..20 {
            for at in 0..length {
                for byte in 0..=255_u8 {
                    let mut bytes = vec![b'x'; length];
                    bytes[at] = byte;
                    let control = (byte < b' ' && byte != b'\t') || byte == 0x7f;
                    let expected = if control { at } else { length };
                    assert_eq!(text(&bytes), expected, "{byte} at {at} of {length}");
                }
            }
        }
    }

    #[test]
    fn a_status_line_without_a_reason_is_read() {
        for text in ["HTTP/1.1 204\r\n\r\n", "HTTP/1.1 204 \r\n\r\n"] {
            let mut head = Head::default();
            head.buffer().extend_from_slice(text.as_bytes());
            let end = parse_response(&mut head, &HeadLimits::default(), &mut LastHead::default());
            assert_eq!(end, Ok(Some(text.len())));
            assert_eq!(head.status(), 204);
        }
    }
}
