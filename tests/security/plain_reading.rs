//! Requests that a plain reading of labels denies are never served: random objects and registries, and their changes,
//! through the control plane's translation and the sidecar's plan, against a reading that knows neither.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use fastrand::Rng;
use leno_control_plane::compile::Settings;
use leno_control_plane::istio::{Limits, read};
use leno_control_plane::mesh::workload::WorkloadDescription;
use leno_control_plane::mesh::{Client, Mesh, Node, OutboundTrafficPolicy};
use leno_control_plane::source::last_good::{LastGood, Reading};
use leno_control_plane::translate::{INBOUND, LookupResult, TranslationContext, resource};
use leno_http::head::Head;
use leno_proto::type_url::LISTENER;
use leno_proxy::observe::labels::Party;
use leno_proxy::observe::metrics::Metrics;
use leno_proxy::snapshot::{Builder, InboundPlan, ResourceState as Told, Resources, Snapshot};
use leno_proxy::tls::Credentials;
use leno_rules::config::decode;
use leno_rules::config::listener::{Filter, Listener};
use leno_rules::policy::rbac::{Decision, PeerIdentity, authorize, authorize_tcp};
use leno_rules::route::matcher::RequestView;
use tokio::time::Instant;

type Labels = BTreeMap<&'static str, &'static str>;

const ADDRESS: &str = "10.0.0.1";
const PORTS: [u16; 2] = [3001, 3002];
const WEB: &str = "cluster.local/ns/default/sa/web";
const PATHS: [&str; 3] = ["/a", "/b", "/c"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Unset,
    Disable,
    Permissive,
    Strict,
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::Unset, Mode::Disable, Mode::Permissive, Mode::Strict];

    fn text(self) -> &'static str {
        ["UNSET", "DISABLE", "PERMISSIVE", "STRICT"][self as usize]
    }
}

/// A security object and the workloads that it selects.
#[derive(Debug, Clone)]
struct Object {
    namespace: &'static str,
    selector: Option<Labels>,
    is_broken: bool,
    what: Spec,
}

#[derive(Debug, Clone)]
enum Spec {
    Peer(Mode, Option<(u16, Mode)>),
    /// True when it denies; its rules: a path, and true where only `web` matches.
    Policy(bool, Vec<(&'static str, bool)>),
}

/// An entry of the registry.
#[derive(Debug, Clone)]
struct Entry {
    name: String,
    namespace: &'static str,
    account: Option<&'static str>,
    labels: Labels,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Endpoint,
    Workload,
    Dns,
    Refused,
}

/// An HTTP request, or a TCP connection.
#[derive(Debug, Clone, Copy)]
struct Request {
    port: u16,
    /// `None` for TCP.
    path: Option<&'static str>,
    /// True when `web` sends it by mutual TLS.
    is_mutual: bool,
}

fn labels(rng: &mut Rng) -> Labels {
    let mut labels = Labels::new();
    for (name, values) in [("app", ["a", "b"]), ("version", ["1", "2"])] {
        if rng.bool() {
            labels.insert(name, values[rng.usize(..2)]);
        }
    }
    labels
}

fn object(rng: &mut Rng) -> Object {
    let selector = Some(labels(rng)).filter(|labels| !labels.is_empty());
    let mode = |rng: &mut Rng| Mode::ALL[rng.usize(..4)];
    let what = match rng.bool() {
        true => {
            let port =
                (selector.is_some() && rng.bool()).then(|| (PORTS[rng.usize(..2)], mode(rng)));
            Spec::Peer(mode(rng), port)
        }
        false => {
            let denies = rng.bool();
            let rule = |rng: &mut Rng| (PATHS[rng.usize(..3)], rng.bool());
            let rules = (0..rng.usize(usize::from(denies)..3)).map(|_| rule(rng));
            Spec::Policy(denies, rules.collect())
        }
    };
    Object {
        namespace: ["default", "default", "istio-system", "shop"][rng.usize(..4)],
        selector,
        is_broken: rng.u8(..8) == 0,
        what,
    }
}

fn entry(rng: &mut Rng) -> Entry {
    Entry {
        // A fresh name: a refused entry has no last good form.
        name: format!("e{}", rng.u64(..)),
        namespace: ["default", "default", "default", "shop"][rng.usize(..4)],
        account: [None, Some("users"), Some("users"), Some("other")][rng.usize(..4)],
        labels: labels(rng),
        kind: [
            Kind::Endpoint,
            Kind::Endpoint,
            Kind::Workload,
            Kind::Dns,
            Kind::Refused,
        ][rng.usize(..5)],
    }
}

fn yaml_labels(labels: &Labels) -> String {
    let pairs: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{name}: '{value}'"))
        .collect();
    format!("{{{}}}", pairs.join(", "))
}

impl Object {
    fn yaml(&self, name: &str) -> String {
        let selector = self
            .selector
            .as_ref()
            .map(|labels| format!("selector: {{matchLabels: {}}}, ", yaml_labels(labels)));
        let broken = if self.is_broken { "nonsense: 1, " } else { "" };
        let (kind, spec) = match &self.what {
            Spec::Peer(mode, port) => {
                let port = port.map(|(port, mode)| {
                    format!(", portLevelMtls: {{{port}: {{mode: {}}}}}", mode.text())
                });
                (
                    "PeerAuthentication",
                    format!(
                        "mtls: {{mode: {}}}{}",
                        mode.text(),
                        port.unwrap_or_default()
                    ),
                )
            }
            Spec::Policy(denies, rules) => {
                let rule = |(path, only_web): &(&str, bool)| {
                    let from = if *only_web {
                        format!(", from: [{{source: {{principals: [{WEB}]}}}}]")
                    } else {
                        String::new()
                    };
                    format!("{{to: [{{operation: {{paths: [{path}]}}}}]{from}}}")
                };
                let rules: Vec<String> = rules.iter().map(rule).collect();
                let action = if *denies { "DENY" } else { "ALLOW" };
                (
                    "AuthorizationPolicy",
                    format!("action: {action}, rules: [{}]", rules.join(", ")),
                )
            }
        };
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {}}}\nspec: {{{}{broken}{spec}}}\n",
            self.namespace,
            selector.unwrap_or_default(),
        )
    }

    /// True when it applies to a workload with these labels, in namespace `default`.
    fn is_for(&self, labels: &Labels) -> bool {
        let fits =
            (self.selector.iter().flatten()).all(|(name, value)| labels.get(name) == Some(value));
        let here = match self.what {
            // In the root namespace only one without a selector.
            Spec::Peer(..) => {
                self.namespace == "default"
                    || (self.namespace == "istio-system" && self.selector.is_none())
            }
            Spec::Policy(..) => self.namespace != "shop",
        };
        fits && here
    }
}

