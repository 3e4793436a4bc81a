//! Our HTTP/1 reader against hyper's. The relation: what ours accepts, hyper accepts as well and reads the same way,
//! request by request, bodies and what follows them included. (Ours may refuse more; `h1::parse` says what and why.)

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use leno_proxy::http::h1::{Decoder, Limits, parse_request, request_length};
use leno_proxy::http::head::Head;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

/// A request, as a reader understood it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Understood {
    method: Vec<u8>,
    target: String,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

/// Reads every request of `bytes` with our reader; stops at the first that it refuses, or that is cut short.
fn ours(mut bytes: &[u8]) -> Vec<Understood> {
    let mut all = Vec::new();
    while let Some(end) = end_of_head(bytes) {
        let mut head = Head::default();
        head.buffer().extend_from_slice(&bytes[..end]);
        let limits = Limits::default();
        let parsed = parse_request(&mut head, &limits).and_then(|()| request_length(&head));
        let Ok(length) = parsed else { break };
        let mut decoder = Decoder::new(length, limits);
        let (mut at, mut body) = (end, Vec::new());
        while !decoder.is_done() && at < bytes.len() {
            let Ok(framing) = decoder.advance(&bytes[at..]) else {
                return all;
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
        let closes = head.connection_has("close");
        all.push(Understood {
            method: head.method().to_vec(),
            target: String::from_utf8_lossy(head.target()).into_owned(),
            fields: fields(
                head.fields()
                    .map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), v.to_vec())),
            ),
            body,
        });
        if closes || head.method() == b"CONNECT" || all.len() == 8 {
            break;
        }
        bytes = &bytes[at..];
    }
    all
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| at + 4)
}

fn fields(all: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = all
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect();
    // hyper groups fields of one name; their order among themselves is kept.
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

/// Reads every request of `bytes` with hyper.
async fn hypers(bytes: Vec<u8>) -> Vec<Understood> {
    let all: Arc<Mutex<Vec<Understood>>> = Arc::default();
    let kept = Arc::clone(&all);
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let service = service_fn(move |request: Request<Incoming>| {
        let kept = Arc::clone(&kept);
        async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await else {
                return Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())));
            };
            let headers = parts.headers.iter();
            let understood = Understood {
                method: parts.method.as_str().as_bytes().to_vec(),
                target: parts.uri.to_string(),
                fields: fields(headers.map(|(n, v)| (n.to_string(), v.as_bytes().to_vec()))),
                body: body.to_bytes().to_vec(),
            };
            kept.lock().expect("not poisoned").push(understood);
            Ok(Response::new(Full::new(Bytes::new())))
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(server), service);
    let feed = async {
        let _ = client.write_all(&bytes).await;
        let _ = client.shutdown().await;
        let mut sink = tokio::io::sink();
        let _ = tokio::io::copy(&mut client, &mut sink).await;
    };
    let (_, ()) = tokio::join!(serving, feed);
    let all = all.lock().expect("not poisoned");
    all.clone()
}

/// Pieces of requests, good and bad, so that many combinations are nearly right.
fn piece() -> impl Strategy<Value = Vec<u8>> {
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

/// A request that is meant to be good, with a body of either framing.
fn request() -> impl Strategy<Value = Vec<u8>> {
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

/// Where the readers may differ, each for a reason: `true` leaves the input out.
fn is_a_known_difference(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    // hyper takes whatever follows a CONNECT for the next request; here it is the tunnel's.
    text.contains("CONNECT ")
        // An absolute target without a path is given one by the `http` crate.
        || text.contains(" http://a ")
}

fn compare(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    if is_a_known_difference(&bytes) {
        return Ok(());
    }
    let ours = ours(&bytes);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let theirs = runtime.expect("a runtime").block_on(hypers(bytes.clone()));
    prop_assert!(
        theirs.len() >= ours.len(),
        "hyper read {} of {}: {:?}",
        theirs.len(),
        ours.len(),
        String::from_utf8_lossy(&bytes)
    );
    for (a, b) in ours.iter().zip(&theirs) {
        prop_assert_eq!(a, b, "{:?}", String::from_utf8_lossy(&bytes));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_ours_accepts_of_nearly_right_requests_hyper_reads_the_same(pieces in proptest::collection::vec(piece(), 1..14)) {
        compare(pieces.concat())?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn good_requests_in_a_row_are_all_read_and_read_the_same(requests in proptest::collection::vec(request(), 1..5)) {
        let bytes = requests.concat();
        prop_assert_eq!(ours(&bytes).len(), requests.len(), "{:?}", String::from_utf8_lossy(&bytes));
        compare(bytes)?;
    }

    #[test]
    fn a_good_request_with_one_byte_changed_is_read_the_same_or_refused(request in request(), at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = request;
        let at = at.index(bytes.len());
        bytes[at] = byte;
        compare(bytes)?;
    }
}
