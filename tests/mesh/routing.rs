//! Routing of requests, and the explanation when there is no route.

use std::net::Ipv4Addr;
use std::time::Duration;

use leno_tests::client::{Client, get};
use leno_tests::mesh::{Mesh, Proxy, mtls, pair, service};
use leno_tests::upstream::Upstream;
use leno_tests::{fresh_ip, until};

const RULES: &str = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: users}
spec:
  hosts: [users]
  http:
  - match: [{headers: {user-agent: {regex: '.*Mobile.*'}}}]
    route: [{destination: {host: users, subset: v2}}]
  - match: [{uri: {exact: /v2}}, {uri: {prefix: /new/}}, {uri: {regex: '/[0-9]+'}}]
    route: [{destination: {host: users, subset: v2}}]
  - match: [{method: {exact: PUT}, queryParams: {to: {exact: v2}}, headers: {x-any: {}}}]
    route: [{destination: {host: users, subset: v2}}]
  - match: [{uri: {prefix: /undefined}}]
    route: [{destination: {host: users, subset: v7}}]
  - match: [{uri: {prefix: /empty}}]
    route: [{destination: {host: users, subset: none}}]
  - match: [{uri: {prefix: /slow}}]
    timeout: 200ms
    route: [{destination: {host: users, subset: v1}}]
  - match: [{uri: {prefix: /v1}}]
    route: [{destination: {host: users, subset: v1}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: users}
spec:
  host: users
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: none, labels: {version: v9}}
";

/// Two versions of `users`, each behind its sidecar, and a caller.
async fn two_versions(rules: &str) -> (Mesh, Proxy, [Proxy; 2], [Upstream; 2]) {
    let ips: [Ipv4Addr; 2] = [fresh_ip(), fresh_ip()];
    let yaml = service("users", &[(ips[0], "v1"), (ips[1], "v2")]);
    let mesh = Mesh::start(&format!("{yaml}{rules}")).await;
    let apps = [
        Upstream::start(slow_or("v1")).await,
        Upstream::named("v2").await,
    ];
    let callees = [
        mesh.workload("users", ips[0], apps[0].address).await,
        mesh.workload("users", ips[1], apps[1].address).await,
    ];
    let caller = mesh.proxy("web", "").await;
    (mesh, caller, callees, apps)
}

