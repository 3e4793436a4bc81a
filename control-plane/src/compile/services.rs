//! Services, ServiceEntries and WorkloadEntries as the services of the mesh.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Compiler;
use super::convert::{protocol, qualified};
use crate::istio::service::TargetPort;
use crate::istio::service_entry::{Location, Resolution};
use crate::istio::{self, Object, Spec};
use crate::mesh::selects;
use crate::mesh::service::{Endpoint, Endpoints, Name, Port, PortProtocol, Service, Workload};
use crate::object::{ObjectKey, Severity};

impl Compiler<'_> {
    pub(super) fn services(&mut self, objects: &[Arc<Object>]) {
        let workloads: Vec<(&Object, &istio::WorkloadEntry)> = (objects.iter())
            .filter_map(|object| match &object.spec {
                Spec::WorkloadEntry(entry) => Some((&**object, entry)),
                _ => None,
            })
            .collect();
        let mut known = Vec::new();
        for (object, entry) in &workloads {
            match entry.address.parse() {
                Ok(address) => known.push(Workload {
                    object: object.key.to_string(),
                    address,
                    namespace: object.key.namespace.clone(),
                    account: entry.service_account.clone(),
                    labels: labels_of(object, entry),
                }),
                Err(_) => {
                    self.error(
                        object,
                        format!("address {:?} is not an IP address", entry.address),
                    );
                }
            }
        }
        self.mesh.workloads = Arc::new(known);
        for object in objects {
            match &object.spec {
                Spec::Service(service) => self.service(object, service, &workloads),
                Spec::ServiceEntry(entry) => self.service_entry(object, entry, &workloads),
                _ => {}
            }
        }
    }

    fn service(
        &mut self,
        object: &Object,
        spec: &istio::Service,
        workloads: &[(&Object, &istio::WorkloadEntry)],
    ) {
        let named = |port: &istio::service::ServicePort| NamedPort {
            number: port.port.0,
            name: port.name.clone(),
            target: match &port.target_port {
                Some(TargetPort::Number(number)) => Some(number.0),
                _ => None,
            },
            target_name: match &port.target_port {
                Some(TargetPort::Name(name)) => Some(name.clone()),
                _ => None,
            },
            protocol: protocol(port.app_protocol.as_deref().unwrap_or(&port.name)),
        };
        let ports: Vec<NamedPort> = spec.ports.iter().map(named).collect();
        let selected = workloads.iter().filter(|(workload, entry)| {
            let same = workload.key.namespace == object.key.namespace;
            let labels = labels_of(workload, entry);
            same && !spec.selector.is_empty() && selects(&spec.selector, &labels)
        });
        let endpoints = selected.filter_map(|(workload, entry)| {
            endpoint(
                entry,
                &labels_of(workload, entry),
                &workload.key,
                &ports,
                true,
            )
        });
        self.notice_protocols(
            object,
            spec.ports
                .iter()
                .map(|p| p.app_protocol.as_deref().unwrap_or(&p.name)),
        );
        let host = format!(
            "{}.{}.svc.cluster.local",
            object.key.name, object.key.namespace
        );
        let endpoints = Endpoints::Static(endpoints.collect());
        let addresses = spec.cluster_ips.iter().chain(&spec.cluster_ip);
        // A headless Service has the address `None`.
        let addresses = addresses.filter(|address| *address != "None" && !address.is_empty());
        self.addresses(object, &host, &addresses.cloned().collect::<Vec<_>>());
        self.add(object, host, &ports, endpoints);
    }

    fn service_entry(
        &mut self,
        object: &Object,
        spec: &istio::ServiceEntry,
        workloads: &[(&Object, &istio::WorkloadEntry)],
    ) {
        let ports: Vec<NamedPort> = (spec.ports.iter())
            .map(|port| NamedPort {
                number: port.number.0,
                name: port.name.clone(),
                target: port.target_port.map(|port| port.0),
                target_name: None,
                protocol: protocol(match port.protocol.is_empty() {
                    true => &port.name,
                    false => &port.protocol,
                }),
            })
            .collect();
        let internal = spec.location == Location::MeshInternal;
        self.notice_protocols(object, spec.ports.iter().map(|p| p.protocol.as_str()));
        for host in &spec.hosts {
            let host = qualified(&host.0, &object.key.namespace);
            let endpoints = match spec.resolution {
                Resolution::None => {
                    let text = "resolution NONE is not supported yet; use STATIC or DNS";
                    return self.error(object, text);
                }
                Resolution::Dns => Endpoints::Dns(names(&host, spec, &ports)),
                Resolution::Static => {
                    match self.static_endpoints(object, spec, workloads, &ports, internal) {
                        Some(endpoints) => Endpoints::Static(endpoints),
                        None => return,
                    }
                }
            };
            self.addresses(object, &host, &spec.addresses);
            self.add(object, host, &ports, endpoints);
        }
    }

    /// Adds addresses at which callers dial `host` as well.
    fn addresses(&mut self, object: &Object, host: &str, addresses: &[String]) {
        for address in addresses {
            let Ok(address) = address.parse() else {
                let text = format!(
                    "address {address:?} is not an IP address; ranges are not supported yet"
                );
                self.error(object, text);
                continue;
            };
            match self.mesh.addresses.get(&address) {
                Some(other) if other != host => {
                    let text = format!("address {address} is that of {other} already");
                    self.error(object, text);
                }
                _ => drop(self.mesh.addresses.insert(address, host.to_owned())),
            }
        }
    }

    /// The endpoints of a STATIC entry: its own, and the WorkloadEntries that it selects.
    fn static_endpoints(
        &mut self,
        object: &Object,
        spec: &istio::ServiceEntry,
        workloads: &[(&Object, &istio::WorkloadEntry)],
        ports: &[NamedPort],
        internal: bool,
    ) -> Option<Vec<Endpoint>> {
        let mut endpoints = Vec::new();
        for (i, entry) in spec.endpoints.iter().enumerate() {
            let Some(endpoint) = endpoint(entry, &entry.labels, &object.key, ports, internal)
            else {
                let text = format!(
                    "endpoints[{i}].address {:?} is not an IP address",
                    entry.address
                );
                self.error(object, text);
                return None;
            };
            endpoints.push(endpoint);
        }
        if let Some(selector) = &spec.workload_selector {
            let selected = workloads.iter().filter(|(workload, entry)| {
                workload.key.namespace == object.key.namespace
                    && selects(&selector.labels, &labels_of(workload, entry))
            });
            endpoints.extend(selected.filter_map(|(workload, entry)| {
                endpoint(
                    entry,
                    &labels_of(workload, entry),
                    &workload.key,
                    ports,
                    internal,
                )
            }));
        }
        Some(endpoints)
    }

    /// Warns of ports with UDP, which the proxy doesn't carry.
    fn notice_protocols<'p>(&mut self, object: &Object, names: impl Iterator<Item = &'p str>) {
        for name in names {
            let word = name
                .split('-')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase();
            if word == "udp" {
                let text = format!("port {name}: UDP is not carried");
                self.problem(object, Severity::Warning, text);
            }
        }
    }

    fn add(&mut self, object: &Object, host: String, ports: &[NamedPort], endpoints: Endpoints) {
        if let Some(other) = self.services.get(&host) {
            let text = format!("host {host} is that of {} already", other.object);
            return self.error(object, text);
        }
        let ports = ports.iter().map(|port| Port {
            number: port.number,
            protocol: port.protocol,
        });
        let service = Service {
            host: host.clone(),
            namespace: object.key.namespace.clone(),
            object: object.key.to_string(),
            ports: ports.collect(),
            endpoints,
            routing: None,
            rules: BTreeMap::new(),
        };
        self.services.insert(host, service);
    }
}

