//! A real Prometheus scrapes a running mesh: everything that Istio's dashboards, Kiali and ours ask returns data, and what can
//! be counted is counted right.

use std::net::SocketAddr;
use std::path::Path;

use leno_tests::client::{Client, get};
use leno_tests::mesh::{Mesh, Proxy, mtls};
use leno_tests::upstream::Upstream;
use leno_tests::{Directory, fresh_ip, h2, until};
use serde_json::Value;

use crate::{Program, free};

/// What stays empty in a mesh in which this doesn't happen.
const NOT_HERE: [(&str, &str); 3] = [
    (
        "kiali-graph-http-unserved",
        "nobody calls from another namespace",
    ),
    (
        "kiali-security-requests-outside",
        "nobody calls from another namespace",
    ),
    ("istio-pilot-rejects", "nothing is refused"),
];

fn registry(
    ips: [std::net::Ipv4Addr; 2],
    grpc: std::net::Ipv4Addr,
    tcp: std::net::Ipv4Addr,
) -> String {
    let entry = |name: &str, ip, app: &str, version: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}}}\nspec:\n  address: {ip}\n  \
             labels: {{app: {app}, version: {version}}}\n  serviceAccount: {app}\n"
        )
    };
    let service = |name: &str, port: &str, number: u16, target: u16| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  \
             ports: [{{port: {number}, name: {port}, targetPort: {target}}}]\n"
        )
    };
    [
        service("user-service", "http", 80, 3001),
        service("ledger", "grpc", 80, 3002),
        service("queue", "tcp", 5672, 3003),
        entry("user-service-v1", ips[0], "user-service", "v1"),
        entry("user-service-v2", ips[1], "user-service", "v2"),
        entry("ledger", grpc, "ledger", "v1"),
        entry("queue", tcp, "queue", "v1"),
        mtls("STRICT"),
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: user-service}\nspec:\n  hosts: [user-service]\n  \
         http:\n  - match: [{uri: {prefix: /none}}]\n    route: [{destination: {host: user-service, subset: none}}]\n  \
         - route: [{destination: {host: user-service}}]\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: user-service}\nspec:\n  host: user-service\n  \
         subsets: [{name: none, labels: {version: v9}}]\n"
            .to_owned(),
    ]
    .concat()
}

/// A mesh that is called in every way, by the whole of a scripted mix.
struct Watched {
    yaml: String,
    mesh: Mesh,
    caller: Proxy,
    callees: Vec<Proxy>,
    _apps: Vec<Upstream>,
}

async fn watched() -> Watched {
    let (ips, grpc, tcp) = ([fresh_ip(), fresh_ip()], fresh_ip(), fresh_ip());
    let yaml = registry(ips, grpc, tcp);
    let mesh = Mesh::start(&yaml).await;
    let mut callees = Vec::new();
    let mut apps = Vec::new();
    for ip in ips {
        let app = Upstream::start(|seen| {
            let status = match seen.target() {
                "/broken" => "500 Broken",
                _ => "200 OK",
            };
            format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok").into_bytes()
        })
        .await;
        callees.push(
            mesh.proxy(
                "user-service",
                &format!("--inbound {ip}:3001={}", app.address),
            )
            .await,
        );
        apps.push(app);
    }
    let ledger = h2::App::echo().await;
    callees.push(
        mesh.proxy(
            "ledger",
            &format!("--inbound {grpc}:3002={}", ledger.address),
        )
        .await,
    );
    let queue = echo().await;
    callees.push(
        mesh.proxy("queue", &format!("--inbound {tcp}:3003={queue}"))
            .await,
    );
    let caller = mesh
        .proxy("order-service", "--workload order-service")
        .await;
    Watched {
        yaml,
        mesh,
        caller,
        callees,
        _apps: apps,
    }
}

