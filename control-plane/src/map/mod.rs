//! Traffic of the mesh, as the sidecars report it: callers and callees, failures and their reasons, ejected endpoints.
//!
//! Only the current state, bounded and in memory: history is Prometheus' business. Reported traffic counts only where
//! the sidecar's own side of it is of the namespace that its certificate proves, or unknown.
//!
//! Bounds: edges are kept for 5 min without traffic, sidecars for 60 s without a report; at most 20,000 edges, 200
//! failures.

pub mod view;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use leno_proto::leno::{EndpointState, Failure, Health, Party, ReportRequest, Traffic};
use tokio::time::Instant;

use crate::mesh::Node;

/// Window of the rates.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Time without traffic after which an edge is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// Time without a report after which a sidecar is forgotten.
const SILENT: Duration = Duration::from_secs(60);
/// Most edges that are kept.
const MAX_EDGES: usize = 20_000;
/// Most failures that are kept.
const MAX_FAILURES: usize = 200;
/// Most peers, failures and endpoints of one report, each.
const MAX_TOLD: usize = 4_000;
/// Longest name, and longest explanation, in bytes.
const MAX_NAME: usize = 256;
const MAX_TEXT: usize = 2_048;

/// Upper bounds of a report's durations, in milliseconds; those of Istio's histograms.
pub const BOUNDS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5,
    1.8e6, 3.6e6,
];

/// Key of an edge: the two peers, the protocol, and the side that reports it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EdgeKey {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) protocol: String,
    /// True when the caller's sidecar reports it.
    pub(crate) by_source: bool,
    /// The workload that was reached.
    pub(crate) workload: String,
}

/// Traffic of an edge in one report.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) bytes: u64,
    pub(crate) flags: BTreeMap<String, u64>,
    pub(crate) durations: Vec<u64>,
}

/// Recent traffic between two peers.
#[derive(Debug)]
pub(crate) struct Edge {
    counts: VecDeque<(Instant, Counts)>,
    pub(crate) seen: Instant,
    pub(crate) open: BTreeMap<String, u64>,
    /// True for mutual TLS; `None` while that is unknown.
    pub(crate) mtls: Option<bool>,
}

/// The last report of a sidecar about itself.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) node: Node,
    pub(crate) version: String,
    pub(crate) health: Health,
    pub(crate) endpoints: Vec<EndpointState>,
    pub(crate) told: Instant,
    /// The requests that it served for its app, by report.
    served: VecDeque<(Instant, u64)>,
    /// Its service's id on the map.
    pub(crate) service: Option<String>,
}

/// A failure, as the map shows it.
#[derive(Debug)]
pub(crate) struct FailureEntry {
    pub(crate) id: u64,
    pub(crate) reporter: String,
    pub(crate) failure: Failure,
}

/// The current traffic of the mesh.
#[derive(Debug, Default)]
pub struct TrafficGraph {
    pub(crate) edges: BTreeMap<EdgeKey, Edge>,
    pub(crate) proxies: BTreeMap<String, Proxy>,
    pub(crate) failures: VecDeque<FailureEntry>,
    next: u64,
}

impl TrafficGraph {
    /// Merges a report of `node`.
    pub fn take(&mut self, node: &Node, report: ReportRequest, now: Instant) {
        let mut served = 0;
        let mut service = None;
        for traffic in report.traffic.into_iter().take(MAX_TOLD) {
            if !is_of(node, &traffic) {
                continue;
            }
            if traffic.reporter == "destination" {
                served += traffic.count;
            }
            service = service.or_else(|| own(&traffic));
            self.edge(&report.node, traffic, now);
        }
        let id = format!("{}/{}", node.namespace, node.account);
        for failure in report.failures.into_iter().take(MAX_TOLD) {
            self.fail(service.as_deref().unwrap_or(&id), failure);
        }
        let name = cut(report.node, MAX_NAME);
        let before = self.proxies.remove(&name);
        let (mut rate, known) = before.map(|p| (p.served, p.service)).unwrap_or_default();
        rate.push_back((now, served));
        forget_old(&mut rate, now);
        let proxy = Proxy {
            node: node.clone(),
            version: cut(report.version, MAX_NAME),
            health: report.health.unwrap_or_default(),
            endpoints: report.endpoints.into_iter().take(MAX_TOLD).collect(),
            told: now,
            served: rate,
            service: service.or(known),
        };
        self.proxies.insert(name, proxy);
    }

