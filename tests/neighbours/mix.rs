//! A scripted mix of a thousand requests: statuses, retries, resets, refusals, gRPC and TCP, from two namespaces. The
//! client tallies the answers; [`expected`] derives the series from the tally.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leno_tests::client::Client;
use leno_tests::mesh::{Mesh, Proxy, mtls};
use leno_tests::upstream::Upstream;
use leno_tests::{fresh_ip, h2};
use tokio::task::JoinSet;

/// Delay of an app's answer: durations are then in the bucket up to 100 ms.
const TAKES: Duration = Duration::from_millis(60);
/// Caller, service, path, and the number of requests and connections in a mix: few where there are retries, which are
/// limited to three at a time.
const REQUESTS: [(&str, &str, &str, usize, usize); 11] = [
    ("order-service", "user-service", "/v1/users", 240, 40),
    ("order-service", "user-service", "/v2/users", 207, 40),
    ("order-service", "user-service", "/v1/broken", 100, 20),
    ("order-service", "user-service", "/v2/missing", 100, 20),
    ("order-service", "user-service", "/none", 40, 20),
    ("order-service", "stock", "/admin", 60, 20),
    ("order-service", "stock", "/once", 10, 2),
    ("order-service", "stock", "/down", 3, 1),
    ("order-service", "stock", "/reset", 40, 20),
    ("report", "user-service", "/v1/users", 30, 10),
    ("report", "user-service", "/none", 10, 1),
];
/// gRPC calls, by the status that they end with.
const CALLS: [(u8, usize); 2] = [(0, 100), (5, 40)];
/// Connections that carry ten bytes each way.
const TUNNELS: usize = 20;

/// The client's tally, by caller, service, path, and status, which is gRPC's for a call.
pub(crate) type Tally = BTreeMap<(&'static str, &'static str, &'static str, u16), u64>;
/// The labels of a series.
pub(crate) type Labels = BTreeMap<String, String>;

/// A mesh under the mix.
pub(crate) struct MixMesh {
    yaml: String,
    /// The mesh.
    pub(crate) mesh: Mesh,
    callers: BTreeMap<&'static str, Proxy>,
    callees: Vec<Proxy>,
    tally: Mutex<Tally>,
    edits: Mutex<u32>,
}

fn registry(of: &BTreeMap<&'static str, Ipv4Addr>) -> String {
    let entry = |name: &str, app: &str, version: &str| {
        let ip = of[name];
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
        service("stock", "http", 80, 3001),
        service("ledger", "grpc", 80, 3002),
        service("queue", "tcp", 5672, 3003),
        entry("user-service-v1", "user-service", "v1"),
        entry("user-service-v2", "user-service", "v2"),
        entry("stock-v1", "stock", "v1"),
        entry("ledger-v1", "ledger", "v1"),
        entry("queue-v1", "queue", "v1"),
        mtls("STRICT"),
        include_str!("mix.yaml").to_owned(),
    ]
    .concat()
}

/// An app that answers by path: `/once` succeeds at the second try of a request.
fn app() -> impl Fn(&leno_tests::upstream::ReceivedRequest) -> Vec<u8> + Send + Sync + 'static {
    let heard = Mutex::new(std::collections::HashSet::new());
    move |seen| {
        let id = seen.header("x-request-id").unwrap_or_default().to_owned();
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let status = match seen.target() {
            "/reset" => return Vec::new(),
            "/v1/broken" => "500 Broken",
            "/v2/missing" => "404 Missing",
            "/down" => "503 Down",
            "/once" if heard.insert(id) => "503 Not yet",
            _ => "200 OK",
        };
        format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok").into_bytes()
    }
}

/// A gRPC app that ends calls with the status in their path.
async fn ledger() -> h2::App {
    h2::App::start(|request, mut respond| async move {
        let status = request.uri().path().rsplit('/').next().map(str::to_owned);
        let (parts, body) = request.into_parts();
        let whole = h2::receive(0, parts.headers, body).await?;
        let response = http::Response::builder().header("content-type", "application/grpc");
        let stream = respond.send_response(response.body(()).expect("a response"), false)?;
        let mut trailers = http::HeaderMap::new();
        let status = status.unwrap_or_default().parse().expect("a status");
        trailers.insert("grpc-status", status);
        h2::send(stream, &whole.body, Some(trailers)).await
    })
    .await
}