/// An app that says back what it is told.
async fn echo() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("an address");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.into_split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// One round of the mix: 40 requests that go well, 5 that the app breaks, 3 to nobody, 5 calls, one connection.
async fn round(watched: &Watched) {
    let mut client = Client::connect(watched.caller.outbound).await;
    for (count, path) in [(40, "/"), (5, "/broken"), (3, "/none")] {
        for _ in 0..count {
            client
                .ask(format!("GET {path} HTTP/1.1\r\nhost: user-service\r\n\r\n"))
                .await;
        }
    }
    let calls = h2::connect(watched.caller.outbound).await;
    for _ in 0..5 {
        let fields = [("content-type", "application/grpc"), ("te", "trailers")];
        let request = h2::request("POST", "http://ledger/a.B/Unary", &fields);
        let answer = h2::ask(&calls, request, b"\0\0\0\0\x02hi", None).await;
        assert_eq!(answer.expect("an answer").status, 200);
    }
    let mut tunnel = Client::connect(watched.caller.outbound).await;
    tunnel.tunnel("queue:5672").await;
    tunnel.send("0123456789").await;
    assert_eq!(tunnel.exactly(10).await, b"0123456789");
}

fn configuration(watched: &Watched) -> String {
    let proxies = watched.callees.iter().chain([&watched.caller]);
    let targets: Vec<String> = proxies
        .map(|proxy| format!("'{}'", proxy.stats[0]))
        .collect();
    format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: leno-proxy\n  metrics_path: /stats/prometheus\n  \
         static_configs: [{{targets: [{}]}}]\n- job_name: leno\n  static_configs: [{{targets: ['{}']}}]\n",
        targets.join(", "),
        watched.mesh.monitoring()
    )
}

/// The result of a query now.
async fn ask(prometheus: SocketAddr, query: &str) -> Result<Vec<Value>, String> {
    let mut encoded = String::new();
    for byte in query.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    let path = format!("/api/v1/query?query={encoded}");
    let answer: Value = serde_json::from_slice(&get(prometheus, "p", &path).await.body)
        .map_err(|e| e.to_string())?;
    let result = answer["data"]["result"].as_array().cloned();
    result.ok_or_else(|| answer.to_string())
}

async fn number(prometheus: SocketAddr, query: &str) -> f64 {
    let result = ask(prometheus, query)
        .await
        .unwrap_or_else(|error| panic!("{query}: {error}"));
    let value = result
        .first()
        .and_then(|one| one["value"][1].as_str()?.parse().ok());
    value.unwrap_or(f64::NAN)
}

/// Ids and queries of the file: `id:` and a quoted `query:` that may go over several lines.
fn queries() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("neighbours/queries.yaml");
    let text = std::fs::read_to_string(path).expect("the file");
    let parts = text.split("\n- id: ").skip(1);
    let one = |part: &str| {
        let id = part.lines().next().unwrap_or_default().to_owned();
        let from = part.find("query: '").expect("a query") + "query: '".len();
        let end = part[from..]
            .find("'\n")
            .or(part[from..].rfind('\''))
            .expect("its end");
        let words: Vec<&str> = part[from..from + end].split_whitespace().collect();
        (id, words.join(" "))
    };
    parts.map(one).collect()
}

/// Every panel's query of the dashboards under `deploy/grafana`, with their variables filled in.
fn panels() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).expect("dashboards") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("read");
        let board: Value = serde_json::from_str(&text).expect("JSON");
        collect(
            &path.file_stem().expect("a name").to_string_lossy(),
            &board["panels"],
            &mut all,
        );
    }
    all
}

