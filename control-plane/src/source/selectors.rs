//! Selectors that select nobody: a slip in a label leaves a workload as open as no object at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::compile::Compiler;
use crate::istio::{Object, Pods, Severity, Spec};
use crate::mesh::selects;
use crate::mesh::service::Endpoints;

/// The labels of workloads, by namespace.
pub(super) type Workloads = BTreeMap<String, BTreeSet<BTreeMap<String, String>>>;

impl Compiler<'_> {
    /// The labels that workloads of the registry have.
    pub(super) fn described(&self) -> Workloads {
        let lists = (self.services.values()).map(|service| match &service.endpoints {
            Endpoints::Static(list) => list.as_slice(),
            Endpoints::Dns(_) => &[],
        });
        let endpoints = lists.flatten().map(|one| (&one.namespace, &one.labels));
        let workloads = self.mesh.workloads.iter();
        let workloads = workloads.map(|one| (&one.namespace, &one.labels));
        let mut described = Workloads::new();
        for (namespace, labels) in endpoints.chain(workloads) {
            let here = described.entry(namespace.clone()).or_default();
            here.insert(labels.clone());
        }
        described
    }

    /// Warns of selectors that no workload fits: of the registry, or of `pods` that stand beside it.
    pub(super) fn warn_of_selectors(&mut self, objects: &[Arc<Object>], pods: &[Pods]) {
        let mut workloads = self.described();
        for pods in pods {
            let here = workloads.entry(pods.key.namespace.clone()).or_default();
            here.insert(pods.labels.clone());
        }
        let selecting = objects
            .iter()
            .filter_map(|object| Some((object, selector(object)?)));
        let selecting: Vec<_> = selecting
            .filter(|(_, selector)| !selector.is_empty())
            .collect();
        if workloads.is_empty() {
            let mut security = selecting.iter().filter(|(object, _)| is_security(object));
            let Some((first, _)) = security.next() else {
                return;
            };
            let count = security.count() + 1;
            let text = format!(
                "selectors were not judged (of {count} policies): no WorkloadEntry, endpoint or pod template stands here"
            );
            return self.problem(first, Severity::Notice, text);
        }
        for (object, selector) in selecting {
            let is_root =
                object.key.namespace == self.settings.root_namespace && is_security(object);
            let mut own = (workloads.iter())
                .filter(|(namespace, _)| is_root || **namespace == object.key.namespace);
            if own.any(|(_, labels)| labels.iter().any(|labels| selects(selector, labels))) {
                continue;
            }
            let labels: Vec<String> = selector
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let whose = match is_root {
                true => "that stands here".to_owned(),
                false => format!("of namespace {} that stands here", object.key.namespace),
            };
            let text = format!("selects no workload {whose}: none has {}", labels.join(","));
            self.problem(object, Severity::Warning, text);
        }
    }
}

fn is_security(object: &Object) -> bool {
    matches!(
        object.spec,
        Spec::PeerAuthentication(_) | Spec::AuthorizationPolicy(_)
    )
}

/// The labels that an object selects workloads by.
fn selector(object: &Object) -> Option<&BTreeMap<String, String>> {
    match &object.spec {
        Spec::PeerAuthentication(said) => said
            .selector
            .as_ref()
            .map(|selector| &selector.match_labels),
        Spec::AuthorizationPolicy(said) => said
            .selector
            .as_ref()
            .map(|selector| &selector.match_labels),
        Spec::Service(said) => Some(&said.selector),
        Spec::ServiceEntry(said) => said
            .workload_selector
            .as_ref()
            .map(|selector| &selector.labels),
        _ => None,
    }
}
