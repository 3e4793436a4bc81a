//! The configuration of the mesh: one immutable value, from which all xDS resources are computed.
//!
//! Invariant: names are resolved and nothing is contradictory; a `Mesh` is never changed, only replaced.

mod description;
pub mod policy;
pub mod route;
pub mod service;
pub mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use policy::{AuthorizationPolicy, Mode, PeerAuthentication};
use service::{Endpoint, Endpoints, Service, Workload};
pub use workload::selects;
use workload::{Fit, Index, Labels};

/// The whole configuration of the mesh.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mesh {
    /// The trust domain of every identity.
    pub trust_domain: String,
    /// The root namespace: its policies are for all namespaces.
    pub root_namespace: String,
    /// Services by host.
    pub services: BTreeMap<String, Arc<Service>>,
    /// Hosts by the addresses at which callers dial them.
    pub addresses: BTreeMap<IpAddr, String>,
    /// Each endpoint as a service of its own, by its address: a caller that dials the address reaches only that
    /// endpoint.
    pub direct: BTreeMap<String, Arc<Service>>,
    /// The treatment of connections to unknown addresses.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// Workloads that are objects of their own: WorkloadEntries.
    pub workloads: Arc<Vec<Workload>>,
    /// Endpoints and workloads by address.
    pub index: Index,
    /// The mutual TLS modes of workloads.
    pub peer_authentications: Arc<Vec<PeerAuthentication>>,
    /// The authorization policies.
    pub policies: Arc<Vec<AuthorizationPolicy>>,
    /// Addresses that names resolved to, for services with DNS endpoints.
    pub resolved: Arc<BTreeMap<String, Vec<IpAddr>>>,
    /// The workloads that are draining.
    pub draining: Arc<Draining>,
}

/// What becomes of connections to addresses that nothing is known of: Istio's `outboundTrafficPolicy.mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OutboundTrafficPolicy {
    /// They go where they were dialled, as they are.
    #[default]
    #[value(name = "ALLOW_ANY")]
    AllowAny,
    /// They are refused.
    #[value(name = "REGISTRY_ONLY")]
    RegistryOnly,
}

/// The workloads that are draining, and the revision of this set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draining {
    /// Grows with each change.
    pub revision: u64,
    /// The keys of these workloads.
    pub workloads: BTreeSet<WorkloadKey>,
}

/// The key of a workload: address, namespace, service account.
pub type WorkloadKey = (IpAddr, String, String);

/// The kind of an xDS client; each has its own form of a Listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// A Leno sidecar: requests resources by name, on demand, and is sent the reason for a missing one.
    #[default]
    Leno,
    /// Envoy: is sent all resources.
    Envoy,
    /// An application that speaks xDS itself through gRPC's library (gRFC A27).
    Grpc,
}

impl Client {
    /// Determines it from `node.user_agent_name`.
    pub fn of(user_agent_name: &str) -> Client {
        let name = user_agent_name.to_ascii_lowercase();
        match name.as_str() {
            "envoy" => Client::Envoy,
            _ if name.starts_with("grpc") => Client::Grpc,
            _ => Client::Leno,
        }
    }
}

/// A proxy, as its certificate and its node id identify it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// The workload's address.
    pub ip: IpAddr,
    /// Its namespace, from its certificate.
    pub namespace: String,
    /// Its service account, from its certificate.
    pub account: String,
    /// The kind of client.
    pub client: Client,
    /// Labels from its certificate.
    pub labels: BTreeMap<String, String>,
}

impl Node {
    /// The key of its workload.
    pub fn workload(&self) -> WorkloadKey {
        (self.ip, self.namespace.clone(), self.account.clone())
    }
}

/// The scope of a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshChange {
    /// Hosts whose services, routes or endpoints changed.
    pub hosts: BTreeSet<String>,
    /// True when the change isn't limited to these hosts: hosts were added or removed, or workloads, policies,
    /// addresses, the trust domain or the outbound traffic policy changed.
    pub all: bool,
}

impl MeshChange {
    /// True when nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.all && self.hosts.is_empty()
    }
}

