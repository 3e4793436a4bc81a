//! An injected pod as containers of the built image: init, sidecar, app, as their YAML says. The kubelet's work, as far
//! as one pod needs it, is done here; the pod's network is a namespace of ours.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Output;

use leno_control_plane::app::Bootstrap;
use leno_control_plane::inject::{Report, Settings, inject};
use leno_tests::client::{Client, Response, get};
use leno_tests::cluster::Cluster;
use leno_tests::mesh::{Mesh, mtls};
use leno_tests::pods::{Pod, Pods};
use leno_tests::{Directory, until};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::interception::service;

/// The image that `deploy/images/build` makes.
const IMAGE: &str = concat!("localhost/leno-proxy:", env!("CARGO_PKG_VERSION"));
/// The app's image: busybox, and a page.
const APP: &str = "localhost/leno-test-app:1";

async fn podman(words: &[String]) -> Output {
    let done = Command::new("podman").args(words).output().await;
    done.expect("podman must be on PATH")
}

async fn must(words: &[String]) -> String {
    let done = podman(words).await;
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "podman {words:?}: {said}");
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

async fn build_app() {
    let directory = Directory::new();
    let path = directory.path();
    std::fs::copy("/bin/busybox", path.join("busybox")).expect("busybox-static is installed");
    std::fs::create_dir(path.join("www")).expect("a directory");
    std::fs::write(path.join("www/index.html"), "the app").expect("written");
    let file = "FROM scratch\nCOPY busybox /busybox\nCOPY www /www\n";
    std::fs::write(path.join("Containerfile"), file).expect("written");
    must(&words(&format!(
        "build --quiet --tag {APP} {}",
        path.display()
    )))
    .await;
}

/// The pod as its author writes it, with its sidecar.
fn pod(xds: SocketAddr) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "user-service", "namespace": "default", "labels": {"app": "user-service"}},
        "spec": {
            "serviceAccountName": "user-service",
            "containers": [{
                "name": "app", "image": APP,
                "args": ["/busybox", "httpd", "-f", "-p", "3001", "-h", "/www"],
                "ports": [{"name": "http", "containerPort": 3001}],
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
                "livenessProbe": {"tcpSocket": {"port": 3001}},
            }],
        },
    });
    let settings = Settings {
        image: IMAGE.to_owned(),
        xds_address: xds.to_string(),
        xds_identity: String::new(),
        trust_domain: "cluster.local".to_owned(),
        join_token_secret: None,
        ca_root_configmap: "leno-ca-root-cert".to_owned(),
    };
    inject(&mut pod, &settings, &mut Report::default());
    pod
}

/// A container of the pod, removed when it is dropped.
struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        let words = ["rm", "--force", "--time", "0", &self.0];
        let _ = std::process::Command::new("podman").args(words).output();
    }
}

/// Arguments of podman for `container` of `pod`, in the network of `at`.
fn run(pod: &Value, container: &Value, at: &Pod, secrets: &Path) -> Vec<String> {
    let mut all = words("run --tls-verify=false --pull=never");
    all.push(format!("--network=ns:{}", at.namespace()));
    let security = &container["securityContext"];
    if security["readOnlyRootFilesystem"] == true {
        all.push("--read-only".to_owned());
    }
    if security["allowPrivilegeEscalation"] == false {
        all.push("--security-opt=no-new-privileges".to_owned());
    }
    for (flag, kind) in [("--cap-drop", "drop"), ("--cap-add", "add")] {
        let named = security["capabilities"][kind].as_array();
        all.extend(
            named
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(|c| format!("{flag}={c}")),
        );
    }
    if let Some(user) = security["runAsUser"].as_u64() {
        all.push(format!("--user={user}:{user}"));
    }
    for variable in container["env"].as_array().into_iter().flatten() {
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let value = match field {
            Some("status.podIP") => at.ip.to_string(),
            Some("spec.serviceAccountName") => text(&pod["spec"]["serviceAccountName"]),
            Some(field) => text(&pod["metadata"][field.trim_start_matches("metadata.")]),
            None => text(&variable["value"]),
        };
        all.push(format!("--env={}={value}", text(&variable["name"])));
    }
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let path = text(&mount["mountPath"]);
        match mount["name"].as_str() {
            Some("leno-token") => all.push(format!("--volume={}:{path}:ro", secrets.display())),
            _ => all.push(format!(
                "--mount=type=tmpfs,destination={path},tmpfs-mode=0777"
            )),
        }
    }
    all
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn finish(mut all: Vec<String>, container: &Value) -> Vec<String> {
    all.push(text(&container["image"]));
    all.extend(container["args"].as_array().into_iter().flatten().map(text));
    all
}

