//! The control plane against a scripted client: no proxy is used here.

use std::time::Duration;

use leno_proto::leno::Refused;
use leno_proto::pb::envoy::config::listener::v3::Listener;
use leno_proto::pb::google::rpc::Status;
use leno_proto::tonic::Code;
use leno_proto::type_url::{CLUSTER, LISTENER, SECRET, short};
use leno_tests::ads::{ClientStream, certificate, subscribe};
use leno_tests::fresh_ip;
use leno_tests::mesh::{Mesh, mtls, service};

const NODE: &str = "sidecar~127.0.0.9~web.default~default.svc.cluster.local";
const QUIET: Duration = Duration::from_millis(700);

async fn open(mesh: &Mesh, names: &[&str]) -> ClientStream {
    let certified = certificate(mesh.xds, &mesh.token("web"))
        .await
        .expect("a certificate");
    let first = subscribe(LISTENER, names, Some(NODE));
    ClientStream::open(mesh.xds, Some(certified), first)
        .await
        .expect("a stream")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_comes_with_its_whole_chain_in_one_round_trip() {
    let mesh = Mesh::start(&service("users", &[(fresh_ip(), "v1")])).await;
    let mut stream = open(&mesh, &["users:80"]).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let response = stream.response().await.expect("a response");
        let names: Vec<&str> = response.resources.iter().map(|r| r.name.as_str()).collect();
        seen.push(format!("{} {}", short(&response.type_url), names.join(" ")));
    }
    let host = "users.default.svc.cluster.local";
    assert_eq!(
        seen,
        [
            format!("Cluster outbound|80||{host}"),
            format!("ClusterLoadAssignment outbound|80||{host}"),
            "Listener users:80".to_owned(),
            format!("RouteConfiguration {host}:80"),
        ]
    );
    assert!(stream.is_quiet(QUIET).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_the_same_for_every_client_and_after_a_restart() {
    let mut mesh = Mesh::start(&(service("users", &[(fresh_ip(), "v1")]) + &mtls("STRICT"))).await;
    let mut all = Vec::new();
    for round in 0..3 {
        if round == 2 {
            mesh.stop_control_plane().await;
            mesh.start_control_plane().await;
        }
        let mut stream = open(&mesh, &["users:80", "virtualInbound"]).await;
        let mut versions = Vec::new();
        while versions.len() < 6 {
            let response = stream.response().await.expect("a response");
            versions.extend(response.resources.into_iter().map(|r| (r.name, r.version)));
        }
        versions.sort();
        all.push(versions);
    }
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0], all[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_a_stream_without_an_identity_or_with_anothers() {
    let mesh = Mesh::start(&service("users", &[(fresh_ip(), "v1")])).await;
    let first = subscribe(LISTENER, &["users:80"], Some(NODE));
    let refused = match ClientStream::open(mesh.xds, None, first).await {
        Err(status) => status,
        Ok(mut stream) => stream.response().await.expect_err("refused"),
    };
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    for (node, code) in [
        (
            Some("sidecar~127.0.0.9~web.other~other.svc.cluster.local"),
            Code::PermissionDenied,
        ),
        (Some("rubbish"), Code::InvalidArgument),
        (None, Code::InvalidArgument),
    ] {
        let certified = certificate(mesh.xds, &mesh.token("web"))
            .await
            .expect("a certificate");
        let first = subscribe(LISTENER, &["users:80"], node);
        let refused = match ClientStream::open(mesh.xds, Some(certified), first).await {
            Err(status) => status,
            Ok(mut stream) => stream.response().await.expect_err("refused"),
        };
        assert_eq!(refused.code(), code, "{node:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_version_is_shown_and_not_sent_again_until_it_changes() {
    let (ip, more) = (fresh_ip(), fresh_ip());
    let mesh = Mesh::start(&service("users", &[(ip, "v1")])).await;
    let mut stream = open(&mesh, &["users:80"]).await;
    let cluster = stream.response().await.expect("a cluster");
    for _ in 0..3 {
        stream.response().await.expect("the rest");
    }
    let refusal = Refused {
        r#type: CLUSTER.to_owned(),
        name: cluster.resources[0].name.clone(),
        version: cluster.resources[0].version.clone(),
        field: "lb_policy".to_owned(),
        reason: "not today".to_owned(),
    };
    let mut nack = subscribe(CLUSTER, &[], None);
    nack.response_nonce.clone_from(&cluster.nonce);
    nack.error_detail = Some(Status {
        code: 3,
        message: "lb_policy".to_owned(),
        details: vec![leno_proto::pack(&refusal)],
    });
    stream.send(nack).await;
    assert!(stream.is_quiet(QUIET).await);
    let status =
        leno_tests::client::get((mesh.xds.ip(), 15014).into(), "monitoring", "/debug/status");
    let text = status.await.text();
    assert!(
        text.contains("not today") && text.contains("lb_policy"),
        "{text}"
    );
    // Its endpoints change; the cluster doesn't.
    mesh.write("mesh.yaml", &service("users", &[(ip, "v1"), (more, "v1")]));
    let response = stream.response().await.expect("endpoints");
    assert_eq!(short(&response.type_url), "ClusterLoadAssignment");
    assert!(stream.is_quiet(QUIET).await);
}

/// The nonce and the resource of the next Listener response; acknowledges every response before it.
async fn listener(stream: &mut ClientStream) -> (String, Listener) {
    loop {
        let response = stream.response().await.expect("a response");
        if response.type_url == LISTENER {
            let any = response.resources[0].resource.clone().expect("a resource");
            return (
                response.nonce,
                leno_proto::unpack(&any).expect("a Listener"),
            );
        }
        answer(stream, &response.type_url, &response.nonce, "").await;
    }
}

/// Sends an ACK, or a NACK with a message alone, as Envoy does.
async fn answer(stream: &ClientStream, type_url: &str, nonce: &str, refusal: &str) {
    let mut request = subscribe(type_url, &[], None);
    nonce.clone_into(&mut request.response_nonce);
    request.error_detail = (!refusal.is_empty()).then(|| Status {
        code: 13,
        message: refusal.to_owned(),
        details: Vec::new(),
    });
    stream.send(request).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_refuses_a_change_of_who_gets_in_is_closed() {
    let mesh = Mesh::start(&service("users", &[(fresh_ip(), "v1")])).await;
    let mut stream = open(&mesh, &["virtualInbound"]).await;
    let (nonce, before) = listener(&mut stream).await;
    answer(&stream, LISTENER, &nonce, "").await;
    mesh.write(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny}\n\
         spec: {action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}\n",
    );
    let (nonce, meant) = listener(&mut stream).await;
    assert!(meant.filter_chains.len() > 1);
    answer(&stream, LISTENER, &nonce, "no such filter").await;
    let (nonce, closed) = listener(&mut stream).await;
    let chains: Vec<&str> = closed
        .filter_chains
        .iter()
        .map(|chain| chain.name.as_str())
        .collect();
    assert_eq!(chains, ["closed"]);
    answer(&stream, LISTENER, &nonce, "").await;
    let monitoring = (mesh.xds.ip(), 15014).into();
    let page = |path: &'static str| leno_tests::client::get(monitoring, "monitoring", path);
    let told = r#""inbound_closed":"no such filter""#;
    let status = page("/debug/status").await.text();
    assert!(status.contains(told), "{status}");
    let metrics = page("/metrics").await.text();
    let series = "leno_security_change_refused{node=\"sidecar~";
    assert!(metrics.contains(series), "{metrics}");
    assert!(stream.is_quiet(QUIET).await);
    // The intended Listener changes, and is tried.
    mesh.write("policy.yaml", "# nothing\n");
    let (nonce, after) = listener(&mut stream).await;
    assert_eq!(after, before);
    answer(&stream, LISTENER, &nonce, "").await;
    leno_tests::until("it is told no more", || async {
        (!page("/metrics").await.text().contains(series)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_said_at_once_with_the_nearest_name() {
    let mesh = Mesh::start(&service("users", &[(fresh_ip(), "v1")])).await;
    let mut stream = open(&mesh, &["usres:80"]).await;
    let response = stream.response().await.expect("an answer");
    let error = &response.resource_errors[0];
    let detail = error.error_detail.as_ref().expect("explained");
    assert_eq!(detail.code, 5);
    assert!(
        detail.message.contains("did you mean users.default"),
        "{}",
        detail.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roots_come_by_the_stream() {
    let mesh = Mesh::start(&service("users", &[(fresh_ip(), "v1")])).await;
    let certified = certificate(mesh.xds, &mesh.token("web"))
        .await
        .expect("a certificate");
    let first = subscribe(SECRET, &["ROOTCA"], Some(NODE));
    let mut stream = ClientStream::open(mesh.xds, Some(certified), first)
        .await
        .expect("a stream");
    let response = stream.response().await.expect("a secret");
    assert_eq!(
        (short(&response.type_url), response.resources.len()),
        ("Secret", 1)
    );
}
