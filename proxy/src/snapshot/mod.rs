//! What runs: resources in, a [`Snapshot`] out, one swap, and the path reads it.
//!
//! Invariants: a plan is published only when everything that it names has been answered (or 5 s have passed); what
//! didn't change keeps its plan; endpoints outlive the assignment that named them first.

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

/// What the control plane said of a name.
#[derive(Debug, Clone)]
pub enum Answer<T> {
    /// It exists.
    Present(Arc<T>),
    /// It doesn't; why, for a person.
    Missing(Arc<str>),
}

/// Everything that was answered, by name.
#[derive(Debug, Default)]
pub struct Resources {
    /// Listeners: authorities that are dialled, and [`INBOUND`].
    pub listeners: HashMap<String, Answer<Listener>>,
    /// RouteConfigurations.
    pub routes: HashMap<String, Answer<RouteConfig>>,
    /// Clusters.
    pub clusters: HashMap<String, Answer<cluster::Cluster>>,
    /// ClusterLoadAssignments.
    pub endpoints: HashMap<String, Answer<Assignment>>,
}

/// What runs.
#[derive(Debug, Default)]
pub struct Snapshot {
    outbound: HashMap<String, Arc<Entry>>,
    /// What is done with connections to the app; `None` until the first inbound Listener is accepted.
    pub inbound: Option<Arc<InboundPlan>>,
}

/// What is known of one authority.
#[derive(Debug)]
pub struct Entry {
    /// What is done with its requests, or why there is no such thing.
    pub answer: Result<Arc<OutboundPlan>, Arc<str>>,
    used: Arc<AtomicU64>,
}

/// What is done with requests for one authority.
#[derive(Debug)]
pub struct OutboundPlan {
    /// The authority, as it was asked for: `user-service:80`.
    pub authority: Arc<str>,
    /// What is done.
    pub kind: OutboundKind,
    /// Where requests are counted that reach no endpoint.
    pub series: Arc<Series>,
    used: Arc<AtomicU64>,
    /// Whether nobody declared what its connections carry.
    pub is_undeclared: bool,
    /// Whether the destination was the first to speak, on a connection before.
    pub speaks_first: AtomicBool,
}

/// What connections to an authority carry.
#[derive(Debug)]
pub enum OutboundKind {
    /// HTTP.
    Http(Router<RoutePlan>),
    /// Bytes, for this cluster.
    Tcp(Target),
    /// Nothing: this is what went wrong.
    Refused(Kind, Arc<str>),
}

/// Where a route leads.
#[derive(Debug)]
pub struct RoutePlan {
    /// Which rule of which object it is.
    pub rule: Arc<str>,
    /// Clusters by weight.
    pub split: Split<Target>,
    /// How long a whole exchange may take.
    pub timeout: Option<Duration>,
    /// When it is tried again.
    pub retry: Option<Retry>,
}

/// A cluster that a route names.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its name.
    pub name: Arc<str>,
    /// The cluster, or why there is none.
    pub cluster: Result<Arc<Cluster>, Arc<str>>,
}

/// What is done with connections to the app.
#[derive(Debug)]
pub struct InboundPlan {
    /// What callees are told of this workload, as `x-envoy-peer-metadata`.
    pub peer_metadata: Vec<u8>,
    /// The same before bytes, as [`peer::frame`](leno_rules::config::peer::frame) makes it.
    pub peer_frame: Vec<u8>,
    /// How apps are spoken to, by their ports.
    app_configs: HashMap<u16, Arc<cluster::Cluster>>,
    chains: Vec<Arc<InboundChain>>,
    default_chain: Option<Arc<InboundChain>>,
}

/// What is done with connections to one workload port.
#[derive(Debug)]
pub struct InboundChain {
    matches: ChainMatch,
    /// Whether mutual TLS is terminated.
    pub tls: bool,
    /// Which object decided on the mTLS mode.
    pub rule: Arc<str>,
    /// Who may do what.
    pub policies: Vec<Rbac>,
    /// Whether they carry HTTP, when they look like it; else bytes.
    pub http: bool,
    /// The app, by workload port.
    apps: HashMap<u16, Target>,
    workload: Workload,
    service: String,
    /// Whether the app was the first to speak, on a connection before.
    pub speaks_first: AtomicBool,
}

impl Snapshot {
    /// What is known of `authority`, and that it is being used now (in seconds of any clock that only goes forward).
    pub fn find(&self, authority: &str, now: u64) -> Option<&Arc<Entry>> {
        let entry = self.outbound.get(authority)?;
        entry.used.store(now, Ordering::Relaxed);
        Some(entry)
    }

    /// Whether anything is known of `authority`.
    pub fn knows(&self, authority: &str) -> bool {
        self.outbound.contains_key(authority)
    }

    /// Authorities with when each was last used.
    pub fn uses(&self) -> impl Iterator<Item = (&str, u64)> {
        let uses = self.outbound.iter();
        uses.map(|(name, entry)| (name.as_str(), entry.used.load(Ordering::Relaxed)))
    }
}

impl OutboundPlan {
    /// A plan for a destination that nothing is done with, because of an error.
    pub fn refused(authority: &str, error: &Error, series: &Arc<Series>) -> OutboundPlan {
        OutboundPlan {
            authority: authority.into(),
            kind: OutboundKind::Refused(error.kind, error.detail.as_str().into()),
            series: Arc::clone(series),
            used: Arc::default(),
            is_undeclared: false,
            speaks_first: AtomicBool::new(false),
        }
    }

    /// The plan is being used now (in seconds of any clock that only goes forward).
    pub fn used(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }
}

impl InboundPlan {
    /// What was learned of apps stays known.
    fn learn_from(&self, before: &InboundPlan) {
        for chain in &self.chains {
            let same = before
                .chains
                .iter()
                .find(|old| old.matches == chain.matches);
            let spoke = same.is_some_and(|old| old.speaks_first.load(Ordering::Relaxed));
            chain.speaks_first.store(spoke, Ordering::Relaxed);
        }
    }

    /// The chain for a connection to workload port `port` that begins with TLS or doesn't, and offers `alpn`. A chain
    /// that names more wins, in Envoy's order: port, transport, ALPN. A port that a chain names is left to no other chain:
    /// what its own chains don't take is not taken. Of several offers the one counts that TLS will agree on.
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
    /// The place, in the order in which TLS chooses among them, of the best of the protocols that are offered and that
    /// this chain names.
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
