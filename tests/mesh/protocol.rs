//! HTTP/1 through two sidecars.

use std::time::Duration;

use leno_tests::client::Client;
use leno_tests::mesh::{mtls, pair};
use leno_tests::upstream::Upstream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// An app that answers with these bytes.
async fn answers(bytes: &'static [u8]) -> Upstream {
    Upstream::start(move |_| bytes.to_vec()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_every_framing_arrive_whole() {
    let app = Upstream::start(|seen| {
        let mut response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        response.extend(format!("{:x}\r\n", seen.body.len().max(1)).into_bytes());
        response.extend(if seen.body.is_empty() {
            b"-".to_vec()
        } else {
            seen.body.clone()
        });
        response.extend(b"\r\n0\r\nX-Sum: 7\r\n\r\n");
        response
    });
    let app = app.await;
    let (_mesh, caller, _callee, _) = pair(app.address, &mtls("STRICT"), "").await;
    let mut client = Client::connect(caller.outbound).await;
    let large = "x".repeat(3_000_000);
    let fixed = format!(
        "POST / HTTP/1.1\r\nHost: users\r\nContent-Length: {}\r\n\r\n{large}",
        large.len()
    );
    let response = client.round_trip(fixed).await;
    assert_eq!(response.body.len(), large.len());
    assert_eq!(response.trailers, "X-Sum: 7\n");
    let chunked = "POST / HTTP/1.1\r\nHost: users\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n5;ext\r\nhello\r\n0\r\nX-T: 1\r\n\r\n";
    client.round_trip(chunked).await;
    let seen = app.requests().pop().expect("two");
    assert_eq!(
        String::from_utf8_lossy(&seen.body),
        "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"
    );
    assert_eq!(seen.header("te"), Some("trailers"));
    assert_eq!(app.connections(), 1, "the connection is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn header_case_and_order_are_kept() {
    let app = answers(b"HTTP/1.1 200 Fine\r\nX-CamelCase: 1\r\nContent-Length: 2\r\n\r\nok").await;
    let (_mesh, caller, _callee, _) = pair(app.address, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    let response = client
        .round_trip("GET / HTTP/1.1\r\nHOST: users\r\nX-LoUd: Yes\r\n\r\n")
        .await;
    assert!(
        response
            .head
            .starts_with("HTTP/1.1 200 Fine\nX-CamelCase: 1\n"),
        "{}",
        response.head
    );
    assert!(
        app.requests()[0]
            .head
            .contains("HOST: users\r\nX-LoUd: Yes")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let app = Upstream::start(|seen| {
        let target = seen.target().to_owned();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}",
            target.len()
        )
        .into_bytes()
    });
    let (_mesh, caller, _callee, _) = pair(app.await.address, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    let all: String = (0..20)
        .map(|i| format!("GET /{i} HTTP/1.1\r\nHost: users\r\n\r\n"))
        .collect();
    client.send(all).await;
    for i in 0..20 {
        assert_eq!(
            client.response().await.expect("answered").text(),
            format!("/{i}")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_clients_are_served() {
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let (_mesh, caller, _callee, _) = pair(answers(chunked).await.address, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    let response = client
        .round_trip("GET / HTTP/1.0\r\nHost: users\r\n\r\n")
        .await;
    assert_eq!(
        (
            response.header("transfer-encoding"),
            response.text().as_str()
        ),
        (None, "ok")
    );
    let fixed = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (_mesh, caller, _callee, _) = pair(answers(fixed).await.address, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    for _ in 0..2 {
        let kept = "GET / HTTP/1.0\r\nHost: users\r\nConnection: keep-alive\r\n\r\n";
        let response = client.round_trip(kept).await;
        assert_eq!(response.header("connection"), Some("keep-alive"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_a_body_have_none() {
    let app = Upstream::start(|seen| match seen.target() {
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec(),
    });
    let (_mesh, caller, _callee, _) = pair(app.await.address, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    for (method, target) in [
        ("GET", "/204"),
        ("GET", "/304"),
        ("HEAD", "/"),
        ("GET", "/204"),
    ] {
        client
            .send(format!("{method} {target} HTTP/1.1\r\nHost: users\r\n\r\n"))
            .await;
        let response = client
            .response_to(method == "HEAD")
            .await
            .expect("answered");
        assert!(response.body.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn informational_responses_pass_and_a_body_may_wait_for_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let app = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.expect("accepted");
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            tcp.read_buf(&mut read).await.expect("a head");
        }
        assert!(String::from_utf8_lossy(&read).contains("Expect: 100-continue"));
        tcp.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
            .await
            .expect("sent");
        let mut body = [0; 5];
        tcp.read_exact(&mut body).await.expect("a body");
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            .await
            .expect("sent");
        tcp.write_all(&body).await.expect("sent");
        let _ = tcp.read(&mut body).await;
    });
    let (_mesh, caller, _callee, _) = pair(app, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    client
        .send("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await;
    let hints = client.response().await.expect("103");
    assert_eq!((hints.status, hints.header("link")), (103, Some("a")));
    assert_eq!(client.response().await.expect("100").status, 100);
    client.send("hello").await;
    assert_eq!(client.response().await.expect("200").text(), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_a_client_that_still_sends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let app = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut some = [0; 1024];
                let _ = tcp.read(&mut some).await;
                let refusal = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
                let _ = tcp.write_all(refusal).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
            });
        }
    });
    let (_mesh, caller, _callee, _) = pair(app, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    client
        .send("POST / HTTP/1.1\r\nHost: users\r\nContent-Length: 100000000\r\n\r\nstart")
        .await;
    let response = client.response().await.expect("answered");
    assert_eq!((response.status, response.text().as_str()), (413, "big"));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_stream_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let app = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.expect("accepted");
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            tcp.read_buf(&mut read).await.expect("a head");
        }
        tcp.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await
            .expect("sent");
        for _ in 0..3 {
            // "1\r\nx\r\n" in, the same out.
            let mut chunk = [0; 6];
            tcp.read_exact(&mut chunk).await.expect("a chunk");
            tcp.write_all(&chunk).await.expect("sent");
        }
        tcp.write_all(b"0\r\n\r\n").await.expect("sent");
        let _ = tcp.read(&mut [0; 16]).await;
    });
    let (_mesh, caller, _callee, _) = pair(app, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    client
        .send("POST / HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let head = client.read_exact(15).await;
    assert_eq!(head, b"HTTP/1.1 200 OK");
    for letter in ["a", "b", "c"] {
        client.send(format!("1\r\n{letter}\r\n")).await;
        // A chunk comes back before the next is sent.
        let mut seen = String::new();
        while !seen.ends_with(&format!("1\r\n{letter}\r\n")) {
            seen.push(char::from(client.read_exact(1).await[0]));
        }
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.read_exact(5).await, b"0\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_breaks_http_is_a_502_that_says_how() {
    for (bytes, words) in [
        (
            &b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                [..],
            "together",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "more than one",
        ),
        (b"HTTP/1.1 200 OK\nContent-Length: 1\r\n\r\na", "CR LF"),
        (b"rubbish\r\n\r\n", "not acceptable"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\ncontent-length: 0\r\n\r\n",
            "not asked for",
        ),
    ] {
        let (_mesh, caller, _callee, _) = pair(answers(bytes).await.address, "", "").await;
        let mut client = Client::connect(caller.outbound).await;
        let response = client
            .round_trip("GET / HTTP/1.1\r\nHost: users\r\n\r\n")
            .await;
        assert_eq!(response.status, 502, "{}", String::from_utf8_lossy(bytes));
        assert!(
            response.proxy_status().contains(words),
            "{}",
            response.proxy_status()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_informational_responses_are_a_502_and_20_are_not() {
    for (count, status) in [(20, 200), (21, 502)] {
        let app = Upstream::start(move |_| {
            let hints = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(count);
            format!("{hints}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").into_bytes()
        });
        let (_mesh, caller, _callee, _) = pair(app.await.address, "", "").await;
        let mut client = Client::connect(caller.outbound).await;
        client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n").await;
        let last = loop {
            let response = client.response().await.expect("answered");
            if response.status != 103 {
                break response.status;
            }
        };
        assert_eq!(last, status, "{count}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_its_direction_is_still_answered() {
    let app = Upstream::named("users").await;
    let (_mesh, caller, _callee, _) = pair(app.address, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n").await;
    client.shutdown().await;
    assert_eq!(client.response().await.expect("answered").text(), "users");
    assert!(client.is_closed_within(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_cut_short_is_not_passed_off_as_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let app = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.read(&mut [0; 1024]).await;
            let _ = tcp
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                .await;
            // Long enough for the half to arrive before the end does.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    let (_mesh, caller, _callee, _) = pair(app, "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    client.send("GET / HTTP/1.1\r\nHost: users\r\n\r\n").await;
    let all = client.read_to_end().await;
    assert!(all.ends_with(b"half"), "{}", String::from_utf8_lossy(&all));
}
