//! Interception: the connections that are taken over, their destinations, and the exceptions.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use leno_control_plane::mesh::OutboundTrafficPolicy;
use leno_tests::client::Client;
use leno_tests::mesh::{Mesh, mtls};
use leno_tests::pods::{Pod, PodSidecar, Pods};
use leno_tests::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// Registry objects of a service behind pods.
pub(crate) fn service(name: &str, port: &str, number: u16, target: u16, pods: &[IpAddr]) -> String {
    let mut yaml = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  \
         ports: [{{port: {number}, name: '{port}', targetPort: {target}}}]\n"
    );
    for (i, ip) in pods.iter().enumerate() {
        yaml.push_str(&format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}-{i}}}\nspec:\n  address: '{ip}'\n  \
             labels: {{app: {name}}}\n  serviceAccount: {name}\n"
        ));
    }
    yaml
}

/// Starts an app on every address of a pod; it answers with the caller's address and its XFCC.
pub(crate) async fn app(pod: &Pod, port: u16) {
    let listening = async move {
        let listener = TcpListener::bind(("::", port)).await.expect("an address");
        tokio::spawn(async move {
            while let Ok((tcp, peer)) = listener.accept().await {
                tokio::spawn(answer(tcp, peer));
            }
        });
    };
    pod.run(listening).await;
}

