//! Descriptions of workloads in the registry, and the objects whose selectors depend on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::policy::{Mode, PeerAuthentication};
use super::service::{Endpoint, Endpoints, Service};
use super::workload::{Fit, Labels, WorkloadDescription};
use super::{Mesh, Node};

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
    pub fn describe(&self, node: &Node) -> WorkloadDescription {
        let all = self.descriptions(node.ip);
        let own = all.filter(|one| one.fits(&node.namespace, &node.account));
        let mut described = WorkloadDescription {
            brought: node.labels.clone(),
            ..WorkloadDescription::default()
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
    pub fn closing_objects(
        &self,
        node: &Node,
        described: &WorkloadDescription,
    ) -> BTreeSet<String> {
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
    pub fn explain_uncertain_fit(&self, node: &Node, described: &WorkloadDescription) -> String {
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
