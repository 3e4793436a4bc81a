//! A workload as the registry describes it, and the selectors that fit it.
//!
//! Invariant: unknown labels fail closed. A selector that may fit can restrict access, and never open it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::policy::{Mode, PeerAuthentication};
use super::service::{Endpoint, Endpoints, Protocol, Service, Workload};
use super::{Mesh, Node, selects};

/// The relation of a selector to a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It doesn't select it.
    No,
    /// It may select it: the workload's labels aren't known, or the selector's are spread over several descriptions.
    Maybe,
    /// It selects it.
    Yes,
}

impl fmt::Display for Fit {
    /// The note after an object's name, for a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fit::Maybe => f.write_str(" (in case it selects this workload)"),
            Fit::No | Fit::Yes => Ok(()),
        }
    }
}

/// The labels of a workload, one set for each object that describes it; empty when none does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels<'a>(Vec<&'a BTreeMap<String, String>>);

impl<'a> Labels<'a> {
    /// Labels from descriptions, without empty and repeated ones.
    pub fn new(descriptions: impl IntoIterator<Item = &'a BTreeMap<String, String>>) -> Labels<'a> {
        let mut labels = Labels::default();
        for own in descriptions {
            if !own.is_empty() && !labels.0.contains(&own) {
                labels.0.push(own);
            }
        }
        labels
    }

    /// True when any labels are known.
    pub fn are_known(&self) -> bool {
        !self.0.is_empty()
    }

    /// The fit of a selector; `None`, for everything of a namespace, always fits.
    pub fn fit(&self, selector: Option<&BTreeMap<String, String>>) -> Fit {
        let Some(wanted) = selector else {
            return Fit::Yes;
        };
        let has = |(name, value): (&String, &String)| {
            self.0.iter().any(|own| own.get(name) == Some(value))
        };
        match self.0.as_slice() {
            [] => Fit::Maybe,
            sets if sets.iter().any(|own| selects(wanted, own)) => Fit::Yes,
            _ if wanted.iter().all(has) => Fit::Maybe,
            _ => Fit::No,
        }
    }

    /// The value of a label in the first description that has it.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find_map(|own| own.get(name))
            .map(String::as_str)
    }
}

/// A port of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkloadPort {
    /// Its declared protocol, if any.
    pub protocol: Option<Protocol>,
    /// The service that it serves.
    pub service: String,
    /// The DestinationRule's limit for connections to it.
    pub max_requests_per_connection: Option<u32>,
}

/// A workload, as the registry and its join token describe it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// Labels of its join token.
    brought: BTreeMap<String, String>,
    /// Sets of labels from each object of the registry.
    by: BTreeMap<String, BTreeSet<BTreeMap<String, String>>>,
    /// Its name.
    pub name: String,
    /// Its ports.
    pub ports: BTreeMap<u16, WorkloadPort>,
}

impl Described {
    /// Its labels.
    pub fn labels(&self) -> Labels<'_> {
        let by = self.by.values().flatten();
        Labels::new([&self.brought].into_iter().chain(by))
    }

    /// Restores the parts of `before` that are gone. An object that is removed, or loses its labels, changes nothing;
    /// one that changes replaces its own labels; one that is added with new labels replaces those of all that are gone.
    #[must_use]
    pub fn or(mut self, before: &Described) -> Described {
        let known: BTreeSet<_> = before.by.values().flatten().collect();
        let mut fresh = self
            .by
            .iter()
            .filter(|(object, _)| !before.by.contains_key(*object));
        let has_come = fresh.any(|(_, own)| own.iter().any(|labels| !known.contains(labels)));
        let mut is_less = false;
        for (object, labels) in &before.by {
            match self.by.get(object) {
                Some(own) if !own.is_empty() || labels.is_empty() => {}
                None if has_come => {}
                _ => {
                    self.by.insert(object.clone(), labels.clone());
                    is_less = true;
                }
            }
        }
        if is_less {
            for (port, known) in &before.ports {
                self.ports.entry(*port).or_insert_with(|| known.clone());
            }
            if self.name.is_empty() {
                self.name.clone_from(&before.name);
            }
        }
        self
    }

    /// Adds the ports of an endpoint of a service.
    fn add(&mut self, service: &Service, endpoint: &Endpoint, root_namespace: &str) {
        self.name.clone_from(&endpoint.workload);
        let rule = service.rule(&service.namespace, root_namespace);
        for port in &service.ports {
            let own = endpoint.ports.get(&port.number).copied();
            let known = self.ports.entry(own.unwrap_or(port.number)).or_default();
            // Of several services on one port: a declared protocol over detection, TCP over HTTP, detection for HTTP/1
            // with HTTP/2.
            known.protocol = match (known.protocol, port.protocol) {
                (None | Some(Protocol::Auto), own) => Some(own),
                (Some(Protocol::Http | Protocol::Http2), Protocol::Tcp) => Some(Protocol::Tcp),
                (Some(Protocol::Http), Protocol::Http2)
                | (Some(Protocol::Http2), Protocol::Http) => Some(Protocol::Auto),
                (before, _) => before,
            };
            known.service.clone_from(&service.host);
            known.max_requests_per_connection = known
                .max_requests_per_connection
                .or(rule.and_then(|rule| rule.policy.max_requests_per_connection));
        }
    }
}