fn collect(board: &str, panels: &Value, all: &mut Vec<(String, String)>) {
    for panel in panels.as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap_or_default();
            let query = query
                .replace("$__rate_interval", "60s")
                .replace("$__range", "60s")
                .replace("$reporter", "source|destination")
                .replace("$service", "user-service.*")
                .replace("$workload", ".*")
                .replace("$namespace", "default")
                .replace("$datasource", "");
            let title = panel["title"].as_str().unwrap_or_default();
            all.push((format!("{board}: {title}"), query));
        }
        collect(board, &panel["panels"], all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dashboards_and_kiali_ask_returns_data_and_what_can_be_counted_is_right() {
    let watched = watched().await;
    let directory = Directory::new();
    let at = free();
    std::fs::write(directory.path().join("p.yaml"), configuration(&watched)).expect("written");
    let listen = format!("--web.listen-address={at}");
    let arguments = ["--config.file=p.yaml", "--storage.tsdb.path=data", &*listen];
    let _prometheus = Program::start("prometheus", &arguments, directory.path());
    round(&watched).await;
    until("every target is scraped", || async {
        let up = ask(at, "sum(up)").await.ok()?;
        (up.first()?["value"][1] == "6").then_some(())
    })
    .await;
    // Rates need a series that was there before it grew.
    for i in 0..5 {
        // An edit that every caller is told of, and that changes nothing for these requests.
        let edited = watched
            .yaml
            .replace("version: v9", &format!("version: v9{i}"));
        watched.mesh.write("mesh.yaml", &edited);
        round(&watched).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    let rounds = 6.0;
    until("everything was scraped", || async {
        let query = "sum(istio_requests_total{reporter=\"source\", destination_service_name=\"user-service\"})";
        (number(at, query).await >= 48.0 * rounds).then_some(())
    })
    .await;
    count_is_right(at, rounds).await;
    let mut wrong = what_is_asked(at).await;
    wrong.extend(what_panels_ask(at).await);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What can be counted is as the client counts it.
async fn count_is_right(at: SocketAddr, rounds: f64) {
    for (query, expected) in [
        (
            "sum(istio_requests_total{reporter=\"source\", destination_service_name=\"user-service\", response_code=\"200\"})",
            40.0,
        ),
        (
            "sum(istio_requests_total{reporter=\"destination\", destination_service_name=\"user-service\", response_code=\"200\", connection_security_policy=\"mutual_tls\"})",
            40.0,
        ),
        (
            "sum(istio_requests_total{reporter=\"destination\", response_code=\"500\"})",
            5.0,
        ),
        (
            "sum(istio_requests_total{reporter=\"source\", response_flags=\"UH\", response_code=\"503\"})",
            3.0,
        ),
        (
            "sum(istio_requests_total{reporter=\"source\", request_protocol=\"grpc\"})",
            5.0,
        ),
        (
            "sum(istio_request_messages_total{reporter=\"destination\"})",
            5.0,
        ),
        (
            "sum(istio_response_messages_total{reporter=\"source\"})",
            5.0,
        ),
        (
            "sum(istio_tcp_connections_opened_total{reporter=\"source\"})",
            1.0,
        ),
        (
            "sum(istio_tcp_received_bytes_total{reporter=\"destination\"})",
            10.0,
        ),
        ("sum(istio_tcp_sent_bytes_total{reporter=\"source\"})", 10.0),
    ] {
        let found = until(query, || async {
            let found = number(at, query).await;
            (found >= expected * rounds).then_some(found)
        })
        .await;
        assert!(
            (found - expected * rounds).abs() <= 0.01 * expected * rounds,
            "{query}: {found}"
        );
    }
}

/// Queries that fail or return nothing.
async fn what_is_asked(at: SocketAddr) -> Vec<String> {
    let mut wrong = Vec::new();
    let asked = queries();
    assert!(asked.len() > 50, "{} queries", asked.len());
    for (id, query) in asked {
        match ask(at, &query).await {
            Err(error) => wrong.push(format!("{id}: {error}")),
            Ok(found) => {
                let may_be_empty = NOT_HERE.iter().any(|(known, _)| *known == id);
                if found.is_empty() && !may_be_empty {
                    wrong.push(format!("{id}: empty: {query}"));
                }
            }
        }
    }
    wrong
}

/// Panels whose query fails.
async fn what_panels_ask(at: SocketAddr) -> Vec<String> {
    let mut wrong = Vec::new();
    let panels = panels();
    assert!(panels.len() > 50, "{} panels", panels.len());
    for (panel, query) in panels {
        if let Err(error) = ask(at, &query).await {
            wrong.push(format!("{panel}: {error}: {query}"));
        }
    }
    wrong
}
