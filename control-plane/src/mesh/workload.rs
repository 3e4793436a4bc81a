//! A workload as the registry describes it, and the selectors that fit it.
//!
//! Invariant: unknown labels fail closed. A selector that may fit can restrict access, and never open it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::service::{Endpoint, Endpoints, PortProtocol, Service, Workload};

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
    pub protocol: Option<PortProtocol>,
    /// The service that it serves.
    pub service: String,
    /// The DestinationRule's limit for connections to it.
    pub max_requests_per_connection: Option<u32>,
}

/// A workload, as the registry and its join token describe it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkloadDescription {
    /// Labels of its join token.
    pub(super) brought: BTreeMap<String, String>,
    /// Sets of labels from each object of the registry.
    pub(super) by: BTreeMap<String, BTreeSet<BTreeMap<String, String>>>,
    /// Its name.
    pub name: String,
    /// Its ports.
    pub ports: BTreeMap<u16, WorkloadPort>,
}

impl WorkloadDescription {
    /// Its labels.
    pub fn labels(&self) -> Labels<'_> {
        let by = self.by.values().flatten();
        Labels::new([&self.brought].into_iter().chain(by))
    }

    /// Restores the parts of `before` that are gone. An object that is removed, or loses its labels, changes nothing;
    /// one that changes replaces its own labels; one that is added with new labels replaces those of all that are gone.
    #[must_use]
    pub fn or(mut self, before: &WorkloadDescription) -> WorkloadDescription {
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
    pub(super) fn add(&mut self, service: &Service, endpoint: &Endpoint, root_namespace: &str) {
        self.name.clone_from(&endpoint.workload);
        let rule = service.rule(&service.namespace, root_namespace);
        for port in &service.ports {
            let own = endpoint.ports.get(&port.number).copied();
            let known = self.ports.entry(own.unwrap_or(port.number)).or_default();
            // Of several services on one port: a declared protocol over detection, TCP over HTTP, detection for HTTP/1
            // with HTTP/2.
            known.protocol = match (known.protocol, port.protocol) {
                (None | Some(PortProtocol::Auto), own) => Some(own),
                (Some(PortProtocol::Http | PortProtocol::Http2), PortProtocol::Tcp) => {
                    Some(PortProtocol::Tcp)
                }
                (Some(PortProtocol::Http), PortProtocol::Http2)
                | (Some(PortProtocol::Http2), PortProtocol::Http) => Some(PortProtocol::Auto),
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
pub struct Index(pub(super) Arc<HashMap<IpAddr, At>>);

#[derive(Debug, Default)]
pub(super) struct At {
    pub(super) endpoints: Vec<(Arc<Service>, usize)>,
    pub(super) workloads: Vec<usize>,
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

/// True when a workload has every label of a selector.
pub fn selects(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(name, value)| labels.get(name) == Some(value))
}
