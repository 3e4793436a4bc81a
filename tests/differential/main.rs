//! Our HTTP/1 reader against hyper's. The relation: every request that ours accepts, hyper accepts as well and reads
//! the same way, bodies and the bytes that follow them included. (Ours may refuse more; `h1::parse` gives the reasons.)

mod http2;
mod reader;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tokio::io::AsyncWriteExt;

use reader::{ParsedRequest, fields, ours, piece, request};

/// Reads every request of `bytes` with hyper.
async fn hypers(bytes: Vec<u8>) -> Vec<ParsedRequest> {
    let all: Arc<Mutex<Vec<ParsedRequest>>> = Arc::default();
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
            let understood = ParsedRequest {
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

/// Known differences between the readers, each for a reason: `true` leaves the input out.
fn is_a_known_difference(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    // hyper takes the bytes after a CONNECT for the next request; here they are the tunnel's.
    text.contains("CONNECT ")
        // The `http` crate gives a path to an absolute target without one.
        || text.contains(" http://a ")
}

fn compare(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    if is_a_known_difference(&bytes) {
        return Ok(());
    }
    let (ours, _) = ours(&bytes);
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

/// A property's configuration: `count` cases, the same in each run. `LENO_SEEDS` is another number of cases, drawn anew.
fn cases(count: u32) -> ProptestConfig {
    let drawn = std::env::var("LENO_SEEDS").ok();
    let drawn = drawn.map(|count| count.parse().expect("a number"));
    ProptestConfig {
        cases: drawn.unwrap_or(count),
        rng_seed: drawn.map_or(RngSeed::Fixed(18), |_| RngSeed::Random),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(10_000))]

    #[test]
    fn what_ours_accepts_of_nearly_right_requests_hyper_reads_the_same(pieces in proptest::collection::vec(piece(), 1..14)) {
        compare(pieces.concat())?;
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn good_requests_in_a_row_are_all_read_and_read_the_same(requests in proptest::collection::vec(request(), 1..5)) {
        let bytes = requests.concat();
        prop_assert_eq!(ours(&bytes).0.len(), requests.len(), "{:?}", String::from_utf8_lossy(&bytes));
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