/// The result of looking up a host by the name that a caller uses.
#[derive(Debug, Clone, Copy)]
pub enum ServiceLookup<'a> {
    /// The service.
    Service(&'a Arc<Service>),
    /// No service; the nearest name, if one is near.
    Nothing(Option<&'a str>),
}

impl Mesh {
    /// Looks up the service that `host` names for a caller in `namespace`.
    pub fn find(&self, host: &str, namespace: &str) -> ServiceLookup<'_> {
        if let Some(address) = address_of(host) {
            let named = self.addresses.get(&address);
            let found = named.and_then(|host| self.services.get(host));
            let found = found.or_else(|| self.direct.get(&address.to_string()));
            return found.map_or(ServiceLookup::Nothing(None), ServiceLookup::Service);
        }
        for name in candidates(host, namespace) {
            if let Some(service) = self.services.get(&name) {
                return ServiceLookup::Service(service);
            }
        }
        let shorts = self.services.keys();
        let near = shorts
            .map(|known| {
                let whole = strsim::levenshtein(host, known);
                let first = strsim::levenshtein(host, first_label(known));
                (whole.min(first), known)
            })
            .min();
        ServiceLookup::Nothing(
            near.filter(|(d, _)| *d <= host.len() / 3 + 1)
                .map(|(_, n)| n.as_str()),
        )
    }

    /// Names of the registry's workloads that an object of `namespace` with the selector `labels` may be for: at most
    /// `most` of them, then the number of the others.
    pub fn workload_names(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        most: usize,
    ) -> Vec<String> {
        let is_all = namespace.is_empty() || namespace == self.root_namespace;
        let fits = |own: &str, has: &BTreeMap<String, String>| {
            (is_all || own == namespace) && (has.is_empty() || selects(labels, has))
        };
        let lists = self
            .services
            .values()
            .map(|service| match &service.endpoints {
                Endpoints::Static(list) => list.as_slice(),
                Endpoints::Dns(_) => &[],
            });
        let endpoints = lists.flatten().filter(|e| fits(&e.namespace, &e.labels));
        let mut names: BTreeSet<String> = endpoints
            .map(|e| format!("{}/{}", e.namespace, e.workload))
            .collect();
        let workloads = self
            .workloads
            .iter()
            .filter(|w| fits(&w.namespace, &w.labels));
        names.extend(workloads.map(|w| w.object.trim_end_matches(" WorkloadEntry").to_owned()));
        let more = names.len().saturating_sub(most);
        let mut names: Vec<String> = names.into_iter().take(most).collect();
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        names
    }

    /// The service whose canonical host is `host`.
    pub fn service(&self, host: &str) -> Option<&Arc<Service>> {
        self.services.get(host).or_else(|| self.direct.get(host))
    }

    /// True for an endpoint of a draining workload. One without a service account has no sidecar that could report it.
    pub fn is_draining(&self, endpoint: &Endpoint) -> bool {
        let draining = &self.draining.workloads;
        let Some(account) = (!draining.is_empty())
            .then_some(endpoint.account.as_ref())
            .flatten()
        else {
            return false;
        };
        draining.contains(&(
            endpoint.address,
            endpoint.namespace.clone(),
            account.clone(),
        ))
    }

    /// Workload ports with a mode of their own in an object that selects, or may select, this workload.
    pub fn ports_with_modes(&self, namespace: &str, labels: &Labels<'_>) -> BTreeSet<u16> {
        let objects = self.peer_authentications.iter().filter(|object| {
            let selector = object.selector.as_ref();
            object.namespace == namespace && selector.is_some() && labels.fit(selector) != Fit::No
        });
        objects
            .flat_map(|object| object.ports.keys().copied())
            .collect()
    }

    /// The mode of a workload's port, and the object that decides on it: workload over namespace over mesh, and the
    /// strictest of several objects of one level. An unset mode inherits that of the next wider level; an object that
    /// only may select the workload can make the mode stricter, and nothing else.
    pub fn mode(
        &self,
        namespace: &str,
        labels: &Labels<'_>,
        port: Option<u16>,
    ) -> (Mode, Option<&PeerAuthentication>) {
        let mut decided: Decision<'_> = (Mode::Permissive, None);
        for level in [Level::Mesh, Level::Namespace, Level::Workload] {
            let (mut sure, mut possible): (Option<Decision<'_>>, _) = (None, None);
            let here = self.peer_authentications.iter();
            for object in here.filter(|o| self.level(o, namespace) == Some(level)) {
                let best = match labels.fit(object.selector.as_ref()) {
                    Fit::No => continue,
                    _ if object.broken => return (Mode::Strict, Some(object)),
                    Fit::Maybe => &mut possible,
                    Fit::Yes => &mut sure,
                };
                // Port modes apply only in an object that selects workloads.
                let port = port.filter(|_| level == Level::Workload);
                let own = match object.mode_of(port) {
                    Mode::Unset => decided,
                    mode => (mode, Some(object)),
                };
                if best.is_none_or(|(before, _)| own.0 > before) {
                    *best = Some(own);
                }
            }
            decided = sure.unwrap_or(decided);
            decided = possible
                .filter(|(mode, _)| *mode > decided.0)
                .unwrap_or(decided);
        }
        decided
    }

    /// The level of an object for workloads of `namespace`; `None` when it isn't for them.
    fn level(&self, object: &PeerAuthentication, namespace: &str) -> Option<Level> {
        match &object.selector {
            Some(_) if object.namespace == namespace => Some(Level::Workload),
            None if object.namespace == namespace => Some(Level::Namespace),
            None if object.namespace == self.root_namespace => Some(Level::Mesh),
            _ => None,
        }
    }

    /// Policies that select, or may select, a workload.
    pub fn policies_for<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a Labels<'a>,
    ) -> impl Iterator<Item = (Fit, &'a AuthorizationPolicy)> {
        let here = self.policies.iter().filter(move |policy| {
            policy.namespace == namespace || policy.namespace == self.root_namespace
        });
        let fit = here.map(move |policy| (labels.fit(policy.selector.as_ref()), policy));
        fit.filter(|(fit, _)| *fit != Fit::No)
    }

    /// True when connections to a workload's port use mutual TLS: it has a sidecar, and its mode isn't DISABLE.
    pub fn uses_mtls(&self, endpoint: &Endpoint, port: u16) -> bool {
        let Some(account) = endpoint.account.as_ref().filter(|_| endpoint.meshed) else {
            return false;
        };
        let labels = self.labels_at(endpoint.address, &endpoint.namespace, account);
        let (mode, _) = self.mode(&endpoint.namespace, &labels, Some(port));
        mode != Mode::Disable
    }

    /// The SPIFFE ID of an endpoint's service account.
    pub fn identity(&self, endpoint: &Endpoint) -> Option<String> {
        let (domain, namespace) = (&self.trust_domain, &endpoint.namespace);
        let account = endpoint.account.as_ref()?;
        Some(format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))
    }

    /// The difference between this mesh and `next`.
    pub fn diff(&self, next: &Mesh) -> MeshChange {
        let mut touched = MeshChange {
            hosts: BTreeSet::new(),
            all: self.trust_domain != next.trust_domain
                || self.workloads != next.workloads
                || self.peer_authentications != next.peer_authentications
                || self.policies != next.policies
                || self.addresses != next.addresses
                || self.outbound_traffic_policy != next.outbound_traffic_policy,
        };
        let addresses: BTreeSet<&String> = self.direct.keys().chain(next.direct.keys()).collect();
        let changed = addresses
            .into_iter()
            .filter(|address| self.direct.get(*address) != next.direct.get(*address));
        touched.hosts.extend(changed.cloned());
        let hosts: BTreeSet<&String> = self.services.keys().chain(next.services.keys()).collect();
        for host in hosts {
            let (before, after) = (self.services.get(host), next.services.get(host));
            if before != after {
                touched.hosts.insert(host.clone());
                // An added or removed host may change the lookup of a name that found nothing.
                touched.all |= before.is_none() || after.is_none();
            }
        }
        touched.hosts.extend(self.relabelled(next, &touched.hosts));
        for (host, service) in next.services.iter().chain(&next.direct) {
            if let Endpoints::Static(list) = &service.endpoints
                && self.draining != next.draining
                && list
                    .iter()
                    .any(|e| self.is_draining(e) != next.is_draining(e))
            {
                touched.hosts.insert(host.clone());
            }
            if let Endpoints::Dns(names) = &service.endpoints
                && names
                    .iter()
                    .any(|n| self.resolved.get(&n.name) != next.resolved.get(&n.name))
            {
                touched.hosts.insert(host.clone());
            }
        }
        touched
    }
}

