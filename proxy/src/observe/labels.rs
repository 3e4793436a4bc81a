//! The peers of a request, as labels of Istio's standard metrics.

use std::sync::Arc;

use leno_rules::config::endpoints::Workload;

/// Labels that a series fixes, in the order of [`Labels`]' values.
pub const FIXED: [&str; 21] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "connection_security_policy",
];

/// Value of a label that isn't known.
pub const UNKNOWN: &str = "unknown";
/// Value of every label beyond the limit on series.
pub const OTHER: &str = "other";
/// Istio's name for the one cluster of a mesh that has no others.
pub const CLUSTER: &str = "Kubernetes";

/// Values of the labels that a series fixes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels(Arc<[Box<str>; FIXED.len()]>);

/// One peer of a request, as labels describe it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Party {
    /// Its workload.
    pub workload: Workload,
    /// Its SPIFFE ID, if known.
    pub principal: Option<String>,
}

impl Labels {
    /// Labels of requests from `source` to `destination`, which serves `service`, reported by `reporter`.
    pub fn new(
        reporter: &str,
        source: &Party,
        destination: &Party,
        service: &str,
        security: &str,
    ) -> Labels {
        let (name, namespace) = split(service, &destination.workload.namespace);
        let [source, destination] = [source, destination].map(sides);
        let service = [known(service), known(name), known(namespace), security];
        let all = [reporter].into_iter().chain(source).chain(destination);
        let all: Vec<Box<str>> = all.chain(service).map(Box::from).collect();
        Labels(Arc::new(std::array::from_fn(|at| all[at].clone())))
    }

    /// Labels of the one series that counts everything beyond the limit.
    pub fn other() -> Labels {
        Labels(Arc::new(std::array::from_fn(|_| OTHER.into())))
    }

    /// Value of the label `name`; empty if there is no such label.
    pub fn get(&self, name: &str) -> &str {
        let at = FIXED.iter().position(|label| *label == name);
        at.map_or("", |at| &self.0[at])
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        FIXED.into_iter().zip(self.0.iter().map(|value| &**value))
    }
}

fn known(text: &str) -> &str {
    match text.is_empty() {
        true => UNKNOWN,
        false => text,
    }
}

/// The eight labels of one side.
fn sides(party: &Party) -> [&str; 8] {
    let workload = &party.workload;
    let canonical = match workload.app.is_empty() {
        true => &workload.name,
        false => &workload.app,
    };
    let revision = match workload.version.is_empty() {
        true => "latest",
        false => &workload.version,
    };
    let cluster = match workload.name.is_empty() {
        true => UNKNOWN,
        false => CLUSTER,
    };
    [
        known(&workload.name),
        known(&workload.namespace),
        known(party.principal.as_deref().unwrap_or_default()),
        known(&workload.app),
        known(&workload.version),
        known(canonical),
        revision,
        cluster,
    ]
}

/// Name and namespace of a service: the first two parts of a host of the mesh, otherwise the host and `namespace`.
fn split<'a>(host: &'a str, namespace: &'a str) -> (&'a str, &'a str) {
    let mut parts = host.splitn(4, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(namespace), Some("svc")) => (name, namespace),
        _ => (host, namespace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_as_istio_names_it() {
        for (host, namespace, named) in [
            ("a.b.svc.cluster.local", "x", ("a", "b")),
            ("api.example.com", "shop", ("api.example.com", "shop")),
            ("", "", ("", "")),
        ] {
            assert_eq!(split(host, namespace), named);
        }
    }

    #[test]
    fn what_is_not_known_is_said_as_istio_says_it() {
        let none = Party::default();
        let labels = Labels::new("destination", &none, &none, "", "none");
        for (name, value) in labels.iter() {
            let expected = match name {
                "reporter" => "destination",
                "connection_security_policy" => "none",
                "source_canonical_revision" | "destination_canonical_revision" => "latest",
                _ => UNKNOWN,
            };
            assert_eq!(value, expected, "{name}");
        }
    }
}
