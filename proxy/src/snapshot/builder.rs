//! Builds plans from resources; clusters and endpoints that didn't change are kept from one snapshot to the next.
//!
//! State: running clusters, endpoints and TLS connectors, while a resource names them; plans that warm, for 5 s.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use tokio::time::Instant;

use super::{
    Entry, INBOUND, InboundChain, InboundPlan, OutboundKind, OutboundPlan, ResourceState,
    Resources, RoutePlan, Snapshot, Target,
};
use crate::balance::Cluster;
use crate::balance::endpoint::{Connectors, Endpoint};
use crate::error::Kind;
use crate::observe::labels::{Labels, Party};
use crate::observe::metrics::Metrics;
use crate::tls::client::Connector;
use crate::tls::{Credentials, alpn};
use leno_rules::config::cluster::{self, Discovery};
use leno_rules::config::endpoints::{self, Assignment, Workload};
use leno_rules::config::listener::{Chain, Filter, Listener};
use leno_rules::config::peer;
use leno_rules::config::route::RouteConfig;
use leno_rules::route::Router;
use leno_rules::route::split::Split;
use leno_rules::spiffe::SpiffeId;

/// Longest time that a plan waits for the resources that it names.
const WARMING: Duration = Duration::from_secs(5);

/// Builds snapshots; holds the state that outlives them.
#[derive(Debug)]
pub struct Builder {
    credentials: Arc<Credentials>,
    metrics: Arc<Metrics>,
    me: Party,
    apps: HashMap<u16, SocketAddr>,
    clusters: HashMap<String, Running>,
    endpoints: HashMap<(String, SocketAddr), RunningEndpoint>,
    connectors: HashMap<(String, Vec<SpiffeId>), Arc<Connectors>>,
    warming: HashMap<String, Instant>,
}

/// A running endpoint, and the configuration that it was built from.
#[derive(Debug)]
struct RunningEndpoint {
    config: endpoints::Endpoint,
    tls: Option<cluster::Tls>,
    endpoint: Arc<Endpoint>,
}

/// A running cluster, and the configuration that it was built from.
#[derive(Debug)]
struct Running {
    config: Arc<cluster::Cluster>,
    assignment: Option<Arc<Assignment>>,
    cluster: Arc<Cluster>,
}

impl Builder {
    /// A builder for a proxy that is `me`, in front of apps by workload port.
    pub fn new(
        credentials: Arc<Credentials>,
        metrics: Arc<Metrics>,
        me: Party,
        apps: HashMap<u16, SocketAddr>,
    ) -> Builder {
        Builder {
            credentials,
            metrics,
            me,
            apps,
            clusters: HashMap::new(),
            endpoints: HashMap::new(),
            connectors: HashMap::new(),
            warming: HashMap::new(),
        }
    }

    /// Builds the snapshot of `resources`; returns also the time for the next build if anything is still warming.
    pub fn build(
        &mut self,
        resources: &Resources,
        before: &Snapshot,
        now: Instant,
    ) -> (Snapshot, Option<Instant>) {
        self.learn(resources);
        self.update_clusters(resources);
        let mut snapshot = Snapshot::default();
        self.warming
            .retain(|name, _| resources.listeners.contains_key(name));
        for (name, answer) in &resources.listeners {
            let ready = match answer {
                ResourceState::Missing(_) => true,
                ResourceState::Present(listener) => self.is_ready(name, listener, resources, now),
            };
            self.place(&mut snapshot, name, answer, resources, before, ready);
        }
        self.drop_unused(resources);
        (snapshot, self.warming.values().min().copied())
    }

    /// Takes this workload's labels from the inbound Listener. Existing series keep their old ones.
    fn learn(&mut self, resources: &Resources) {
        if let Some(ResourceState::Present(listener)) = resources.listeners.get(INBOUND)
            && let Some(chain) = listener.all_chains().next()
            && !chain.workload.name.is_empty()
        {
            self.me.workload = chain.workload.clone();
        }
    }

    /// Updates the endpoints of the running clusters; enough when nothing else has changed.
    pub fn refresh(&mut self, resources: &Resources) {
        self.update_clusters(resources);
        self.drop_unused(resources);
    }

