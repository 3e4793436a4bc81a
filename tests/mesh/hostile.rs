//! Requests that must never reach an app: each over a socket, through both sidecars, to an app that keeps every byte.

use std::time::Duration;

use leno_tests::client::Client;
use leno_tests::mesh::{PORT, mtls, pair};
use leno_tests::upstream::Upstream;

/// Requests that parsers read differently. `X-Evil` marks them: the app must never see it.
const SMUGGLING: [&str; 44] = [
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length: 1, 1\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length: +1\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length: -1\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length: 0x1\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length: 1 1\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length: 99999999999999999999\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length:\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nContent-Length : 1\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding: identity\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: users\r\nX-Evil: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET / HTTP/1.1\nHost: users\nX-Evil: 1\n\n",
    "GET / HTTP/1.1\r\nHost: users\nX-Evil: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\n\n",
    "GET / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\rX-More: 2\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\n folded: 2\r\n\r\n",
    "GET / HTTP/1.1\r\n X-Evil: 1\r\nHost: users\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: users\r\nX-Evil : 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: users\r\nX-Evil\t: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: users\r\nX-Evil: a\0b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: users\r\nX-Ev\0il: 1\r\n\r\n",
    "GET /\0X-Evil HTTP/1.1\r\nHost: users\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: users\r\nHost: users\r\nX-Evil: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nX-Evil: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: users/evil\r\nX-Evil: 1\r\n\r\n",
    "GET  / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\n\r\n",
    "GET /X-Evil x HTTP/1.1\r\nHost: users\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: users\r\nX-Evil: 1\r\n\r\n",
    "GET / HTTP/1.2\r\nHost: users\r\nX-Evil: 1\r\n\r\n",
    "GET / HTTP/9.9\r\nHost: users\r\nX-Evil: 1\r\n\r\n",
    "GET /%00X-Evil HTTP/1.1\r\nHost: users\r\n\r\n",
    "GE(T / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\n\r\n",
    "\r\n\r\nGET / HTTP/1.1\r\nHost: users\r\nX-Evil: 1\r\n\r\n",
];

/// Bodies that break after a valid head: the app's request must end there.
const BROKEN_BODIES: [&str; 9] = [
    "x\r\nEVIL\r\n0\r\n\r\n",
    "-1\r\nEVIL\r\n0\r\n\r\n",
    "0x4\r\nEVIL\r\n0\r\n\r\n",
    " 4\r\nEVIL\r\n0\r\n\r\n",
    "4 \r\nEVIL\r\n0\r\n\r\n",
    "4\nEVIL\n0\n\n",
    "10000000000000000\r\nEVIL",
    "1\r\naEVIL\r\n0\r\n\r\n",
    "0\r\n EVIL: folded\r\n\r\n",
];

const GOOD: &str = "GET /good HTTP/1.1\r\nHost: users\r\n\r\n";

fn saw(app: &Upstream, needle: &str) -> bool {
    let bytes = app.bytes();
    let lower = String::from_utf8_lossy(&bytes).to_lowercase();
    lower.contains(&needle.to_lowercase())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_ambiguous_reaches_the_app() {
    let app = Upstream::named("users").await;
    let (_mesh, caller, _callee, ip) = pair(app.address, &mtls("PERMISSIVE"), "").await;
    // Through both sidecars; and through the callee's alone, as callers outside the mesh reach it.
    for address in [caller.outbound, (ip, PORT).into()] {
        for request in SMUGGLING {
            let mut client = Client::connect(address).await;
            client.send(request).await;
            client.shutdown().await;
            let answer = client.read_to_end().await;
            let refused = answer.is_empty() || answer.starts_with(b"HTTP/1.1 400");
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(refused, "{request:?} was answered with {text}");
        }
    }
    assert!(
        !saw(&app, "x-evil"),
        "{}",
        String::from_utf8_lossy(&app.bytes())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_behind_a_good_request_nor_in_two_pieces() {
    let app = Upstream::named("users").await;
    let (_mesh, caller, _callee, _) = pair(app.address, &mtls("STRICT"), "").await;
    for request in SMUGGLING {
        let mut client = Client::connect(caller.outbound).await;
        client.send(format!("{GOOD}{request}")).await;
        let first = client.response().await.expect("the good one is answered");
        assert_eq!(first.status, 200, "{request:?}");
        client.shutdown().await;
        let rest = client.read_to_end().await;
        assert!(
            rest.is_empty() || rest.starts_with(b"HTTP/1.1 400"),
            "{request:?}"
        );
    }
    assert!(!saw(&app, "x-evil"));
    // Cut in two at each byte, each piece in a segment of its own.
    for request in SMUGGLING {
        for cut in 1..request.len() {
            let mut client = Client::connect(caller.outbound).await;
            client.send(&request.as_bytes()[..cut]).await;
            tokio::task::yield_now().await;
            client.send(&request.as_bytes()[cut..]).await;
            client.shutdown().await;
            let answer = client.read_to_end().await;
            let refused = answer.is_empty() || answer.starts_with(b"HTTP/1.1 400");
            assert!(refused, "{request:?} cut at {cut}");
        }
    }
    assert!(!saw(&app, "x-evil"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_ends_the_request_where_it_breaks() {
    let app = Upstream::named("users").await;
    let (_mesh, caller, _callee, _) = pair(app.address, &mtls("STRICT"), "").await;
    for body in BROKEN_BODIES {
        let before = app.requests().len();
        let mut client = Client::connect(caller.outbound).await;
        let head = "POST / HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(format!("{head}{body}{GOOD}")).await;
        client.shutdown().await;
        let answer = String::from_utf8_lossy(&client.read_to_end().await).into_owned();
        assert!(!answer.contains("200 OK"), "{body:?}: {answer}");
        assert_eq!(
            app.requests().len(),
            before,
            "{body:?}: no whole request, and none behind it"
        );
    }
    assert!(!saw(&app, "evil"));
    let mut client = Client::connect(caller.outbound).await;
    assert_eq!(
        client.round_trip(GOOD).await.status,
        200,
        "the next connection is served"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_drips_is_given_up_in_time() {
    let app = Upstream::named("users").await;
    let (_mesh, caller, _callee, _) = pair(app.address, "", "--head-timeout 300ms").await;
    let mut client = Client::connect(caller.outbound).await;
    client.send("GET / HT").await;
    let response = client.response().await.expect("answered");
    assert_eq!(response.status, 408);
    assert!(client.is_closed_within(Duration::from_secs(3)).await);
    let mut client = Client::connect(caller.outbound).await;
    assert_eq!(client.round_trip(GOOD).await.status, 200);
}