impl Entry {
    fn yaml(&self) -> String {
        let name = &self.name;
        let account = self
            .account
            .map(|account| format!(", serviceAccount: {account}"));
        let workload = format!(
            "address: {ADDRESS}, labels: {}{}",
            yaml_labels(&self.labels),
            account.unwrap_or_default()
        );
        let service = |resolution: &str, more: &str| {
            let host = format!("{name}.{}.svc.cluster.local", self.namespace);
            let ports = format!(
                "ports: [{{number: 80, name: http, targetPort: {}}}]",
                PORTS[0]
            );
            format!(
                "hosts: [{host}], resolution: {resolution}, {ports}, endpoints: [{{{workload}}}]{more}"
            )
        };
        let (kind, spec) = match self.kind {
            Kind::Endpoint => ("ServiceEntry", service("STATIC", "")),
            Kind::Dns => ("ServiceEntry", service("DNS", "")),
            Kind::Refused => ("ServiceEntry", service("STATIC", ", nonsense: 1")),
            Kind::Workload => ("WorkloadEntry", workload),
        };
        format!(
            "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {}}}\nspec: {{{spec}}}\n",
            self.namespace
        )
    }

    /// True when it describes the workload of `default/users`.
    fn describes(&self) -> bool {
        self.namespace == "default"
            && self.account != Some("other")
            && matches!(self.kind, Kind::Endpoint | Kind::Workload)
    }
}

/// True when the objects that apply to a workload, by `is_for`, let a request pass: PeerAuthentications by level, DENY
/// before ALLOW.
fn passes(objects: &[Object], is_for: impl Fn(&Object) -> bool, request: Request) -> bool {
    let own: Vec<&Object> = objects.iter().filter(|object| is_for(object)).collect();
    let level = |object: &Object| match (&object.selector, object.namespace) {
        (Some(_), _) => 2,
        (None, "default") => 1,
        (None, _) => 0,
    };
    let peers = own.iter().filter(|o| matches!(o.what, Spec::Peer(..)));
    let is_closed = peers.clone().any(|object| object.is_broken);
    let mut mode = Mode::Permissive;
    for this in 0..3 {
        // UNSET inherits the mode of the wider level.
        let here = peers.clone().filter(|object| level(object) == this);
        let modes = here.filter_map(|object| match object.what {
            Spec::Peer(_, Some((port, own))) if port == request.port && own != Mode::Unset => {
                Some(own)
            }
            Spec::Peer(own, _) if own != Mode::Unset => Some(own),
            Spec::Peer(..) => Some(mode),
            Spec::Policy(..) => None,
        });
        mode = modes.max().unwrap_or(mode);
    }
    if !request.is_mutual && (is_closed || mode == Mode::Strict) {
        return false;
    }
    // On TCP a DENY rule's path always matches, an ALLOW rule's never.
    let meets = |denies: bool, (path, only_web): &(&str, bool)| {
        let fits = request.path.map_or(denies, |own| own == *path);
        fits && (request.is_mutual || !only_web)
    };
    let (mut is_allowed, mut has_allow) = (false, false);
    for object in own {
        match &object.what {
            Spec::Policy(..) if object.is_broken => return false,
            Spec::Policy(true, rules) if rules.iter().any(|r| meets(true, r)) => return false,
            Spec::Policy(false, rules) => {
                has_allow = true;
                is_allowed |= rules.iter().any(|rule| meets(false, rule));
            }
            _ => {}
        }
    }
    is_allowed || !has_allow
}

