//! Each limit at a value other than the default: the limit itself is accepted, one more is refused, the next is served.

use std::time::Duration;

use leno_tests::client::{Client, get};
use leno_tests::mesh::{Mesh, mtls, pair, service};
use leno_tests::upstream::Upstream;
use leno_tests::{fresh_ip, until};

const GOOD: &str = "GET / HTTP/1.1\r\nHost: users\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_a_head() {
    let app = Upstream::named("users").await;
    // Only the caller's sidecar is narrow: fields that it adds must still fit into the other.
    let (mesh, _wide, _callee, _) = pair(app.address, "", "").await;
    let caller = mesh.proxy("web", "--max-head-bytes 2048").await;
    let with = |size: usize| {
        let frame = GOOD.len() + "X: \r\n".len();
        let padding = "x".repeat(size - frame);
        format!("GET / HTTP/1.1\r\nHost: users\r\nX: {padding}\r\n\r\n")
    };
    let mut client = Client::connect(caller.outbound).await;
    assert_eq!(with(2048).len(), 2048);
    assert_eq!(client.round_trip(with(2048)).await.status, 200);
    let response = client.round_trip(with(2049)).await;
    assert_eq!(response.status, 431);
    assert!(
        response.proxy_status().contains("2048"),
        "{}",
        response.proxy_status()
    );
    assert!(client.is_closed_within(Duration::from_secs(3)).await);
    assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_header_fields() {
    let app = Upstream::named("users").await;
    let (mesh, _wide, _callee, _) = pair(app.address, "", "").await;
    let caller = mesh.proxy("web", "--max-headers 30").await;
    let with = |count: usize| {
        let more: String = (1..count).map(|i| format!("X-{i}: y\r\n")).collect();
        format!("GET / HTTP/1.1\r\nHost: users\r\n{more}\r\n")
    };
    let mut client = Client::connect(caller.outbound).await;
    assert_eq!(client.round_trip(with(30)).await.status, 200);
    let response = client.round_trip(with(31)).await;
    assert_eq!(response.status, 431);
    assert!(
        response.proxy_status().contains("30"),
        "{}",
        response.proxy_status()
    );
    assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_connection_may_be_idle() {
    let app = Upstream::named("users").await;
    let (mesh, _wide, _callee, _) = pair(app.address, "", "").await;
    let caller = mesh.proxy("web", "--idle-timeout 500ms").await;
    let mut client = Client::connect(caller.outbound).await;
    assert_eq!(client.round_trip(GOOD).await.status, 200);
    assert!(!client.is_closed_within(Duration::from_millis(200)).await);
    assert_eq!(client.round_trip(GOOD).await.status, 200);
    assert!(client.is_closed_within(Duration::from_secs(3)).await);
    assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_connections() {
    let app = Upstream::named("users").await;
    let (mesh, _wide, _callee, _) = pair(app.address, "", "").await;
    for workers in [1, 2] {
        let caller = mesh
            .proxy("web", &format!("--max-connections 3 --workers {workers}"))
            .await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut client = Client::connect(caller.outbound).await;
            assert_eq!(client.round_trip(GOOD).await.status, 200);
            held.push(client);
        }
        let mut fourth = Client::connect(caller.outbound).await;
        fourth.send(GOOD).await;
        assert!(fourth.response().await.is_none(), "{workers} workers");
        assert!((caller.metric("leno_connections_refused_total", &[]).await - 1.0).abs() < 0.1);
        held.pop();
        until("the next is served", || async {
            let mut client = Client::connect(caller.outbound).await;
            client.send(GOOD).await;
            client.response().await.map(drop)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_requests_that_wait_for_the_control_plane() {
    let mut ads = leno_tests::ads::Ads::start(Duration::from_secs(600)).await;
    let proxy = ads.proxy("--max-waiting-requests 2 --config-wait 2s");
    let mut stream = ads.stream().await;
    stream.request().await;
    let mut waiting = Vec::new();
    for i in 0..2 {
        let mut client = Client::connect(proxy.outbound).await;
        client
            .send(format!("GET / HTTP/1.1\r\nHost: a{i}\r\n\r\n"))
            .await;
        let name = format!("a{i}:80");
        stream
            .request_matching(|r| r.resource_names_subscribe.contains(&name))
            .await;
        waiting.push(client);
    }
    let response = get(proxy.outbound, "a2", "/").await;
    assert_eq!(response.status, 503);
    assert!(
        response.proxy_status().contains("2 requests wait"),
        "{}",
        response.proxy_status()
    );
    assert_eq!(response.header("x-envoy-overloaded"), Some("true"));
    for client in &mut waiting {
        let response = client.response().await.expect("answered in time");
        assert!(
            response.proxy_status().contains("no answer for a"),
            "{}",
            response.proxy_status()
        );
    }
    let response = get(proxy.outbound, "a3", "/").await;
    assert!(
        response
            .proxy_status()
            .contains("no answer for a3:80 after 2s"),
        "{}",
        response.proxy_status()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_names() {
    let ips = [fresh_ip(), fresh_ip(), fresh_ip()];
    let app = Upstream::named("app").await;
    let yaml: String = ["a", "b", "c"]
        .iter()
        .zip(ips)
        .map(|(n, ip)| service(n, &[(ip, "v1")]))
        .collect();
    let mesh = Mesh::start(&yaml).await;
    let _a = mesh.workload("a", ips[0], app.address).await;
    let _b = mesh.workload("b", ips[1], app.address).await;
    // One of them is the proxy's own inbound Listener.
    let caller = mesh.proxy("web", "--max-names 3 --idle-names 1s").await;
    assert_eq!(get(caller.outbound, "a", "/").await.status, 200);
    assert_eq!(get(caller.outbound, "b", "/").await.status, 200);
    let response = get(caller.outbound, "c", "/").await;
    assert_eq!(response.status, 503);
    assert!(
        response.proxy_status().contains("3 authorities are in use"),
        "{}",
        response.proxy_status()
    );
    // Unused names are unsubscribed, and make room.
    until("a name is given back", || async {
        let response = get(caller.outbound, "c", "/").await;
        response
            .proxy_status()
            .contains("connection_refused")
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_a_message_of_the_control_plane() {
    let app = Upstream::named("users").await;
    let (mesh, _wide, _callee, _) = pair(app.address, &mtls("STRICT"), "").await;
    let narrow = mesh.start_proxy("web", "--max-xds-message 100 --config-wait 500ms");
    until("the message is refused", || async {
        let config = narrow.config().await;
        config["control_plane"]["detail"]
            .as_str()?
            .contains("message")
            .then_some(())
    })
    .await;
    let wide = mesh.proxy("web", "--max-xds-message 100000").await;
    assert_eq!(get(wide.outbound, "users", "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_a_message_of_a_proxy() {
    use leno_proto::type_url::LISTENER;
    use leno_tests::ads::{ClientStream, certificate, subscribe};
    let yaml = service("users", &[(fresh_ip(), "v1")]);
    let mesh = Mesh::start_with(&yaml, |bootstrap| bootstrap.max_xds_message = 600).await;
    let node = "sidecar~127.0.0.9~web.default~default.svc.cluster.local";
    for (size, accepted) in [(400, true), (600, false), (400, true)] {
        let certified = certificate(mesh.xds, &mesh.token("web"))
            .await
            .expect("a certificate");
        let name = "x".repeat(size);
        let first = subscribe(LISTENER, &[&name], Some(node));
        let answer = match ClientStream::open(mesh.xds, Some(certified), first).await {
            Ok(mut stream) => stream.response().await.map(drop),
            Err(status) => Err(status),
        };
        assert_eq!(answer.is_ok(), accepted, "{size}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_yaml() {
    let yaml = service("users", &[(fresh_ip(), "v1")]);
    let padded = |size: usize| format!("{yaml}#{}\n", "x".repeat(size - yaml.len() - 2));
    let mesh = Mesh::start_with(&padded(2000), |bootstrap| bootstrap.limits.bytes = 2000).await;
    assert!(mesh.problems().is_empty(), "{:?}", mesh.problems());
    mesh.write("mesh.yaml", &padded(2001));
    until("the file is refused", || async {
        mesh.problems()
            .first()
            .filter(|p| p.contains("at most 2000"))
            .map(drop)
    })
    .await;
    mesh.write("mesh.yaml", &padded(1999));
    until("the next is read", || async {
        mesh.problems().is_empty().then_some(())
    })
    .await;
}