/// A TCP app that echoes.
async fn echo() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("an address");
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

impl MixMesh {
    /// Starts the mesh, and waits until it is ready.
    pub(crate) async fn start() -> MixMesh {
        let workloads = [
            "user-service-v1",
            "user-service-v2",
            "stock-v1",
            "ledger-v1",
            "queue-v1",
        ];
        let ips = BTreeMap::from(workloads.map(|name| (name, fresh_ip())));
        let yaml = registry(&ips);
        let mesh = Mesh::start(&yaml).await;
        let http = Upstream::with_delay(TAKES, app()).await.address;
        let mut callees = Vec::new();
        for (workload, account, port, app) in [
            (workloads[0], "user-service", 3001, http),
            (workloads[1], "user-service", 3001, http),
            (workloads[2], "stock", 3001, http),
            (workloads[3], "ledger", 3002, ledger().await.address),
            (workloads[4], "queue", 3003, echo().await),
        ] {
            let inbound = format!("--inbound {}:{port}={app}", ips[workload]);
            callees.push(mesh.proxy(account, &inbound).await);
        }
        let order = mesh.start_proxy("order-service", "--workload order-service");
        let report = mesh.start_proxy_in("batch", "report", "--workload report");
        order.ready().await;
        report.ready().await;
        MixMesh {
            yaml,
            mesh,
            callers: BTreeMap::from([("order-service", order), ("report", report)]),
            callees,
            tally: Mutex::default(),
            edits: Mutex::new(0),
        }
    }

    /// Addresses that Prometheus scrapes.
    pub(crate) fn targets(&self) -> impl Iterator<Item = SocketAddr> {
        let proxies = self.callees.iter().chain(self.callers.values());
        proxies.map(|proxy| proxy.stats[0])
    }

    /// Sends one mix, everything at once, and an edit that is pushed to callers and changes nothing for them.
    pub(crate) async fn mix(self: &Arc<Self>) {
        self.edit();
        let mut all = JoinSet::new();
        for (caller, service, path, count, connections) in REQUESTS {
            for part in 0..connections {
                let count = count / connections + usize::from(part < count % connections);
                all.spawn(Arc::clone(self).requests(caller, service, path, count));
            }
        }
        for (status, count) in CALLS {
            all.spawn(Arc::clone(self).calls(status, count));
        }
        for _ in 0..TUNNELS {
            all.spawn(Arc::clone(self).tunnel());
        }
        all.join_all().await;
    }

    fn edit(&self) {
        let mut edits = self.edits.lock().unwrap_or_else(PoisonError::into_inner);
        *edits += 1;
        let edited = self
            .yaml
            .replace("version: v9", &format!("version: v9{edits}"));
        self.mesh.write("mesh.yaml", &edited);
    }

    async fn requests(
        self: Arc<Self>,
        caller: &'static str,
        service: &'static str,
        path: &'static str,
        count: usize,
    ) {
        let mut client = Client::connect(self.callers[caller].outbound).await;
        let host = format!("{service}.default.svc.cluster.local");
        for _ in 0..count {
            let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
            let answer = client.round_trip(request).await;
            self.saw(caller, service, path, answer.status);
        }
    }

    async fn calls(self: Arc<Self>, status: u8, count: usize) {
        let calls = h2::connect(self.callers["order-service"].outbound).await;
        for _ in 0..count {
            let fields = [("content-type", "application/grpc"), ("te", "trailers")];
            let uri = format!("http://ledger/a.B/{status}");
            let request = h2::request("POST", &uri, &fields);
            let answer = h2::round_trip(&calls, request, b"\0\0\0\0\x02hi", None).await;
            let answer = answer.expect("an answer");
            assert_eq!(answer.status, 200);
            let status = answer.trailer("grpc-status").parse().expect("a status");
            self.saw("order-service", "ledger", "", status);
        }
    }

