//! The running configuration: resources in, a [`Snapshot`] out, one swap, and the path reads it.
//!
//! Invariants: a plan is published only when every resource that it names has been answered (or 5 s have passed);
//! clusters and endpoints that didn't change are kept; endpoints outlive the assignment that named them first.
//!
//! State: the time of last use, as long as an authority's entry; server-first detection, as long as a plan, and the
//! next plan takes it over.

pub mod apps;
mod builder;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::balance::Cluster;
use crate::error::{Error, Kind};
use crate::observe::labels::{Labels, Party};
use crate::observe::standard::Series;
use crate::tls::alpn::ACCEPTED;
pub use builder::Builder;
use leno_rules::config::cluster;
use leno_rules::config::endpoints::{Assignment, Workload};
use leno_rules::config::listener::{ChainMatch, Listener};
use leno_rules::config::rbac::Rbac;
use leno_rules::config::route::{Retry, RouteConfig};
use leno_rules::route::Router;
use leno_rules::route::split::Split;

/// The name of the one inbound Listener.
pub const INBOUND: &str = "virtualInbound";

/// The control plane's answer for a resource.
#[derive(Debug, Clone)]
pub enum ResourceState<T> {
    /// The resource exists.
    Present(Arc<T>),
    /// The resource doesn't exist; the reason, as text.
    Missing(Arc<str>),
}

/// All resources that were answered, by name.
#[derive(Debug, Default)]
pub struct Resources {
    /// Listeners, by the authority that is dialled, and [`INBOUND`].
    pub listeners: HashMap<String, ResourceState<Listener>>,
    /// RouteConfigurations.
    pub routes: HashMap<String, ResourceState<RouteConfig>>,
    /// Clusters.
    pub clusters: HashMap<String, ResourceState<cluster::Cluster>>,
    /// ClusterLoadAssignments.
    pub endpoints: HashMap<String, ResourceState<Assignment>>,
}

/// The running configuration.
#[derive(Debug, Default)]
pub struct Snapshot {
    outbound: HashMap<String, Arc<Entry>>,
    /// Plan of connections to the app; `None` until the first inbound Listener is accepted.
    pub inbound: Option<Arc<InboundPlan>>,
}

/// Configuration of one authority.
#[derive(Debug)]
pub struct Entry {
    /// Plan of its requests, or the reason that it doesn't exist.
    pub answer: Result<Arc<OutboundPlan>, Arc<str>>,
    used: Arc<AtomicU64>,
}

/// Plan of requests for one authority.
#[derive(Debug)]
pub struct OutboundPlan {
    /// The authority, as it was requested: `user-service:80`.
    pub authority: Arc<str>,
    /// HTTP, TCP, or a refusal.
    pub kind: OutboundKind,
    /// Series of requests that reach no endpoint.
    pub series: Arc<Series>,
    used: Arc<AtomicU64>,
    /// True if the port's protocol isn't declared, so that it is detected.
    pub is_undeclared: bool,
    /// True once the destination has been seen to send the first bytes of a connection.
    pub is_server_first: AtomicBool,
}

/// Protocol and routing of connections to an authority.
#[derive(Debug)]
pub enum OutboundKind {
    /// HTTP.
    Http(Router<RoutePlan>),
    /// Opaque TCP, for this cluster.
    Tcp(Target),
    /// Refused, with this error.
    Refused(Kind, Arc<str>),
}

/// Plan of one route.
#[derive(Debug)]
pub struct RoutePlan {
    /// Object and rule that it comes from.
    pub rule: Arc<str>,
    /// Clusters by weight.
    pub split: Split<Target>,
    /// Timeout of the whole exchange, retries included.
    pub timeout: Option<Duration>,
    /// Retry policy.
    pub retry: Option<Retry>,
}

/// A cluster that a route names.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its name.
    pub name: Arc<str>,
    /// The cluster, or the reason that there is none.
    pub cluster: Result<Arc<Cluster>, Arc<str>>,
}

/// Plan of connections to the app.
#[derive(Debug)]
pub struct InboundPlan {
    /// This workload as `x-envoy-peer-metadata`, for upstream sidecars.
    pub peer_metadata: Vec<u8>,
    /// The same for TCP peers, as [`peer::frame`](leno_rules::config::peer::frame) makes it.
    pub peer_frame: Vec<u8>,
    /// Configuration of the apps' clusters, by workload port.
    app_configs: HashMap<u16, Arc<cluster::Cluster>>,
    chains: Vec<Arc<InboundChain>>,
    default_chain: Option<Arc<InboundChain>>,
}

