//! The map as JSON, for the page, `/debug/mesh` and `leno status`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Counts, Edge, EdgeKey, TrafficGraph, WINDOW};
use crate::mesh::service::{Endpoint, Endpoints, PortProtocol, Service};
use crate::mesh::{Mesh, Node, selects};
use crate::object::Severity;
use crate::source::{ObjectEntry, Rejected, State};

/// The live traffic map as JSON. `proxies` are the connected proxies, from `Hub::proxies`.
pub fn render(book: &TrafficGraph, state: &State, proxies: &[Value], now: Instant) -> Value {
    let edges = edges(book, now);
    let services: BTreeMap<String, &Service> = state
        .mesh
        .services
        .values()
        .map(|service| (node_id(service), &**service))
        .collect();
    let objects = objects(state);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "now": millis(SystemTime::now()),
        "window_seconds": WINDOW.as_secs(),
        "nodes": nodes(book, &state.mesh, &services, &edges, &objects),
        "edges": edges.iter().map(|(key, edge)| edge.json(key)).collect::<Vec<_>>(),
        "services": services.iter().map(|(id, s)| service(book, &state.mesh, id, s, now)).collect::<Vec<_>>(),
        "proxies": sidecars(book, proxies, now),
        "objects": objects,
        "errors": failures(book),
    })
}

/// The answer to `leno status`: the proxies of the map `mesh`, and the state of the configuration.
pub fn status(mesh: &Value, state: &State) -> Value {
    let problems = state.problems.iter().map(ToString::to_string);
    json!({
        "proxies": mesh["proxies"],
        "read": state.counts.to_string(),
        "rejected": state.rejected.iter().map(Rejected::json).collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
    })
}

/// An edge of the map, joined from the reports of both sides.
#[derive(Default)]
struct Joined {
    counts: Counts,
    mtls: Option<bool>,
    open: u64,
    seen: Duration,
}

type Ends = (String, String, String);

/// Edges of the map. The caller's sidecar also saw requests that never arrived, so its report counts where there is
/// one; the callee's decides on mutual TLS.
fn edges(book: &TrafficGraph, now: Instant) -> BTreeMap<Ends, Joined> {
    let mut all: BTreeMap<Ends, Joined> = BTreeMap::new();
    let ends = |key: &EdgeKey| (key.from.clone(), key.to.clone(), key.protocol.clone());
    let told: BTreeSet<Ends> = (book.edges.keys().filter(|key| key.by_source))
        .map(ends)
        .collect();
    for (key, edge) in &book.edges {
        let ends = ends(key);
        let counts = key.by_source || !told.contains(&ends);
        let joined = all.entry(ends).or_insert_with(|| Joined {
            seen: Duration::MAX,
            ..Joined::default()
        });
        joined.add(edge, counts, now);
        if !key.by_source {
            joined.mtls = edge.mtls.or(joined.mtls);
        } else if joined.mtls.is_none() {
            joined.mtls = edge.mtls;
        }
    }
    all
}

impl Joined {
    fn add(&mut self, edge: &Edge, counts: bool, now: Instant) {
        self.seen = self.seen.min(now.duration_since(edge.seen));
        if counts {
            self.counts.add(&edge.lately(now));
            self.open += edge.open.values().sum::<u64>();
        }
    }

    fn json(&self, (from, to, protocol): &Ends) -> Value {
        let flags: BTreeMap<_, _> = self
            .counts
            .flags
            .iter()
            .map(|(f, n)| (f, rate(*n)))
            .collect();
        json!({
            "from": from, "to": to, "protocol": protocol,
            "rps": rate(self.counts.requests),
            "error_rate": share(self.counts.errors, self.counts.requests),
            "p50_ms": self.counts.quantile(0.5), "p99_ms": self.counts.quantile(0.99),
            "mtls": self.mtls,
            "bytes_per_second": rate(self.counts.bytes),
            "connections": self.open,
            "flags": flags,
            "last_seen_seconds": self.seen.as_secs_f64(),
        })
    }
}

fn nodes(
    book: &TrafficGraph,
    mesh: &Mesh,
    services: &BTreeMap<String, &Service>,
    edges: &BTreeMap<Ends, Joined>,
    objects: &[Value],
) -> Vec<Value> {
    let ends = edges.keys().flat_map(|(from, to, _)| [from, to]);
    let ids: BTreeSet<&String> = services.keys().chain(ends).collect();
    let node = |id: &String| {
        let service = services.get(id);
        let incoming = edges.iter().filter(|((_, to, _), _)| to == id);
        let (requests, errors) = incoming.fold((0, 0), |(requests, errors), (_, edge)| {
            (requests + edge.counts.requests, errors + edge.counts.errors)
        });
        let (namespace, name) = id.split_once('/').unwrap_or(("", id));
        let list = service.map_or(&[][..], |service| endpoints(service));
        let addresses: Vec<String> = list.iter().map(|e| e.address.to_string()).collect();
        let is_mine = |address: &str| {
            addresses
                .iter()
                .any(|own| address.starts_with(&format!("{own}:")))
        };
        let ejected: BTreeSet<&str> = (book.proxies.values())
            .flat_map(|proxy| &proxy.endpoints)
            .filter(|endpoint| endpoint.ejected.is_some() && is_mine(&endpoint.address))
            .map(|endpoint| endpoint.address.as_str())
            .collect();
        let kind = match service {
            Some(service) if service.host.ends_with(".svc.cluster.local") => "service",
            Some(_) => "external",
            None if id == "unknown" => "unknown",
            None => "workload",
        };
        let problems = objects.iter().filter(|object| {
            object["state"] != "ok" && object["namespace"] == namespace && object["name"] == name
        });
        json!({
            "id": id, "namespace": namespace, "name": name, "kind": kind,
            "host": service.map(|service| &service.host),
            "rps": rate(requests), "error_rate": share(errors, requests),
            "endpoints": list.len(), "ejected": ejected.len(),
            "draining": list.iter().filter(|endpoint| mesh.is_draining(endpoint)).count(),
            "problems": problems.count(),
        })
    };
    ids.into_iter().map(node).collect()
}