/// Starts the pod's containers in their order; the app when the sidecar's startup probe succeeds.
async fn start(pods: &Pods, at: &Pod, pod: &Value, secrets: &Path) -> Vec<Container> {
    let mut running = Vec::new();
    let containers = ["initContainers", "containers"].map(|kind| pod["spec"][kind].as_array());
    for container in containers.into_iter().flatten().flatten() {
        let all = run(pod, container, at, secrets);
        let stays = container["restartPolicy"] == "Always" || container["name"] == "app";
        let mode = if stays { "--detach" } else { "--rm" };
        let all = finish([all, words(mode)].concat(), container);
        let said = must(&all).await;
        if stays {
            running.push(Container(said));
        } else {
            println!("{}: {said}", text(&container["name"]));
        }
        if let Some(path) = container["startupProbe"]["httpGet"]["path"].as_str() {
            let (path, ip) = (path.to_owned(), at.ip.into());
            let probe =
                async move { until("the startup probe succeeds", || ready(ip, &path)).await };
            pods.world.run(probe).await;
        }
    }
    running
}

async fn ready(ip: IpAddr, path: &str) -> Option<()> {
    let _ = tokio::net::TcpStream::connect((ip, 15020)).await.ok()?;
    (get((ip, 15020).into(), "kubelet", path).await.status == 200).then_some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_injected_pod_runs_from_the_built_image() {
    build_app().await;
    let pods = Pods::new(2);
    let [caller, callee] = &pods.pods[..] else {
        panic!("two pods");
    };
    let yaml = service("user-service", "http", 80, 3001, &[callee.ip.into()]) + &mtls("STRICT");
    let cluster = Cluster::new();
    let accounts = cluster.accounts();
    let accept = |bootstrap: &mut Bootstrap| bootstrap.service_accounts = Some(accounts);
    let mesh: Mesh = pods.mesh_with(&yaml, accept).await;
    let pod = pod(mesh.xds);
    let secrets = cluster.volume("default", "user-service", &mesh.root());
    let containers = start(&pods, callee, &pod, &secrets).await;
    assert_eq!(containers.len(), 2, "the sidecar and the app");
    let _caller = caller.inject(&mesh, "order-service", "").await;
    let there = SocketAddr::from((callee.ip, 80));
    let answer: Response = caller
        .run(async move {
            let mut client = Client::connect(there).await;
            client
                .round_trip("GET / HTTP/1.1\r\nhost: user-service\r\n\r\n")
                .await
        })
        .await;
    assert_eq!(
        (answer.status, answer.text()),
        (200, "the app".to_owned()),
        "{}",
        answer.proxy_status()
    );
    // The node's probes are plaintext, though the mode is STRICT.
    let ip = callee.ip;
    for probe in ["readyz", "livez"] {
        let path = format!("/app-health/app/{probe}");
        let answer = pods
            .world
            .run(async move { get((ip, 15020).into(), "kubelet", &path).await });
        let answer = answer.await;
        assert_eq!(answer.status, 200, "{probe}: {}", answer.text());
    }
    let stats = pods
        .world
        .run(async move { get((ip, 15020).into(), "prometheus", "/stats/prometheus").await });
    let stats = stats.await.text();
    let counted = stats
        .lines()
        .filter(|line| line.starts_with("istio_requests_total{") && line.contains("mutual_tls"));
    assert_eq!(counted.count(), 1, "{stats}");
    drop(containers);
}
