//! Heads from bytes. httparse knows the grammar; this file adds what it is lenient about: a line ends with CR LF and
//! nothing else, a target has one of RFC 9112's four forms, and `Host` stands there once.

use std::mem::MaybeUninit;

use httparse::{Header, ParserConfig, Status};

use super::Limits;
use crate::http::head::{Head, Known, Span, Version};

/// Fields that are parsed without an allocation.
const ON_STACK: usize = 100;

/// Why a head isn't accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Larger than [`Limits::head_bytes`].
    #[error("head larger than {0} bytes")]
    TooLarge(usize),
    /// More fields than [`Limits::headers`].
    #[error("more than {0} header fields")]
    TooMany(usize),
    /// Not the grammar of RFC 9112, or not the strict part of it that Leno accepts.
    #[error("{0}")]
    Syntax(&'static str),
}

/// Where the head that starts at the front of `bytes` ends, if all of it is there. A line may end with a bare LF here:
/// the head is then complete, and refused.
///
/// `from` is how many bytes were looked at before; it makes a head that drips in byte by byte cost no more than once.
pub(super) fn find_end(bytes: &[u8], from: usize) -> Option<usize> {
    let start = from.saturating_sub(2).min(bytes.len());
    memchr::memchr_iter(b'\n', &bytes[start..]).find_map(|found| {
        let line_feed = start + found;
        match bytes.get(line_feed + 1) {
            Some(b'\n') => Some(line_feed + 2),
            Some(b'\r') if bytes.get(line_feed + 2) == Some(&b'\n') => Some(line_feed + 3),
            _ => None,
        }
    })
}

/// Parses the request head that fills `head`'s buffer.
///
/// # Errors
/// [`Invalid`] when it isn't a request that Leno accepts.
pub fn parse_request(head: &mut Head, limits: &Limits) -> Result<(), Invalid> {
    parse(head, limits, request)?;
    check_target(head)?;
    check_host(head)
}

/// Parses the response head that fills `head`'s buffer.
///
/// # Errors
/// [`Invalid`] when it isn't a response that Leno accepts.
pub fn parse_response(head: &mut Head, limits: &Limits) -> Result<(), Invalid> {
    parse(head, limits, response)
}

/// Parses the trailer section that fills `head`'s buffer, its empty line included.
///
/// # Errors
/// [`Invalid`] when a field isn't well-formed, or there are too many.
pub fn parse_trailers(head: &mut Head, limits: &Limits) -> Result<(), Invalid> {
    parse(head, limits, trailers)
}

type Room<'r, 'b> = &'r mut [MaybeUninit<Header<'b>>];

/// Lends the head's bytes to `part`, with room for as many fields as the limit allows.
fn parse(
    head: &mut Head,
    limits: &Limits,
    part: for<'r, 'b> fn(&'b [u8], Room<'r, 'b>, &mut Head) -> Result<(), httparse::Error>,
) -> Result<(), Invalid> {
    let bytes = std::mem::take(head.buffer());
    let outcome = if limits.headers <= ON_STACK {
        let mut room = [const { MaybeUninit::uninit() }; ON_STACK];
        part(&bytes, &mut room[..limits.headers], head)
    } else {
        let mut room = vec![MaybeUninit::uninit(); limits.headers];
        part(&bytes, &mut room, head)
    };
    *head.buffer() = bytes;
    outcome.map_err(|error| match error {
        httparse::Error::TooManyHeaders => Invalid::TooMany(limits.headers),
        httparse::Error::HeaderName => Invalid::Syntax("invalid header name"),
        httparse::Error::HeaderValue => Invalid::Syntax("invalid header value"),
        httparse::Error::NewLine => Invalid::Syntax("a line must end with CR LF"),
        httparse::Error::Status => Invalid::Syntax("invalid status line"),
        httparse::Error::Token => Invalid::Syntax("invalid method or target"),
        httparse::Error::Version => Invalid::Syntax("not HTTP/1.0 or HTTP/1.1"),
    })
}

fn request<'b>(
    bytes: &'b [u8],
    room: Room<'_, 'b>,
    head: &mut Head,
) -> Result<(), httparse::Error> {
    let mut request = httparse::Request::new(&mut []);
    let status =
        ParserConfig::default().parse_request_with_uninit_headers(&mut request, bytes, room)?;
    let (Status::Complete(_), Some(method), Some(target)) = (status, request.method, request.path)
    else {
        return Err(httparse::Error::Token);
    };
    let place = |part: &str| place(bytes, part.as_bytes());
    if place(method) != Span::new(0, method.len()) {
        return Err(httparse::Error::NewLine);
    }
    let version = version(request.version)?;
    head.set_request_line(place(method), place(target), version);
    push_fields(bytes, after_first_line(bytes)?, request.headers, head)
}

fn response<'b>(
    bytes: &'b [u8],
    room: Room<'_, 'b>,
    head: &mut Head,
) -> Result<(), httparse::Error> {
    let mut response = httparse::Response::new(&mut []);
    let status =
        ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, room)?;
    let (Status::Complete(_), Some(code)) = (status, response.code) else {
        return Err(httparse::Error::Status);
    };
    if code < 100 {
        return Err(httparse::Error::Status);
    }
    let reason = match response.reason {
        Some(reason) if !reason.is_empty() => place(bytes, reason.as_bytes()),
        _ => Span::default(),
    };
    head.set_status_line(code, reason, version(response.version)?);
    push_fields(bytes, after_first_line(bytes)?, response.headers, head)
}