async fn answer(mut tcp: TcpStream, peer: SocketAddr) {
    let mut read = Vec::new();
    while let Ok(count) = tcp.read_buf(&mut read).await {
        if count == 0 {
            return;
        }
        while let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).into_owned();
            read.drain(..end + 4);
            let proof = head
                .lines()
                .find_map(|line| line.strip_prefix("x-forwarded-client-cert: "));
            let body = format!("{} {}", peer.ip().to_canonical(), proof.unwrap_or("nobody"));
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            if tcp.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Sends a GET as a program in the pod, unaware of the mesh.
async fn get(pod: &Pod, address: SocketAddr, host: &str) -> (u16, String) {
    let host = host.to_owned();
    pod.run(async move {
        let mut client = Client::connect(address).await;
        let answer = client
            .round_trip(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"))
            .await;
        let why = answer.proxy_status().to_owned();
        (answer.status, answer.text() + &why)
    })
    .await
}

/// Two pods of the mesh, the second with an app on port 3001, and a third outside.
async fn two(yaml: impl Fn(&Pods) -> String) -> (Pods, Mesh, [PodSidecar; 2]) {
    let pods = Pods::new(3);
    let mesh = pods.mesh(&yaml(&pods)).await;
    app(&pods.pods[1], 3001).await;
    let caller = pods.pods[0].inject(&mesh, "order-service", "").await;
    let callee = pods.pods[1].inject(&mesh, "user-service", "").await;
    (pods, mesh, [caller, callee])
}

fn users(pods: &Pods) -> String {
    let ips = [pods.pods[1].ip.into(), pods.pods[1].ip6.into()];
    service("user-service", "http", 80, 3001, &ips) + &mtls("STRICT")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_knows_nothing_speaks_mutual_tls_over_ipv4_and_ipv6() {
    let (pods, _mesh, _sidecars) = two(users).await;
    let [caller, callee, outside] = &pods.pods[..] else {
        panic!("three pods");
    };
    for ip in [IpAddr::from(callee.ip), callee.ip6.into()] {
        // By the service's port and name, and by the pod's own port and address.
        for (port, host) in [
            (80, "user-service".to_owned()),
            (3001, SocketAddr::new(ip, 3001).to_string()),
        ] {
            let (status, body) = get(caller, (ip, port).into(), &host).await;
            assert_eq!(status, 200, "{ip}:{port} {body}");
            assert!(
                body.contains("URI=spiffe://cluster.local/ns/default/sa/order-service"),
                "{body}"
            );
        }
        // Plaintext from outside is refused before the app sees it.
        let refused = outside.run(async move {
            let mut tcp = TcpStream::connect((ip, 3001))
                .await
                .expect("the sidecar accepts");
            let _ = tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let mut answer = Vec::new();
            let _ = timeout(Duration::from_secs(10), tcp.read_to_end(&mut answer)).await;
            answer
        });
        assert_eq!(refused.await, b"", "{ip}");
    }
    let labels = &[
        "reporter=\"destination\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    until("they are counted", || async {
        let count = callee.metric("istio_requests_total", labels).await;
        ((count - 4.0).abs() < 0.5).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sidecar_dialled_in_vain_leads_no_connection_of_the_app_past_it() {
    let pods = Pods::new(1);
    let mesh = pods.mesh("").await;
    let pod = &pods.pods[0];
    let _sidecar = pod.inject(&mesh, "web", "").await;
    // Nothing is there, and no ICMP error says so.
    let nobody = SocketAddr::from(([10, 100, 0, 9], 9999));
    let app = pod
        .run(async move {
            let mut app = TcpStream::connect(nobody).await.expect("taken over");
            app.write_all(b"hello").await.expect("taken over");
            app
        })
        .await;
    let dialling = || async {
        let dialled = pod.connections("syn-sent").into_iter();
        dialled.rev().find(|[_, peer]| *peer == nobody)
    };
    let [from, _] = until("the sidecar dials", dialling).await;
    drop(app);
    until("it gives up", || async {
        dialling().await.is_none().then_some(())
    })
    .await;
    // The kernel still waits for an answer to the sidecar's SYN.
    let again = pod.run(async move {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        timeout(Duration::from_secs(3), socket.connect(nobody)).await?
    });
    again.await.expect("taken over as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_meets_its_own_service_as_any_caller_would() {
    let (pods, _mesh, _sidecars) = two(users).await;
    let callee = &pods.pods[1];
    for ip in [IpAddr::from(callee.ip), callee.ip6.into()] {
        let outside = SocketAddr::new(pods.pods[2].ip.into(), 80);
        let _ = outside;
        let (status, body) = get(callee, (ip, 3001).into(), "user-service:80").await;
        assert_eq!(status, 200, "{body}");
    }
    // By its name, at any address.
    let elsewhere = SocketAddr::new(pods.pods[0].ip.into(), 80);
    let (status, body) = get(callee, elsewhere, "user-service").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("sa/user-service"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_knows_passes_unless_only_the_registry_may() {
    let (pods, _mesh, _sidecars) = two(users).await;
    let [caller, _, outside] = &pods.pods[..] else {
        panic!("three pods");
    };
    app(outside, 8080).await;
    let there = SocketAddr::new(outside.ip.into(), 8080);
    let (status, body) = get(caller, there, "example.com").await;
    assert_eq!((status, body), (200, format!("{} nobody", caller.ip)));
    let there = SocketAddr::new(outside.ip6.into(), 8080);
    let (status, _) = get(caller, there, "example.com").await;
    assert_eq!(status, 200);
    let labels = &[
        "destination_service_name=\"PassthroughCluster\"",
        "reporter=\"source\"",
    ];
    // A request is counted at its end, which may be after its response has arrived.
    until("they are counted", || async {
        let count = caller.metric("istio_requests_total", labels).await;
        ((count - 2.0).abs() < 0.5).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_knows_is_refused_with_the_reason_where_only_the_registry_may() {
    let pods = Pods::new(2);
    let only = |bootstrap: &mut leno_control_plane::app::Bootstrap| {
        bootstrap.settings.outbound_traffic_policy = OutboundTrafficPolicy::RegistryOnly;
    };
    let mesh = pods.mesh_with(&mtls("STRICT"), only).await;
    let _sidecar = pods.pods[0].inject(&mesh, "order-service", "").await;
    app(&pods.pods[1], 8080).await;
    let there = SocketAddr::new(pods.pods[1].ip.into(), 8080);
    let (status, body) = get(&pods.pods[0], there, "example.com").await;
    assert_eq!(status, 404, "{body}");
    assert!(body.contains("REGISTRY_ONLY"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_excluded_goes_straight() {
    let pods = Pods::new(2);
    let [caller, callee] = &pods.pods[..] else {
        panic!("two pods");
    };
    let mesh = pods
        .mesh(&(service("user-service", "http", 80, 3001, &[callee.ip.into()]) + &mtls("STRICT")))
        .await;
    app(callee, 3001).await;
    app(callee, 3002).await;
    callee.init("--exclude-inbound-ports 3002").await;
    let _callee = callee.sidecar(&mesh, "user-service", "").await;
    let (status, body) = get(caller, (callee.ip, 3002).into(), "a").await;
    assert_eq!((status, body), (200, format!("{} nobody", caller.ip)));
    // On the caller's side as well: excluded connections are plaintext, which the callee refuses.
    caller.init("--exclude-outbound-ports 3001").await;
    let _caller = caller.sidecar(&mesh, "order-service", "").await;
    let there = (callee.ip, 3001);
    let refused = caller.run(async move {
        let mut tcp = TcpStream::connect(there).await.expect("accepted");
        let _ = tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer).await;
        answer
    });
    assert_eq!(refused.await, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_rules_a_sidecar_does_not_start_and_says_why() {
    let pods = Pods::new(1);
    let words = "run --interception-mode REDIRECT --ip 10.99.0.11";
    let done = pods.pods[0].proxy(words).await;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success(), "{said}");
    assert!(
        said.contains("connections are not taken over") && said.contains("leno-proxy init"),
        "{said}"
    );
    // `init` and `clean` are idempotent; after both there are no rules.
    for words in ["init", "init", "clean", "clean"] {
        assert!(pods.pods[0].proxy(words).await.status.success(), "{words}");
    }
    let done = pods.pods[0]
        .proxy("run --interception-mode REDIRECT --ip 10.99.0.11")
        .await;
    assert!(!done.status.success());
}

/// The ClientHello of a TLS client for the server name `name`.
fn client_hello(name: &'static str) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(config.into(), name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a hello");
    hello
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_where_its_server_name_is_known_to_be_and_is_never_opened() {
    let pods = Pods::new(2);
    let [caller, server] = &pods.pods[..] else {
        panic!("two pods");
    };
    let yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api}}\nspec:\n  hosts: [api.example.com]\n  \
         location: MESH_EXTERNAL\n  resolution: STATIC\n  ports: [{{number: 443, name: tls, protocol: TLS, targetPort: 8443}}]\n  \
         endpoints: [{{address: {}}}]\n",
        server.ip
    );
    let mesh = pods.mesh(&yaml).await;
    let _sidecar = caller.inject(&mesh, "order-service", "").await;
    let ip = server.ip;
    let listener =
        server.run(async move { TcpListener::bind((ip, 8443)).await.expect("an address") });
    let listener = listener.await;
    let hello = client_hello("api.example.com");
    let sent = hello.clone();
    let asking = caller.run(async move {
        // Any address that the name might resolve to.
        let mut tcp = TcpStream::connect("10.100.0.1:443")
            .await
            .expect("taken over");
        tcp.write_all(&sent).await.expect("written");
        let mut answer = [0; 6];
        tcp.read_exact(&mut answer).await.expect("an answer");
        answer
    });
    let answering = server.run(async move {
        let (mut tcp, _) = listener.accept().await.expect("a connection");
        let mut read = vec![0; hello.len()];
        tcp.read_exact(&mut read).await.expect("a hello");
        tcp.write_all(b"server").await.expect("written");
        (read == hello).then_some(())
    });
    let (answer, same) = tokio::join!(asking, answering);
    assert_eq!((&answer, same), (b"server", Some(())));
}
