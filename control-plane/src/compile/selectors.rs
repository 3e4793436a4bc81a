//! Selectors that match no workload: a slip in a label leaves a workload as open as no object at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Compiler;
use crate::istio::{Object, PodTemplate, Spec};
use crate::mesh::selects;
use crate::mesh::service::Endpoints;
use crate::object::Severity;

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

    /// Warns of selectors that match no workload: neither of the registry, as `described`, nor of `pods` beside it.
    pub(super) fn warn_of_selectors(
        &mut self,
        objects: &[Arc<Object>],
        described: &Workloads,
        pods: &[PodTemplate],
    ) {
        let mut workloads = Index::default();
        for (namespace, all) in described {
            all.iter()
                .for_each(|labels| workloads.add(namespace, labels));
        }
        for pods in pods {
            workloads.add(&pods.key.namespace, &pods.labels);
        }
        let selecting = objects
            .iter()
            .filter_map(|object| Some((object, selector(object)?)));
        let selecting: Vec<_> = selecting
            .filter(|(_, selector)| !selector.is_empty())
            .collect();
        if workloads.namespaces.is_empty() {
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
            let own = &object.key.namespace;
            let is_root = *own == self.settings.root_namespace && is_security(object);
            let mut namespaces = workloads.namespaces.iter();
            if namespaces.any(|(name, here)| (is_root || *name == own) && here.has(selector)) {
                continue;
            }
            let labels: Vec<String> = (selector.iter())
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let whose = match is_root {
                true => "that stands here".to_owned(),
                false => format!("of namespace {own} that stands here"),
            };
            let text = format!("selects no workload {whose}: none has {}", labels.join(","));
            self.problem(object, Severity::Warning, text);
        }
    }
}

/// Index of the workloads' labels by namespace.
#[derive(Default)]
struct Index<'a> {
    namespaces: BTreeMap<&'a String, Here<'a>>,
}

/// The sets of labels of a namespace's workloads, by each label in them.
#[derive(Default)]
struct Here<'a>(HashMap<(&'a String, &'a String), Vec<&'a BTreeMap<String, String>>>);

impl<'a> Index<'a> {
    fn add(&mut self, namespace: &'a String, labels: &'a BTreeMap<String, String>) {
        let here = self.namespaces.entry(namespace).or_default();
        for label in labels {
            here.0.entry(label).or_default().push(labels);
        }
    }
}

impl Here<'_> {
    /// True when a workload matches: only those with the rarest label of the selector are compared.
    fn has(&self, selector: &BTreeMap<String, String>) -> bool {
        let having = selector
            .iter()
            .map(|label| self.0.get(&label).map_or(&[][..], Vec::as_slice));
        let fewest = having.min_by_key(|having| having.len()).unwrap_or_default();
        fewest.iter().any(|labels| selects(selector, labels))
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
        Spec::PeerAuthentication(spec) => spec
            .selector
            .as_ref()
            .map(|selector| &selector.match_labels),
        Spec::AuthorizationPolicy(spec) => spec
            .selector
            .as_ref()
            .map(|selector| &selector.match_labels),
        Spec::Service(spec) => Some(&spec.selector),
        Spec::ServiceEntry(spec) => spec
            .workload_selector
            .as_ref()
            .map(|selector| &selector.labels),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::UNIX_EPOCH;

    use super::super::Settings;
    use crate::istio::{Limits, read};
    use crate::source::last_good::{LastGood, Reading};

    fn told(yaml: &str) -> Vec<String> {
        let settings = Settings {
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            outbound_traffic_policy: crate::mesh::OutboundTrafficPolicy::default(),
        };
        let file = std::sync::Arc::new(PathBuf::from("a.yaml"));
        let contents = read(&file, yaml, &Limits::default());
        let reading = Reading::from([(file, contents)]);
        let applied = LastGood::default().apply(&settings, reading, UNIX_EPOCH);
        let about = |problem: &String| problem.contains("select");
        let problems = applied.problems.iter().map(ToString::to_string);
        problems.filter(about).collect()
    }

    #[test]
    fn a_selector_is_judged_by_all_workloads_that_stand_there() {
        let policy = |namespace: &str, labels: &str| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\n\
                 spec: {{selector: {{matchLabels: {{{labels}}}}}}}\n"
            )
        };
        let pods = |kind: &str, spec: &str| {
            format!(
                "---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: w, namespace: shop, labels: {{app: pod}}}}\nspec: {spec}\n"
            )
        };
        let template = "{template: {metadata: {labels: {app: x, v: '1'}}}}";
        let deployment = || pods("Deployment", template);
        let entry = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: e, namespace: shop}\n\
                     spec: {address: 10.0.0.1, labels: {app: y}}\n";
        for (workloads, namespace, labels, words) in [
            (
                String::new(),
                "shop",
                "app: x",
                "were not judged (of 1 policies)",
            ),
            (deployment(), "shop", "app: x", ""),
            (deployment(), "shop", "app: x, v: '1'", ""),
            (deployment(), "shop", "app: x, v: '2'", "none has app=x,v=2"),
            (deployment(), "other", "app: x", "of namespace other"),
            (deployment(), "istio-system", "app: x", ""),
            (
                deployment(),
                "istio-system",
                "app: z",
                "selects no workload that stands here",
            ),
            (
                pods("CronJob", &format!("{{jobTemplate: {{spec: {template}}}}}")),
                "shop",
                "app: x",
                "",
            ),
            (pods("Pod", "{}"), "shop", "app: pod", ""),
            (entry.to_owned(), "shop", "app: y", ""),
            (entry.to_owned(), "shop", "app: x", "none has app=x"),
        ] {
            let told = told(&format!("{workloads}{}", policy(namespace, labels)));
            match words {
                "" => assert!(told.is_empty(), "{told:?}"),
                words => assert!(
                    told.len() == 1 && told[0].contains(words),
                    "{words}: {told:?}"
                ),
            }
        }
    }
}