fn trailers<'b>(
    bytes: &'b [u8],
    room: Room<'_, 'b>,
    head: &mut Head,
) -> Result<(), httparse::Error> {
    // The room is MaybeUninit for the other two; trailers are rare enough for a vector.
    let mut fields = vec![httparse::EMPTY_HEADER; room.len()];
    let Status::Complete((_, fields)) = httparse::parse_headers(bytes, &mut fields)? else {
        return Err(httparse::Error::NewLine);
    };
    push_fields(bytes, 0, fields, head)
}

fn version(version: Option<u8>) -> Result<Version, httparse::Error> {
    match version {
        Some(0) => Ok(Version::Http10),
        Some(1) => Ok(Version::Http11),
        _ => Err(httparse::Error::Version),
    }
}

/// Where the second line starts, if the first ends with CR LF.
fn after_first_line(bytes: &[u8]) -> Result<usize, httparse::Error> {
    match memchr::memchr(b'\n', bytes) {
        Some(at) if at > 0 && bytes[at - 1] == b'\r' => Ok(at + 1),
        _ => Err(httparse::Error::NewLine),
    }
}

/// Records the fields, holding each line to `name ":" OWS value OWS CR LF` and the whole to one CR LF after the last.
fn push_fields(
    bytes: &[u8],
    mut at: usize,
    fields: &[Header<'_>],
    head: &mut Head,
) -> Result<(), httparse::Error> {
    for field in fields {
        let name = Span::new(at, at + field.name.len());
        if place(bytes, field.name.as_bytes()) != name {
            return Err(httparse::Error::NewLine);
        }
        at += field.name.len() + 1;
        let value = if field.value.is_empty() {
            Span::new(at, at)
        } else {
            place(bytes, field.value)
        };
        head.push_parsed(name, value, Known::of(field.name.as_bytes()));
        at = value.end().max(at);
        while matches!(bytes.get(at), Some(b' ' | b'\t')) {
            at += 1;
        }
        at = crlf(bytes, at)?;
    }
    match crlf(bytes, at)? == bytes.len() {
        true => Ok(()),
        false => Err(httparse::Error::NewLine),
    }
}

fn crlf(bytes: &[u8], at: usize) -> Result<usize, httparse::Error> {
    match bytes.get(at..at + 2) {
        Some(b"\r\n") => Ok(at + 2),
        _ => Err(httparse::Error::NewLine),
    }
}

/// Where `part`, a slice of `whole`, lies in it.
fn place(whole: &[u8], part: &[u8]) -> Span {
    let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    Span::new(start, start.wrapping_add(part.len()))
}

/// RFC 9112, section 3.2: origin-form, absolute-form, authority-form (CONNECT), asterisk-form (OPTIONS).
fn check_target(head: &Head) -> Result<(), Invalid> {
    let target = head.target();
    let visible = |b: &u8| matches!(b, 0x21..=0x7e) && !b"\"#<>`".contains(b);
    if !target.iter().all(visible) {
        return Err(Invalid::Syntax("invalid character in the target"));
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
        false => Err(Invalid::Syntax(
            "the target is neither a path nor an http:// URI",
        )),
    }
}

fn is_host_port(target: &[u8]) -> bool {
    let Some(colon) = target.iter().rposition(|&b| b == b':') else {
        return false;
    };
    let (host, port) = (&target[..colon], &target[colon + 1..]);
    !host.is_empty() && is_host(host) && !port.is_empty() && port.iter().all(u8::is_ascii_digit)
}

fn is_host(host: &[u8]) -> bool {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(b);
    host.iter().all(allowed)
}

fn check_host(head: &Head) -> Result<(), Invalid> {
    let mut hosts = head.get_all(Known::Host);
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version() == Version::Http11 => Err(Invalid::Syntax("no Host header")),
        (Some(_), Some(_)) => Err(Invalid::Syntax("more than one Host header")),
        (Some(host), None) if !is_host(host) => Err(Invalid::Syntax("invalid Host header")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Head, Invalid> {
        let mut head = Head::default();
        head.buffer().extend_from_slice(text.as_bytes());
        parse_request(&mut head, &Limits::default()).map(|()| head)
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
    fn the_number_of_fields_is_bounded_exactly() {
        for (limit, room) in [(2, 2), (150, 150)] {
            let limits = Limits {
                headers: limit,
                ..Limits::default()
            };
            let with = |count: usize| {
                let mut head = Head::default();
                let extra = "A: b\r\n".repeat(count - 1);
                let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{extra}\r\n");
                head.buffer().extend_from_slice(text.as_bytes());
                parse_request(&mut head, &limits)
            };
            assert_eq!(with(room), Ok(()));
            assert_eq!(with(room + 1), Err(Invalid::TooMany(limit)));
        }
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_the_reads_were_cut() {
        let text = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nbody";
        for cut in 0..=text.len() {
            let first = find_end(&text[..cut], 0);
            assert_eq!(first.is_some(), cut >= 27, "{cut}");
            assert_eq!(
                find_end(text, if first.is_some() { 0 } else { cut }),
                Some(27),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_status_line_without_a_reason_is_read() {
        for text in ["HTTP/1.1 204\r\n\r\n", "HTTP/1.1 204 \r\n\r\n"] {
            let mut head = Head::default();
            head.buffer().extend_from_slice(text.as_bytes());
            assert_eq!(parse_response(&mut head, &Limits::default()), Ok(()));
            assert_eq!(head.status(), 204);
        }
    }
}