    /// The running clusters, with their configuration.
    pub fn clusters(&self) -> impl Iterator<Item = (&Arc<cluster::Cluster>, &Arc<Cluster>)> {
        self.clusters
            .values()
            .map(|running| (&running.config, &running.cluster))
    }

    /// Adds the plan of `name` to `snapshot`: the new one if it is ready, else the old one.
    fn place(
        &self,
        snapshot: &mut Snapshot,
        name: &str,
        answer: &ResourceState<Listener>,
        resources: &Resources,
        before: &Snapshot,
        ready: bool,
    ) {
        if name == INBOUND {
            snapshot.inbound = match answer {
                ResourceState::Present(listener) if ready => {
                    let plan = self.inbound(listener, resources);
                    if let Some(before) = &before.inbound {
                        plan.inherit_detection(before);
                    }
                    Some(Arc::new(plan))
                }
                // A removed inbound Listener leaves the last good plan: no connection passes without policies.
                _ => before.inbound.clone(),
            };
            return;
        }
        let old = before.outbound.get(name);
        if !ready {
            if let Some(old) = old {
                snapshot.outbound.insert(name.to_owned(), Arc::clone(old));
            }
            return;
        }
        let used = old.map_or_else(Arc::default, |entry| Arc::clone(&entry.used));
        let answer = match answer {
            ResourceState::Missing(reason) => Err(Arc::clone(reason)),
            ResourceState::Present(listener) => {
                let plan = self.outbound(name, listener, resources, Arc::clone(&used));
                if let Some(Ok(before)) = old.map(|entry| &entry.answer) {
                    plan.is_server_first
                        .store(before.is_server_first.load(Relaxed), Relaxed);
                }
                Ok(Arc::new(plan))
            }
        };
        let entry = Entry { answer, used };
        snapshot.outbound.insert(name.to_owned(), Arc::new(entry));
    }

    /// True if every resource that `listener` names has been answered, or the wait for it is over.
    fn is_ready(
        &mut self,
        name: &str,
        listener: &Listener,
        resources: &Resources,
        now: Instant,
    ) -> bool {
        if is_warm(listener, resources) {
            self.warming.remove(name);
            return true;
        }
        let until = *self.warming.entry(name.to_owned()).or_insert(now + WARMING);
        if until > now {
            return false;
        }
        self.warming.remove(name);
        true
    }

    fn outbound(
        &self,
        name: &str,
        listener: &Listener,
        resources: &Resources,
        used: Arc<AtomicU64>,
    ) -> OutboundPlan {
        let refused = |reason| OutboundKind::Refused(Kind::NotConfigured, reason);
        let target = |cluster: &str| self.target_of(name, cluster, resources);
        let kind = match listener.all_chains().next().map(|chain| &chain.filter) {
            Some(Filter::Tcp(cluster)) => OutboundKind::Tcp(target(cluster)),
            Some(Filter::HttpInline(config)) => OutboundKind::Http(router(config, target)),
            Some(Filter::HttpNamed(route)) => match resources.routes.get(route) {
                Some(ResourceState::Present(config)) => OutboundKind::Http(router(config, target)),
                Some(ResourceState::Missing(reason)) => refused(Arc::clone(reason)),
                None => refused(format!("no answer for routes {route}").into()),
            },
            None => refused("the listener has no filter chain".into()),
        };
        let service = name.rsplit_once(':').map_or(name, |(host, _)| host);
        let unknown = Party::default();
        let labels = Labels::new("source", &self.me, &unknown, service, "unknown");
        OutboundPlan {
            authority: name.into(),
            kind,
            series: self.metrics.series(labels),
            used,
            is_undeclared: listener.all_chains().any(|chain| chain.is_undeclared),
            is_server_first: AtomicBool::new(false),
        }
    }

    /// The target `cluster` of a route of `authority`; an ORIGINAL_DST cluster is that authority's own.
    fn target_of(&self, authority: &str, cluster: &str, resources: &Resources) -> Target {
        match self.clusters.get(&dialled_name(cluster, authority)) {
            Some(running) => Target {
                name: cluster.into(),
                cluster: Ok(Arc::clone(&running.cluster)),
            },
            None => self.target(cluster, resources),
        }
    }

