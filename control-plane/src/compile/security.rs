//! Compilation of security objects, and warnings about selectors, principals and descriptions that can't match. An
//! object that can't be read fails closed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::Compiler;
use super::convert::{foreign_domain, mode, namespace_match, principal, wildcard};
use super::selectors::Workloads;
use super::services::labels_of;
use crate::istio::authorization_policy as authz;
use crate::istio::peer_authentication::Mtls;
use crate::istio::service_entry::{Location, Resolution};
use crate::istio::{self, Object, Spec};
use crate::mesh::policy::{
    AuthorizationPolicy, Mode, Operation, PeerAuthentication, PolicyRule, Source,
};
use crate::mesh::selects;
use crate::object::{ClosedEffect, FailClosed, ObjectKey, Problem, Severity};

impl Compiler<'_> {
    pub(super) fn security(
        &mut self,
        objects: &[Arc<Object>],
        broken: &[Problem],
        described: &Workloads,
    ) {
        let (mut peers, mut policies) = (Vec::new(), Vec::new());
        for object in objects {
            match &object.spec {
                Spec::PeerAuthentication(spec) => peers.push(peer_authentication(object, spec)),
                Spec::AuthorizationPolicy(_) if object.dry_run => {
                    let text = "dry run: not judged yet by this version of Leno, and not enforced";
                    self.problem(object, Severity::Notice, text.to_owned());
                }
                Spec::AuthorizationPolicy(spec) => {
                    self.notice_foreign(object, spec);
                    policies.push(self.authorization_policy(object, spec));
                }
                _ => {}
            }
        }
        self.notice_rivals(objects, &peers, described);
        for problem in broken {
            let (Some(key), Some(closes)) = (&problem.key, &problem.fail_closed) else {
                continue;
            };
            let mut key = key.clone();
            if key.namespace.is_empty() {
                // Its namespace is unknown: it closes the whole mesh.
                key.namespace.clone_from(&self.settings.root_namespace);
            }
            match closes.effect {
                ClosedEffect::Strict => peers.push(strict(&key, closes)),
                ClosedEffect::Deny => policies.push(deny_all(&key, closes)),
            }
        }
        self.mesh.peer_authentications = Arc::new(peers);
        self.mesh.policies = Arc::new(policies);
    }

    fn authorization_policy(
        &self,
        object: &Object,
        spec: &istio::AuthorizationPolicy,
    ) -> AuthorizationPolicy {
        AuthorizationPolicy {
            namespace: object.key.namespace.clone(),
            name: object.key.name.clone(),
            selector: labels(spec.selector.as_ref()),
            denies: spec.action == authz::Action::Deny,
            rules: spec.rules.iter().map(|rule| self.rule_of(rule)).collect(),
        }
    }

    fn rule_of(&self, spec: &authz::Rule) -> PolicyRule {
        let domain = &self.settings.trust_domain;
        let from = spec.from.iter().map(|from| Source {
            principals: (from.source.principals.iter())
                .map(|spec| principal(spec, domain))
                .collect(),
            namespaces: (from.source.namespaces.iter())
                .map(|spec| namespace_match(spec, domain))
                .collect(),
        });
        let to = spec.to.iter().map(|to| Operation {
            methods: (to.operation.methods.iter()).map(wildcard).collect(),
            paths: (to.operation.paths.iter()).map(wildcard).collect(),
        });
        PolicyRule {
            from: from.collect(),
            to: to.collect(),
        }
    }

    /// Warns of principals of other trust domains, which no peer has.
    fn notice_foreign(&mut self, object: &Object, spec: &istio::AuthorizationPolicy) {
        let own = self.settings.trust_domain.clone();
        let sources = spec.rules.iter().flat_map(|rule| &rule.from);
        let principals = sources.flat_map(|from| &from.source.principals);
        let foreign: BTreeSet<&str> = principals
            .filter_map(|spec| foreign_domain(spec, &own))
            .collect();
        for domain in foreign {
            let text = format!(
                "no caller is of trust domain {domain}: the mesh's is {own}, and no other is trusted"
            );
            self.problem(object, Severity::Warning, text);
        }
    }

    /// Warns of PeerAuthentications for the same workloads. Istio takes the oldest of them; here the stricter mode
    /// counts.
    fn notice_rivals(
        &mut self,
        objects: &[Arc<Object>],
        peers: &[PeerAuthentication],
        described: &Workloads,
    ) {
        let none = BTreeSet::new();
        let mut rivals = Vec::new();
        let authentications =
            (objects.iter()).filter(|o| matches!(o.spec, Spec::PeerAuthentication(_)));
        for (at, (object, own)) in authentications.zip(peers).enumerate() {
            let before = peers[..at].iter();
            let rival = before.filter(|other| other.namespace == own.namespace);
            let here = described.get(&own.namespace).unwrap_or(&none);
            let rival = rival.filter(|other| are_rivals(other, own, here));
            rivals.extend(rival.map(|other| (object, other.object.clone())));
        }
        for (object, other) in rivals {
            let text =
                format!("{other} is for the same workloads: of two modes the stricter counts");
            self.problem(object, Severity::Warning, text);
        }
    }

    /// Warns of workloads of the registry that no selector can match, and of those with several descriptions.
    pub(super) fn notice_descriptions(&mut self, objects: &[Arc<Object>]) {
        let mut at: HashMap<IpAddr, Vec<Entry<'_>>> = HashMap::new();
        let mut notices = Vec::new();
        for object in objects {
            if let Spec::ServiceEntry(spec) = &object.spec
                && (spec.resolution, spec.location) == (Resolution::Dns, Location::MeshInternal)
            {
                let text = "no selector can tell the sidecars of resolution DNS: names describe no workload";
                notices.push((object, text.to_owned()));
            }
            let own = entries(object);
            let bare = own
                .iter()
                .filter(|one| one.is_workload && one.labels.is_empty());
            let bare: Vec<&str> = bare.map(|one| one.field.as_str()).collect();
            if !bare.is_empty() {
                let text = format!(
                    "{} without labels: no selector can tell the sidecar there, so each that may be for it holds it closed",
                    bare.join(", ")
                );
                notices.push((object, text));
            }
            for one in own {
                let before = at.entry(one.address).or_default();
                let rivals = before.iter().filter(|other| other.rivals(&one));
                let rivals: BTreeSet<String> = rivals.map(|o| o.object.key.to_string()).collect();
                notices.extend(rivals.into_iter().map(|other| {
                    let text = format!(
                        "{} has other labels in {other}: a selector that either fits is for its workload",
                        one.address
                    );
                    (object, text)
                }));
                if !before.iter().any(|other| other.is_as(&one)) {
                    before.push(one);
                }
            }
        }
        for (object, text) in notices {
            self.problem(object, Severity::Warning, text);
        }
    }
}

