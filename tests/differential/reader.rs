//! Our HTTP/1 reader, and requests to compare it by.

use leno_http::h1::{Decoder, HeadLimits, LastHead, parse_request, request_framing};
use leno_http::head::{Head, Version};
use proptest::prelude::*;

/// A request, as a reader understood it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParsedRequest {
    pub(crate) method: Vec<u8>,
    pub(crate) target: String,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

/// Reads every request of `bytes` with our reader; stops at the first that it refuses, or that is cut short. The flag
/// is true when all bytes were read, and more may follow.
pub(crate) fn ours(mut bytes: &[u8]) -> (Vec<ParsedRequest>, bool) {
    let (mut all, mut before) = (Vec::new(), LastHead::default());
    while let Some(end) = end_of_head(bytes) {
        let mut head = Head::default();
        head.buffer().extend_from_slice(&bytes[..end]);
        let limits = HeadLimits::default();
        let parsed = parse_request(&mut head, &limits, &mut before);
        let Ok(Some(_)) = parsed else { break };
        let Ok(length) = request_framing(&head) else {
            break;
        };
        let mut decoder = Decoder::new(length, limits);
        let (mut at, mut body) = (end, Vec::new());
        while !decoder.is_done() && at < bytes.len() {
            let Ok(framing) = decoder.advance(&bytes[at..]) else {
                return (all, false);
            };
            at += framing;
            let data = decoder.available(&bytes[at..]);
            body.extend_from_slice(&bytes[at..at + data]);
            decoder.consume(data);
            at += data;
        }
        if !decoder.is_done() {
            break;
        }
        // An HTTP/1.0 request is the last one without `Connection: keep-alive`.
        let is_last = head.version() == Version::Http10 && !head.connection_has("keep-alive");
        let closes = is_last || head.connection_has("close");
        all.push(ParsedRequest {
            method: head.method().to_vec(),
            target: String::from_utf8_lossy(head.target()).into_owned(),
            fields: fields(
                head.fields()
                    .map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), v.to_vec())),
            ),
            body,
        });
        if closes || head.method() == b"CONNECT" || all.len() == 8 {
            return (all, false);
        }
        bytes = &bytes[at..];
    }
    (all, bytes.is_empty())
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| at + 4)
}

pub(crate) fn fields(all: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = all
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect();
    // hyper groups fields of one name; their order among themselves is kept.
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

/// Pieces of requests, good and bad, that combine into nearly valid ones.
pub(crate) fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&'static [u8]> = vec![
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST /x?y=z HTTP/1.1\r\nHost: a\r\n",
        b"PUT /%2e%2e/ HTTP/1.1\r\nHost: a:80\r\n",
        b"HEAD / HTTP/1.0\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n",
        b"GET http://a/b HTTP/1.1\r\nHost: a\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"content-length: 5\r\n",
        b"Content-Length: 05\r\n",
        b"Content-Length: +5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: CHUNKED\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Expect: 100-continue\r\n",
        b"X: y \t\r\n",
        b"X:y\r\n",
        b"X:\r\n",
        b"X : y\r\n",
        b" folded\r\n",
        b"X: \x80\xff\r\n",
        b"X: a\x00b\r\n",
        b"X: a\rb\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\nT: u\r\n\r\n",
        b"0\r\n\r\n",
        b"5\r\nhel",
        b"F\r\n",
        b"0x5\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    prop_oneof![
        12 => proptest::sample::select(known).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 1..4),
    ]
}

/// A valid request, with a body of either framing.
pub(crate) fn request() -> impl Strategy<Value = Vec<u8>> {
    let name = "[A-Za-z][A-Za-z0-9-]{0,12}";
    let value = "[ -~]{0,20}";
    let header = (name, value).prop_map(|(name, value)| format!("X-{name}: {value}\r\n"));
    let headers = proptest::collection::vec(header, 0..6);
    let body = proptest::collection::vec(any::<u8>(), 0..200);
    (
        "[A-Z]{3,7}",
        "/[a-z0-9/?=&%._~-]{0,30}",
        headers,
        body,
        any::<bool>(),
    )
        .prop_map(|(method, target, headers, body, chunked)| {
            let method = if method == "CONNECT" {
                "GET".to_owned()
            } else {
                method
            };
            let mut out = format!(
                "{method} {target} HTTP/1.1\r\nHost: a\r\n{}",
                headers.concat()
            )
            .into_bytes();
            if chunked {
                out.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                for part in body.chunks(60) {
                    out.extend(format!("{:x}\r\n", part.len()).into_bytes());
                    out.extend(part);
                    out.extend(b"\r\n");
                }
                out.extend(b"0\r\n\r\n");
            } else {
                out.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
                out.extend(body);
            }
            out
        })
}
