//! Who must prove who they are, and who may do what, as it is meant.

use std::collections::BTreeMap;

use super::route::StringMatch;

/// Who must prove who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Which object it is.
    pub object: String,
    /// Whether it stands for one that can't be read: it is STRICT, whatever others say.
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
    /// Its mode on a port; that on every port, where it leaves the port open or none is asked for.
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

/// Who may do what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Labels of the workloads that it is for; all of the namespace otherwise.
    pub selector: Option<BTreeMap<String, String>>,
    /// Whether a match denies.
    pub denies: bool,
    /// Rules; any of them matches.
    pub rules: Vec<PolicyRule>,
}

/// One rule. An empty list matches anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// Who asks: any of these.
    pub from: Vec<Source>,
    /// What is asked: any of these.
    pub to: Vec<Operation>,
}

/// Who asks: everything that is given must hold. Whole SPIFFE IDs are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Its identity.
    pub principals: Vec<StringMatch>,
    /// Its identity's namespace, as a match on the identity.
    pub namespaces: Vec<StringMatch>,
}

/// What is asked: everything that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operation {
    /// The method.
    pub methods: Vec<StringMatch>,
    /// The path.
    pub paths: Vec<StringMatch>,
}
