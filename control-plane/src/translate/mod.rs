//! `(Mesh, node, name) → resource`, pure. Names are Istio's; resources are Envoy's.

mod clients;
pub mod clusters;
pub mod endpoints;
mod inbound;
pub mod listeners;
mod policies;
pub mod routes;
mod wire;

use leno_proto::pb::envoy::config::listener::v3::Listener;
use leno_proto::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, secret,
};
use leno_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET};
use leno_proto::{Any, fields, pack};

use crate::mesh::service::{Port, Service};
use crate::mesh::workload::Described;
use crate::mesh::{Client, Found, Mesh, Node, OutboundTrafficPolicy, address_of};
pub use clients::everything;

/// The name of the one inbound Listener.
pub const INBOUND: &str = "virtualInbound";
/// The name of the Secret with the roots.
pub const ROOTS: &str = "ROOTCA";

/// The cluster of connections to their original destination, under Istio's name.
pub const PASSTHROUGH: &str = "PassthroughCluster";

/// The result of looking a resource up.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A resource, with its version.
    Present(Any, String),
    /// No such resource, for this reason.
    Missing(String),
    /// Not known yet: these names must be resolved first.
    Pending(Vec<String>),
}

/// Everything that a client's resources are made from.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// The compiled configuration.
    pub mesh: &'a Mesh,
    /// The client's workload.
    pub workload: &'a Described,
    /// Roots of trust, in PEM.
    pub roots: &'a str,
}

/// A parsed cluster name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterName<'a> {
    /// The service's port.
    pub port: u16,
    /// The subset; empty for the whole service.
    pub subset: &'a str,
    /// The service's host.
    pub host: &'a str,
}

impl<'a> ClusterName<'a> {
    /// Parses `outbound|80|v1|user-service.default.svc.cluster.local`.
    pub fn parse(name: &'a str) -> Option<ClusterName<'a>> {
        let mut parts = name.split('|');
        let (direction, port) = (parts.next()?, parts.next()?);
        let (subset, host) = (parts.next()?, parts.next()?);
        let valid = direction == "outbound" && parts.next().is_none();
        valid.then_some(ClusterName {
            port: port.parse().ok()?,
            subset,
            host,
        })
    }
}

/// A cluster's name.
pub fn cluster_name(port: u16, subset: Option<&str>, host: &str) -> String {
    format!("outbound|{port}|{}|{host}", subset.unwrap_or_default())
}

/// The resource `name` of a type, for `node`.
pub fn resource(world: World<'_>, node: &Node, type_url: &str, name: &str) -> Answer {
    match type_url {
        LISTENER if name == INBOUND => present(type_url, &inbound_listener(world, node)),
        LISTENER if is_envoys(node, name) => present(type_url, &clients::envoy_outbound()),
        ROUTE if is_envoys(node, name) => {
            present(type_url, &clients::envoy_routes(world.mesh, node))
        }
        LISTENER => listeners::outbound(world.mesh, node, name),
        ROUTE => routes::configuration(world.mesh, name),
        CLUSTER if name == PASSTHROUGH => inbound::passthrough_cluster(node),
        CLUSTER if name.starts_with("inbound|") => inbound::cluster(world.workload, node, name),
        CLUSTER => clusters::outbound(world.mesh, node, name),
        ENDPOINTS => endpoints::assignment(world.mesh, node, name),
        SECRET if name == ROOTS => present(type_url, &roots(world.roots)),
        _ => Answer::Missing(format!("there is no {name}")),
    }
}

fn inbound_listener(world: World<'_>, node: &Node) -> Listener {
    match node.client {
        Client::Envoy => clients::envoy_inbound(world, node),
        Client::Leno | Client::Grpc => inbound::listener(world, node),
    }
}

/// The intended inbound Listener, and the one for a client that refuses it.
#[derive(Debug)]
pub struct Inbound {
    /// The intended Listener.
    pub meant: Answer,
    /// A version of the access that it grants, without names and metadata: it changes only when the access may.
    pub guard: Answer,
    listener: Listener,
}

impl Inbound {
    /// The inbound Listener of `node`.
    pub fn new(world: World<'_>, node: &Node) -> Inbound {
        let listener = inbound_listener(world, node);
        Inbound {
            meant: present(LISTENER, &listener),
            guard: present(LISTENER, &inbound::guard(listener.clone())),
            listener,
        }
    }

