//! HTTP/2 and gRPC through two sidecars, on every hop, beside HTTP/1.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::ext::Protocol;
use http::{HeaderMap, Response};
use leno_tests::client::Client;
use leno_tests::h2::{App, connect, receive, request, round_trip, send};
use leno_tests::mesh::{Mesh, PORT, Proxy, mtls, service};
use leno_tests::upstream::Upstream;
use leno_tests::{fresh_ip, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

/// A caller and a callee; the service's port is named `port`.
async fn pair(
    app: SocketAddr,
    port: &str,
    more_yaml: &str,
    flags: &str,
) -> (Mesh, Proxy, Proxy, Ipv4Addr) {
    let ip = fresh_ip();
    let named = service("users", &[(ip, "v1")]).replace(
        "name: http, protocol: HTTP",
        &format!("name: {port}, protocol: {}", port.to_uppercase()),
    );
    let mesh = Mesh::start(&format!("{named}{more_yaml}")).await;
    let inbound = format!("--inbound {ip}:{PORT}={app} {flags}");
    let callee = mesh.proxy("users", &inbound).await;
    let caller = mesh.proxy("web", flags).await;
    (mesh, caller, callee, ip)
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            (
                http::HeaderName::from_static(name),
                http::HeaderValue::from_static(value),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_combination_of_versions_carries_bodies_and_trailers() {
    let by_h1 = Upstream::start(|seen| {
        let mut response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        response.extend(format!("{:x}\r\n", seen.body.len()).into_bytes());
        response.extend(&seen.body);
        response.extend(b"\r\n0\r\nX-Sum: 7\r\n\r\n");
        response
    })
    .await;
    let by_h2 = App::echo().await;
    let body = vec![b'x'; 300_000];
    for (app, port) in [(by_h1.address, "http"), (by_h2.address, "grpc")] {
        for mode in ["STRICT", "DISABLE"] {
            let (_mesh, caller, _callee, _) = pair(app, port, &mtls(mode), "").await;
            let sender = connect(caller.outbound).await;
            let post = request("POST", "http://users/a?b", &[("te", "trailers")]);
            let sent = trailers(&[("x-sum", "7")]);
            let answer = round_trip(&sender, post, &body, Some(sent))
                .await
                .expect("an answer");
            assert_eq!(answer.status, 200, "{port} {mode} {answer:?}");
            assert!(answer.body.len() >= body.len(), "{port} {mode}");
            assert_eq!(answer.trailer("x-sum"), "7", "{port} {mode}");

            let mut client = Client::connect(caller.outbound).await;
            let head = "POST /a?b HTTP/1.1\r\nHost: users\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n";
            let answer = client
                .round_trip(format!("{head}5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n"))
                .await;
            assert_eq!(answer.status, 200, "{port} {mode} {answer:?}");
            assert_eq!(
                answer.trailers.to_lowercase(),
                "x-sum: 7\n",
                "{port} {mode}"
            );
        }
    }
    let seen = by_h1.requests();
    assert_eq!(seen.len(), 4);
    for seen in seen {
        assert_eq!(seen.target(), "/a?b");
        assert_eq!(seen.header("host"), Some("users"));
        assert!(
            String::from_utf8_lossy(&seen.body)
                .to_lowercase()
                .ends_with("x-sum: 7\r\n\r\n")
        );
    }
    assert_eq!(by_h2.connections(), 2, "one for each mesh");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_without_a_body_stay_so() {
    let by_h1 = Upstream::start(|_| b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()).await;
    let (_mesh, caller, _callee, _) = pair(by_h1.address, "http", "", "").await;
    let sender = connect(caller.outbound).await;
    let answer = round_trip(&sender, request("POST", "http://users/", &[]), b"", None).await;
    assert_eq!(answer.expect("an answer").status, 204);
    let seen = by_h1.requests().pop().expect("one");
    assert_eq!(seen.header("content-length"), Some("0"), "{}", seen.head);
    assert_eq!(seen.header("transfer-encoding"), None);

    let by_h2 = App::start(|_, mut respond| async move {
        respond.send_response(Response::new(()), true).map(drop)
    })
    .await;
    let (_mesh, caller, _callee, _) = pair(by_h2.address, "http2", "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    let answer = client
        .round_trip("GET / HTTP/1.1\r\nHost: users\r\n\r\n")
        .await;
    assert_eq!(
        (answer.status, answer.header("content-length")),
        (200, Some("0"))
    );
    client.send("HEAD / HTTP/1.1\r\nHost: users\r\n\r\n").await;
    assert_eq!(
        client.response_to(true).await.expect("an answer").status,
        200
    );
    let answer = client
        .round_trip("GET / HTTP/1.1\r\nHost: users\r\n\r\n")
        .await;
    assert_eq!(answer.status, 200, "the connection goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_error_without_messages_ends_with_its_headers() {
    let app = App::start(|_, mut respond| async move {
        let response = Response::builder()
            .header("grpc-status", "5")
            .header("grpc-message", "no such user");
        respond
            .send_response(response.body(()).expect("a response"), true)
            .map(drop)
    })
    .await;
    let (_mesh, caller, _callee, _) = pair(app.address, "grpc", &mtls("STRICT"), "").await;
    let mut sender = connect(caller.outbound).await;
    let call = request(
        "POST",
        "http://users/a.B/C",
        &[("content-type", "application/grpc")],
    );
    let (response, _) = sender.send_request(call, true).expect("sent");
    let response = response.await.expect("a response");
    assert_eq!(response.headers()["grpc-status"], "5");
    assert!(response.body().is_end_stream(), "trailers-only");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_ours_is_one_that_grpc_understands() {
    let app = App::echo().await;
    let (_mesh, caller, _callee, _) = pair(app.address, "grpc", "", "").await;
    let sender = connect(caller.outbound).await;
    let grpc = [("content-type", "application/grpc")];
    let answer = round_trip(
        &sender,
        request("POST", "http://nobody/a.B/C", &grpc),
        b"",
        None,
    );
    let answer = answer.await.expect("an answer");
    assert_eq!((answer.status, answer.header("grpc-status")), (200, "12"));
    assert!(
        answer.header("grpc-message").contains("nobody"),
        "{answer:?}"
    );
    let answer = round_trip(&sender, request("GET", "http://nobody/", &[]), b"", None);
    let answer = answer.await.expect("an answer");
    assert_eq!(answer.status, 404);
    assert!(
        answer.header("proxy-status").contains("nobody"),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn informational_responses_are_passed_on() {
    let app = App::start(|_, mut respond| async move {
        let hints = Response::builder()
            .status(103)
            .header("link", "</style.css>");
        respond.send_informational(hints.body(()).expect("hints"))?;
        let stream = respond.send_response(Response::new(()), false)?;
        send(stream, b"ok", None).await
    })
    .await;
    let (_mesh, caller, _callee, _) = pair(app.address, "http2", &mtls("STRICT"), "").await;
    let mut sender = connect(caller.outbound).await;
    let (mut response, _) = sender
        .send_request(request("GET", "http://users/", &[]), true)
        .expect("sent");
    let hints = std::future::poll_fn(|cx| response.poll_informational(cx)).await;
    let hints = hints.expect("hints").expect("well-formed");
    assert_eq!(
        (hints.status(), &hints.headers()["link"]),
        (
            http::StatusCode::EARLY_HINTS,
            &"</style.css>"
                .parse::<http::HeaderValue>()
                .expect("a value")
        )
    );
    assert_eq!(response.await.expect("a response").status(), 200);
    let mut client = Client::connect(caller.outbound).await;
    let hints = client
        .round_trip("GET / HTTP/1.1\r\nHost: users\r\n\r\n")
        .await;
    assert_eq!(
        (hints.status, hints.header("link")),
        (103, Some("</style.css>"))
    );
    assert_eq!(client.response().await.expect("the final one").text(), "ok");
}

/// An HTTP/1 app that switches to WebSocket and echoes.
async fn websocket_h1() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if tcp.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                assert!(head.contains("upgrade: websocket"), "{head}");
                assert!(head.contains("connection: upgrade"), "{head}");
                assert!(head.contains("sec-websocket-key: "), "{head}");
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
                let _ = tcp.write_all(answer).await;
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// An HTTP/2 app that takes extended CONNECT and echoes.
async fn websocket_h2() -> SocketAddr {
    let app = App::start(|mut request, mut respond| async move {
        let protocol = request
            .extensions()
            .get::<Protocol>()
            .map(|p| p.as_str().to_owned());
        assert_eq!(protocol.as_deref(), Some("websocket"));
        assert!(!request.headers().contains_key("sec-websocket-key"));
        let mut stream = respond.send_response(Response::new(()), false)?;
        while let Some(data) = request.body_mut().data().await {
            let data = data?;
            let _ = request
                .body_mut()
                .flow_control()
                .release_capacity(data.len());
            stream.send_data(data, false)?;
        }
        stream.send_data(Bytes::new(), true)
    });
    app.await.address
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_works_over_every_combination_of_versions() {
    for (app, port) in [
        (websocket_h1().await, "http"),
        (websocket_h2().await, "http2"),
    ] {
        let (_mesh, caller, _callee, _) = pair(app, port, &mtls("STRICT"), "").await;
        // RFC 6455.
        let mut client = Client::connect(caller.outbound).await;
        let answer = client
            .round_trip("GET /chat HTTP/1.1\r\nHost: users\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
            .await;
        assert_eq!(answer.status, 101, "{port} {answer:?}");
        assert_eq!(answer.header("upgrade"), Some("websocket"));
        assert_eq!(
            answer
                .header("connection")
                .map(str::to_lowercase)
                .as_deref(),
            Some("upgrade")
        );
        let proof = if port == "http" {
            "x"
        } else {
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        };
        assert_eq!(answer.header("sec-websocket-accept"), Some(proof));
        client.send("ping one").await;
        assert_eq!(client.read_exact(8).await, b"ping one");
        client.shutdown().await;
        assert_eq!(
            client.read_to_end().await,
            b"",
            "{port}: the end goes through and comes back"
        );

        // RFC 8441.
        let mut sender = connect(caller.outbound).await;
        until("the settings come", || async {
            sender.is_extended_connect_protocol_enabled().then_some(())
        })
        .await;
        let mut ask = request(
            "CONNECT",
            "http://users/chat",
            &[("sec-websocket-version", "13")],
        );
        ask.extensions_mut()
            .insert(Protocol::from_static("websocket"));
        let (response, mut stream) = sender.send_request(ask, false).expect("sent");
        let mut response = response.await.expect("a response");
        assert_eq!(response.status(), 200, "{port} {response:?}");
        assert!(!response.headers().contains_key("upgrade"));
        stream
            .send_data(Bytes::from_static(b"ping two"), false)
            .expect("sent");
        let data = response
            .body_mut()
            .data()
            .await
            .expect("data")
            .expect("data");
        assert_eq!(data, "ping two");
        stream.send_data(Bytes::new(), true).expect("sent");
        while let Some(data) = response.body_mut().data().await {
            assert_eq!(data.expect("an orderly end"), "");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_refused_is_an_ordinary_answer() {
    let app = Upstream::named("plain").await;
    let (_mesh, caller, _callee, _) = pair(app.address, "http", "", "").await;
    let mut client = Client::connect(caller.outbound).await;
    let upgrade =
        "GET / HTTP/1.1\r\nHost: users\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(client.round_trip(upgrade).await.text(), "plain");
    let h2c = "GET / HTTP/1.1\r\nHost: users\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n";
    assert_eq!(client.round_trip(h2c).await.text(), "plain");
    let seen = app.requests();
    assert_eq!(seen[0].header("upgrade"), Some("websocket"));
    assert_eq!(
        (seen[1].header("upgrade"), seen[1].header("http2-settings")),
        (None, None)
    );
    // Over HTTP/2 a 200 would open the tunnel.
    let mut sender = connect(caller.outbound).await;
    let mut extended = request("CONNECT", "http://users/", &[]);
    extended
        .extensions_mut()
        .insert(Protocol::from_static("websocket"));
    let (response, _stream) = sender.send_request(extended, false).expect("sent");
    let response = response.await.expect("a response");
    assert_eq!(response.status(), 502);
    let why = response.headers()["proxy-status"].to_str().expect("ASCII");
    assert!(why.contains("did not switch protocols"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_over_http_2_carries_bytes_and_http() {
    let echo = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = echo.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let app = App::echo().await;
    let ip = fresh_ip();
    let bytes = service("bytes", &[(ip, "v1")])
        .replace("name: http, protocol: HTTP", "name: tcp, protocol: TCP");
    let (_mesh, caller, _callee, _) = {
        let users = fresh_ip();
        let yaml = service("users", &[(users, "v1")])
            .replace("name: http, protocol: HTTP", "name: grpc, protocol: GRPC");
        let mesh = Mesh::start(&format!("{yaml}{bytes}")).await;
        let callee = mesh
            .proxy(
                "users",
                &format!("--inbound {users}:{PORT}={}", app.address),
            )
            .await;
        let other = mesh
            .proxy("bytes", &format!("--inbound {ip}:{PORT}={address}"))
            .await;
        let caller = mesh.proxy("web", "").await;
        (mesh, caller, (callee, other), users)
    };
    let mut sender = connect(caller.outbound).await;
    let connect_to = |authority: &str| {
        http::Request::connect(authority)
            .body(())
            .expect("a request")
    };
    let (response, mut stream) = sender
        .send_request(connect_to("bytes:80"), false)
        .expect("sent");
    let mut response = response.await.expect("a response");
    assert_eq!(response.status(), 200);
    let mut sent = vec![0; 0];
    for i in 0..50_u8 {
        let data = vec![i; 1000];
        stream
            .send_data(Bytes::from(data.clone()), i == 49)
            .expect("sent");
        sent.extend(data);
    }
    let mut back = Vec::new();
    while let Some(data) = response.body_mut().data().await {
        let data = data.expect("data");
        let _ = response
            .body_mut()
            .flow_control()
            .release_capacity(data.len());
        back.extend_from_slice(&data);
    }
    assert!(
        back == sent,
        "{} of {} bytes came back",
        back.len(),
        sent.len()
    );

    // HTTP/2 inside the tunnel is routed by the mesh.
    let (response, _stream) = sender
        .clone()
        .send_request(connect_to("nobody:80"), false)
        .expect("sent");
    assert_eq!(response.await.expect("a response").status(), 404);
    let (response, stream) = sender
        .send_request(connect_to("users:80"), false)
        .expect("sent");
    let response = response.await.expect("a response");
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    tokio::spawn(join(theirs, response.into_body(), stream));
    let (inner, connection) = h2::client::handshake(ours).await.expect("HTTP/2");
    tokio::spawn(connection);
    let answer = round_trip(
        &inner,
        request("GET", "http://users/inside", &[]),
        b"",
        None,
    )
    .await;
    assert_eq!(answer.expect("an answer").header("x-path"), "/inside");
}

/// Copies between a byte stream and an HTTP/2 stream.
async fn join(
    io: tokio::io::DuplexStream,
    mut body: h2::RecvStream,
    mut stream: h2::SendStream<Bytes>,
) {
    let (mut read, mut write) = tokio::io::split(io);
    let down = async {
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            if write.write_all(&data).await.is_err() {
                break;
            }
        }
    };
    let up = async {
        let mut buffer = vec![0; 8192];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            let _ = stream.send_data(Bytes::copy_from_slice(&buffer[..count]), false);
        }
    };
    tokio::join!(down, up);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_slows_its_own_stream_only() {
    const LARGE: usize = 20_000_000;
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let app = App::start(move |request, mut respond| {
        let sent = Arc::clone(&count);
        async move {
            if request.uri().path() != "/large" {
                return respond.send_response(Response::new(()), true).map(drop);
            }
            let mut stream = respond.send_response(Response::new(()), false)?;
            let mut left = LARGE;
            while left > 0 {
                stream.reserve_capacity(16_384);
                let Some(granted) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await
                else {
                    return Ok(());
                };
                let part = granted?.min(left);
                left -= part;
                stream.send_data(Bytes::from(vec![b'x'; part]), left == 0)?;
                sent.fetch_add(part, Ordering::Relaxed);
            }
            Ok(())
        }
    })
    .await;
    let (_mesh, caller, _callee, _) = pair(app.address, "http2", &mtls("STRICT"), "").await;
    let mut sender = connect(caller.outbound).await;
    let (response, _) = sender
        .send_request(request("GET", "http://users/large", &[]), true)
        .expect("sent");
    let response = response.await.expect("a response");
    // It is read no further: the app stops once the buffers of the hops are full.
    let stopped = until("the app stops sending", || async {
        let before = sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
        (sent.load(Ordering::Relaxed) == before).then_some(before)
    })
    .await;
    assert!(stopped < 1_500_000, "{stopped} bytes were buffered");
    for _ in 0..20 {
        let small = round_trip(
            &sender,
            request("GET", "http://users/small", &[]),
            b"",
            None,
        );
        assert_eq!(small.await.expect("an answer").status, 200);
    }
    let (parts, body) = response.into_parts();
    let whole = receive(200, parts.headers, body).await.expect("whole");
    assert_eq!(whole.body.len(), LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_response_that_breaks_off_ends_with_the_reason() {
    let app = App::with(|mut connection| async move {
        let Some(Ok((_, mut respond))) = connection.accept().await else {
            return;
        };
        let mut stream = respond
            .send_response(Response::new(()), false)
            .expect("sent");
        let message = Bytes::from_static(b"\0\0\0\0\x01x");
        stream.send_data(message, false).expect("sent");
        // The frames are out before the connection is closed.
        let _ = timeout(Duration::from_millis(200), connection.accept()).await;
    })
    .await;
    let (_mesh, caller, _callee, _) = pair(app.address, "grpc", &mtls("STRICT"), "").await;
    let sender = connect(caller.outbound).await;
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let call = request("POST", "http://users/a.B/C", &fields);
    let answer = round_trip(&sender, call, b"\0\0\0\0\x01x", None).await;
    let answer = answer.expect("it ends as a call does");
    assert_eq!(answer.body, b"\0\0\0\0\x01x");
    assert_eq!(answer.trailer("grpc-status"), "14");
    let why = answer.trailer("grpc-message");
    assert!(why.contains("response body"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_travel_both_ways() {
    let gone = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&gone);
    let app = App::start(move |request, mut respond| {
        let seen = Arc::clone(&seen);
        async move {
            if request.uri().path() == "/wait" {
                let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await?;
                assert_eq!(reason, Reason::CANCEL);
                seen.store(true, Ordering::Relaxed);
                return Ok(());
            }
            let mut stream = respond.send_response(Response::new(()), false)?;
            stream.send_data(Bytes::from_static(b"half"), false)?;
            // The data must be out before the reset.
            tokio::time::sleep(Duration::from_millis(100)).await;
            // Even with NO_ERROR the body isn't whole.
            let reason = match request.uri().path() {
                "/half" => Reason::ENHANCE_YOUR_CALM,
                _ => Reason::NO_ERROR,
            };
            stream.send_reset(reason);
            Ok(())
        }
    })
    .await;
    let (_mesh, caller, _callee, _) = pair(app.address, "http2", &mtls("STRICT"), "").await;
    let mut sender = connect(caller.outbound).await;
    let (response, mut stream) = sender
        .send_request(request("POST", "http://users/wait", &[]), false)
        .expect("sent");
    let waited = timeout(Duration::from_millis(300), response).await;
    assert!(waited.is_err(), "it waits");
    stream.send_reset(Reason::CANCEL);
    until("the app sees the reset", || async {
        gone.load(Ordering::Relaxed).then_some(())
    })
    .await;

    let answer = round_trip(&sender, request("GET", "http://users/half", &[]), b"", None).await;
    let error = answer.expect_err("it is cut short");
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error}");
    let answer = round_trip(
        &sender,
        request("GET", "http://users/quiet", &[]),
        b"",
        None,
    )
    .await;
    assert!(
        answer.is_err(),
        "half of a body is not the whole: {answer:?}"
    );
    let mut client = Client::connect(caller.outbound).await;
    client
        .send("GET /half HTTP/1.1\r\nHost: users\r\n\r\n")
        .await;
    let rest = String::from_utf8_lossy(&client.read_to_end().await).into_owned();
    assert!(
        rest.contains("half") && !rest.ends_with("0\r\n\r\n"),
        "cut short, and told so: {rest}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_or_is_beyond_goaway_is_sent_again() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    // Each connection serves five streams, refuses the sixth, and sends GOAWAY.
    let app = App::with(move |mut connection| {
        let count = Arc::clone(&count);
        async move {
            let mut streams = 0;
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                streams += 1;
                if streams == 6 {
                    respond.send_reset(Reason::REFUSED_STREAM);
                    connection.graceful_shutdown();
                    continue;
                }
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let (parts, body) = request.into_parts();
                    let whole = receive(0, parts.headers, body).await?;
                    count.fetch_add(1, Ordering::Relaxed);
                    let stream = respond.send_response(Response::new(()), false)?;
                    send(stream, &whole.body, None).await
                });
            }
        }
    })
    .await;
    let (_mesh, caller, _callee, _) = pair(app.address, "grpc", &mtls("STRICT"), "").await;
    let sender = connect(caller.outbound).await;
    for i in 0..60 {
        let call = request(
            "POST",
            "http://users/a.B/C",
            &[("content-type", "application/grpc")],
        );
        let body = format!("message {i}");
        let answer = round_trip(&sender, call, body.as_bytes(), None)
            .await
            .expect("an answer");
        assert_eq!(
            (answer.status, answer.header("grpc-status")),
            (200, ""),
            "{i}: {answer:?}"
        );
        assert_eq!(answer.body, body.as_bytes(), "{i}");
    }
    assert_eq!(served.load(Ordering::Relaxed), 60, "each was served once");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_one_connection_between_sidecars() {
    let app = App::echo().await;
    let (_mesh, caller, callee, _) =
        pair(app.address, "grpc", &mtls("STRICT"), "--workers 1").await;
    let sender = connect(caller.outbound).await;
    // More than a connection has streams: they share two, and none is refused.
    let calls = (0..180).map(|i| {
        let sender = sender.clone();
        tokio::spawn(async move {
            let call = request("POST", &format!("http://users/{i}"), &[]);
            round_trip(&sender, call, b"x", None)
                .await
                .expect("an answer")
                .status
        })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.expect("ended"), 200);
    }
    assert!(callee.metric("leno_connections", &[]).await <= 3.0);
    assert!(app.connections() <= 3, "{}", app.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_http_1_share_a_connection_and_their_names_keep_their_case() {
    let app = Upstream::start(|_| {
        b"HTTP/1.1 200 Fine\r\nX-CamelCase: 1\r\nContent-Length: 2\r\n\r\nok".to_vec()
    })
    .await;
    let (_mesh, caller, callee, _) =
        pair(app.address, "http", &mtls("STRICT"), "--workers 1").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(caller.outbound).await;
        let forged = "GET / HTTP/1.1\r\nHOST: users\r\nX-LoUd: Yes\r\nX-Leno-Http1: forged\r\n\r\n";
        let answer = client.round_trip(forged).await;
        let expected = "HTTP/1.1 200 Fine\nX-CamelCase: 1\n";
        assert!(answer.head.starts_with(expected), "{}", answer.head);
        assert!(
            !answer.head.to_lowercase().contains("x-leno"),
            "{}",
            answer.head
        );
        clients.push(client);
    }
    let seen = app.requests().pop().expect("one");
    assert!(seen.head.contains("\r\nX-LoUd: Yes\r\n"), "{}", seen.head);
    assert!(
        !seen.head.to_lowercase().contains("x-leno"),
        "{}",
        seen.head
    );
    assert_eq!(
        callee.metric("leno_connections", &[]).await,
        1.0,
        "they share one"
    );
    // An HTTP/1.0 client takes an upstream connection of its own.
    let mut client = Client::connect(caller.outbound).await;
    let answer = client
        .round_trip("GET / HTTP/1.0\r\nHost: users\r\nConnection: keep-alive\r\n\r\n")
        .await;
    assert_eq!(answer.text(), "ok");
    assert_eq!(callee.metric("leno_connections", &[]).await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_without_a_body_arrive() {
    let app = Upstream::start(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 7\r\n\r\n".to_vec()
    })
    .await;
    let (_mesh, caller, _callee, _) = pair(app.address, "http", &mtls("STRICT"), "").await;
    let mut client = Client::connect(caller.outbound).await;
    let chunked =
        "POST / HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-T: 1\r\n\r\n";
    let answer = client.round_trip(chunked).await;
    assert_eq!(answer.trailers, "X-Sum: 7\n");
    let seen = app.requests().pop().expect("one");
    assert_eq!(String::from_utf8_lossy(&seen.body), "0\r\nX-T: 1\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_over_a_shared_connection_holds_nobody_up() {
    let app = Upstream::start(|seen| match seen.target() {
        "/large" => [
            b"HTTP/1.1 200 OK\r\ncontent-length: 8000000\r\n\r\n".to_vec(),
            vec![b'x'; 8_000_000],
        ]
        .concat(),
        _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec(),
    })
    .await;
    let (_mesh, caller, callee, _) =
        pair(app.address, "http", &mtls("STRICT"), "--workers 1").await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: users\r\n\r\n");
    // One caller doesn't read its response.
    let mut idle = Client::connect(caller.outbound).await;
    idle.send(get("/large")).await;
    let mut busy = Client::connect(caller.outbound).await;
    for _ in 0..3 {
        assert_eq!(busy.round_trip(get("/small")).await.text(), "ok");
        assert_eq!(busy.round_trip(get("/large")).await.body.len(), 8_000_000);
    }
    let late = idle.response().await.expect("a response");
    assert_eq!(late.body.len(), 8_000_000);
    assert_eq!(callee.metric("leno_connections", &[]).await, 1.0);
}

/// A sidecar other than Leno's takes each HTTP/1 caller's requests on a connection of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_knows_no_shared_connections_is_spoken_to_in_http_1() {
    let ip = fresh_ip();
    let mesh = Mesh::start(&format!(
        "{}{}",
        service("users", &[(ip, "v1")]),
        mtls("STRICT")
    ))
    .await;
    let mut config = mesh
        .ca()
        .server("spiffe://cluster.local/ns/default/sa/users");
    Arc::make_mut(&mut config).alpn_protocols = vec![b"istio-http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let app = Upstream::named("foreign").await;
    let listener = TcpListener::bind((ip, PORT)).await.expect("bound");
    let address = app.address;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut tls = acceptor.accept(tcp).await.expect("TLS");
                let mut to = tokio::net::TcpStream::connect(address)
                    .await
                    .expect("the app");
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut to).await;
            });
        }
    });
    let caller = mesh.proxy("web", "--workers 1").await;
    let mut client = Client::connect(caller.outbound).await;
    for _ in 0..3 {
        let answer = client
            .round_trip("GET / HTTP/1.1\r\nHost: users\r\n\r\n")
            .await;
        assert_eq!(answer.text(), "foreign");
    }
    let seen = app.requests();
    assert_eq!(seen.len(), 3);
    assert!(
        !seen[0].head.to_lowercase().contains("x-leno"),
        "{}",
        seen[0].head
    );
    assert!(
        app.connections() <= 2,
        "the connection is kept: {}",
        app.connections()
    );
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `GET http://users/` as a header block without dynamic entries.
fn get_users() -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x84, 0x41, 5];
    block.extend(b"users");
    block
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_end_the_connection_and_nothing_else() {
    let app = App::echo().await;
    let (_mesh, caller, _callee, _) = pair(app.address, "http2", "", "").await;
    let witness = connect(caller.outbound).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let opening = [preface, frame(4, 0, 0, &[])].concat();
    let pings = frame(6, 0, 0, &[0; 8]).repeat(20_000);
    let settings = frame(4, 0, 0, &[0, 3, 0, 0, 0, 9]).repeat(20_000);
    let windows = frame(8, 0, 0, &[0, 0, 0, 1]).repeat(20_000);
    let resets = |i: u32| [frame(1, 5, i, &get_users()), frame(3, 0, i, &[0, 0, 0, 8])].concat();
    let resets: Vec<u8> = (0..20_000).flat_map(|i| resets(2 * i + 1)).collect();
    let continuation = [
        frame(1, 1, 1, &get_users()),
        frame(9, 0, 1, b"\x00\x01x\x01y").repeat(20_000),
    ]
    .concat();
    let empty = [
        frame(1, 4, 1, &get_users()),
        frame(0, 0, 1, &[]).repeat(20_000),
    ]
    .concat();
    for (what, flood) in [
        ("PING", pings),
        ("SETTINGS", settings),
        ("WINDOW_UPDATE", windows),
        ("rapid reset", resets),
        ("CONTINUATION", continuation),
        ("empty DATA", empty),
    ] {
        let mut client = Client::connect(caller.outbound).await;
        client.send(&opening).await;
        client.send(&flood).await;
        let ended = timeout(Duration::from_secs(10), client.read_to_end()).await;
        assert!(ended.is_ok(), "a flood of {what} goes on");
        let answer = round_trip(&witness, request("GET", "http://users/", &[]), b"", None).await;
        assert_eq!(
            answer.expect("an answer").status,
            200,
            "others notice nothing of {what}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_floods_its_sidecar_is_cut_off_and_explained() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                let flood = [frame(4, 0, 0, &[]), frame(6, 0, 0, &[0; 8]).repeat(20_000)].concat();
                let mut sink = tokio::io::sink();
                let _ = tokio::join!(
                    write.write_all(&flood),
                    tokio::io::copy(&mut read, &mut sink)
                );
            });
        }
    });
    let (_mesh, caller, _callee, _) = pair(address, "http2", &mtls("STRICT"), "").await;
    let sender = connect(caller.outbound).await;
    let answer = round_trip(&sender, request("GET", "http://users/", &[]), b"", None)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 503);
    assert!(
        answer
            .header("proxy-status")
            .contains("a flood of PING frames"),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_speaks_http_1_behind_a_port_of_http_2_is_named() {
    let app = Upstream::named("old").await;
    let (_mesh, caller, _callee, _) = pair(app.address, "grpc", &mtls("STRICT"), "").await;
    let sender = connect(caller.outbound).await;
    let answer = round_trip(&sender, request("GET", "http://users/", &[]), b"", None)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 503);
    let why = answer.header("proxy-status");
    assert!(why.contains("answers in HTTP/1"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_opens_its_window_is_given_up() {
    let app = App::echo().await;
    let (_mesh, caller, _callee, _) =
        pair(app.address, "http2", "", "--stream-flush-timeout 500ms").await;
    let mut client = Client::connect(caller.outbound).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE 0, then a request with a body, which the app echoes.
    let zero = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let post = [
        frame(1, 4, 1, &[&[0x83], &get_users()[1..]].concat()),
        frame(0, 1, 1, b"hello"),
    ]
    .concat();
    client.send([preface, zero, post].concat()).await;
    let mut bytes = Vec::new();
    loop {
        let header = timeout(Duration::from_secs(5), client.read_exact(9))
            .await
            .expect("frames come");
        let length = usize::from(header[1]) << 8 | usize::from(header[2]);
        let payload = client.read_exact(length).await;
        if header[3] == 3 {
            break;
        }
        assert_ne!(header[3], 0, "no DATA may come: {payload:?}");
        bytes.extend(header);
    }
    assert!(
        bytes.chunks(9).any(|header| header[3] == 1),
        "the head came"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_grpc_calls_fail_is_ejected() {
    let unavailable = |_, mut respond: h2::server::SendResponse<Bytes>| async move {
        let response = Response::builder().header("grpc-status", "14");
        let response = response.body(()).expect("a response");
        respond.send_response(response, true).map(drop)
    };
    let (bad, good) = (App::start(unavailable).await, App::echo().await);
    let ips = [fresh_ip(), fresh_ip()];
    let named = service("users", &ips.map(|ip| (ip, "v1")))
        .replace("name: http, protocol: HTTP", "name: grpc, protocol: GRPC");
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: users}\nspec: {host: users, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 1h}}}\n";
    let mesh = Mesh::start(&format!("{named}{rule}")).await;
    let _bad = mesh.workload("users", ips[0], bad.address).await;
    let _good = mesh.workload("users", ips[1], good.address).await;
    let caller = mesh.proxy("web", "").await;
    let sender = connect(caller.outbound).await;
    let mut failed = 0;
    for _ in 0..40 {
        let call = request(
            "POST",
            "http://users/a.B/C",
            &[("content-type", "application/grpc")],
        );
        let answer = round_trip(&sender, call, b"x", None)
            .await
            .expect("an answer");
        failed += usize::from(answer.header("grpc-status") == "14");
    }
    assert_eq!(failed, 3, "then it is ejected");
}