/// An app that answers `/slow` after 600 ms.
fn slow_or(name: &'static str) -> impl Fn(&leno_tests::upstream::ReceivedRequest) -> Vec<u8> {
    move |seen| {
        if seen.target().starts_with("/slow") {
            std::thread::sleep(Duration::from_millis(600));
        }
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}",
            name.len()
        )
        .into_bytes()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rule_that_matches_is_taken() {
    let (_mesh, caller, _callees, _apps) = two_versions(RULES).await;
    let mut client = Client::connect(caller.outbound).await;
    for (request, expected) in [
        ("GET /v1 HTTP/1.1\r\nhost: users\r\n", "v1"),
        (
            "GET /v1 HTTP/1.1\r\nhost: users\r\nuser-agent: a Mobile b\r\n",
            "v2",
        ),
        (
            "GET /v1 HTTP/1.1\r\nhost: users\r\nuser-agent: a mobile b\r\n",
            "v1",
        ),
        ("GET /v2 HTTP/1.1\r\nhost: users\r\n", "v2"),
        ("GET /v2?x HTTP/1.1\r\nhost: users\r\n", "v2"),
        ("GET /new/x HTTP/1.1\r\nhost: users\r\n", "v2"),
        ("GET /123 HTTP/1.1\r\nhost: users\r\n", "v2"),
        (
            "PUT /v1?a&to=v2 HTTP/1.1\r\nhost: users\r\nx-any: 1\r\ncontent-length: 0\r\n",
            "v2",
        ),
        (
            "PUT /v1?to=v2 HTTP/1.1\r\nhost: users\r\ncontent-length: 0\r\n",
            "v1",
        ),
        (
            "PUT /v1?to=v3 HTTP/1.1\r\nhost: users\r\nx-any: 1\r\ncontent-length: 0\r\n",
            "v1",
        ),
        (
            "GET /a/../v2 HTTP/1.1\r\nhost: users.default.svc.cluster.local:80\r\n",
            "v2",
        ),
    ] {
        let response = client.round_trip(format!("{request}\r\n")).await;
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, expected),
            "{request}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_routed_says_which_rule_and_why() {
    let (_mesh, caller, _callees, _apps) = two_versions(RULES).await;
    for (host, path, status, words) in [
        (
            "users",
            "/undefined",
            503,
            "default/users DestinationRule defines no subset v7; it has none, v1, v2 (default/users VirtualService http[3])",
        ),
        (
            "users",
            "/empty",
            503,
            "has no endpoints (default/users VirtualService http[4] -> default/users DestinationRule subset none (version=v9))",
        ),
        (
            "users",
            "/nowhere",
            404,
            "no route of users:80 matches /nowhere",
        ),
        (
            "users:81",
            "/",
            404,
            "default/users ServiceEntry has no port 81; it has 80",
        ),
        (
            "userz",
            "/",
            404,
            "did you mean users.default.svc.cluster.local?",
        ),
    ] {
        let response = get(caller.outbound, host, path).await;
        assert_eq!(
            response.status,
            status,
            "{host}{path}: {}",
            response.proxy_status()
        );
        assert!(
            response.proxy_status().contains(words),
            "{host}{path}: {}",
            response.proxy_status()
        );
        assert_eq!(response.header("server"), Some("leno"));
        assert!(
            response
                .header("x-request-id")
                .is_some_and(|id| id.len() == 36)
        );
    }
    let own = caller.outbound.to_string();
    assert_eq!(get(caller.outbound, &own, "/").await.status, 508);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_takes_too_long_is_a_504() {
    let (_mesh, caller, _callees, _apps) = two_versions(RULES).await;
    let response = get(caller.outbound, "users", "/slow").await;
    assert_eq!(response.status, 504);
    assert_eq!(response.text(), "upstream request timeout");
    assert!(
        response.proxy_status().contains("200ms"),
        "{}",
        response.proxy_status()
    );
    assert_eq!(get(caller.outbound, "users", "/v1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_client_that_knows_proxies_works() {
    let (_mesh, caller, _callees, apps) = two_versions(RULES).await;
    let mut client = Client::connect(caller.outbound).await;
    let absolute = "GET http://users/v2?q HTTP/1.1\r\nHost: elsewhere\r\n\r\n";
    assert_eq!(client.round_trip(absolute).await.text(), "v2");
    let seen = apps[1].requests().pop().expect("one");
    assert_eq!(
        (seen.target(), seen.header("host")),
        ("/v2?q", Some("users"))
    );

    let response = client.tunnel("users:80").await;
    assert_eq!(response.status, 200);
    let inside = "GET /v2 HTTP/1.1\r\nHost: whatever\r\n\r\n";
    assert_eq!(
        client.round_trip(inside).await.text(),
        "v2",
        "an unknown Host means the tunnel's end"
    );

    let mut client = Client::connect(caller.outbound).await;
    let response = client.tunnel("nobody:80").await;
    assert_eq!(response.status, 404);
    assert!(
        response.proxy_status().contains("no service nobody"),
        "{}",
        response.proxy_status()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_kept_and_counted() {
    let rules = RULES.replace(
        "  - match: [{uri: {prefix: /v1}}]\n    route: [{destination: {host: users, subset: v1}}]\n",
        "  - route: [{destination: {host: users, subset: v1}, weight: 75}, {destination: {host: users, subset: v2}, weight: 25}]\n",
    );
    let (_mesh, caller, callees, apps) = two_versions(&rules).await;
    let mut client = Client::connect(caller.outbound).await;
    for _ in 0..400 {
        assert_eq!(
            client
                .round_trip("GET /x HTTP/1.1\r\nhost: users\r\n\r\n")
                .await
                .status,
            200
        );
    }
    let v2 = apps[1].requests().len();
    // Five standard deviations of 400 draws at one in four.
    assert!(v2.abs_diff(100) < 45, "{v2}");
    let counted = until("every request is counted", || async {
        let labels = ["reporter=\"source\"", "response_code=\"200\""];
        let counted = caller.metric("istio_requests_total", &labels).await;
        (counted >= 400.0).then_some(counted)
    });
    assert!((counted.await - 400.0).abs() < 0.5);
    let labels = [
        "reporter=\"destination\"",
        "destination_version=\"v2\"",
        "mutual_tls",
    ];
    let received = callees[1].metric("istio_requests_total", &labels).await;
    assert!((received - v2 as f64).abs() < 0.5, "{received} {v2}");
    let parsed = callees[1]
        .metric("leno_http1_requests_parsed_total", &[])
        .await;
    assert!(
        (parsed - v2 as f64).abs() < 0.5,
        "our own parser read them all: {parsed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn least_request_avoids_the_busy_instance() {
    let ips: [Ipv4Addr; 2] = [fresh_ip(), fresh_ip()];
    let mesh = Mesh::start(&service("users", &[(ips[0], "v1"), (ips[1], "v1")])).await;
    let stuck = Upstream::start(|seen| match seen.target() {
        // A body that never ends keeps the request in flight.
        "/stuck" => b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_vec(),
        _ => b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(),
    });
    let apps = [stuck.await, Upstream::named("b").await];
    let _callees = [
        mesh.workload("users", ips[0], apps[0].address).await,
        mesh.workload("users", ips[1], apps[1].address).await,
    ];
    let caller = mesh.proxy("web", "").await;
    let mut held = Vec::new();
    while apps[0].requests().is_empty() {
        let mut client = Client::connect(caller.outbound).await;
        client
            .send("GET /stuck HTTP/1.1\r\nhost: users\r\n\r\n")
            .await;
        client.read_exact(12).await;
        held.push(client);
    }
    let before = apps[0].requests().len();
    let mut client = Client::connect(caller.outbound).await;
    for _ in 0..20 {
        client
            .round_trip("GET / HTTP/1.1\r\nhost: users\r\n\r\n")
            .await;
    }
    assert_eq!(
        apps[0].requests().len(),
        before,
        "the busy instance gets nothing more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_is_opened_ahead_of_its_requests_still_speaks_http() {
    let app = Upstream::named("v1").await;
    let flags = "--protocol-detection-timeout 100ms";
    let (_mesh, caller, _callee, _) = pair(app.address, &mtls("STRICT"), flags).await;
    let mut client = Client::connect(caller.outbound).await;
    assert_eq!(client.tunnel("users:80").await.status, 200);
    // Much longer than a server's greeting would take.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let answer = client
        .round_trip("GET / HTTP/1.1\r\nhost: users\r\n\r\n")
        .await;
    assert_eq!(answer.status, 200);
    let seen = app.requests();
    // HTTP requests have ids, TCP has none.
    assert!(seen[0].header("x-request-id").is_some());
}
