//! Envoy and gRPC's own xDS client on our control plane: the forms of configuration that aren't a Leno sidecar's.

use std::net::{Ipv4Addr, SocketAddr};

use leno_tests::client::get;
use leno_tests::mesh::{Mesh, PORT, mtls, service};
use leno_tests::upstream::Upstream;
use leno_tests::{Directory, envoy, fresh_ip, until};
use tokio::net::TcpStream;

use crate::{Program, free};

/// Address of Envoy's outbound Listener, as our control plane sets it.
const ENVOY: &str = "127.0.0.1:15001";
const NODE: &str = "sidecar~127.0.0.1~web.default~default.svc.cluster.local";

/// Envoy calls a service of the mesh, and follows a change of its routes.
async fn envoy_calls(variant: &str) {
    let (one, two) = (Upstream::named("one").await, Upstream::named("two").await);
    let (a, b) = (fresh_ip(), fresh_ip());
    let workloads = service("users", &[(a, "v1"), (b, "v2")]);
    let mesh = Mesh::start(&format!("{workloads}{}", mtls("STRICT"))).await;
    mesh.write("routes.yaml", &routes("v1"));
    let _one = mesh.workload("users", a, one.address).await;
    let _two = mesh.workload("users", b, two.address).await;
    let directory = Directory::new();
    let identity = "spiffe://cluster.local/ns/default/sa/web";
    mesh.ca().write(directory.path(), identity);
    let config = envoy::bootstrap(directory.path(), mesh.xds, variant, NODE, free());
    std::fs::write(directory.path().join("envoy.yaml"), config).expect("written");
    let arguments = [
        "-c",
        "envoy.yaml",
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
    ];
    let _envoy = Program::start("envoy", &arguments, directory.path());
    let at: SocketAddr = ENVOY.parse().expect("an address");
    until("Envoy serves the mesh", || async {
        TcpStream::connect(at).await.ok()?;
        let answer = get(at, "users", "/").await;
        (answer.status == 200 && answer.text() == "one").then_some(())
    })
    .await;
    let seen = one.requests().pop().expect("one");
    let cert = seen.header("x-forwarded-client-cert").expect("XFCC");
    assert!(cert.ends_with(&format!("URI={identity}")), "{cert}");
    for name in ["users.default", "users.default.svc.cluster.local:80"] {
        assert_eq!(get(at, name, "/").await.status, 200, "{name}");
    }
    assert_eq!(get(at, "nobody", "/").await.status, 404);
    mesh.write("routes.yaml", &routes("v2"));
    until("Envoy follows", || async {
        (get(at, "users", "/").await.text() == "two").then_some(())
    })
    .await;
    let refused = until("the control plane shows it", || async {
        let shown = mesh.status().await;
        shown.contains("web.default").then_some(shown)
    });
    let refused = refused.await;
    assert!(!refused.contains("reason"), "{refused}");
}

fn routes(version: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: users}}\nspec:\n  host: users\n  \
         subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: users}}\nspec:\n  hosts: [users]\n  \
         http: [{{route: [{{destination: {{host: users, subset: {version}}}}}]}}]\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_serves_the_mesh_over_either_variant() {
    for variant in ["DELTA_GRPC", "GRPC"] {
        envoy_calls(variant).await;
    }
}

/// A gRPC server that answers with its name, and a client that dials it by xDS.
const SERVER: &str = r#"
import sys, grpc
from concurrent import futures
address, name = sys.argv[1:]
def answer(request, context): return request + b" from " + name.encode()
handler = grpc.method_handlers_generic_handler(
    "Echo", {"Say": grpc.unary_unary_rpc_method_handler(answer)})
server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(handler,))
server.add_insecure_port(address)
server.start()
server.wait_for_termination()
"#;
const CLIENT: &str = r#"
import sys, time, grpc
channel = grpc.insecure_channel("xds:///" + sys.argv[1])
say = channel.unary_unary("/Echo/Say")
while True:
    try:
        print(say(b"hello", timeout=5, wait_for_ready=True).decode(), flush=True)
    except grpc.RpcError as error:
        print(error.code(), error.details(), flush=True)
    time.sleep(0.02)
"#;

fn echo(version: &str, at: &[(Ipv4Addr, &str)]) -> String {
    let endpoints: String = (at.iter())
        .map(|(ip, version)| format!("  - {{address: {ip}, labels: {{version: {version}}}}}\n"))
        .collect();
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: echo}}\nspec:\n  \
         hosts: [echo.default.svc.cluster.local]\n  location: MESH_EXTERNAL\n  resolution: STATIC\n  \
         ports: [{{number: 9000, name: grpc, protocol: GRPC, targetPort: {PORT}}}]\n  endpoints:\n{endpoints}---\n"
    );
    entry + &routes(version).replace("users", "echo")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_dials_by_name_and_follows() {
    let (a, b) = (fresh_ip(), fresh_ip());
    let at = [(a, "v1"), (b, "v2")];
    let mesh = Mesh::start(&echo("v1", &at)).await;
    let directory = Directory::new();
    let identity = "spiffe://cluster.local/ns/default/sa/web";
    mesh.ca().write(directory.path(), identity);
    let file = |name: &str| directory.path().join(name).display().to_string();
    let bootstrap = format!(
        r#"{{"xds_servers": [{{"server_uri": "{}", "server_features": ["xds_v3"],
             "channel_creds": [{{"type": "tls", "config": {{"certificate_file": "{}",
               "private_key_file": "{}", "ca_certificate_file": "{}"}}}}]}}],
           "node": {{"id": "{NODE}"}}}}"#,
        mesh.xds,
        file("cert.pem"),
        file("key.pem"),
        file("root.pem")
    );
    std::fs::write(file("bootstrap.json"), bootstrap).expect("written");
    std::fs::write(file("server.py"), SERVER).expect("written");
    std::fs::write(file("client.py"), CLIENT).expect("written");
    let serve = |ip: Ipv4Addr, name: &str| {
        let address = format!("{ip}:{PORT}");
        let arguments = ["server.py", address.as_str(), name];
        Program::start("python3", &arguments, directory.path())
    };
    let _servers = [serve(a, "one"), serve(b, "two")];
    let environment = [("GRPC_XDS_BOOTSTRAP", file("bootstrap.json"))];
    let environment = environment
        .each_ref()
        .map(|(name, path)| (*name, path.as_str()));
    let clients = Directory::new();
    let script = file("client.py");
    let arguments = [script.as_str(), "echo:9000"];
    let _client = Program::with("python3", &arguments, clients.path(), &environment);
    let last = || async {
        let said = std::fs::read_to_string(clients.path().join("python3.log")).ok()?;
        Some(said.lines().last()?.to_owned())
    };
    for (version, name) in [("v1", "one"), ("v2", "two")] {
        mesh.write("mesh.yaml", &echo(version, &at));
        until(&format!("the client reaches {name}"), || async {
            (last().await? == format!("hello from {name}")).then_some(())
        })
        .await;
    }
    let said = std::fs::read_to_string(clients.path().join("python3.log")).expect("a log");
    let wrong: Vec<&str> = (said.lines())
        .filter(|line| !line.starts_with("hello from "))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
