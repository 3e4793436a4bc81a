//! A service: its host and ports, its endpoints, its routing and traffic policies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::route::{DestinationRule, Routing};

/// A service that callers dial.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its canonical host.
    pub host: String,
    /// Its namespace.
    pub namespace: String,
    /// The object that it comes from.
    pub object: String,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its endpoints.
    pub endpoints: Endpoints,
    /// Its routing rules, if a VirtualService has some.
    pub routing: Option<Routing>,
    /// Its DestinationRules, by their namespace.
    pub rules: BTreeMap<String, DestinationRule>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The port number that callers dial.
    pub number: u16,
    /// The protocol on it.
    pub protocol: PortProtocol,
}

/// The protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortProtocol {
    /// HTTP, and the app speaks HTTP/1: anything else is refused.
    Http,
    /// HTTP, and the app speaks HTTP/2, as gRPC does: anything else is refused.
    Http2,
    /// Detected from the first bytes.
    Auto,
    /// TCP: any bytes.
    Tcp,
}

/// The endpoints of a service.
#[derive(Debug, Clone, PartialEq)]
pub enum Endpoints {
    /// A fixed list.
    Static(Vec<Endpoint>),
    /// The addresses that these names resolve to.
    Dns(Vec<Name>),
}

/// A name that DNS resolves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub name: String,
    /// Its own ports, by the service's.
    pub ports: BTreeMap<u16, u16>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its load-balancing weight, relative to others.
    pub weight: u32,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its own ports, by the service's.
    pub ports: BTreeMap<u16, u16>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its load-balancing weight, relative to others.
    pub weight: u32,
    /// Its service account.
    pub account: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// True when it has a sidecar.
    pub meshed: bool,
    /// The workload's name, for metrics.
    pub workload: String,
}

/// A workload of the registry, with or without a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The object that it comes from.
    pub object: String,
    /// Its address.
    pub address: IpAddr,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub account: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Service {
    /// A service without ports, endpoints or rules.
    pub fn empty(host: &str, namespace: &str) -> Service {
        Service {
            host: host.to_owned(),
            namespace: namespace.to_owned(),
            object: String::new(),
            ports: Vec::new(),
            endpoints: Endpoints::Static(Vec::new()),
            routing: None,
            rules: BTreeMap::new(),
        }
    }

    /// Adds a port, unless its number is taken; `target` is the own port of the service's one endpoint.
    pub fn add_port(&mut self, number: u16, protocol: PortProtocol, target: Option<u16>) {
        if self.port(number).is_some() {
            return;
        }
        self.ports.push(Port { number, protocol });
        if let (Endpoints::Static(list), Some(target)) = (&mut self.endpoints, target) {
            for endpoint in list {
                endpoint.ports.insert(number, target);
            }
        }
    }

    /// Its port `number`.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// The rule for callers in `namespace`: their own, else the service's, else the mesh's.
    pub fn rule(&self, namespace: &str, root: &str) -> Option<&DestinationRule> {
        let order = [namespace, &self.namespace, root];
        order
            .into_iter()
            .find_map(|namespace| self.rules.get(namespace))
    }
}