/// Endpoints and workloads of the registry by address. Derived from services and workloads, so any two are equal.
#[derive(Debug, Clone, Default)]
pub struct Index(Arc<HashMap<IpAddr, At>>);

#[derive(Debug, Default)]
struct At {
    endpoints: Vec<(Arc<Service>, usize)>,
    workloads: Vec<usize>,
}

impl PartialEq for Index {
    fn eq(&self, _: &Index) -> bool {
        true
    }
}

impl Index {
    /// The index of a registry.
    pub fn new(services: &BTreeMap<String, Arc<Service>>, workloads: &[Workload]) -> Index {
        let mut index: HashMap<IpAddr, At> = HashMap::new();
        for service in services.values() {
            let Endpoints::Static(list) = &service.endpoints else {
                continue;
            };
            for (at, endpoint) in list.iter().enumerate() {
                let own = index.entry(endpoint.address).or_default();
                own.endpoints.push((Arc::clone(service), at));
            }
        }
        for (at, workload) in workloads.iter().enumerate() {
            index
                .entry(workload.address)
                .or_default()
                .workloads
                .push(at);
        }
        Index(Arc::new(index))
    }
}

/// A description of a workload at an address.
#[derive(Debug, Clone, Copy)]
struct Description<'a> {
    /// The object that it comes from.
    object: &'a str,
    namespace: &'a str,
    account: Option<&'a str>,
    labels: &'a BTreeMap<String, String>,
}

impl Description<'_> {
    /// True for a workload of this account: a description without a service account fits any of its namespace.
    fn fits(&self, namespace: &str, account: &str) -> bool {
        self.namespace == namespace && self.account.is_none_or(|own| own == account)
    }
}

impl Mesh {
    /// Endpoints at `address`, each with its service.
    pub fn endpoints_at(&self, address: IpAddr) -> impl Iterator<Item = (&Service, &Endpoint)> {
        let at = self.index.0.get(&address);
        let found = at.into_iter().flat_map(|at| &at.endpoints);
        found.filter_map(|(service, at)| match &service.endpoints {
            Endpoints::Static(list) => Some((&**service, list.get(*at)?)),
            Endpoints::Dns(_) => None,
        })
    }

    /// Endpoints that are the workload of `node`, each with its service.
    pub fn endpoints_of(&self, node: &Node) -> impl Iterator<Item = (&Service, &Endpoint)> {
        self.endpoints_at(node.ip).filter(|(service, endpoint)| {
            describes(service, endpoint).fits(&node.namespace, &node.account)
        })
    }

