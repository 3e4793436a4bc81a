//! Certificates: obtained, renewed, swapped under open connections.

use std::time::Duration;

use leno_tests::ads::certificate;
use leno_tests::ca::{connect, serial};
use leno_tests::client::Client;
use leno_tests::cluster::Cluster;
use leno_tests::mesh::{Mesh, PORT, Proxy, mtls, service};
use leno_tests::upstream::Upstream;
use leno_tests::{fresh_ip, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: users\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_lives_across_four_rotations() {
    let (ip, app) = (fresh_ip(), Upstream::named("users").await);
    let yaml = format!("{}{}", service("users", &[(ip, "v1")]), mtls("STRICT"));
    let mesh = Mesh::start(&yaml).await;
    let short = "--certificate-ttl 4s";
    let callee = mesh
        .proxy(
            "users",
            &format!("--inbound {ip}:{PORT}={} {short}", app.address),
        )
        .await;
    let caller = mesh.proxy("web", short).await;
    let mut client = Client::connect(caller.outbound).await;
    let mut serials = Vec::new();
    let mut sent = 0;
    while serials.len() < 5 {
        assert_eq!(
            client.round_trip(GET).await.status,
            200,
            "after {sent} requests"
        );
        sent += 1;
        if let Ok(tls) = connect((ip, PORT).into(), None, &[]).await {
            let seen = serial(&tls);
            if !serials.contains(&seen) {
                serials.push(seen);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(app.requests().len(), sent, "none was lost, none came twice");
    assert!(callee.metric("leno_certificates_total", &[]).await >= 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_outlives_the_certificate_that_carried_it() {
    let (ip, app) = (
        fresh_ip(),
        Upstream::start(|_| {
            std::thread::sleep(Duration::from_secs(4));
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate".to_vec()
        }),
    );
    let app = app.await;
    let yaml = format!("{}{}", service("users", &[(ip, "v1")]), mtls("STRICT"));
    let mesh = Mesh::start(&yaml).await;
    let short = "--certificate-ttl 3s";
    let _callee = mesh
        .proxy(
            "users",
            &format!("--inbound {ip}:{PORT}={} {short}", app.address),
        )
        .await;
    let caller = mesh.proxy("web", short).await;
    let mut client = Client::connect(caller.outbound).await;
    assert_eq!(client.round_trip(GET).await.text(), "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_is_told_and_gets_nothing_new() {
    let mesh = Mesh::start(&service("users", &[(fresh_ip(), "v1")])).await;
    let ca = &mesh.control_plane.as_ref().expect("runs").ca;
    ca.revoke("default/web").expect("revoked");
    let token = mesh.token("web");
    let refused = certificate(mesh.xds, &token).await.expect_err("refused");
    assert!(
        refused.message().contains("default/web was revoked"),
        "{refused}"
    );
    let refused = certificate(mesh.xds, "rubbish").await.expect_err("refused");
    assert!(refused.message().contains("not a join token"), "{refused}");
    assert!(certificate(mesh.xds, &mesh.token("users")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_can_not_get_a_certificate_says_why() {
    let mesh = Mesh::start(&service("users", &[(fresh_ip(), "v1")])).await;
    mesh.control_plane
        .as_ref()
        .expect("runs")
        .ca
        .revoke("default/web")
        .expect("revoked");
    let proxy = mesh.start_proxy("web", "");
    let answer = until("it answers", || async {
        let answer = leno_tests::client::get(proxy.admin, "admin", "/ready").await;
        (answer.status == 503).then_some(answer)
    });
    assert!(answer.await.text().contains("no valid certificate"));
    assert_eq!(proxy.config().await["identity"], serde_json::Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_accounts_own_token_gets_its_certificate_and_nobody_elses() {
    let (ip, app) = (fresh_ip(), Upstream::named("users").await);
    let yaml = format!("{}{}", service("users", &[(ip, "v1")]), mtls("STRICT"));
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let accounts = cluster.accounts();
    let mesh = Mesh::start_with(&yaml, |bootstrap| {
        bootstrap.service_accounts = Some(accounts)
    })
    .await;
    let proxy = |account: &str, flags: &str| {
        let volume = cluster.volume("default", account, &mesh.root());
        let volume = volume.display();
        Proxy::start(&format!(
            "--xds-address {} --service-account {account} --token-file {volume}/token --ca-root {volume}/root-cert.pem {flags}",
            mesh.xds
        ))
    };
    let callee = proxy("users", &format!("--inbound {ip}:{PORT}={}", app.address));
    let caller = proxy("web", "");
    callee.ready().await;
    caller.ready().await;
    let mut client = Client::connect(caller.outbound).await;
    assert_eq!(client.round_trip(GET).await.status, 200);
    let seen = app.requests().pop().expect("one");
    let proof = seen.header("x-forwarded-client-cert").unwrap_or_default();
    assert!(proof.contains("/sa/web"), "{proof}");
    // No token of the cluster yields the control plane's identity.
    let refused = certificate(mesh.xds, &cluster.token("leno-system", "leno")).await;
    let refused = refused.expect_err("the control plane's own");
    assert!(refused.message().contains("own identity"), "{refused}");
    // A token of another cluster, and one of an identity that was revoked since.
    let refused = certificate(mesh.xds, &other.token("default", "web")).await;
    let refused = refused.expect_err("another's");
    assert!(
        refused.message().contains("no key of the cluster"),
        "{refused}"
    );
    let ca = &mesh.control_plane.as_ref().expect("runs").ca;
    ca.revoke("default/web").expect("revoked");
    let refused = certificate(mesh.xds, &cluster.token("default", "web")).await;
    let refused = refused.expect_err("revoked");
    assert!(refused.message().contains("was revoked"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_account_tokens_are_refused_where_no_clusters_keys_are_known() {
    let mesh = Mesh::start("").await;
    let token = Cluster::new().token("default", "web");
    let refused = certificate(mesh.xds, &token).await.expect_err("refused");
    let said = refused.message();
    assert!(said.contains("--service-account-jwks-file"), "{said}");
}