/// A mode, and the object that decides on it.
type Decision<'a> = (Mode, Option<&'a PeerAuthentication>);

/// The level of a PeerAuthentication: the closer wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Mesh,
    Namespace,
    Workload,
}

impl Mesh {
    /// Hosts that share an endpoint's address with one of `changed`, if `next` describes that address differently:
    /// mutual TLS to their endpoints may change.
    fn relabelled(&self, next: &Mesh, changed: &BTreeSet<String>) -> BTreeSet<String> {
        let mut hosts = BTreeSet::new();
        let services =
            [self, next].map(|mesh| changed.iter().filter_map(|host| mesh.services.get(host)));
        for service in services.into_iter().flatten() {
            let Endpoints::Static(list) = &service.endpoints else {
                continue;
            };
            for at in list.iter().map(|endpoint| endpoint.address) {
                if self.at(at) != next.at(at) {
                    hosts.extend(
                        next.endpoints_at(at)
                            .map(|(service, _)| service.host.clone()),
                    );
                    hosts.insert(at.to_string());
                }
            }
        }
        hosts
    }
}

/// Parses a host that is an IP address, in brackets or not.
pub fn address_of(host: &str) -> Option<IpAddr> {
    let inner = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    inner.unwrap_or(host).parse().ok()
}

/// The hosts that a name may stand for, the closest first. Short names are of the caller's namespace.
fn candidates(host: &str, namespace: &str) -> Vec<String> {
    match host.matches('.').count() {
        0 => vec![
            format!("{host}.{namespace}.svc.cluster.local"),
            host.to_owned(),
        ],
        1 => vec![host.to_owned(), format!("{host}.svc.cluster.local")],
        2 if host.ends_with(".svc") => vec![format!("{host}.cluster.local"), host.to_owned()],
        _ => vec![host.to_owned()],
    }
}