    fn target(&self, name: &str, resources: &Resources) -> Target {
        let cluster = match self.clusters.get(name) {
            Some(running) => Ok(Arc::clone(&running.cluster)),
            None => Err(match resources.clusters.get(name) {
                Some(ResourceState::Missing(reason)) => Arc::clone(reason),
                _ => format!("the control plane did not answer for cluster {name}").into(),
            }),
        };
        Target {
            name: name.into(),
            cluster,
        }
    }

    fn inbound(&self, listener: &Listener, resources: &Resources) -> InboundPlan {
        let chain = |chain: &Chain| {
            Arc::new(InboundChain {
                matches: chain.matches.clone(),
                tls: chain.tls,
                rule: chain.rule.as_str().into(),
                policies: chain.policies.clone(),
                http: !matches!(chain.filter, Filter::Tcp(_)),
                apps: self
                    .apps
                    .keys()
                    .map(|port| (*port, self.target(&inbound_cluster(*port), resources)))
                    .collect(),
                workload: chain.workload.clone(),
                service: chain.service.clone(),
                is_server_first: AtomicBool::new(false),
            })
        };
        InboundPlan {
            peer_metadata: peer::encode(&self.me.workload),
            peer_frame: peer::frame(&self.me.workload),
            chains: listener.chains.iter().map(chain).collect(),
            default_chain: listener.default_chain.as_ref().map(chain),
            app_configs: resources.clusters.iter().filter_map(app_config).collect(),
        }
    }

    /// Updates the running clusters: those whose configuration changed are rebuilt, those whose endpoints changed get
    /// the new list, the others are left alone.
    fn update_clusters(&mut self, resources: &Resources) {
        for port in self.apps.keys().copied().collect::<Vec<_>>() {
            self.update_app(port, resources);
        }
        for (authority, answer) in &resources.listeners {
            if let ResourceState::Present(listener) = answer {
                self.update_dialled(authority, listener, resources);
            }
        }
        for (name, answer) in &resources.clusters {
            let ResourceState::Present(config) = answer else {
                continue;
            };
            let Discovery::Eds(service) = &config.discovery else {
                continue;
            };
            let assignment = match resources.endpoints.get(service) {
                Some(ResourceState::Present(assignment)) => Some(Arc::clone(assignment)),
                _ => None,
            };
            self.update_cluster(name, config, assignment);
        }
    }

    /// Updates the ORIGINAL_DST clusters of `authority`, if it is an address: each has that one endpoint.
    fn update_dialled(&mut self, authority: &str, listener: &Listener, resources: &Resources) {
        let Ok(address) = authority.parse() else {
            return;
        };
        for name in listener.all_chains().flat_map(clusters_of) {
            let Some(ResourceState::Present(config)) = resources.clusters.get(name) else {
                continue;
            };
            if matches!(config.discovery, Discovery::OriginalDst) {
                let key = dialled_name(name, authority);
                self.update_fixed(&key, config, address);
            }
        }
    }

    /// Updates the local app's cluster, of one endpoint. It exists even if the control plane sent no Cluster for it.
    fn update_app(&mut self, port: u16, resources: &Resources) {
        let name = inbound_cluster(port);
        let config = match resources.clusters.get(&name) {
            Some(ResourceState::Present(config)) => Arc::clone(config),
            _ if self.clusters.contains_key(&name) => return,
            _ => Arc::new(app_cluster(&name)),
        };
        let Some(address) = self.apps.get(&port) else {
            return;
        };
        let address = *address;
        self.update_fixed(&name, &config, address);
    }

    /// Updates a cluster of one fixed endpoint.
    fn update_fixed(&mut self, name: &str, config: &Arc<cluster::Cluster>, address: SocketAddr) {
        let same = self.clusters.get(name).map(|running| &running.config);
        if same.is_some_and(|same| Arc::ptr_eq(same, config)) {
            return;
        }
        let assignment = Assignment {
            name: name.to_owned(),
            endpoints: vec![endpoints::Endpoint {
                address,
                weight: 1,
                tls: false,
                identities: Vec::new(),
                workload: Workload::default(),
            }],
        };
        self.update_cluster(name, config, Some(Arc::new(assignment)));
    }

