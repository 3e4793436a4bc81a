//! Envoy as a workload's sidecar on our control plane: it enforces the policies of the workload.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use leno_tests::mesh::Mesh;
use leno_tests::pods::{Pod, Pods, SIDECAR};
use leno_tests::{Directory, envoy, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::timeout;

use crate::interception::{app, service};

/// Ports of the workload: one for HTTP, and one for TCP.
const HTTP: u16 = 3001;
const TCP: u16 = 3002;

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{matchLabels: {{app: users}}}}, {spec}}}\n"
    )
}

fn registry(ip: Ipv4Addr) -> String {
    let tcp = "---\napiVersion: v1\nkind: Service\nmetadata: {name: bytes}\nspec:\n  selector: {app: users}\n  \
               ports: [{port: 3002, name: tcp}]\n";
    service("users", "http", 80, HTTP, &[ip.into()]) + tcp
}

/// The status of a response; `None` when the connection ends without one.
async fn ask(from: &Pod, to: SocketAddr, method: &'static str, path: &'static str) -> Option<u16> {
    from.run(async move {
        let exchange = async {
            let mut tcp = TcpStream::connect(to).await.ok()?;
            let request =
                format!("{method} {path} HTTP/1.1\r\nhost: users\r\ncontent-length: 0\r\n\r\n");
            tcp.write_all(request.as_bytes()).await.ok()?;
            let mut read = [0; 12];
            tcp.read_exact(&mut read).await.ok()?;
            String::from_utf8_lossy(&read)
                .rsplit(' ')
                .next()?
                .parse()
                .ok()
        };
        timeout(Duration::from_secs(5), exchange).await.ok()?
    })
    .await
}

/// A request to the workload, by port, method and path, and its expected status.
type Probe = (u16, &'static str, &'static str, Option<u16>);

/// Policies, and requests with their expected statuses.
fn cases() -> Vec<(String, Vec<Probe>)> {
    let (ok, denied, closed) = (Some(200), Some(403), None);
    vec![
        (
            policy(
                "deny",
                "action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]",
            ),
            // On TCP the HTTP conditions of a DENY rule fall away: it denies everything.
            vec![
                (HTTP, "GET", "/", ok),
                (HTTP, "POST", "/", denied),
                (TCP, "GET", "/", closed),
            ],
        ),
        (
            policy(
                "allow",
                "action: ALLOW, rules: [{to: [{operation: {methods: [GET], paths: ['/ok*']}}]}]",
            ),
            // On TCP an ALLOW rule with HTTP conditions matches nothing.
            vec![
                (HTTP, "GET", "/ok/1", ok),
                (HTTP, "POST", "/ok", denied),
                (HTTP, "GET", "/no", denied),
                (TCP, "GET", "/ok", closed),
            ],
        ),
        (
            String::new(),
            vec![(HTTP, "POST", "/", ok), (TCP, "GET", "/", ok)],
        ),
        (
            policy(
                "admin",
                "action: DENY, rules: [{to: [{operation: {paths: [/admin, '*.key']}}]}]",
            ),
            vec![
                (HTTP, "GET", "/", ok),
                (HTTP, "GET", "/x/../admin", denied),
                (HTTP, "GET", "/a.key", denied),
                (TCP, "GET", "/", closed),
            ],
        ),
        (
            policy(
                "who",
                "action: ALLOW, rules: [{from: [{source: {namespaces: [default]}}]}]",
            ),
            // A stranger has no identity.
            vec![(HTTP, "GET", "/", denied), (TCP, "GET", "/", closed)],
        ),
    ]
}

fn start(pod: &Pod, mesh: &Mesh, directory: &Path, variant: &str) -> Child {
    let identity = "spiffe://cluster.local/ns/default/sa/users";
    mesh.ca().write(directory, identity);
    let node = format!("sidecar~{}~users.default~default.svc.cluster.local", pod.ip);
    let admin = SocketAddr::from(([127, 0, 0, 1], 15000));
    let config = envoy::bootstrap(directory, mesh.xds, variant, &node, admin);
    std::fs::write(directory.join("envoy.yaml"), config).expect("written");
    // Envoy runs as the sidecar's user, whose connections aren't intercepted.
    std::process::Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(directory)
        .status()
        .expect("chmod");
    let words = format!(
        "-c {}/envoy.yaml --concurrency 1 --use-dynamic-base-id -l warning",
        directory.display()
    );
    let program = PathBuf::from("envoy");
    let mut command = pod.command(SIDECAR, &program, &words);
    command.spawn().expect("envoy is on PATH")
}

async fn enforces(variant: &str) {
    let pods = Pods::new(2);
    let [workload, stranger] = &pods.pods[..] else {
        panic!("two pods");
    };
    let cases = cases();
    let mesh = pods.mesh(&registry(workload.ip)).await;
    mesh.write("policy.yaml", &cases[0].0);
    for port in [HTTP, TCP] {
        app(workload, port).await;
    }
    workload.init("").await;
    let directory = Directory::new();
    // The first policies are there at its start, the others arrive while it runs.
    let _envoy = start(workload, &mesh, directory.path(), variant);
    for (yaml, probes) in &cases {
        let yaml = if yaml.is_empty() { "# nothing\n" } else { yaml };
        mesh.write("policy.yaml", yaml);
        until(&format!("{variant}: {yaml}"), || async {
            for (port, method, path, right) in probes {
                let to = (workload.ip, *port).into();
                if ask(stranger, to, method, path).await != *right {
                    return None;
                }
            }
            Some(())
        })
        .await;
        let status = mesh.status().await;
        assert!(!status.contains("\"reason\""), "{variant}: {yaml} {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_enforces_methods_and_paths_at_start_and_live() {
    for variant in ["DELTA_GRPC", "GRPC"] {
        enforces(variant).await;
    }
}