    fn edge(&mut self, node: &str, traffic: Traffic, now: Instant) {
        let by_source = traffic.reporter == "source";
        let (source, destination) = (
            traffic.source.unwrap_or_default(),
            traffic.destination.unwrap_or_default(),
        );
        let key = EdgeKey {
            from: id(&source.namespace, &source.canonical_service),
            to: id(&traffic.service_namespace, &traffic.service_name),
            protocol: cut(traffic.protocol, 8),
            by_source,
            workload: cut(destination.workload, MAX_NAME),
        };
        if self.edges.len() >= MAX_EDGES && !self.edges.contains_key(&key) {
            return;
        }
        let mtls = match traffic.security.as_str() {
            "mutual_tls" => Some(true),
            "none" => Some(false),
            // The caller's sidecar knows only the identity that it expects of the callee.
            _ if destination.principal.starts_with("spiffe://") => Some(true),
            _ => None,
        };
        let edge = self.edges.entry(key).or_insert_with(|| Edge {
            counts: VecDeque::new(),
            seen: now,
            open: BTreeMap::new(),
            mtls: None,
        });
        edge.mtls = mtls;
        edge.seen = now;
        match traffic.open {
            0 => drop(edge.open.remove(node)),
            open => drop(edge.open.insert(node.to_owned(), open)),
        }
        let mut flags = traffic.flags.into_iter().take(32);
        let counts = Counts {
            requests: traffic.count,
            errors: traffic.errors,
            bytes: traffic.bytes,
            flags: flags.by_ref().map(|(flag, n)| (cut(flag, 16), n)).collect(),
            durations: traffic
                .durations
                .into_iter()
                .take(BOUNDS.len() + 1)
                .collect(),
        };
        edge.counts.push_back((now, counts));
    }

    fn fail(&mut self, reporter: &str, mut failure: Failure) {
        failure.explanation = cut(failure.explanation, MAX_TEXT);
        let texts = [
            &mut failure.method,
            &mut failure.path,
            &mut failure.flag,
            &mut failure.request_id,
            &mut failure.service_namespace,
            &mut failure.service_name,
        ];
        for text in texts {
            *text = cut(std::mem::take(text), MAX_NAME);
        }
        self.next += 1;
        let id = self.next;
        let is_same = |shown: &&mut FailureEntry| {
            shown.reporter == reporter
                && shown.failure.explanation == failure.explanation
                && shown.failure.service_name == failure.service_name
        };
        // A failure that repeats is one line, not a flood.
        if let Some(shown) = self.failures.iter_mut().find(is_same) {
            failure.count += shown.failure.count;
            (shown.id, shown.failure) = (id, failure);
            return;
        }
        if self.failures.len() == MAX_FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back(FailureEntry {
            id,
            reporter: reporter.to_owned(),
            failure,
        });
    }

    /// Drops edges and sidecars that haven't been reported for their time.
    pub fn forget(&mut self, now: Instant) {
        self.edges.retain(|_, edge| {
            forget_old(&mut edge.counts, now);
            now.duration_since(edge.seen) < FORGOTTEN
        });
        self.proxies.retain(|_, proxy| {
            forget_old(&mut proxy.served, now);
            now.duration_since(proxy.told) < SILENT
        });
    }
}

impl Edge {
    /// Traffic within the window.
    pub(crate) fn lately(&self, now: Instant) -> Counts {
        let mut sum = Counts::default();
        for (at, counts) in &self.counts {
            if now.duration_since(*at) <= WINDOW {
                sum.add(counts);
            }
        }
        sum
    }
}

impl Counts {
    /// Adds the traffic of another one.
    pub(crate) fn add(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.bytes += other.bytes;
        for (flag, count) in &other.flags {
            *self.flags.entry(flag.clone()).or_default() += count;
        }
        self.durations
            .resize(self.durations.len().max(other.durations.len()), 0);
        for (own, other) in self.durations.iter_mut().zip(&other.durations) {
            *own += other;
        }
    }

    /// The duration that `share` of the requests don't exceed, in milliseconds, interpolated within its bucket.
    #[allow(clippy::cast_precision_loss)] // counts of seconds
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let total: u64 = self.durations.iter().sum();
        let mut wanted = share * total as f64;
        for (at, count) in self.durations.iter().enumerate().filter(|(_, n)| **n > 0) {
            let lower = at.checked_sub(1).map_or(0.0, |below| BOUNDS[below]);
            let Some(upper) = BOUNDS.get(at) else {
                return Some(lower);
            };
            if wanted <= *count as f64 {
                return Some(lower + (upper - lower) * wanted / *count as f64);
            }
            wanted -= *count as f64;
        }
        None
    }
}

impl Proxy {
    /// Requests that it served for its app within the window.
    pub(crate) fn served(&self, now: Instant) -> u64 {
        let lately = self
            .served
            .iter()
            .filter(|(at, _)| now.duration_since(*at) <= WINDOW);
        lately.map(|(_, count)| count).sum()
    }
}