fn first_label(host: &str) -> &str {
    host.split('.').next().unwrap_or(host)
}

#[cfg(test)]
impl Node {
    /// A sidecar of ours in namespace `default`, for tests.
    pub(crate) fn sidecar(ip: &str, account: &str) -> Node {
        Node {
            ip: ip.parse().expect("an address"),
            namespace: "default".to_owned(),
            account: account.to_owned(),
            client: Client::Leno,
            labels: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        pairs.iter().map(own).collect()
    }

    fn mesh() -> Mesh {
        let object = |namespace: &str, selector, mode, ports: &[(u16, Mode)]| PeerAuthentication {
            object: format!("{namespace} {mode:?}"),
            broken: false,
            namespace: namespace.to_owned(),
            selector,
            mode,
            ports: ports.iter().copied().collect(),
        };
        let objects = vec![
            object("istio-system", None, Mode::Strict, &[]),
            object("a", None, Mode::Permissive, &[]),
            object(
                "a",
                Some(labels(&[("app", "x")])),
                Mode::Unset,
                &[(81, Mode::Disable)],
            ),
            object(
                "a",
                Some(labels(&[("app", "y")])),
                Mode::Strict,
                &[(81, Mode::Unset)],
            ),
        ];
        Mesh {
            root_namespace: "istio-system".to_owned(),
            peer_authentications: Arc::new(objects),
            ..Mesh::default()
        }
    }

    #[test]
    fn the_closest_object_decides_on_the_mode() {
        let mesh = mesh();
        for (namespace, app, port, expected) in [
            ("b", "x", 80, Mode::Strict),
            ("a", "z", 80, Mode::Permissive),
            ("a", "x", 80, Mode::Permissive),
            ("a", "x", 81, Mode::Disable),
            ("a", "y", 80, Mode::Strict),
            ("a", "y", 81, Mode::Strict),
        ] {
            let labels = labels(&[("app", app)]);
            let (mode, _) = mesh.mode(namespace, &Labels::new([&labels]), Some(port));
            assert_eq!(mode, expected, "{namespace} {app} {port}");
        }
        let unknown = Labels::default();
        assert_eq!(
            Mesh::default().mode("a", &unknown, None).0,
            Mode::Permissive
        );
        assert_eq!(
            mesh.mode("a", &unknown, None).0,
            Mode::Strict,
            "it may be y"
        );
    }

    #[test]
    fn a_name_is_of_the_callers_namespace_and_a_near_miss_is_named() {
        let mut mesh = Mesh::default();
        for host in ["user-service.default.svc.cluster.local", "api.stripe.com"] {
            let service = Service::empty(host, "default");
            mesh.services.insert(host.to_owned(), Arc::new(service));
        }
        for host in [
            "user-service",
            "user-service.default",
            "user-service.default.svc",
        ] {
            assert!(
                matches!(mesh.find(host, "default"), ServiceLookup::Service(_)),
                "{host}"
            );
        }
        assert!(matches!(
            mesh.find("api.stripe.com", "x"),
            ServiceLookup::Service(_)
        ));
        let ServiceLookup::Nothing(near) = mesh.find("user-servise", "default") else {
            panic!("found");
        };
        assert_eq!(near, Some("user-service.default.svc.cluster.local"));
        assert!(matches!(
            mesh.find("user-service", "other"),
            ServiceLookup::Nothing(_)
        ));
        assert!(matches!(
            mesh.find("zzzzzzzz", "default"),
            ServiceLookup::Nothing(None)
        ));
    }
}