/// All possible labels.
fn every_reading() -> Vec<Labels> {
    let mut all = Vec::new();
    for app in [None, Some("a"), Some("b")] {
        for version in [None, Some("1"), Some("2")] {
            let pairs = app
                .map(|app| ("app", app))
                .into_iter()
                .chain(version.map(|v| ("version", v)));
            all.push(pairs.collect());
        }
    }
    all
}

/// True when a plain reading lets the request pass. Unknown labels may be any.
fn reads(objects: &[Object], known: &[Labels], request: Request) -> bool {
    match known {
        [] => every_reading()
            .iter()
            .all(|labels| passes(objects, |object| object.is_for(labels), request)),
        known => passes(
            objects,
            |object| known.iter().any(|labels| object.is_for(labels)),
            request,
        ),
    }
}

fn compile(last: &mut LastGood, objects: &[Object], entries: &[Entry], step: usize) -> Mesh {
    let settings = Settings {
        trust_domain: "cluster.local".to_owned(),
        root_namespace: "istio-system".to_owned(),
        outbound_traffic_policy: OutboundTrafficPolicy::default(),
    };
    // Fresh names: refused objects have no last good form.
    let objects = objects
        .iter()
        .enumerate()
        .map(|(at, object)| object.yaml(&format!("o{step}-{at}")));
    let entries = entries.iter().map(Entry::yaml);
    let reading: Reading = (objects.chain(entries).enumerate())
        .map(|(at, yaml)| {
            let file = Arc::new(PathBuf::from(format!("{step}-{at}.yaml")));
            let documents = read(&file, &yaml, &Limits::default());
            (file, documents)
        })
        .collect();
    last.apply(&settings, reading, UNIX_EPOCH).mesh
}

/// The sidecar's plan of the control plane's Listener.
fn plan(mesh: &Mesh, node: &Node, workload: &WorkloadDescription) -> Arc<InboundPlan> {
    let world = TranslationContext {
        mesh,
        workload,
        roots: "",
    };
    let LookupResult::Present(any, _) = resource(world, node, LISTENER, INBOUND) else {
        panic!("there is an inbound Listener");
    };
    let listener: Listener = decode(INBOUND, &any).expect("the sidecar takes it");
    let mut resources = Resources::default();
    for chain in listener.all_chains() {
        let names: Vec<String> = match &chain.filter {
            Filter::Tcp(cluster) => vec![cluster.clone()],
            Filter::HttpInline(routes) => routes.clusters().map(str::to_owned).collect(),
            Filter::HttpNamed(_) => Vec::new(),
        };
        let missing = names
            .into_iter()
            .map(|name| (name, Told::Missing("no matter".into())));
        resources.clusters.extend(missing);
    }
    let told = Told::Present(Arc::new(listener));
    resources.listeners.insert(INBOUND.to_owned(), told);
    let metrics = Metrics::new(10).expect("metrics");
    let mut builder = Builder::new(
        Credentials::new("cluster.local"),
        metrics,
        Party::default(),
        HashMap::new(),
    );
    let (snapshot, _) = builder.build(&resources, &Snapshot::default(), Instant::now());
    snapshot.inbound.expect("a plan")
}