/// A port of a service, with its name and target to find the workload's port.
struct NamedPort {
    number: u16,
    name: String,
    target: Option<u16>,
    target_name: Option<String>,
    protocol: PortProtocol,
}

impl NamedPort {
    /// The workload's port: from the workload's entry, else from the service's target port, else the same.
    fn of(&self, entry: &istio::WorkloadEntry) -> u16 {
        let name = self.target_name.as_ref().unwrap_or(&self.name);
        let own = entry.ports.get(name).map(|port| port.0);
        own.or(self.target).unwrap_or(self.number)
    }
}

pub(super) fn labels_of(object: &Object, entry: &istio::WorkloadEntry) -> BTreeMap<String, String> {
    let mut labels = object.labels.clone();
    labels.extend(entry.labels.clone());
    labels
}

fn endpoint(
    entry: &istio::WorkloadEntry,
    labels: &BTreeMap<String, String>,
    key: &ObjectKey,
    ports: &[NamedPort],
    internal: bool,
) -> Option<Endpoint> {
    let off = labels
        .get("security.istio.io/tlsMode")
        .is_some_and(|mode| mode == "disabled");
    let account = entry.service_account.clone();
    // A WorkloadEntry is a workload of its own; an address in a list is named after its app.
    let app = labels.get("app").filter(|_| key.kind != "WorkloadEntry");
    Some(Endpoint {
        address: entry.address.parse().ok()?,
        ports: ports
            .iter()
            .map(|port| (port.number, port.of(entry)))
            .collect(),
        labels: labels.clone(),
        weight: entry.weight.map_or(1, |weight| weight.0.max(1)),
        meshed: internal && account.is_some() && !off,
        workload: app.unwrap_or(&key.name).clone(),
        namespace: key.namespace.clone(),
        account,
    })
}

/// The names that a ServiceEntry with resolution DNS resolves: its endpoints', or the host's own.
fn names(host: &str, spec: &istio::ServiceEntry, ports: &[NamedPort]) -> Vec<Name> {
    let own = istio::WorkloadEntry {
        address: host.to_owned(),
        ..istio::WorkloadEntry::default()
    };
    let entries = match spec.endpoints.is_empty() {
        true => std::slice::from_ref(&own),
        false => &spec.endpoints,
    };
    let name = |entry: &istio::WorkloadEntry| Name {
        name: entry.address.clone(),
        ports: ports
            .iter()
            .map(|port| (port.number, port.of(entry)))
            .collect(),
        labels: entry.labels.clone(),
        weight: entry.weight.map_or(1, |weight| weight.0.max(1)),
    };
    entries.iter().map(name).collect()
}