/// A filter chain of the inbound Listener.
#[derive(Debug)]
pub struct InboundChain {
    matches: ChainMatch,
    /// True if it terminates mutual TLS.
    pub tls: bool,
    /// Object that decided on the mTLS mode.
    pub rule: Arc<str>,
    /// Authorization policies.
    pub policies: Vec<Rbac>,
    /// True for HTTP, on connections that look like it; false for opaque TCP.
    pub http: bool,
    /// Apps by workload port.
    apps: HashMap<u16, Target>,
    workload: Workload,
    service: String,
    /// True once the app has been seen to send the first bytes of a connection.
    pub is_server_first: AtomicBool,
}

impl Snapshot {
    /// The configuration of `authority`, marked as used at `now` (in seconds of any monotonic clock).
    pub fn find(&self, authority: &str, now: u64) -> Option<&Arc<Entry>> {
        let entry = self.outbound.get(authority)?;
        entry.used.store(now, Ordering::Relaxed);
        Some(entry)
    }

    /// True if `authority` has an entry.
    pub fn knows(&self, authority: &str) -> bool {
        self.outbound.contains_key(authority)
    }

    /// Authorities, with the time that each was last used at.
    pub fn uses(&self) -> impl Iterator<Item = (&str, u64)> {
        let uses = self.outbound.iter();
        uses.map(|(name, entry)| (name.as_str(), entry.used.load(Ordering::Relaxed)))
    }
}

impl OutboundPlan {
    /// A plan that refuses a destination with `error`.
    pub fn refused(authority: &str, error: &Error, series: &Arc<Series>) -> OutboundPlan {
        OutboundPlan {
            authority: authority.into(),
            kind: OutboundKind::Refused(error.kind, error.detail.as_str().into()),
            series: Arc::clone(series),
            used: Arc::default(),
            is_undeclared: false,
            is_server_first: AtomicBool::new(false),
        }
    }

    /// Marks the plan as used at `now` (in seconds of any monotonic clock).
    pub fn used(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }
}

impl InboundPlan {
    /// Takes server-first detection over from chains of `before` with the same match.
    fn inherit_detection(&self, before: &InboundPlan) {
        for chain in &self.chains {
            let same = before
                .chains
                .iter()
                .find(|old| old.matches == chain.matches);
            let spoke = same.is_some_and(|old| old.is_server_first.load(Ordering::Relaxed));
            chain.is_server_first.store(spoke, Ordering::Relaxed);
        }
    }

    /// The chain for a connection to workload port `port`, with or without TLS, that offers `alpn`. The most specific
    /// match wins, in Envoy's order: port, transport protocol, ALPN. A port that a chain names is left to no other
    /// chain: a connection that its own chains don't match is refused. Of several offers, TLS's choice counts.
    pub fn find(&self, port: u16, tls: bool, alpn: &[Vec<u8>]) -> Option<&Arc<InboundChain>> {
        let is_named = self.chains.iter().any(|c| c.matches.port == Some(port));
        let fits = |chain: &&Arc<InboundChain>| {
            let m = &chain.matches;
            m.port == is_named.then_some(port)
                && m.tls.is_none_or(|t| t == tls)
                && (m.alpn.is_empty() || chain.offer(alpn).is_some())
        };
        let specific = |chain: &&Arc<InboundChain>| {
            let m = &chain.matches;
            (m.tls.is_some(), chain.offer(alpn).map(Reverse))
        };
        let best = self.chains.iter().filter(fits).max_by_key(specific);
        best.or(self.default_chain.as_ref().filter(|_| !is_named))
    }
}

impl InboundChain {
    /// Rank in TLS's order of preference of the best protocol that is both offered and named by this chain.
    fn offer(&self, alpn: &[Vec<u8>]) -> Option<usize> {
        let named = |offer: &&Vec<u8>| self.matches.alpn.iter().any(|m| m.as_bytes() == **offer);
        let place = |offer: &Vec<u8>| {
            let place = ACCEPTED.iter().position(|known| known == offer);
            place.unwrap_or(ACCEPTED.len())
        };
        alpn.iter().filter(named).map(place).min()
    }

    /// The app behind workload port `port`.
    pub fn app(&self, port: u16) -> Option<&Target> {
        self.apps.get(&port)
    }

    /// Labels of requests from `source` that this chain takes.
    pub fn labels(&self, source: &Party, principal: Option<String>, security: &str) -> Labels {
        let destination = Party {
            workload: self.workload.clone(),
            principal,
        };
        Labels::new("destination", source, &destination, &self.service, security)
    }
}

#[cfg(test)]
mod tests;
