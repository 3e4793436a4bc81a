//! Objects of kinds that aren't read, as far as they matter: a `Sidecar`'s restrictions, and the pods of others.

use super::PodTemplate;
use super::header::{header, labels_at};
use super::kinds::NETWORKING;
use super::yaml::{Id, Tree};
use crate::object::ObjectKey;

/// The error for a `Sidecar` object with restrictions or ingress listeners, which Leno doesn't enforce; `None` without.
pub(super) fn unsupported_sidecar(tree: &Tree<'_>, root: Id) -> Option<String> {
    let header = header(tree, root);
    let is_istios = |version: &str| version.split('/').next() == Some(NETWORKING);
    if header.kind != Some("Sidecar") || !header.api_version.is_some_and(is_istios) {
        return None;
    }
    let list = |name: &str| {
        let list = tree.find(root, &["spec", name]);
        list.and_then(|list| tree.elements(list))
            .unwrap_or_default()
    };
    let policy = tree.find(root, &["spec", "outboundTrafficPolicy"]);
    // An `outboundTrafficPolicy` without a mode means REGISTRY_ONLY.
    let mode = policy.map(|policy| tree.get(policy, "mode").and_then(|mode| tree.text(mode)));
    if mode.is_some_and(|mode| mode != Some("ALLOW_ANY")) {
        return Some("Sidecar is not supported: its REGISTRY_ONLY is not in force; use `leno serve --outbound-traffic-policy REGISTRY_ONLY`".to_owned());
    }
    let hosts = list("egress")
        .iter()
        .filter_map(|listener| tree.get(*listener, "hosts"));
    let mut hosts = hosts.flat_map(|hosts| tree.elements(hosts).unwrap_or_default());
    if hosts.any(|host| tree.text(*host) != Some("*/*")) {
        return Some("Sidecar is not supported: its egress hosts fence nobody in; say who may call in an AuthorizationPolicy of the callee".to_owned());
    }
    let has_ingress = !list("ingress").is_empty();
    has_ingress.then(|| "Sidecar is not supported: its ingress listeners are not in force; use `leno-proxy run --inbound`".to_owned())
}

/// The pods that an object creates; `None` for a kind that creates none.
pub(super) fn pods(tree: &Tree<'_>, root: Id, key: &ObjectKey) -> Option<PodTemplate> {
    let path: &[&str] = match key.kind.as_str() {
        "Pod" => &["metadata", "labels"],
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicaSet"
        | "ReplicationController"
        | "Job" => &["spec", "template", "metadata", "labels"],
        "CronJob" => &[
            "spec",
            "jobTemplate",
            "spec",
            "template",
            "metadata",
            "labels",
        ],
        _ => return None,
    };
    Some(PodTemplate {
        key: key.clone(),
        labels: labels_at(tree, root, path),
    })
}