    fn update_cluster(
        &mut self,
        name: &str,
        config: &Arc<cluster::Cluster>,
        assignment: Option<Arc<Assignment>>,
    ) {
        let running = self.clusters.get(name);
        let same_config = running.is_some_and(|r| Arc::ptr_eq(&r.config, config));
        let same_endpoints = running.is_some_and(|r| match (&r.assignment, &assignment) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        });
        if same_config && same_endpoints {
            return;
        }
        let cluster = match running {
            Some(running) if same_config => Arc::clone(&running.cluster),
            before => {
                let before = before.map(|running| &*running.cluster);
                Arc::new(Cluster::new(config, before))
            }
        };
        let list = assignment.as_ref().map_or(&[][..], |a| &a.endpoints);
        let list = list
            .iter()
            .map(|endpoint| self.endpoint(name, config, endpoint));
        cluster.set_endpoints(list.collect());
        let running = Running {
            config: Arc::clone(config),
            assignment,
            cluster,
        };
        self.clusters.insert(name.to_owned(), running);
    }

    /// The running endpoint for `wanted`: the existing one, unless its configuration or the cluster's TLS has changed.
    fn endpoint(
        &mut self,
        cluster: &str,
        config: &cluster::Cluster,
        wanted: &endpoints::Endpoint,
    ) -> Arc<Endpoint> {
        let key = (cluster.to_owned(), wanted.address);
        if let Some(known) = self.endpoints.get(&key)
            && known.config == *wanted
            && known.tls == config.tls
        {
            return Arc::clone(&known.endpoint);
        }
        let tls = match (&config.tls, wanted.tls) {
            (Some(tls), true) => self.connectors(tls, &wanted.identities),
            _ => None,
        };
        let destination = Party {
            workload: wanted.workload.clone(),
            principal: wanted.identities.first().map(ToString::to_string),
        };
        let service = cluster.rsplit('|').next().unwrap_or_default();
        let service = service.split(' ').next().unwrap_or_default();
        let labels = Labels::new("source", &self.me, &destination, service, "unknown");
        let series = match cluster.starts_with("inbound|") {
            true => None,
            false => Some(self.metrics.series(labels)),
        };
        let workload = wanted.workload.clone();
        let endpoint = Endpoint::new(wanted.address, wanted.weight, tls, workload, series);
        let endpoint = match cluster.starts_with("inbound|") {
            true => endpoint.starting(),
            false => endpoint,
        };
        let endpoint = Arc::new(endpoint);
        let known = RunningEndpoint {
            config: wanted.clone(),
            tls: config.tls.clone(),
            endpoint: Arc::clone(&endpoint),
        };
        if let Some(old) = self.endpoints.insert(key, known) {
            old.endpoint.retire();
        }
        endpoint
    }

    fn connectors(
        &mut self,
        tls: &cluster::Tls,
        identities: &[SpiffeId],
    ) -> Option<Arc<Connectors>> {
        let allowed = match identities {
            [] => &tls.identities,
            own => own,
        };
        let key = (tls.sni.clone(), allowed.to_vec());
        if let Some(connectors) = self.connectors.get(&key) {
            return Some(Arc::clone(connectors));
        }
        let make = |protocols: &[&[u8]]| {
            Connector::new(&self.credentials, &tls.sni, protocols, allowed.to_vec())
        };
        let make_all = || {
            Ok::<_, String>(Connectors {
                http: make(&[alpn::HTTP1])?,
                shared: make(&[alpn::SHARED, alpn::HTTP1])?,
                // Envoy's sidecars accept HTTP/2 as `h2`.
                http2: make(&[alpn::SHARED, alpn::HTTP2, b"h2", alpn::HTTP1])?,
                tcp: make(&[alpn::EXCHANGE, alpn::TCP])?,
            })
        };
        match make_all() {
            Ok(connectors) => {
                let connectors = Arc::new(connectors);
                self.connectors.insert(key, Arc::clone(&connectors));
                Some(connectors)
            }
            Err(error) => {
                // Unreachable with an SNI that `config` accepted; `None` would be plaintext instead of TLS.
                tracing::error!(sni = tls.sni, error, "cannot prepare TLS");
                None
            }
        }
    }

    /// Drops clusters and endpoints that no resource names any more.
    fn drop_unused(&mut self, resources: &Resources) {
        let apps = &self.apps;
        self.clusters.retain(|name, _| {
            let (cluster, dialled) = match name.split_once(' ') {
                Some((cluster, authority)) => (cluster, Some(authority)),
                None => (&**name, None),
            };
            let named = matches!(
                resources.clusters.get(cluster),
                Some(ResourceState::Present(_))
            ) && dialled
                .is_none_or(|authority| resources.listeners.contains_key(authority));
            named || apps.keys().any(|port| *name == inbound_cluster(*port))
        });
        let clusters = &self.clusters;
        self.endpoints.retain(|(cluster, _), known| {
            let running = clusters.get(cluster).and_then(|r| r.assignment.as_ref());
            let named =
                running.is_some_and(|assignment| assignment.endpoints.contains(&known.config));
            if !named {
                known.endpoint.retire();
            }
            named
        });
        self.connectors
            .retain(|_, connectors| Arc::strong_count(connectors) > 1);
    }
}

