//! Identity of the peer: certificates, modes of mutual TLS, and XFCC.

use std::time::{Duration, SystemTime};

use leno_tests::ca::{self, Ca, hour};
use leno_tests::client::{Client, get};
use leno_tests::mesh::{Mesh, PORT, mtls, pair, service};
use leno_tests::upstream::Upstream;
use leno_tests::{Directory, fresh_ip, until};

const GET: &str = "GET /users/1 HTTP/1.1\r\nHost: users\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_app_sees_both_identities_and_cannot_be_lied_to() {
    let app = Upstream::named("users").await;
    let (_mesh, caller, _callee, _) = pair(app.address, &mtls("STRICT"), "").await;
    let mut client = Client::connect(caller.outbound).await;
    let forged =
        "GET / HTTP/1.1\r\nHost: users\r\nX-Forwarded-For: 9.9.9.9\r\ntraceparent: rubbish\r\n\r\n";
    assert_eq!(client.round_trip(forged).await.status, 200);
    let seen = app.requests().pop().expect("one");
    let cert = seen.header("x-forwarded-client-cert").expect("XFCC");
    assert!(
        cert.starts_with("By=spiffe://cluster.local/ns/default/sa/users;Hash="),
        "{cert}"
    );
    assert!(
        cert.ends_with(";Subject=\"\";URI=spiffe://cluster.local/ns/default/sa/web"),
        "{cert}"
    );
    assert!(
        seen.header("x-forwarded-for")
            .is_some_and(|v| v.starts_with("9.9.9.9, 127."))
    );
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("traceparent").map(str::len), Some(55));
    assert_eq!(seen.header("x-request-id").map(str::len), Some(36));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mode_lets_in_whom_it_should() {
    for (mode, plaintext, mutual) in [
        ("STRICT", false, true),
        ("PERMISSIVE", true, true),
        ("DISABLE", true, true),
    ] {
        let app = Upstream::named("users").await;
        let (_mesh, caller, _callee, ip) = pair(app.address, &mtls(mode), "").await;
        assert_eq!(
            get(caller.outbound, "users", "/").await.status == 200,
            mutual,
            "{mode}"
        );
        let by_tls = app.requests()[0]
            .header("x-forwarded-client-cert")
            .is_some();
        assert_eq!(
            by_tls,
            mode != "DISABLE",
            "{mode}: auto mTLS follows the mode"
        );
        let mut client = Client::connect((ip, PORT).into()).await;
        let forged = "GET / HTTP/1.1\r\nHost: users\r\nX-Forwarded-Client-Cert: By=me\r\nX-Envoy-Retry-On: 5xx\r\n\r\n";
        client.send(forged).await;
        let answered = client
            .response()
            .await
            .is_some_and(|response| response.status == 200);
        assert_eq!(answered, plaintext, "{mode}");
        if plaintext {
            let seen = app.requests().pop().expect("two");
            assert_eq!(
                seen.header("x-forwarded-client-cert"),
                None,
                "nobody proved it"
            );
            assert_eq!(seen.header("x-envoy-retry-on"), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_may_be_for_one_port() {
    let app = Upstream::named("users").await;
    let port_level = format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: one}}\nspec:\n  selector: {{matchLabels: {{app: users}}}}\n  portLevelMtls: {{{PORT}: {{mode: PERMISSIVE}}}}\n"
    );
    let yaml = format!("{}{port_level}", mtls("STRICT"));
    let (_mesh, _caller, _callee, ip) = pair(app.address, &yaml, "").await;
    assert_eq!(get((ip, PORT).into(), "users", "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_not_who_it_should_be_gets_nothing() {
    // The registry says `users`; the address belongs to a workload of `thief`.
    let (ip, app) = (fresh_ip(), Upstream::named("thief").await);
    let mesh = Mesh::start(&service("users", &[(ip, "v1")])).await;
    let _thief = mesh.workload("thief", ip, app.address).await;
    let caller = mesh.proxy("web", "").await;
    let response = get(caller.outbound, "users", "/").await;
    assert_eq!(response.status, 503);
    assert!(
        response.proxy_status().contains("tls_certificate_error"),
        "{}",
        response.proxy_status()
    );
    assert!(
        response.proxy_status().contains("sa/thief is not one of"),
        "{}",
        response.proxy_status()
    );
    assert!(app.bytes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_expired_or_foreign_certificate_is_refused() {
    let app = Upstream::named("users").await;
    let (ip, directory) = (fresh_ip(), Directory::new());
    let state = directory.path().to_owned();
    let yaml = format!("{}{}", service("users", &[(ip, "v1")]), mtls("STRICT"));
    let mesh = Mesh::start_with(&yaml, |bootstrap| bootstrap.state.clone_from(&state)).await;
    let _callee = mesh.workload("users", ip, app.address).await;
    let (own, stolen) = (Ca::new(), Ca::stolen(&state));
    let web = "spiffe://cluster.local/ns/default/sa/web";
    let past = SystemTime::now() - Duration::from_secs(60);
    for (what, certified, let_in) in [
        ("none", None, false),
        ("self-made", Some(own.certify(web, hour())), false),
        ("expired", Some(stolen.certify(web, past)), false),
        (
            "foreign domain",
            Some(stolen.certify("spiffe://other/ns/default/sa/web", hour())),
            false,
        ),
        (
            "no SPIFFE ID",
            Some(stolen.certify("https://cluster.local/web", hour())),
            false,
        ),
        ("good", Some(stolen.certify(web, hour())), true),
    ] {
        let answered = match ca::connect((ip, PORT).into(), certified, &[b"istio-http/1.1"]).await {
            Err(_) => false,
            Ok(tls) => {
                let mut client = Client::over(tls);
                client.send(GET).await;
                client
                    .response()
                    .await
                    .is_some_and(|response| response.status == 200)
            }
        };
        assert_eq!(answered, let_in, "{what}");
    }
    assert_eq!(app.requests().len(), 1, "only the good one reached the app");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_http_travel_by_mutual_tls_too() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bound");
    let app = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut first = [0; 4];
                let _ = tcp.read_exact(&mut first).await;
                let _ = tcp.write_all(b"AMQP back").await;
            });
        }
    });
    // A port without a declared protocol: one that is declared HTTP lets nothing else pass.
    let ip = fresh_ip();
    let yaml = service("users", &[(ip, "v1")]).replace("name: http, protocol: HTTP, ", "");
    let mesh = Mesh::start(&format!("{yaml}{}", mtls("STRICT"))).await;
    let _callee = mesh.workload("users", ip, app).await;
    let caller = mesh.proxy("web", "").await;
    let mut client = Client::connect(caller.outbound).await;
    let response = client.tunnel("users:80").await;
    assert_eq!(response.status, 200);
    client.send(b"\x00\x01AM").await;
    assert_eq!(client.read_to_end().await, b"AMQP back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_that_changes_reaches_connections_that_are_open() {
    let app = Upstream::named("users").await;
    let ip = fresh_ip();
    let yaml = service("users", &[(ip, "v1")]);
    let mesh = Mesh::start(&format!("{yaml}{}", mtls("PERMISSIVE"))).await;
    let _callee = mesh.workload("users", ip, app.address).await;
    let mut client = Client::connect((ip, PORT).into()).await;
    assert_eq!(client.round_trip(GET).await.status, 200);
    mesh.write("mesh.yaml", &format!("{yaml}{}", mtls("STRICT")));
    until("plaintext is refused", || async {
        let mut fresh = Client::connect((ip, PORT).into()).await;
        fresh.send(GET).await;
        fresh.response().await.is_none().then_some(())
    })
    .await;
    client.send(GET).await;
    assert!(
        client.response().await.is_none(),
        "the open connection is judged anew"
    );
}
