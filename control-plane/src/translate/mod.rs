//! `(Mesh, node, name) → resource`, pure. Names are Istio's; resources are Envoy's.

pub mod clusters;
mod context;
pub mod endpoints;
mod envoy;
mod grpc;
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

use crate::mesh::{Client, Mesh, Node};
pub use context::{
    ClusterName, INBOUND, LookupResult, PASSTHROUGH, ROOTS, TranslationContext, cluster_name,
};
use context::{find, present};
pub use envoy::everything;

/// The resource `name` of a type, for `node`.
pub fn resource(
    world: TranslationContext<'_>,
    node: &Node,
    type_url: &str,
    name: &str,
) -> LookupResult {
    match type_url {
        LISTENER if name == INBOUND => present(type_url, &inbound_listener(world, node)),
        LISTENER if is_envoys(node, name) => present(type_url, &envoy::envoy_outbound()),
        ROUTE if is_envoys(node, name) => present(type_url, &envoy::envoy_routes(world.mesh, node)),
        LISTENER => listeners::outbound(world.mesh, node, name),
        ROUTE => routes::configuration(world.mesh, name),
        CLUSTER if name == PASSTHROUGH => inbound::passthrough_cluster(node),
        CLUSTER if name.starts_with("inbound|") => inbound::cluster(world.workload, node, name),
        CLUSTER => clusters::outbound(world.mesh, node, name),
        ENDPOINTS => endpoints::assignment(world.mesh, node, name),
        SECRET if name == ROOTS => present(type_url, &roots(world.roots)),
        _ => LookupResult::Missing(format!("there is no {name}")),
    }
}

fn inbound_listener(world: TranslationContext<'_>, node: &Node) -> Listener {
    match node.client {
        Client::Envoy => envoy::envoy_inbound(world, node),
        Client::Leno | Client::Grpc => inbound::listener(world, node),
    }
}

/// The intended inbound Listener, and the one for a client that refuses it.
#[derive(Debug)]
pub struct Inbound {
    /// The intended Listener.
    pub meant: LookupResult,
    /// A version of the access that it grants, without names and metadata: it changes only when the access may.
    pub guard: LookupResult,
    listener: Listener,
}

impl Inbound {
    /// The inbound Listener of `node`.
    pub fn new(world: TranslationContext<'_>, node: &Node) -> Inbound {
        let listener = inbound_listener(world, node);
        Inbound {
            meant: present(LISTENER, &listener),
            guard: present(LISTENER, &inbound::guard(listener.clone())),
            listener,
        }
    }

    /// A Listener that lets nothing in.
    pub fn closed(self) -> LookupResult {
        present(LISTENER, &inbound::closed(self.listener))
    }
}

fn is_envoys(node: &Node, name: &str) -> bool {
    node.client == Client::Envoy && name == envoy::OUTBOUND
}

/// Type and name of each resource that a Listener leads to, in the order in which a client should have them.
pub fn chain(
    world: TranslationContext<'_>,
    node: &Node,
    listener: &str,
) -> Vec<(&'static str, String)> {
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

#[cfg(test)]
mod tests;
