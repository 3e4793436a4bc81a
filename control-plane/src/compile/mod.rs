//! Objects in, a [`Mesh`] out; pure. A contradiction, or a reference to nothing, becomes a problem of its object.

mod convert;
mod routes;
mod security;
mod selectors;
mod services;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::istio::{Object, PodTemplate};
use crate::mesh::service::{Endpoint, Endpoints, Service};
use crate::mesh::workload::Index;
use crate::mesh::{Mesh, OutboundTrafficPolicy};
use crate::object::{Problem, Severity};

/// Mesh-wide settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The domain of every identity.
    pub trust_domain: String,
    /// The root namespace, with policies for the whole mesh.
    pub root_namespace: String,
    /// The treatment of connections to unknown addresses.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
}

/// Compiles `objects`. `broken` are security objects without any good form: they fail closed. Selectors are checked
/// against `pods` as well.
pub fn compile(
    settings: &Settings,
    objects: &[Arc<Object>],
    broken: &[Problem],
    pods: &[PodTemplate],
) -> (Mesh, Vec<Problem>) {
    let mut compiler = Compiler {
        settings,
        mesh: Mesh {
            trust_domain: settings.trust_domain.clone(),
            root_namespace: settings.root_namespace.clone(),
            outbound_traffic_policy: settings.outbound_traffic_policy,
            ..Mesh::default()
        },
        services: BTreeMap::new(),
        problems: Vec::new(),
    };
    compiler.services(objects);
    compiler.notice_descriptions(objects);
    compiler.rules(objects);
    let described = compiler.described();
    compiler.security(objects, broken, &described);
    compiler.warn_of_selectors(objects, &described, pods);
    let services = compiler.services.into_iter();
    compiler.mesh.services = services
        .map(|(host, service)| (host, Arc::new(service)))
        .collect();
    compiler.mesh.direct = direct(&compiler.mesh.services);
    compiler.mesh.index = Index::new(&compiler.mesh.services, &compiler.mesh.workloads);
    (compiler.mesh, compiler.problems)
}

/// Each endpoint as a service of its own, on its own ports and, where they are free, on those of its services.
fn direct(services: &BTreeMap<String, Arc<Service>>) -> BTreeMap<String, Arc<Service>> {
    let mut all: BTreeMap<String, Service> = BTreeMap::new();
    for service in services.values() {
        let Endpoints::Static(list) = &service.endpoints else {
            continue;
        };
        for endpoint in list {
            let host = endpoint.address.to_string();
            let own = all.entry(host.clone()).or_insert_with(|| Service {
                object: format!("{} endpoint {host}", service.object),
                endpoints: Endpoints::Static(vec![Endpoint {
                    ports: BTreeMap::new(),
                    ..endpoint.clone()
                }]),
                ..Service::empty(&host, &service.namespace)
            });
            for port in &service.ports {
                let target = endpoint.ports.get(&port.number).copied();
                own.add_port(target.unwrap_or(port.number), port.protocol, None);
                own.add_port(port.number, port.protocol, target);
            }
        }
    }
    let shared = all.into_iter();
    shared
        .map(|(host, service)| (host, Arc::new(service)))
        .collect()
}

pub(super) struct Compiler<'a> {
    pub(super) settings: &'a Settings,
    pub(super) mesh: Mesh,
    pub(super) services: BTreeMap<String, Service>,
    problems: Vec<Problem>,
}

impl Compiler<'_> {
    pub(super) fn problem(&mut self, object: &Object, severity: Severity, message: String) {
        self.problems.push(Problem {
            origin: object.origin.clone(),
            key: Some(object.key.clone()),
            fail_closed: None,
            severity,
            message,
        });
    }

    fn error(&mut self, object: &Object, message: impl Into<String>) {
        self.problem(object, Severity::Error, message.into());
    }
}
