//! A proxy that ends without losing a request.

use std::time::Duration;

use leno_proto::leno::DrainRequest;
use leno_proto::leno::lifecycle_client::LifecycleClient;
use leno_proto::type_url::LISTENER;
use leno_tests::ads::{ClientStream, certificate, channel, subscribe};
use leno_tests::client::{Client, get};
use leno_tests::h2::{App, connect, request, round_trip, send};
use leno_tests::mesh::{Mesh, PORT, Proxy, mtls, service};
use leno_tests::upstream::Upstream;
use leno_tests::{fresh_ip, until};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// An app that answers `/slow` once `go` is set, and the rest at once.
async fn app(name: &'static str, go: watch::Receiver<bool>) -> App {
    App::start(move |request, mut respond| {
        let mut go = go.clone();
        async move {
            if request.uri().path() == "/slow" {
                let _ = go.wait_for(|go| *go).await;
            }
            let stream = respond.send_response(http::Response::new(()), false)?;
            send(stream, name.as_bytes(), None).await
        }
    })
    .await
}

/// A subscriber that receives a response and never acknowledges it.
async fn silent_subscriber(mesh: &Mesh) -> ClientStream {
    let certified = certificate(mesh.xds, &mesh.token("web"))
        .await
        .expect("a certificate");
    let node = "sidecar~127.0.0.9~deaf.default~default.svc.cluster.local";
    let first = subscribe(LISTENER, &["users:80"], Some(node));
    let stream = ClientStream::open(mesh.xds, Some(certified), first).await;
    let mut stream = stream.expect("a stream");
    stream.response().await.expect("a response");
    stream
}

/// Calls Drain for `node` as `account`; returns the subscribers that are still sent there, or the refusal.
async fn drain(mesh: &Mesh, account: &str, node: &str) -> Result<Vec<String>, String> {
    let certified = certificate(mesh.xds, &mesh.token(account))
        .await
        .expect("a certificate");
    let channel = channel(mesh.xds, Some(certified))
        .await
        .expect("it is let in");
    let node = node.to_owned();
    let call = LifecycleClient::new(channel)
        .drain(DrainRequest {
            node,
            instance: "another".to_owned(),
        })
        .await;
    let mut call = call
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let answer = call.message().await.expect("no error").expect("an answer");
    Ok(answer.waiting)
}

