//! The YAML as it is said: one file a kind, strict, with the place of every mistake.
//!
//! Invariant: what isn't understood is an error on its object, never ignored; and each object of a text is in what
//! [`read`] gives: as an object, or in a problem.

pub mod authorization_policy;
mod de;
pub mod destination_rule;
mod documents;
mod header;
mod kinds;
pub mod peer_authentication;
mod reader;
pub mod scalar;
pub mod service;
pub mod service_entry;
mod unread;
pub mod virtual_service;
pub mod wildcard;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

pub use authorization_policy::AuthorizationPolicy;
pub use destination_rule::DestinationRule;
pub use documents::{Hidden, documents, hidden};
pub use kinds::Closed;
pub use peer_authentication::PeerAuthentication;
pub use reader::{read, unreadable};
pub use service::Service;
pub use service_entry::{ServiceEntry, WorkloadEntry};
pub use virtual_service::VirtualService;

/// Bounds on YAML.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a file.
    pub bytes: usize,
    /// How deep a document may nest.
    pub depth: usize,
    /// Aliases (`*name`) of a document.
    pub aliases: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes: 4 * 1024 * 1024,
            depth: 64,
            aliases: 1000,
        }
    }
}

/// A place in a file; line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file.
    pub file: Arc<PathBuf>,
    /// The line.
    pub line: u64,
    /// The column.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// Which object it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &'_ str| if text.is_empty() { "?" } else { text }.to_owned();
        let [namespace, name, kind] =
            [&self.namespace, &self.name, &self.kind].map(|text| or_unknown(text));
        write!(f, "{namespace}/{name} {kind}")
    }
}

/// An object that could be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Which it is.
    pub key: Key,
    /// Where it begins.
    pub place: Place,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// True for a policy that is to be judged, and not enforced (`istio.io/dry-run`).
    pub dry_run: bool,
    /// What it says.
    pub spec: Spec,
    /// Its text, as it stands in the file.
    pub text: Arc<str>,
}

impl Object {
    /// True for another form that does the same.
    pub fn is_as(&self, other: &Object) -> bool {
        self.spec == other.spec && self.dry_run == other.dry_run
    }

    /// Its closing when it can't be used after all, if it protects.
    fn closes(&self) -> Option<Closes> {
        let selector = match &self.spec {
            Spec::PeerAuthentication(said) => &said.selector,
            Spec::AuthorizationPolicy(said) => &said.selector,
            _ => return None,
        };
        Some(Closes {
            how: Closed::by(&self.key.kind)?,
            selector: selector.clone().unwrap_or_default().match_labels,
        })
    }
}

/// The pods that an object of Kubernetes makes: selectors are judged by their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pods {
    /// The object.
    pub key: Key,
    /// Labels of each pod.
    pub labels: BTreeMap<String, String>,
}

/// What an object says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Spec {
    Service(Service),
    ServiceEntry(ServiceEntry),
    WorkloadEntry(WorkloadEntry),
    VirtualService(VirtualService),
    DestinationRule(DestinationRule),
    PeerAuthentication(PeerAuthentication),
    AuthorizationPolicy(AuthorizationPolicy),
}

/// Something that is wrong, or worth a word.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Which object, as far as it could be told.
    pub key: Option<Key>,
    /// For whom the object holds closed until it can be read, when it is one that protects.
    pub closes: Option<Closes>,
    /// How bad it is.
    pub severity: Severity,
    /// What, for a person.
    pub message: String,
}

/// The closing of a security object that isn't in force, until it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Closes {
    /// The effect.
    pub how: Closed,
    /// Labels that it selects; none stands for its whole namespace.
    pub selector: BTreeMap<String, String>,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It is as it should be, and should be known.
    Notice,
    /// The object is used, and hardly does what its author meant.
    Warning,
    /// The object is not used in this form.
    Error,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        };
        write!(f, "{}: {severity}: ", self.place)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Which workloads an object is for; all of its namespace without labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SaidSelector")]
pub struct Selector {
    /// Labels that a workload must have.
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SaidSelector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
}

impl TryFrom<SaidSelector> for Selector {
    type Error = String;

    fn try_from(said: SaidSelector) -> Result<Selector, String> {
        let match_labels = said.match_labels;
        let is_literal = |(name, value): &(&String, &String)| {
            !name.is_empty() && !name.contains('*') && !value.contains('*')
        };
        match match_labels.iter().find(|label| !is_literal(label)) {
            Some((name, value)) => Err(format!(
                "no workload has the label {name:?}: {value:?}: labels have names, and a selector knows no *"
            )),
            None => Ok(Selector { match_labels }),
        }
    }
}

/// The contents of a file.
#[derive(Debug, Default)]
pub struct Contents {
    /// Objects that can be read.
    pub objects: Vec<Object>,
    /// Mistakes in the others, and what is worth a word.
    pub problems: Vec<Problem>,
    /// Pods that objects make which aren't read otherwise.
    pub pods: Vec<Pods>,
    /// True when some document is no YAML: nobody knows what stands in it.
    pub is_torn: bool,
}

#[cfg(test)]
mod hiding_tests;
#[cfg(test)]
mod tests;
