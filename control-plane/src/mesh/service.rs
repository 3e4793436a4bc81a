//! A service: what callers dial, where it is served, how it is routed to.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::route::{DestinationRule, Routing};

/// What callers dial.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its canonical host.
    pub host: String,
    /// Its namespace.
    pub namespace: String,
    /// Which object it comes from.
    pub object: String,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Where it is served.
    pub endpoints: Endpoints,
    /// How requests are routed, if a VirtualService says so.
    pub routing: Option<Routing>,
    /// How its endpoints are spoken to, by the namespace of the rule.
    pub rules: BTreeMap<String, DestinationRule>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// What callers dial.
    pub number: u16,
    /// What it carries.
    pub protocol: Protocol,
}

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP, and the app speaks HTTP/1: what isn't HTTP is refused.
    Http,
    /// HTTP, and the app speaks HTTP/2, as gRPC does: what isn't HTTP is refused.
    Http2,
    /// What is told from its first bytes.
    Auto,
    /// Bytes.
    Tcp,
}

/// Where a service is served.
#[derive(Debug, Clone, PartialEq)]
pub enum Endpoints {
    /// Here.
    Static(Vec<Endpoint>),
    /// Wherever these names lead.
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
    /// Its share relative to others.
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
    /// Its share relative to others.
    pub weight: u32,
    /// Its service account.
    pub account: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// Whether it has a sidecar.
    pub meshed: bool,
    /// The workload's name, for metrics.
    pub workload: String,
}

/// A workload of the registry, whether or not a service is served by it.
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

    /// Adds a port, unless it has that number already: of its one endpoint, whose own port is `target`.
    pub fn add_port(&mut self, number: u16, protocol: Protocol, target: Option<u16>) {
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