/// Waits until a proxy has `count` requests under way.
async fn under_way(proxy: &Proxy, count: u64) {
    until("requests are under way", || async {
        let config = proxy.config().await;
        let clusters = config["clusters"].as_array()?;
        let requests = clusters.iter().map(|c| c["under_way"]["requests"].as_u64());
        (requests.flatten().sum::<u64>() == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_sent_elsewhere_before_the_listener_closes() {
    let (one, other) = (fresh_ip(), fresh_ip());
    let (_go, wait) = watch::channel(false);
    let (app_one, app_other) = (app("one", wait.clone()).await, app("other", wait).await);
    let named = service("users", &[(one, "v1"), (other, "v1")])
        .replace("name: http, protocol: HTTP", "name: grpc, protocol: GRPC");
    // Without retries: only the drain keeps requests from failing.
    let once = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: users}\nspec:\n  hosts: [users]\n  http: [{retries: {attempts: 0}, route: [{destination: {host: users}}]}]\n";
    let mesh = Mesh::start(&format!("{named}{once}{}", mtls("STRICT"))).await;
    mesh.wait_routed().await;
    let first = mesh
        .proxy(
            "users",
            &format!("--inbound {one}:{PORT}={}", app_one.address),
        )
        .await;
    let second = mesh
        .proxy(
            "users",
            &format!("--inbound {other}:{PORT}={}", app_other.address),
        )
        .await;
    let caller = mesh.proxy("web", "").await;
    let sender = connect(caller.outbound).await;
    // Both are warm: connections to each are open, for HTTP/2 and for HTTP/1 callers.
    let names = async || {
        let mut names = Vec::new();
        for _ in 0..20 {
            let call = request("POST", "http://users/", &[]);
            let answer = round_trip(&sender, call, b"x", None)
                .await
                .expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
            names.push(String::from_utf8_lossy(&answer.body).into_owned());
            let answer = get(caller.outbound, "users", "/").await;
            assert_eq!(answer.status, 200, "{}", answer.proxy_status());
            names.push(answer.text());
        }
        names
    };
    assert!(names().await.iter().any(|name| name == "one"));

    let ending = tokio::spawn(first.stop());
    // From some moment on, every request goes to the other endpoint; none fails before or after.
    until("everybody knows", || async {
        names()
            .await
            .iter()
            .all(|name| name == "other")
            .then_some(())
    })
    .await;
    timeout(Duration::from_secs(10), ending)
        .await
        .expect("it ends")
        .expect("in order");
    assert!(names().await.iter().all(|name| name == "other"));

    // The same workload, started again, receives requests again.
    let _first = mesh
        .proxy(
            "users",
            &format!("--inbound {one}:{PORT}={}", app_one.address),
        )
        .await;
    until("it is back", || async {
        names().await.iter().any(|name| name == "one").then_some(())
    })
    .await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_is_finished_and_what_comes_meanwhile_is_served() {
    let ip = fresh_ip();
    let (go, wait) = watch::channel(false);
    let app = app("app", wait).await;
    let named = service("users", &[(ip, "v1")])
        .replace("name: http, protocol: HTTP", "name: http2, protocol: HTTP2");
    let mesh = Mesh::start(&named).await;
    let callee = mesh
        .proxy("users", &format!("--inbound {ip}:{PORT}={}", app.address))
        .await;
    let address = callee.inbound[0];
    // Three callers: a slow request by HTTP/1, one by HTTP/2, and an idle connection.
    let mut slow = Client::connect(address).await;
    slow.send("GET /slow HTTP/1.1\r\nHost: users\r\n\r\n").await;
    let sender = connect(address).await;
    let streamed = tokio::spawn({
        let sender = sender.clone();
        async move { round_trip(&sender, request("GET", "http://users/slow", &[]), b"", None).await }
    });
    let mut idle = Client::connect(address).await;
    assert_eq!(
        idle.round_trip("GET / HTTP/1.1\r\nHost: users\r\n\r\n")
            .await
            .status,
        200
    );
    under_way(&callee, 2).await;
    // A subscriber that never acknowledges keeps the drain window open for its five seconds.
    let deaf = silent_subscriber(&mesh).await;
    let begun = Instant::now();
    let ending = tokio::spawn(callee.stop());
    let answer = until("responses close", || async {
        let mut client = Client::connect(address).await;
        let answer = client
            .round_trip("GET / HTTP/1.1\r\nHost: users\r\n\r\n")
            .await;
        assert_eq!(answer.status, 200, "new connections are served");
        (answer.header("connection") == Some("close")).then_some(answer)
    })
    .await;
    assert_eq!(answer.text(), "app");
    let answer = idle
        .round_trip("GET / HTTP/1.1\r\nHost: users\r\n\r\n")
        .await;
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
    until("the stream's connection says goodbye", || async {
        sender.clone().ready().await.is_err().then_some(())
    })
    .await;
    let fresh = connect(address).await;
    let answer = round_trip(&fresh, request("GET", "http://users/", &[]), b"", None).await;
    assert_eq!(answer.expect("an answer").status, 200, "new ones serve");
    assert!(!ending.is_finished());
    // After the window, requests under way still have their time.
    until("the listener is closed", || async {
        TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    let window = begun.elapsed();
    assert!(
        window > Duration::from_secs(4) && window < Duration::from_secs(8),
        "{window:?}"
    );
    assert!(!ending.is_finished());
    go.send(true).expect("the app waits");
    let answer = slow.response().await.expect("an answer");
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
    let answer = streamed.await.expect("ended").expect("an answer");
    assert_eq!(answer.status, 200);
    timeout(Duration::from_secs(5), ending)
        .await
        .expect("it ends")
        .expect("in order");
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_app_asks_for_is_served_to_the_end() {
    let (users, other) = (fresh_ip(), fresh_ip());
    let (go, wait) = watch::channel(false);
    let slow = app("slow", wait).await;
    let friend = Upstream::named("friend").await;
    let named = service("users", &[(users, "v1")])
        .replace("name: http, protocol: HTTP", "name: http2, protocol: HTTP2");
    let mesh = Mesh::start(&format!("{named}{}", service("friend", &[(other, "v1")]))).await;
    let callee = mesh
        .proxy(
            "users",
            &format!("--inbound {users}:{PORT}={}", slow.address),
        )
        .await;
    let _friend = mesh
        .proxy(
            "friend",
            &format!("--inbound {other}:{PORT}={}", friend.address),
        )
        .await;
    let (address, outbound) = (callee.inbound[0], callee.outbound);
    let sender = connect(address).await;
    let (response, _) = sender
        .clone()
        .send_request(request("GET", "http://users/slow", &[]), true)
        .expect("sent");
    under_way(&callee, 1).await;
    let ending = tokio::spawn(callee.stop());
    until("the listener is closed", || async {
        TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    // A destination never requested before: the xDS stream is up as well.
    for _ in 0..20 {
        let answer = get(outbound, "friend", "/").await;
        assert_eq!(answer.text(), "friend", "{}", answer.proxy_status());
    }
    assert!(!ending.is_finished());
    go.send(true).expect("the app waits");
    assert_eq!(response.await.expect("a response").status(), 200);
    timeout(Duration::from_secs(10), ending)
        .await
        .expect("it ends")
        .expect("in order");
    assert!(TcpStream::connect(outbound).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_doesnt_wait_for_a_control_plane_that_is_gone() {
    let app = Upstream::named("app").await;
    let ip = fresh_ip();
    let mut mesh = Mesh::start(&service("users", &[(ip, "v1")])).await;
    let callee = mesh
        .proxy("users", &format!("--inbound {ip}:{PORT}={}", app.address))
        .await;
    mesh.stop_control_plane().await;
    let begun = Instant::now();
    callee.stop().await;
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_endpoint_of_a_service_serves_while_it_drains() {
    let ip = fresh_ip();
    let (go, wait) = watch::channel(false);
    let app = app("app", wait).await;
    let named = service("users", &[(ip, "v1")])
        .replace("name: http, protocol: HTTP", "name: http2, protocol: HTTP2");
    let mesh = Mesh::start(&format!("{named}{}", mtls("STRICT"))).await;
    let callee = mesh
        .proxy("users", &format!("--inbound {ip}:{PORT}={}", app.address))
        .await;
    let caller = mesh.proxy("web", "").await;
    assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
    let deaf = silent_subscriber(&mesh).await;
    let ending = tokio::spawn(callee.stop());
    let mut served = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        let answer = get(caller.outbound, "users", "/").await;
        assert_eq!(answer.status, 200, "{}", answer.proxy_status());
        served += 1;
    }
    assert!(served > 10, "{served}");
    drop((go, deaf));
    timeout(Duration::from_secs(15), ending)
        .await
        .expect("it ends")
        .expect("in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_drains_a_workload_but_itself() {
    let (one, other) = (fresh_ip(), fresh_ip());
    let yaml = service("users", &[(one, "v1"), (other, "v1")]);
    let mesh = Mesh::start(&yaml).await;
    let apps = [Upstream::named("one").await, Upstream::named("other").await];
    let _one = mesh.workload("users", one, apps[0].address).await;
    let _other = mesh.workload("users", other, apps[1].address).await;
    let caller = mesh.proxy("web", "").await;
    let both = async || {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..30 {
            seen.insert(get(caller.outbound, "users", "/").await.text());
        }
        seen.len() == 2
    };
    assert!(both().await);
    // Another account of the namespace names the same address: that means a workload of its own, and there is none.
    let node = format!("sidecar~{one}~users.default~default.svc.cluster.local");
    assert!(drain(&mesh, "web", &node).await.is_ok());
    assert!(both().await);
    let elsewhere = node.replace("users.default", "users.other");
    let refused = drain(&mesh, "users", &elsewhere).await;
    let refused = refused.expect_err("another namespace");
    assert!(refused.contains("namespace"), "{refused}");
    assert!(both().await);
    // The account itself may.
    assert!(drain(&mesh, "users", &node).await.is_ok());
    assert!(!both().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_comes_back_learns_who_drains() {
    let (one, other) = (fresh_ip(), fresh_ip());
    let (go, wait) = watch::channel(false);
    let (held, free) = (app("held", wait.clone()).await, app("free", wait).await);
    let named = service("users", &[(one, "v1"), (other, "v1")])
        .replace("name: http, protocol: HTTP", "name: http2, protocol: HTTP2");
    let mut mesh = Mesh::start(&named).await;
    let first = mesh.workload("users", one, held.address).await;
    let _other = mesh.workload("users", other, free.address).await;
    let caller = mesh.proxy("web", "").await;
    assert_eq!(get(caller.outbound, "users", "/").await.status, 200);
    // A slow request keeps the first proxy alive while it drains.
    let mut slow = Client::connect(first.inbound[0]).await;
    slow.send("GET /slow HTTP/1.1\r\nHost: users\r\n\r\n").await;
    under_way(&first, 1).await;
    let ending = tokio::spawn(first.stop());
    let lists_one = async || {
        caller
            .config()
            .await
            .to_string()
            .contains(&format!("{one}:"))
    };
    until("callers know", || async {
        (!lists_one().await).then_some(())
    })
    .await;
    mesh.stop_control_plane().await;
    mesh.start_control_plane().await;
    // A new caller is sent elsewhere too, once the drain has been reported again.
    until("the new control plane knows", || async {
        let fresh = mesh.proxy("web", "").await;
        get(fresh.outbound, "users", "/").await;
        let config = fresh.config().await.to_string();
        let knows = config.contains(&format!("{other}:")) && !config.contains(&format!("{one}:"));
        knows.then_some(())
    })
    .await;
    assert!(!ending.is_finished());
    go.send(true).expect("the app waits");
    assert_eq!(slow.response().await.expect("an answer").status, 200);
    timeout(Duration::from_secs(10), ending)
        .await
        .expect("it ends")
        .expect("in order");
}
