//! Objects of Istio and Kubernetes as YAML has them: a module per kind, strict parsing, every mistake with its place.
//!
//! Invariant: input that isn't understood becomes a problem of its object; only unknown fields of a Service are
//! ignored. [`read`] returns each object of a text: as an object, or in a problem.

pub mod authorization_policy;
mod de;
pub mod destination_rule;
mod documents;
mod fault;
mod header;
mod kinds;
mod nearest;
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
use std::sync::Arc;

use serde::Deserialize;

use crate::object::{FailClosed, ObjectKey, Origin, Problem};
pub use authorization_policy::AuthorizationPolicy;
pub use destination_rule::DestinationRule;
pub use documents::{SuspectedObject, documents, suspected_objects};
pub use peer_authentication::PeerAuthentication;
pub use reader::{read, unreadable};
pub use service::Service;
pub use service_entry::{ServiceEntry, WorkloadEntry};
pub use virtual_service::VirtualService;

/// Bounds on YAML.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum size of a file, in bytes.
    pub bytes: usize,
    /// Maximum nesting depth of a document.
    pub depth: usize,
    /// Maximum aliases (`*name`) of a document.
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

/// An object that was read without an error.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its kind, namespace and name.
    pub key: ObjectKey,
    /// Its origin: the place at which it begins.
    pub origin: Origin,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// True for a policy in dry-run mode (`istio.io/dry-run`), which isn't enforced.
    pub dry_run: bool,
    /// Its spec.
    pub spec: Spec,
    /// Its YAML: the text of its document, or for an item of a List its own in flow style, aliases expanded.
    pub text: Arc<str>,
}

impl Object {
    /// True when `other` has the same effect: an equal spec and dry-run mode.
    pub fn has_same_effect(&self, other: &Object) -> bool {
        self.spec == other.spec && self.dry_run == other.dry_run
    }

    /// Its fail-closed effect in case it can't be used after all; `None` for a kind that doesn't restrict access.
    fn closes(&self) -> Option<FailClosed> {
        let selector = match &self.spec {
            Spec::PeerAuthentication(spec) => &spec.selector,
            Spec::AuthorizationPolicy(spec) => &spec.selector,
            _ => return None,
        };
        Some(FailClosed {
            effect: kinds::closed_by(&self.key.kind)?,
            selector: selector.clone().unwrap_or_default().match_labels,
        })
    }
}

/// The pods that a Kubernetes object creates: selectors are checked against their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodTemplate {
    /// The object.
    pub key: ObjectKey,
    /// Labels of each pod.
    pub labels: BTreeMap<String, String>,
}

/// The spec of an object, by kind.
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

/// The selector of an object's workloads; without labels it selects the whole namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawSelector")]
pub struct Selector {
    /// Labels that a workload must have.
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSelector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
}

impl TryFrom<RawSelector> for Selector {
    type Error = String;

    fn try_from(raw: RawSelector) -> Result<Selector, String> {
        let match_labels = raw.match_labels;
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
    /// Objects without errors.
    pub objects: Vec<Object>,
    /// Errors of the others, warnings and notices.
    pub problems: Vec<Problem>,
    /// Pods of Kubernetes objects that aren't read otherwise, such as Deployments.
    pub pods: Vec<PodTemplate>,
    /// True when a part of the file, or all of it, can't be divided into objects: any object may be in it.
    pub is_incomplete: bool,
}

#[cfg(test)]
mod hiding_tests;
#[cfg(test)]
mod tests;