fn service(book: &TrafficGraph, mesh: &Mesh, id: &str, service: &Service, now: Instant) -> Value {
    let list = endpoints(service);
    let rules = service.rules.values();
    let subsets: BTreeMap<_, _> = rules.flat_map(|rule| &rule.subsets).collect();
    let of_subset: Vec<(&String, &BTreeMap<String, String>, usize, u64)> = subsets
        .into_iter()
        .map(|(name, subset)| {
            let own = list.iter().filter(|e| selects(&subset.labels, &e.labels));
            let requests = own
                .clone()
                .map(|endpoint| served(book, endpoint, now))
                .sum();
            (name, &subset.labels, own.count(), requests)
        })
        .collect();
    let total: u64 = of_subset.iter().map(|(.., requests)| requests).sum();
    let subsets = of_subset
        .into_iter()
        .map(|(name, labels, count, requests)| {
            let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            json!({
                "name": name, "labels": labels.join(","), "endpoints": count,
                "rps": rate(requests), "share": share(requests, total),
            })
        });
    let ports = service.ports.iter().map(|port| {
        let protocol = match port.protocol {
            PortProtocol::Http => "http",
            PortProtocol::Http2 => "http2",
            PortProtocol::Auto => "detected",
            PortProtocol::Tcp => "tcp",
        };
        json!({"number": port.number, "protocol": protocol})
    });
    let shown = list.iter().flat_map(|endpoint| {
        let own = service.ports.iter().map(|port| {
            let own = endpoint.ports.get(&port.number);
            own.copied().unwrap_or(port.number)
        });
        let ports: BTreeSet<u16> = own.collect();
        ports
            .into_iter()
            .map(|port| one(book, mesh, endpoint, port, now))
            .collect::<Vec<_>>()
    });
    json!({
        "id": id, "host": service.host, "object": service.object,
        "ports": ports.collect::<Vec<_>>(),
        "subsets": subsets.collect::<Vec<_>>(),
        "endpoints": shown.collect::<Vec<_>>(),
    })
}

/// Requests that an endpoint's sidecar served within the window.
fn served(book: &TrafficGraph, endpoint: &Endpoint, now: Instant) -> u64 {
    let is_own = |node: &Node| node.ip == endpoint.address && node.namespace == endpoint.namespace;
    let own = book.proxies.values().filter(|proxy| is_own(&proxy.node));
    own.map(|proxy| proxy.served(now)).sum()
}

fn one(book: &TrafficGraph, mesh: &Mesh, endpoint: &Endpoint, port: u16, now: Instant) -> Value {
    let address = std::net::SocketAddr::new(endpoint.address, port).to_string();
    let (mut in_flight, mut ejections) = (0, Vec::new());
    for (node, proxy) in &book.proxies {
        // A subset's cluster has the same endpoints as the whole service's.
        let mut by: Option<&leno_proto::leno::Ejection> = None;
        for seen in proxy
            .endpoints
            .iter()
            .filter(|seen| seen.address == address)
        {
            in_flight += seen.in_flight;
            by = by.or(seen.ejected.as_ref());
        }
        if let Some(ejection) = by {
            ejections.push(json!({
                "by": proxy.service.as_deref().unwrap_or(node), "reason": ejection.reason, "times": ejection.times,
                "returns_in_seconds": seconds(ejection.returns_in_millis),
            }));
        }
    }
    let state = match (mesh.is_draining(endpoint), ejections.is_empty()) {
        (true, _) => "draining",
        (false, false) => "ejected",
        (false, true) => "serving",
    };
    json!({
        "address": address, "workload": endpoint.workload,
        "version": endpoint.labels.get("version").map_or("", String::as_str),
        "state": state, "mtls": mesh.uses_mtls(endpoint, port), "in_flight": in_flight,
        "rps": rate(served(book, endpoint, now)),
        "ejections": ejections,
    })
}