/// True when the sidecar serves the request; `None` where it terminates no TLS.
fn serves(plan: &InboundPlan, request: Request) -> Option<bool> {
    let offers: &[&str] = match (request.is_mutual, request.path) {
        (true, Some(_)) => &["istio-http/1.1"],
        (true, None) => &["istio"],
        (false, Some(_)) => &["http/1.1"],
        (false, None) => &[],
    };
    let offers: Vec<Vec<u8>> = offers.iter().map(|&offer| offer.into()).collect();
    let chain = plan.find(request.port, request.is_mutual, &offers);
    let Some(chain) = chain.filter(|chain| chain.tls || !request.is_mutual) else {
        return (!request.is_mutual).then_some(false);
    };
    let web = format!("spiffe://{WEB}");
    let caller = PeerIdentity {
        principal: request.is_mutual.then_some(&web),
    };
    let decision = match (request.path, chain.http) {
        (Some(path), true) => {
            let head = Head::request("GET", path);
            authorize(&chain.policies, caller, &RequestView::new(&head, "users"))
                == Decision::Allowed
        }
        (None, false) => authorize_tcp(&chain.policies, caller) == Decision::Allowed,
        // The port is declared HTTP.
        (None, true) => false,
        (Some(_), false) => panic!("{request:?} is HTTP"),
    };
    Some(decision)
}

#[test]
fn what_a_plain_reading_of_labels_denies_is_never_served() {
    let node = |labels: &Labels| Node {
        ip: ADDRESS.parse().expect("an address"),
        namespace: "default".to_owned(),
        account: "users".to_owned(),
        client: Client::Leno,
        labels: labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    };
    let (mut denied, mut served, mut unknown, mut several) = (0, 0, 0, 0);
    // `.ci/long` runs more seeds.
    let seeds = std::env::var("LENO_SEEDS").map_or(200, |seeds| seeds.parse().expect("a number"));
    for seed in 0..seeds {
        let mut rng = Rng::with_seed(seed);
        let brought = if rng.u8(..8) == 0 {
            labels(&mut rng)
        } else {
            Labels::new()
        };
        let node = node(&brought);
        let mut last = LastGood::default();
        let mut described = WorkloadDescription::default();
        let (mut entries, mut told) = (Vec::<Entry>::new(), BTreeMap::new());
        for step in 0..5 {
            let objects: Vec<Object> = (0..rng.usize(..6)).map(|_| object(&mut rng)).collect();
            // Some entries go, and some come.
            entries.retain(|_| rng.bool());
            for entry in &mut entries {
                match rng.u8(..8) {
                    0 => entry.labels.clear(),
                    1 => entry.labels = labels(&mut rng),
                    _ => {}
                }
            }
            let fresh = rng.usize(..3) * usize::from(rng.bool());
            entries.extend((0..fresh).map(|_| entry(&mut rng)));
            let mesh = compile(&mut last, &objects, &entries, step);
            // As on a stream: a description that has vanished stays in force.
            described = mesh.describe(&node).or(&described);
            let now = entries.iter().filter(|entry| entry.describes());
            let now: BTreeMap<_, _> = now.map(|e| (e.name.clone(), e.labels.clone())).collect();
            let has_come = now.iter().any(|(name, labels)| {
                let is_new = !told.values().any(|known| known == labels);
                !told.contains_key(name) && !labels.is_empty() && is_new
            });
            // An entry that goes, or loses its labels, changes nothing until another comes.
            told.retain(|name, _| now.contains_key(name) || !has_come);
            for (name, labels) in now {
                let own: &mut Labels = told.entry(name).or_default();
                if !labels.is_empty() {
                    *own = labels;
                }
            }
            let labels = told.values().chain([&brought]);
            let known: Vec<Labels> = labels.filter(|own| !own.is_empty()).cloned().collect();
            unknown += usize::from(known.is_empty());
            several += usize::from(known.iter().any(|labels| *labels != known[0]));
            let plan = plan(&mesh, &node, &described);
            let paths = PATHS.map(Some).into_iter().chain([None]);
            let all = paths.flat_map(|path| PORTS.map(|port| (path, port)));
            let all =
                all.flat_map(|(path, port)| [false, true].map(|is_mutual| (path, port, is_mutual)));
            for (path, port, is_mutual) in all {
                let request = Request {
                    port,
                    path,
                    is_mutual,
                };
                let Some(is_served) = serves(&plan, request) else {
                    continue;
                };
                let may_be = reads(&objects, &known, request);
                let words = || {
                    format!(
                        "seed {seed}, step {step}: {request:?}\n{objects:#?}\n{entries:#?}\n{known:?}"
                    )
                };
                assert!(may_be || !is_served, "served, though denied: {}", words());
                let is_single = known.iter().all(|labels| *labels == known[0]);
                assert!(
                    is_served || !may_be || !is_single || path.is_none(),
                    "denied for nothing: {}",
                    words()
                );
                denied += usize::from(!is_served);
                served += usize::from(is_served);
            }
        }
    }
    // Enough requests were judged.
    for (what, count, least) in [
        ("denied", denied, 2_000),
        ("served", served, 2_000),
        ("unknown", unknown, 100),
        ("several", several, 40),
    ] {
        assert!(count >= least, "{what}: {count}");
    }
}