    fn descriptions(&self, address: IpAddr) -> impl Iterator<Item = Description<'_>> {
        let at = self.index.0.get(&address);
        let workloads = at.into_iter().flat_map(|at| &at.workloads);
        let workloads = workloads.filter_map(|at| self.workloads.get(*at));
        let workloads = workloads.map(|workload| Description {
            object: &workload.object,
            namespace: &workload.namespace,
            account: workload.account.as_deref(),
            labels: &workload.labels,
        });
        let endpoints = self.endpoints_at(address);
        workloads.chain(endpoints.map(|(service, endpoint)| describes(service, endpoint)))
    }

    /// The labels of the workload of an account at an address.
    pub fn labels_at(&self, address: IpAddr, namespace: &str, account: &str) -> Labels<'_> {
        let all = self.descriptions(address);
        Labels::new(
            all.filter(|one| one.fits(namespace, account))
                .map(|one| one.labels),
        )
    }

    /// Namespace, account and labels of each description of an address.
    pub(super) fn at(
        &self,
        address: IpAddr,
    ) -> BTreeSet<(&str, Option<&str>, &BTreeMap<String, String>)> {
        let all = self.descriptions(address);
        all.map(|one| (one.namespace, one.account, one.labels))
            .collect()
    }

    /// Describes the workload of `node`.
    pub fn describe(&self, node: &Node) -> Described {
        let all = self.descriptions(node.ip);
        let own = all.filter(|one| one.fits(&node.namespace, &node.account));
        let mut described = Described {
            brought: node.labels.clone(),
            ..Described::default()
        };
        for one in own {
            let labels = described.by.entry(one.object.to_owned()).or_default();
            labels.extend(Some(one.labels.clone()).filter(|labels| !labels.is_empty()));
        }
        for (service, endpoint) in self.endpoints_of(node) {
            described.add(service, endpoint, &self.root_namespace);
        }
        described
    }

    /// Objects that may select a workload, and close it: they restrict access, or would open what others close if they
    /// surely selected it.
    pub fn held_by(&self, node: &Node, described: &Described) -> BTreeSet<String> {
        let (labels, namespace) = (described.labels(), &node.namespace);
        let may_be = |object: &&PeerAuthentication| {
            object.namespace == *namespace && labels.fit(object.selector.as_ref()) == Fit::Maybe
        };
        let ports = self
            .ports_with_modes(namespace, &labels)
            .into_iter()
            .map(Some);
        let mut held = BTreeSet::new();
        for port in ports.chain([None]) {
            let (mode, by) = self.mode(namespace, &labels, port);
            let is_sure = !by.as_ref().is_some_and(may_be);
            // With a sure deciding object, those that would relax its mode matter, otherwise all with a mode of their
            // own.
            let matters = |object: &&PeerAuthentication| match object.mode_of(port) {
                _ if object.broken => true,
                Mode::Unset => false,
                own => own != Mode::Strict || !is_sure,
            };
            if mode == Mode::Strict {
                let peers = self.peer_authentications.iter().filter(may_be);
                held.extend(peers.filter(matters).map(|object| object.object.clone()));
            }
        }
        let policies = self.policies_for(namespace, &labels);
        let policies = policies.filter(|(fit, _)| *fit == Fit::Maybe);
        held.extend(policies.map(|(_, policy)| {
            format!("{}/{} AuthorizationPolicy", policy.namespace, policy.name)
        }));
        held
    }

    /// Explains, for a person, why a selector only may fit: the objects that nearly describe the workload, and those
    /// needed.
    pub fn why_unknown(&self, node: &Node, described: &Described) -> String {
        if described.labels().are_known() {
            return "its labels are spread over several descriptions, and none has all of a selector's".to_owned();
        }
        let (ip, namespace, account) = (node.ip, &node.namespace, &node.account);
        let mut near = BTreeSet::new();
        for one in self.descriptions(ip) {
            let object = one.object;
            near.insert(match one.account {
                _ if one.namespace != namespace => {
                    format!("{object} has {ip} in namespace {}", one.namespace)
                }
                Some(other) if other != account => {
                    format!("{object} has {ip} with serviceAccount {other}")
                }
                _ => format!("{object} has {ip} without labels"),
            });
        }
        let near: Vec<String> = near.into_iter().collect();
        let near = match near.is_empty() {
            true => format!("nothing in the registry has {ip}"),
            false => near.join(", "),
        };
        format!(
            "{near}; what would tell: a WorkloadEntry, or an endpoint of a ServiceEntry with resolution STATIC, in namespace \
             {namespace} with address {ip}, labels, and serviceAccount {account} or none; or labels in its join token"
        )
    }
}

fn describes<'a>(service: &'a Service, endpoint: &'a Endpoint) -> Description<'a> {
    Description {
        object: &service.object,
        namespace: &endpoint.namespace,
        account: endpoint.account.as_deref(),
        labels: &endpoint.labels,
    }
}