/// Sidecars with an open stream, each with its last report.
fn sidecars(book: &TrafficGraph, streams: &[Value], now: Instant) -> Vec<Value> {
    let one = |stream: &Value| {
        let node = stream["node"].as_str().unwrap_or_default();
        let parts: Vec<&str> = node.split('~').collect();
        let (workload, namespace) = parts
            .get(2)
            .and_then(|w| w.rsplit_once('.'))
            .unwrap_or(("", ""));
        let told = book.proxies.get(node);
        let health = told.map(|proxy| &proxy.health);
        let expires = health
            .map(|health| health.certificate_expires)
            .filter(|at| *at > 0);
        let left = |at: u64| (seconds(at) - seconds(millis(SystemTime::now()))) / 86_400.0;
        let is_leno = stream["client"] == "Leno";
        json!({
            "node": node,
            "id": told.and_then(|p| p.service.clone()).unwrap_or_else(|| format!("{namespace}/{workload}")),
            "workload": workload, "namespace": namespace,
            "address": parts.get(1), "client": if is_leno { json!("leno-proxy") } else { stream["client"].clone() },
            "version": told.map_or("", |proxy| &proxy.version),
            "names": stream["names"], "refused": stream["refused"], "held_closed": stream["held_closed"],
            "inbound_closed": stream["inbound_closed"],
            "certificate_expires": expires,
            "certificate_days_left": expires.map(left),
            "config_age_seconds": health.map(|health| seconds(health.config_age_millis)),
            "clock_skew_seconds": health.and_then(|health| health.clock_skew_seconds),
            "clock": health.map_or("not reported", |health| &health.clock),
            "last_report_seconds": told.map(|proxy| now.duration_since(proxy.told).as_secs_f64()),
        })
    };
    streams.iter().map(one).collect()
}

/// Objects of the configuration, broken ones first.
fn objects(state: &State) -> Vec<Value> {
    let mut all: BTreeMap<_, (Option<String>, u8, Vec<String>)> = BTreeMap::new();
    for ObjectEntry { key, origin, .. } in state.objects.iter() {
        let key = (key.kind.clone(), key.namespace.clone(), key.name.clone());
        all.entry(key).or_default().0 = Some(origin.name_and_line());
    }
    for problem in state.problems.iter() {
        let key = match &problem.key {
            Some(key) => (key.kind.clone(), key.namespace.clone(), key.name.clone()),
            None => (String::new(), String::new(), problem.origin.name()),
        };
        let (place, worst, messages) = all.entry(key).or_default();
        place.get_or_insert_with(|| problem.origin.name_and_line());
        *worst = (*worst).max(match problem.severity {
            Severity::Notice => 0,
            Severity::Warning => 1,
            Severity::Error => 2,
        });
        messages.push(problem.to_string());
    }
    for one in state.rejected.iter() {
        let key = (
            one.key.kind.clone(),
            one.key.namespace.clone(),
            one.key.name.clone(),
        );
        let (_, worst, messages) = all.entry(key).or_default();
        *worst = 2;
        messages.insert(0, one.standing());
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(_, (_, worst, _))| std::cmp::Reverse(*worst));
    let shown = all
        .into_iter()
        .map(|((kind, namespace, name), (place, worst, messages))| {
            json!({
                "kind": if kind.is_empty() { "file" } else { &kind },
                "namespace": namespace, "name": name, "place": place,
                "state": (["ok", "warning", "error"][usize::from(worst)]),
                "messages": messages,
            })
        });
    shown.collect()
}

fn failures(book: &TrafficGraph) -> Vec<Value> {
    let one = |shown: &super::FailureEntry| {
        let failure = &shown.failure;
        let source = failure
            .source
            .as_ref()
            .map(|p| super::id(&p.namespace, &p.canonical_service));
        json!({
            "id": shown.id, "time": failure.unix_millis, "reporter": shown.reporter,
            "source": source,
            "destination": super::id(&failure.service_namespace, &failure.service_name),
            "method": failure.method, "path": failure.path,
            "status": failure.status, "flag": failure.flag,
            "explanation": failure.explanation, "request_id": failure.request_id,
            "count": failure.count,
        })
    };
    let mut all: Vec<_> = book.failures.iter().collect();
    all.sort_by_key(|shown| std::cmp::Reverse(shown.id));
    all.into_iter().map(one).collect()
}

fn endpoints(service: &Service) -> &[Endpoint] {
    match &service.endpoints {
        Endpoints::Static(list) => list,
        Endpoints::Dns(_) => &[],
    }
}

/// A service's id on the map, which is its name in metrics.
fn node_id(service: &Service) -> String {
    let mut parts = service.host.splitn(4, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(namespace), Some("svc")) => format!("{namespace}/{name}"),
        _ => super::id(&service.namespace, &service.host),
    }
}

#[allow(clippy::cast_precision_loss)] // counts of seconds
fn rate(count: u64) -> f64 {
    count as f64 / WINDOW.as_secs_f64()
}

#[allow(clippy::cast_precision_loss)]
fn share(part: u64, all: u64) -> f64 {
    if all == 0 {
        0.0
    } else {
        part as f64 / all as f64
    }
}

#[allow(clippy::cast_precision_loss)]
fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