/// Name of the cluster of the app behind a workload port.
fn inbound_cluster(port: u16) -> String {
    format!("inbound|{port}||")
}

/// Name of the ORIGINAL_DST cluster of one `authority`.
fn dialled_name(cluster: &str, authority: &str) -> String {
    format!("{cluster} {authority}")
}

/// Workload port and configuration of an app's cluster.
fn app_config(
    (name, answer): (&String, &ResourceState<cluster::Cluster>),
) -> Option<(u16, Arc<cluster::Cluster>)> {
    let port = name.strip_prefix("inbound|")?.strip_suffix("||")?;
    match answer {
        ResourceState::Present(config) => Some((port.parse().ok()?, Arc::clone(config))),
        ResourceState::Missing(_) => None,
    }
}

fn router(config: &RouteConfig, target: impl Fn(&str) -> Target) -> Router<RoutePlan> {
    Router::new(config, |route| {
        let targets = route.targets.iter();
        let targets = targets.map(|(name, weight)| (target(name), *weight));
        RoutePlan {
            rule: route.rule.as_str().into(),
            split: Split::new(targets),
            timeout: route.timeout,
            retry: route.retry.clone(),
        }
    })
}

/// Clusters that a chain names directly.
fn clusters_of(chain: &Chain) -> Vec<&str> {
    match &chain.filter {
        Filter::Tcp(cluster) => vec![cluster],
        Filter::HttpInline(config) => config.clusters().collect(),
        Filter::HttpNamed(_) => Vec::new(),
    }
}

pub(super) fn app_cluster(name: &str) -> cluster::Cluster {
    cluster::Cluster {
        name: name.to_owned(),
        rule: "the local app".to_owned(),
        discovery: Discovery::OriginalDst,
        balance: cluster::Balance::RoundRobin,
        connect_timeout: Duration::from_secs(10),
        tls: None,
        limits: cluster::CircuitBreakers::default(),
        outlier: None,
        // The app's protocol isn't declared.
        connections: cluster::Connections {
            protocol: cluster::UpstreamProtocol::Downstream,
            ..cluster::Connections::default()
        },
    }
}

/// True if every route configuration, cluster and assignment that `listener` leads to has been answered.
fn is_warm(listener: &Listener, resources: &Resources) -> bool {
    listener.all_chains().all(|chain| match &chain.filter {
        Filter::Tcp(cluster) => is_cluster_warm(cluster, resources),
        Filter::HttpInline(config) => are_routes_warm(config, resources),
        Filter::HttpNamed(route) => match resources.routes.get(route) {
            Some(ResourceState::Present(config)) => are_routes_warm(config, resources),
            Some(ResourceState::Missing(_)) => true,
            None => false,
        },
    })
}

fn are_routes_warm(config: &RouteConfig, resources: &Resources) -> bool {
    config
        .clusters()
        .all(|cluster| is_cluster_warm(cluster, resources))
}

fn is_cluster_warm(name: &str, resources: &Resources) -> bool {
    match resources.clusters.get(name) {
        Some(ResourceState::Present(cluster)) => match &cluster.discovery {
            Discovery::Eds(service) => resources.endpoints.contains_key(service),
            Discovery::OriginalDst => true,
        },
        Some(ResourceState::Missing(_)) => true,
        None => false,
    }
}
