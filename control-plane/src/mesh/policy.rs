//! Compiled security objects: mutual TLS modes and authorization policies.

use std::collections::BTreeMap;

use super::route::StringMatch;

/// The mutual TLS modes of workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// The object that it comes from.
    pub object: String,
    /// True when it stands for one that can't be read: it is STRICT, whatever others set.
    pub broken: bool,
    /// Its namespace.
    pub namespace: String,
    /// Labels of the workloads that it is for; all of the namespace otherwise.
    pub selector: Option<BTreeMap<String, String>>,
    /// The mode on every port.
    pub mode: Mode,
    /// The mode on single workload ports.
    pub ports: BTreeMap<u16, Mode>,
}

impl PeerAuthentication {
    /// Its mode on a port; the mode on every port, when that port's is unset or there is no port.
    pub fn mode_of(&self, port: Option<u16>) -> Mode {
        let own = port.and_then(|port| self.ports.get(&port)).copied();
        own.filter(|mode| *mode != Mode::Unset).unwrap_or(self.mode)
    }
}

/// Istio's mutual TLS mode; the stricter is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Mode {
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// An authorization policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Labels of the workloads that it is for; all of the namespace otherwise.
    pub selector: Option<BTreeMap<String, String>>,
    /// True for DENY, false for ALLOW.
    pub denies: bool,
    /// Rules; any of them matches.
    pub rules: Vec<PolicyRule>,
}

/// One rule. An empty list matches anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// Sources, any of which must match.
    pub from: Vec<Source>,
    /// Operations, any of which must match.
    pub to: Vec<Operation>,
}

/// Conditions on the peer: every list that is given must match. Whole SPIFFE IDs are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Its identity.
    pub principals: Vec<StringMatch>,
    /// Its identity's namespace, as a match on the identity.
    pub namespaces: Vec<StringMatch>,
}

/// Conditions on the request: every list that is given must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operation {
    /// The method.
    pub methods: Vec<StringMatch>,
    /// The path.
    pub paths: Vec<StringMatch>,
}