    async fn tunnel(self: Arc<Self>) {
        let mut tunnel = Client::connect(self.callers["order-service"].outbound).await;
        tunnel.tunnel("queue:5672").await;
        tunnel.send("0123456789").await;
        assert_eq!(tunnel.read_exact(10).await, b"0123456789");
        self.saw("order-service", "queue", "", 0);
    }

    fn saw(&self, caller: &'static str, service: &'static str, path: &'static str, status: u16) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        *tally.entry((caller, service, path, status)).or_default() += 1;
    }

    /// The client's tally so far.
    pub(crate) fn tally(&self) -> Tally {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.clone()
    }
}

/// The series of `istio_requests_total`, and of TCP's connections, that the tally makes at both reporters.
pub(crate) fn expected(tally: &Tally) -> BTreeMap<Labels, u64> {
    let mut all = BTreeMap::new();
    for (&(caller, service, path, status), &count) in tally {
        let v1 = format!("{service}-v1");
        // Each reporter's workload, code and flag, and the destination's count.
        let (source, destination) = match path {
            "/none" => (("", status, "UH"), vec![]),
            // The first of two tries gets a 503.
            "/once" => ((&*v1, 200, "-"), vec![(503, "-", 1), (200, "-", 1)]),
            "/down" => ((&*v1, status, "URX"), vec![(status, "-", 3)]),
            "/reset" => ((&*v1, status, "-"), vec![(status, "UC", 1)]),
            path if path.starts_with("/v2") => {
                (("user-service-v2", status, "-"), vec![(status, "-", 1)])
            }
            _ => ((&*v1, status, "-"), vec![(status, "-", 1)]),
        };
        let (workload, code, flag) = source;
        let mut add = |reporter, code, flag, times| {
            let labels = labels(reporter, caller, (service, workload), code, flag);
            *all.entry(labels).or_default() += count * times;
        };
        add("source", code, flag, 1);
        for (code, flag, times) in destination {
            add("destination", code, flag, times);
        }
    }
    all
}

fn labels(
    reporter: &str,
    caller: &str,
    (service, workload): (&str, &str),
    code: u16,
    flag: &str,
) -> Labels {
    let is_outside = caller == "report";
    let namespace = if is_outside { "batch" } else { "default" };
    let protocol = match service {
        "ledger" => "grpc",
        "queue" => "tcp",
        _ => "http",
    };
    let security = match reporter {
        "source" => "unknown",
        _ => "mutual_tls",
    };
    // `unknown` without a destination workload.
    let known = |text: &str| match workload {
        "" => "unknown".to_owned(),
        _ => text.to_owned(),
    };
    let version = workload.rsplit('-').next().unwrap_or_default();
    let revision = if workload.is_empty() {
        "latest"
    } else {
        version
    };
    let spiffe = |ns: &str, account: &str| format!("spiffe://cluster.local/ns/{ns}/sa/{account}");
    let mut text = format!(
        "reporter={reporter} request_protocol={protocol} response_flags={flag} connection_security_policy={security} \
         source_workload={caller} source_workload_namespace={namespace} source_principal={} source_app=unknown \
         source_version=unknown source_canonical_service={caller} source_canonical_revision=latest \
         source_cluster=Kubernetes destination_service={service}.default.svc.cluster.local \
         destination_service_name={service} destination_service_namespace=default destination_workload={} \
         destination_workload_namespace={} destination_principal={} destination_app={} destination_version={} \
         destination_canonical_service={} destination_canonical_revision={revision} destination_cluster={}",
        spiffe(namespace, caller),
        known(workload),
        known("default"),
        known(&spiffe("default", service)),
        known(service),
        known(version),
        known(service),
        known("Kubernetes"),
    );
    match protocol {
        "grpc" => text.push_str(&format!(" response_code=200 grpc_response_status={code}")),
        "http" => text.push_str(&format!(" response_code={code}")),
        _ => {}
    }
    let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
