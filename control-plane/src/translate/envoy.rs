//! Resources for Envoy, which is given everything at once: one outbound Listener, with the routes of all services, and one
//! inbound Listener. Its own certificate is the static secret `default` of its bootstrap: a key never travels over xDS.

use std::collections::BTreeSet;

use leno_proto::pack;
use leno_proto::pb::envoy::config::core::v3::TrafficDirection;
use leno_proto::pb::envoy::config::listener::v3::{
    FilterChain, Listener, ListenerFilter, listener_filter,
};
use leno_proto::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use leno_proto::pb::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
    tls_inspector::v3::TlsInspector,
};
use leno_proto::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use leno_proto::prost::{Message, Name};
use leno_proto::type_url::{CLUSTER, LISTENER};

use super::context::{INBOUND, TranslationContext};
use super::{clusters, inbound, routes, wire};
use crate::mesh::service::{Port, PortProtocol, Service};
use crate::mesh::{Mesh, Node};

/// The name of Envoy's outbound Listener and of its RouteConfiguration; Istio's.
pub(super) const OUTBOUND: &str = "virtualOutbound";
/// The addresses of Envoy's two Listeners; the ports are Istio's.
const OUTBOUND_ADDRESS: (&str, u16) = ("127.0.0.1", 15001);
const INBOUND_ADDRESS: (&str, u16) = ("0.0.0.0", 15006);

/// Every name of a type, for Envoy's wildcard subscriptions.
pub fn everything(world: TranslationContext<'_>, node: &Node, type_url: &str) -> BTreeSet<String> {
    let TranslationContext { mesh, workload, .. } = world;
    match type_url {
        LISTENER => [INBOUND, OUTBOUND].map(str::to_owned).into(),
        CLUSTER => {
            let ports = http_ports(mesh);
            let outbound = ports
                .flat_map(|(service, port)| routes::cluster_names(service, port.number))
                // An undefined subset is a name without a cluster.
                .filter(|name| clusters::find(mesh, node, name).is_ok());
            outbound.chain(inbound::cluster_names(workload)).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// Every port of the mesh that may carry HTTP: an explicit proxy can tell those apart by `Host`.
fn http_ports(mesh: &Mesh) -> impl Iterator<Item = (&Service, &Port)> {
    let services = mesh.services.values();
    let ports =
        services.flat_map(|service| service.ports.iter().map(move |port| (&**service, port)));
    ports.filter(|(_, port)| port.protocol != PortProtocol::Tcp)
}

/// Envoy's outbound Listener: an explicit proxy for every process on the machine.
pub(super) fn envoy_outbound() -> Listener {
    let manager = HttpConnectionManager {
        stat_prefix: OUTBOUND.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(wire::ads()),
            route_config_name: OUTBOUND.to_owned(),
        })),
        http_filters: vec![wire::router()],
        ..HttpConnectionManager::default()
    };
    Listener {
        name: OUTBOUND.to_owned(),
        address: Some(wire::address(OUTBOUND_ADDRESS)),
        traffic_direction: TrafficDirection::Outbound.into(),
        filter_chains: vec![FilterChain {
            filters: vec![wire::filter(
                "envoy.filters.network.http_connection_manager",
                &manager,
            )],
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

/// Envoy's inbound Listener: a sidecar's, with the listener filters that Envoy needs to tell connections apart. It
/// expects them to be redirected to it, as Istio does.
pub(super) fn envoy_inbound(world: TranslationContext<'_>, node: &Node) -> Listener {
    Listener {
        address: Some(wire::address(INBOUND_ADDRESS)),
        listener_filters: vec![
            listener_filter(
                "envoy.filters.listener.original_dst",
                &OriginalDst::default(),
            ),
            listener_filter(
                "envoy.filters.listener.tls_inspector",
                &TlsInspector::default(),
            ),
            listener_filter(
                "envoy.filters.listener.http_inspector",
                &HttpInspector::default(),
            ),
        ],
        ..inbound::listener(world, node)
    }
}

fn listener_filter<M: Message + Name>(name: &str, config: &M) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(config))),
        ..ListenerFilter::default()
    }
}

/// The routes of every service, to which [`OUTBOUND`] leads.
pub(super) fn envoy_routes(mesh: &Mesh, node: &Node) -> RouteConfiguration {
    let mut taken = BTreeSet::new();
    let hosts = http_ports(mesh).map(|(service, port)| {
        let domains = domains(service, port.number, &node.namespace);
        VirtualHost {
            name: routes::name(&service.host, port.number),
            // A name is one service's: the first wins, as everywhere.
            domains: domains
                .into_iter()
                .filter(|domain| taken.insert(domain.clone()))
                .collect(),
            routes: routes::routes(service, port.number),
            ..VirtualHost::default()
        }
    });
    RouteConfiguration {
        name: OUTBOUND.to_owned(),
        virtual_hosts: hosts.filter(|host| !host.domains.is_empty()).collect(),
        ..RouteConfiguration::default()
    }
}

/// Every authority by which a caller in `namespace` may name a service's port.
fn domains(service: &Service, port: u16, namespace: &str) -> Vec<String> {
    let mut names = vec![service.host.clone()];
    let suffixes = [".cluster.local", ".svc.cluster.local"];
    let is_cluster = service.host.ends_with(suffixes[1]);
    for suffix in suffixes.iter().filter(|_| is_cluster) {
        names.extend(service.host.strip_suffix(suffix).map(str::to_owned));
    }
    let own = format!(".{namespace}{}", suffixes[1]);
    names.extend(service.host.strip_suffix(&own).map(str::to_owned));
    let bare = names.iter().filter(|_| port == 80).cloned();
    let with_port = names.iter().map(|name| format!("{name}:{port}"));
    bare.chain(with_port).collect()
}