    /// A Listener that lets nothing in.
    pub fn closed(self) -> Answer {
        present(LISTENER, &inbound::closed(self.listener))
    }
}

fn is_envoys(node: &Node, name: &str) -> bool {
    node.client == Client::Envoy && name == clients::OUTBOUND
}

/// Type and name of each resource that a Listener leads to, in the order in which a client should have them.
pub fn chain(world: World<'_>, node: &Node, listener: &str) -> Vec<(&'static str, String)> {
    let clusters = match listener {
        INBOUND => inbound::cluster_names(world.workload),
        name => listeners::cluster_names(world.mesh, node, name),
    };
    let mut chain: Vec<_> = clusters
        .iter()
        .map(|name| (CLUSTER, name.clone()))
        .collect();
    if listener != INBOUND {
        let listed = clusters.into_iter().filter(|name| name != PASSTHROUGH);
        chain.extend(listed.map(|name| (ENDPOINTS, name)));
    }
    chain.push((LISTENER, listener.to_owned()));
    chain.extend(listeners::route_name(world.mesh, node, listener).map(|name| (ROUTE, name)));
    chain
}

/// The host that a resource's name refers to, as `node` resolves it; to decide if a change touches the resource.
pub fn host_of<'a>(mesh: &'a Mesh, node: &Node, type_url: &str, name: &'a str) -> Option<&'a str> {
    match type_url {
        LISTENER => find(mesh, node, name)
            .ok()
            .map(|(service, _)| service.host.as_str()),
        ROUTE => name.rsplit_once(':').map(|(host, _)| host),
        CLUSTER | ENDPOINTS => ClusterName::parse(name).map(|name| name.host),
        _ => None,
    }
}

/// True when connections to `authority` go to their original destination, because it is an unknown address.
fn is_passed_through(mesh: &Mesh, node: &Node, authority: &str) -> bool {
    let host = authority.rsplit_once(':').map(|(host, _)| host);
    mesh.outbound_traffic_policy == OutboundTrafficPolicy::AllowAny
        && node.client == Client::Leno
        && host.and_then(address_of).is_some()
        && find(mesh, node, authority).is_err()
}

/// The service and port that `authority` names.
fn find<'a>(
    mesh: &'a Mesh,
    node: &Node,
    authority: &str,
) -> Result<(&'a Service, &'a Port), String> {
    let (host, number) = authority
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
        .ok_or_else(|| format!("{authority:?} is not host:port"))?;
    match mesh.find(host, &node.namespace) {
        Found::Nothing(near) => {
            let hint = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
            if address_of(host).is_some() {
                let text = "no service or workload is known at";
                return Err(format!(
                    "{text} {host}, and outboundTrafficPolicy is REGISTRY_ONLY"
                ));
            }
            Err(format!(
                "no service {host} is known in namespace {}{hint}",
                node.namespace
            ))
        }
        Found::Service(service) => match service.port(number) {
            Some(port) => Ok((service, port)),
            None => {
                let ports: Vec<String> = service
                    .ports
                    .iter()
                    .map(|port| port.number.to_string())
                    .collect();
                let ports = ports.join(", ");
                Err(format!(
                    "{} has no port {number}; it has {ports}",
                    service.object
                ))
            }
        },
    }
}

fn roots(pem: &str) -> Secret {
    Secret {
        name: ROOTS.to_owned(),
        r#type: Some(secret::Type::ValidationContext(
            CertificateValidationContext {
                trusted_ca: Some(wire::inline(pem)),
                ..CertificateValidationContext::default()
            },
        )),
    }
}

fn present<M: leno_proto::prost::Message + leno_proto::prost::Name>(
    type_url: &str,
    message: &M,
) -> Answer {
    let any = pack(message);
    match fields::version(type_url, &any.value) {
        Ok(version) => Answer::Present(any, version),
        // The field table covers all that is made here, which the golden tests hold.
        Err(error) => Answer::Missing(format!("cannot be translated: {error}")),
    }
}

#[cfg(test)]
mod tests;