/// True for traffic that a sidecar may report: its own side is of the sidecar's namespace, or unknown.
fn is_of(node: &Node, traffic: &Traffic) -> bool {
    let party = match traffic.reporter.as_str() {
        "source" => &traffic.source,
        "destination" => &traffic.destination,
        _ => return false,
    };
    let namespace = party.as_ref().map(|party| party.namespace.as_str());
    namespace == Some(&node.namespace) || namespace == Some("unknown")
}

/// Id of the reporting sidecar's service on the map.
fn own(traffic: &Traffic) -> Option<String> {
    let party: &Option<Party> = match traffic.reporter.as_str() {
        "source" => &traffic.source,
        _ => return Some(id(&traffic.service_namespace, &traffic.service_name)),
    };
    party
        .as_ref()
        .map(|party| id(&party.namespace, &party.canonical_service))
}

fn id(namespace: &str, name: &str) -> String {
    match (namespace, name) {
        (_, "unknown" | "") => "unknown".to_owned(),
        ("unknown" | "", name) => cut(name.to_owned(), MAX_NAME),
        (namespace, name) => cut(format!("{namespace}/{name}"), MAX_NAME),
    }
}

fn forget_old<T>(counts: &mut VecDeque<(Instant, T)>, now: Instant) {
    while counts
        .front()
        .is_some_and(|(at, _)| now.duration_since(*at) > WINDOW)
    {
        counts.pop_front();
    }
}

fn cut(mut text: String, at_most: usize) -> String {
    let end = (0..=at_most).rev().find(|at| text.is_char_boundary(*at));
    if text.len() > at_most {
        text.truncate(end.unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node::sidecar("10.0.0.1", "orders")
    }

    fn traffic(source: &str, count: u64) -> Traffic {
        let party = |namespace: &str, name: &str| {
            Some(Party {
                namespace: namespace.to_owned(),
                canonical_service: name.to_owned(),
                workload: name.to_owned(),
                principal: String::new(),
            })
        };
        Traffic {
            reporter: "source".to_owned(),
            source: party(source, "orders"),
            destination: party("default", "users"),
            service_namespace: "default".to_owned(),
            service_name: "users".to_owned(),
            protocol: "http".to_owned(),
            count,
            durations: vec![0, 0, count],
            ..Traffic::default()
        }
    }

    fn report(traffic: Vec<Traffic>) -> ReportRequest {
        ReportRequest {
            node: "n".to_owned(),
            traffic,
            ..ReportRequest::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_of_the_last_seconds_and_what_is_over_is_forgotten() {
        let (mut book, start) = (TrafficGraph::default(), Instant::now());
        book.take(&node(), report(vec![traffic("default", 30)]), start);
        let later = start + WINDOW / 2;
        book.take(&node(), report(vec![traffic("default", 10)]), later);
        let requests = |book: &TrafficGraph, now| {
            let edges = book.edges.values();
            edges.map(|edge| edge.lately(now).requests).sum::<u64>()
        };
        assert_eq!(requests(&book, later), 40);
        assert_eq!(requests(&book, start + WINDOW + Duration::from_secs(1)), 10);
        book.forget(later + FORGOTTEN / 2);
        assert_eq!((book.edges.len(), book.proxies.len()), (1, 0));
        book.forget(later + FORGOTTEN);
        assert_eq!(book.edges.len(), 0);
    }

    #[tokio::test]
    async fn a_sidecar_is_believed_about_its_own_namespace_only() {
        let mut book = TrafficGraph::default();
        book.take(&node(), report(vec![traffic("other", 1)]), Instant::now());
        assert!(book.edges.is_empty());
    }

    #[tokio::test]
    async fn the_same_failure_is_one_line_with_a_count() {
        let mut book = TrafficGraph::default();
        for words in ["a", "b", "a"] {
            let failure = Failure {
                explanation: words.to_owned(),
                count: 2,
                ..Failure::default()
            };
            let mut report = report(Vec::new());
            report.failures.push(failure);
            book.take(&node(), report, Instant::now());
        }
        let counts: Vec<_> = book
            .failures
            .iter()
            .map(|s| (&*s.failure.explanation, s.failure.count))
            .collect();
        assert_eq!(counts, [("a", 4), ("b", 2)]);
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let mut counts = Counts::default();
        assert_eq!(counts.quantile(0.5), None);
        counts.durations = vec![0, 0, 100];
        assert_eq!(counts.quantile(0.5), Some(3.0));
        counts.durations = vec![99, 0, 0, 1];
        assert!(counts.quantile(0.5).is_some_and(|ms| ms < 0.5));
        assert_eq!(counts.quantile(1.0), Some(10.0));
    }
}