/// An entry of the registry: an object's description of the workload at an address.
struct Entry<'a> {
    object: &'a Object,
    /// Its field in the object.
    field: String,
    /// True when a sidecar is expected there.
    is_workload: bool,
    address: IpAddr,
    account: Option<&'a str>,
    labels: BTreeMap<String, String>,
}

impl Entry<'_> {
    /// True for another of the same namespace, account and labels.
    fn is_as(&self, other: &Entry<'_>) -> bool {
        self.account == other.account
            && self.labels == other.labels
            && self.object.key.namespace == other.object.key.namespace
    }

    /// True for another of the same workload with other labels.
    fn rivals(&self, other: &Entry<'_>) -> bool {
        let is_same = match (self.account, other.account) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        let say_something = !self.labels.is_empty() && !other.labels.is_empty();
        is_same
            && say_something
            && self.labels != other.labels
            && self.object.key.namespace == other.object.key.namespace
    }
}

fn entries(object: &Object) -> Vec<Entry<'_>> {
    match &object.spec {
        Spec::WorkloadEntry(entry) => {
            let labels = labels_of(object, entry);
            entry_of(object, "address".to_owned(), entry, labels, true)
                .into_iter()
                .collect()
        }
        Spec::ServiceEntry(spec) if spec.resolution == Resolution::Static => {
            let internal = spec.location == Location::MeshInternal;
            let endpoints = spec.endpoints.iter().enumerate();
            let endpoints = endpoints.filter_map(|(i, entry)| {
                let is_workload = internal || entry.service_account.is_some();
                let field = format!("endpoints[{i}]");
                entry_of(object, field, entry, entry.labels.clone(), is_workload)
            });
            endpoints.collect()
        }
        _ => Vec::new(),
    }
}

fn entry_of<'a>(
    object: &'a Object,
    field: String,
    entry: &'a istio::WorkloadEntry,
    labels: BTreeMap<String, String>,
    is_workload: bool,
) -> Option<Entry<'a>> {
    Some(Entry {
        object,
        field,
        is_workload,
        address: entry.address.parse().ok()?,
        account: entry.service_account.as_deref(),
        labels,
    })
}

/// True for two PeerAuthentications of one namespace and level that both select some labels: `described` ones, or those
/// of either selector.
fn are_rivals(
    one: &PeerAuthentication,
    other: &PeerAuthentication,
    described: &BTreeSet<BTreeMap<String, String>>,
) -> bool {
    match (&one.selector, &other.selector) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            let mut labels = described.iter().chain([a, b]);
            labels.any(|labels| selects(a, labels) && selects(b, labels))
        }
        _ => false,
    }
}

fn peer_authentication(object: &Object, spec: &istio::PeerAuthentication) -> PeerAuthentication {
    let mode_of = |mtls: &Option<Mtls>| mode(mtls.unwrap_or_default().mode);
    PeerAuthentication {
        object: object.key.to_string(),
        broken: false,
        namespace: object.key.namespace.clone(),
        selector: labels(spec.selector.as_ref()),
        mode: mode_of(&spec.mtls),
        ports: (spec.port_level_mtls.iter())
            .map(|(port, mtls)| (port.0, mode_of(mtls)))
            .collect(),
    }
}

/// Labels of a selector; `None` for one without any, which selects everything, as no selector does.
fn labels(selector: Option<&istio::Selector>) -> Option<BTreeMap<String, String>> {
    selector
        .map(|selector| selector.match_labels.clone())
        .filter(|labels| !labels.is_empty())
}

/// A security object without a good form fails closed: for the workloads that it selects, or for its namespace.
fn strict(key: &ObjectKey, closes: &FailClosed) -> PeerAuthentication {
    PeerAuthentication {
        object: format!("{key} (broken: STRICT until it can be read)"),
        broken: true,
        namespace: key.namespace.clone(),
        selector: Some(closes.selector.clone()).filter(|labels| !labels.is_empty()),
        mode: Mode::Strict,
        ports: BTreeMap::new(),
    }
}

fn deny_all(key: &ObjectKey, closes: &FailClosed) -> AuthorizationPolicy {
    AuthorizationPolicy {
        namespace: key.namespace.clone(),
        name: format!("{} (broken: denies until it can be read)", key.name),
        selector: Some(closes.selector.clone()).filter(|labels| !labels.is_empty()),
        denies: true,
        rules: vec![PolicyRule::default()],
    }
}
