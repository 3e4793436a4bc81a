//! Ejection, retries and limits, as a caller experiences them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leno_tests::client::{Client, Response, get};
use leno_tests::mesh::{Mesh, PORT, Proxy, mtls, service};
use leno_tests::upstream::Upstream;
use leno_tests::{fresh_ip, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

/// A service of apps without sidecars.
fn plain(name: &str, apps: &[SocketAddr]) -> String {
    let endpoint = |app: &SocketAddr| {
        format!(
            "  - {{address: {}, ports: {{http: {}}}}}\n",
            app.ip(),
            app.port()
        )
    };
    let endpoints: String = apps.iter().map(endpoint).collect();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  \
         hosts: [{name}.default.svc.cluster.local]\n  location: MESH_EXTERNAL\n  resolution: STATIC\n  \
         ports: [{{number: 80, name: http, protocol: HTTP}}]\n  endpoints:\n{endpoints}"
    )
}

fn rule(policy: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: users}}\nspec:\n  \
         host: users\n  trafficPolicy: {{{policy}}}\n"
    )
}

fn routes(retries: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: users}}\nspec:\n  \
         hosts: [users]\n  http: [{{{retries}route: [{{destination: {{host: users}}}}]}}]\n"
    )
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn status(status: u16) -> Vec<u8> {
    format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

async fn post(proxy: &Proxy, path: &str, body: &str) -> Response {
    let mut client = Client::connect(proxy.outbound).await;
    let length = body.len();
    client
        .round_trip(format!(
            "POST {path} HTTP/1.1\r\nHost: users\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await
}

/// The ejection of `app` in `/config`, if any.
async fn ejection(proxy: &Proxy, app: SocketAddr) -> Option<serde_json::Value> {
    let config = proxy.config().await;
    let clusters = config["clusters"].as_array()?;
    let mut endpoints = clusters
        .iter()
        .flat_map(|c| c["endpoints"].as_array())
        .flatten();
    let found = endpoints.find(|e| e["address"] == app.to_string())?;
    Some(found["ejected"].clone()).filter(|ejected| !ejected.is_null())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_fails_is_ejected_shown_and_taken_back() {
    for workers in [1, 2] {
        let is_broken = Arc::new(AtomicBool::new(true));
        let broken = Arc::clone(&is_broken);
        let bad = Upstream::start(move |_| match broken.load(Ordering::Relaxed) {
            true => status(500),
            false => OK.to_vec(),
        })
        .await;
        let good = Upstream::named("good").await;
        let other = Upstream::named("good").await;
        let policy = "loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 3, \
                      interval: 100ms, baseEjectionTime: 500ms, maxEjectionPercent: 50}";
        let apps = [bad.address, good.address, other.address];
        let yaml = plain("users", &apps) + &rule(policy);
        let mesh = Mesh::start(&yaml).await;
        let caller = mesh.proxy("web", &format!("--workers {workers}")).await;
        let mut failed = 0;
        while ejection(&caller, bad.address).await.is_none() {
            failed += usize::from(get(caller.outbound, "users", "/").await.status == 500);
        }
        assert_eq!(failed, 3, "the third failure in a row is the last");
        let shown = ejection(&caller, bad.address).await.expect("ejected");
        assert_eq!(shown["reason"], "3 5xx responses in a row");
        assert!(
            shown["returns_in_seconds"]
                .as_f64()
                .is_some_and(|s| s <= 0.6),
            "{shown}"
        );
        let seen = bad.requests().len();
        for _ in 0..12 {
            assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
        }
        // The ejection may end during these requests: at most one of them has probed it then.
        assert!(bad.requests().len() <= seen + 1);
        is_broken.store(false, Ordering::Relaxed);
        until("it is taken back", || async {
            assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
            let is_back = ejection(&caller, bad.address).await.is_none();
            (is_back && bad.requests().len() > seen).then_some(())
        })
        .await;
        assert!(caller.metric("leno_ejections_total", &[]).await >= 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ejection_survives_a_push_and_all_may_be_ejected() {
    let bad = Upstream::start(|_| status(503)).await;
    let policy = |timeout: &str| {
        format!(
            "connectionPool: {{tcp: {{connectTimeout: {timeout}}}}}, \
             outlierDetection: {{consecutive5xxErrors: 2, baseEjectionTime: 60s, maxEjectionPercent: 100}}"
        )
    };
    let yaml = |timeout: &str| plain("users", &[bad.address]) + &rule(&policy(timeout));
    let mesh = Mesh::start(&yaml("1s")).await;
    let caller = mesh.proxy("web", "").await;
    for _ in 0..2 {
        assert_eq!(get(caller.outbound, "users", "/").await.status, 503);
    }
    for timeout in ["1s", "2s"] {
        mesh.write("mesh.yaml", &yaml(timeout));
        let refused = until("the push arrived", || async {
            let config = caller.config().await.to_string();
            let refused = get(caller.outbound, "users", "/").await;
            (timeout == "1s" || config.contains("DestinationRule") || refused.status == 503)
                .then_some(refused)
        })
        .await;
        assert_eq!(refused.text(), "no healthy upstream");
        assert!(
            refused
                .proxy_status()
                .contains("is ejected, after 2 5xx responses"),
            "{}",
            refused.proxy_status()
        );
    }
    assert_eq!(bad.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_sent_goes_elsewhere_whatever_the_method() {
    // Nothing listens at the first address.
    let dead = SocketAddr::from((fresh_ip(), PORT));
    let app = Upstream::named("app").await;
    let mesh = Mesh::start(&plain("users", &[dead, app.address])).await;
    let caller = mesh.proxy("web", "").await;
    for _ in 0..10 {
        assert_eq!(post(&caller, "/", "body").await.status, 200);
        assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
    }
    let seen = app.requests();
    assert_eq!(seen.len(), 20);
    let counts = seen
        .iter()
        .filter_map(|s| s.header("x-envoy-attempt-count"));
    let again = counts.filter(|count| *count == "2").count();
    assert!(again > 0, "some were tried twice");
    assert!((caller.metric("leno_retries_total", &[]).await - again as f64).abs() < 0.5);
    assert!(
        seen.iter()
            .filter(|s| s.target() == "/")
            .all(|s| s.body.is_empty() || s.body == b"body")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sidecar_could_not_hand_to_its_app_goes_elsewhere_with_its_body() {
    let (ips, apps) = (
        [fresh_ip(), fresh_ip()],
        [Upstream::named("one").await, Upstream::named("two").await],
    );
    let yaml = service("users", &ips.map(|ip| (ip, "v1"))) + &mtls("STRICT");
    let mesh = Mesh::start(&yaml).await;
    let _callees = (
        mesh.workload("users", ips[0], apps[0].address).await,
        mesh.workload("users", ips[1], apps[1].address).await,
    );
    let caller = mesh.proxy("web", "").await;
    // A sidecar waits for an app that it has never reached.
    until("both were reached", || async {
        get(caller.outbound, "users", "/").await;
        let seen = apps.iter().all(|app| !app.requests().is_empty());
        seen.then_some(())
    })
    .await;
    apps[0].end().await;
    for i in 0..20 {
        let answer = post(&caller, "/", "body").await;
        assert_eq!(
            (answer.status, answer.text()),
            (200, "two".to_owned()),
            "{i}"
        );
    }
    let posts = apps[1]
        .requests()
        .into_iter()
        .filter(|seen| seen.body == b"body");
    assert_eq!(posts.count(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_are_off_when_the_author_turned_them_off() {
    let dead = SocketAddr::from((fresh_ip(), PORT));
    let yaml = plain("users", &[dead]) + &routes("retries: {}, ");
    let mesh = Mesh::start(&yaml).await;
    let caller = mesh.proxy("web", "").await;
    let refused = get(caller.outbound, "users", "/").await;
    assert_eq!(refused.status, 503);
    assert!(
        !refused.proxy_status().contains("tries"),
        "{}",
        refused.proxy_status()
    );
    assert!(caller.metric("leno_retries_total", &[]).await < 0.5);
    // By default there are three tries, and the answer says so.
    mesh.write("mesh.yaml", &plain("users", &[dead]));
    until("retries are on again", || async {
        let refused = get(caller.outbound, "users", "/").await;
        (refused.status == 503 && refused.proxy_status().contains("after 3 tries")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_never_came_is_asked_for_again_only_where_that_is_safe() {
    // It reads the request, and closes.
    let app = Upstream::start(|_| Vec::new()).await;
    let mesh = Mesh::start(&plain("users", &[app.address])).await;
    let caller = mesh.proxy("web", "").await;
    for (request, times) in [
        ("GET /a HTTP/1.1\r\nHost: users\r\n\r\n", 3),
        (
            "POST /b HTTP/1.1\r\nHost: users\r\nContent-Length: 1\r\n\r\nx",
            1,
        ),
        (
            "POST /c HTTP/1.1\r\nHost: users\r\nIdempotency-Key: 7\r\nContent-Length: 1\r\n\r\nx",
            3,
        ),
        (
            "PUT /d HTTP/1.1\r\nHost: users\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            3,
        ),
    ] {
        let answer = Client::connect(caller.outbound)
            .await
            .round_trip(request)
            .await;
        assert_eq!(answer.status, 503, "{request}");
        let path = request.split(' ').nth(1).expect("a path");
        let seen = app.requests();
        let seen: Vec<_> = seen.iter().filter(|seen| seen.target() == path).collect();
        assert_eq!(seen.len(), times, "{request}");
        assert!(
            seen.iter().all(|again| again.body == seen[0].body),
            "{request}"
        );
    }
    let withheld = "leno_retries_withheld_total";
    let reason = ["reason=\"not idempotent\""];
    assert!((caller.metric(withheld, &reason).await - 1.0).abs() < 0.5);
    // An explicit retry policy may repeat it.
    mesh.write(
        "routes.yaml",
        &routes("retries: {attempts: 1, retryOn: reset}, "),
    );
    mesh.wait_routed().await;
    until("the policy is in force", || async {
        let before = app.requests().len();
        post(&caller, "/e", "x").await;
        (app.requests().len() == before + 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_retried_as_the_policy_says() {
    let bad = Upstream::start(|seen| match seen.target() {
        "/grpc" => b"HTTP/1.1 200 OK\r\ngrpc-status: 14\r\ncontent-length: 0\r\n\r\n".to_vec(),
        path => status(path[1..].parse().expect("a status")),
    })
    .await;
    let good = Upstream::named("good").await;
    let policy = "retries: {attempts: 2, retryOn: \"gateway-error,429,unavailable\"}, ";
    let yaml = plain("users", &[bad.address, good.address]) + &routes(policy);
    let mesh = Mesh::start(&yaml).await;
    let caller = mesh.proxy("web", "").await;
    for (path, always) in [
        ("/503", true),
        ("/429", true),
        ("/grpc", true),
        ("/500", false),
    ] {
        let mut answers = HashMap::new();
        for i in 0..20 {
            let answer = match i % 2 {
                0 => get(caller.outbound, "users", path).await,
                _ => post(&caller, path, "once or twice").await,
            };
            let is_good = answer.status == 200 && answer.text() == "good";
            *answers.entry(is_good).or_insert(0) += 1;
        }
        assert_eq!(!answers.contains_key(&false), always, "{path}: {answers:?}");
    }
    // The route's timeout bounds all tries together.
    let slow =
        routes("timeout: 300ms, retries: {attempts: 5, perTryTimeout: 100ms, retryOn: 5xx}, ");
    let hole = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let yaml = plain("users", &[hole.local_addr().expect("bound")]) + &slow;
    mesh.write("mesh.yaml", &yaml);
    // The endpoint may arrive before the route that limits it.
    until("the hole is in force", || async {
        let answer = get(caller.outbound, "users", "/200");
        let answer = timeout(Duration::from_secs(1), answer).await.ok()?;
        (answer.status == 504).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_try_that_took_too_long_another_endpoint_is_asked() {
    // It accepts connections and never answers.
    let hole = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let app = Upstream::named("app").await;
    let policy = "retries: {attempts: 1, perTryTimeout: 100ms, retryOn: 5xx}, ";
    let apps = [hole.local_addr().expect("bound"), app.address];
    let mesh = Mesh::start(&(plain("users", &apps) + &routes(policy))).await;
    let caller = mesh.proxy("web", "").await;
    for _ in 0..12 {
        assert_eq!(get(caller.outbound, "users", "/").await.text(), "app");
    }
    assert!(caller.metric("leno_retries_total", &[]).await > 0.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_to_keep_is_sent_once_and_whole() {
    let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
    let record = Arc::clone(&seen);
    let app = Upstream::start(move |request| {
        record
            .lock()
            .expect("not poisoned")
            .push(request.body.len());
        status(503)
    })
    .await;
    let yaml = plain("users", &[app.address]) + &routes("retries: {attempts: 2, retryOn: 5xx}, ");
    let mesh = Mesh::start(&yaml).await;
    let caller = mesh.proxy("web", "").await;
    for (size, times) in [(1024 * 1024, 3), (1024 * 1024 + 1, 1)] {
        let answer = post(&caller, "/", &"x".repeat(size)).await;
        assert_eq!(answer.status, 503);
        let bodies = std::mem::take(&mut *seen.lock().expect("not poisoned"));
        assert_eq!(bodies, vec![size; times]);
    }
}

/// An app that closes each connection up to 3 ms after a response: just when the next request may come. Returns its
/// address, and the number of requests by target, answered or not.
async fn closing_app() -> (SocketAddr, Arc<Mutex<HashMap<String, usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let address = listener.local_addr().expect("bound");
    let seen: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let record = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let record = Arc::clone(&record);
            tokio::spawn(async move {
                let mut read = Vec::new();
                let life = Duration::from_micros(fastrand::u64(0..3000));
                loop {
                    let more = timeout(life, tcp.read_buf(&mut read)).await;
                    if !matches!(more, Ok(Ok(count)) if count > 0) {
                        return;
                    }
                    while let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                        let head: Vec<u8> = read.drain(..end + 4).collect();
                        let head = String::from_utf8_lossy(&head);
                        let id = head.split(' ').nth(1).unwrap_or_default().to_owned();
                        *record.lock().expect("not poisoned").entry(id).or_insert(0) += 1;
                        if tcp.write_all(OK).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    (address, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_closes_at_the_moment_of_reuse_loses_and_doubles_nothing() {
    let (app, seen) = closing_app().await;
    let mesh = Mesh::start(&plain("users", &[app])).await;
    let caller = mesh.proxy("web", "").await;
    for (method, may_fail) in [("GET", false), ("POST", true)] {
        let mut client = Client::connect(caller.outbound).await;
        let mut failed = 0;
        for i in 0..2000 {
            let request = format!(
                "{method} /{method}{i} HTTP/1.1\r\nHost: users\r\nContent-Length: 0\r\n\r\n"
            );
            let answer = client.round_trip(request).await;
            if answer.status != 200 {
                failed += 1;
                assert!(may_fail, "{i}: {}", answer.proxy_status());
                assert_eq!(answer.status, 503);
                assert!(
                    answer.proxy_status().contains("the request had been sent"),
                    "{}",
                    answer.proxy_status()
                );
            }
            if fastrand::bool() {
                sleep(Duration::from_micros(fastrand::u64(0..2500))).await;
            }
        }
        // Repeatable requests are answered; others are seldom lost, more often on a busy machine. The choice of
        // connections is tested apart.
        assert!(failed < 100, "{failed} of 2000 {method}");
    }
    let seen = seen.lock().expect("not poisoned");
    let twice: Vec<_> = seen
        .iter()
        .filter(|(id, n)| id.starts_with("/POST") && **n > 1)
        .collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// An app that holds each response until `leave` has a permit.
async fn held() -> (SocketAddr, Arc<Semaphore>, Arc<Semaphore>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let address = listener.local_addr().expect("bound");
    let (arrived, leave) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (here, may) = (Arc::clone(&arrived), Arc::clone(&leave));
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let (here, may) = (Arc::clone(&here), Arc::clone(&may));
            tokio::spawn(async move {
                let mut read = [0; 4096];
                while matches!(tcp.read(&mut read).await, Ok(count) if count > 0) {
                    here.add_permits(1);
                    may.acquire().await.expect("open").forget();
                    let _ = tcp.write_all(OK).await;
                }
            });
        }
    });
    (address, arrived, leave)
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_requests_as_may_are_under_way_and_one_more_is_told_so_at_once() {
    for (workers, policy, under_way, waiting, name) in [
        (
            1,
            "tcp: {maxConnections: 2}, http: {http1MaxPendingRequests: 1}",
            2,
            1,
            "http1MaxPendingRequests",
        ),
        (
            2,
            "tcp: {maxConnections: 2}, http: {http1MaxPendingRequests: 1}",
            2,
            1,
            "http1MaxPendingRequests",
        ),
        (1, "http: {http2MaxRequests: 3}", 3, 0, "http2MaxRequests"),
        (2, "http: {http2MaxRequests: 3}", 3, 0, "http2MaxRequests"),
    ] {
        let (app, arrived, leave) = held().await;
        let yaml = plain("users", &[app]) + &rule(&format!("connectionPool: {{{policy}}}"));
        let mesh = Mesh::start(&yaml).await;
        let caller = mesh.proxy("web", &format!("--workers {workers}")).await;
        let ask = || tokio::spawn(get_owned(caller.outbound));
        let mut asked: Vec<_> = (0..under_way).map(|_| ask()).collect();
        arrived
            .acquire_many(under_way)
            .await
            .expect("they arrive")
            .forget();
        for _ in 0..waiting {
            asked.push(ask());
        }
        until("whoever waits is waiting", || async {
            let config = caller.config().await;
            let clusters = config["clusters"].as_array()?;
            let mut under_way = clusters.iter().map(|c| c["under_way"]["pending"].as_u64());
            under_way.any(|count| count == Some(waiting)).then_some(())
        })
        .await;
        let begun = Instant::now();
        let refused = get(caller.outbound, "users", "/").await;
        let elapsed = begun.elapsed();
        assert!(elapsed < Duration::from_millis(100), "{elapsed:?}");
        assert_eq!(refused.status, 503, "{policy}");
        assert_eq!(refused.header("x-envoy-overloaded"), Some("true"));
        assert!(
            refused.proxy_status().contains(name),
            "{}",
            refused.proxy_status()
        );
        leave.add_permits(100);
        for request in asked {
            assert_eq!(request.await.expect("no panic").status, 200, "{policy}");
        }
        assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
    }
}

async fn get_owned(address: SocketAddr) -> Response {
    get(address, "users", "/").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_the_app_carries_as_many_requests_as_may() {
    let ip = fresh_ip();
    let app = Upstream::named("app").await;
    let policy = "connectionPool: {http: {maxRequestsPerConnection: 2}}";
    let mesh = Mesh::start(&(service("users", &[(ip, "v1")]) + &rule(policy))).await;
    let _callee = mesh.workload("users", ip, app.address).await;
    let caller = mesh.proxy("web", "").await;
    for _ in 0..10 {
        assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
    }
    assert_eq!(app.connections(), 5);
}
