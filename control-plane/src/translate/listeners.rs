//! Outbound Listeners: one for each authority that is dialled, named by it.

use std::collections::BTreeSet;

use leno_proto::pb::envoy::config::core::v3::TrafficDirection;
use leno_proto::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
use leno_proto::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use leno_proto::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier,
};
use leno_proto::type_url::LISTENER;

use super::context::{LookupResult, PASSTHROUGH, cluster_name, find, is_passed_through, present};
use super::{grpc, inbound, routes, wire};
use crate::mesh::service::PortProtocol;
use crate::mesh::{Client, Mesh, Node};

/// The Listener `authority`. It has exactly the requested name, and leads to canonical names only.
pub fn outbound(mesh: &Mesh, node: &Node, authority: &str) -> LookupResult {
    if is_passed_through(mesh, node, authority) {
        let rule = "outboundTrafficPolicy ALLOW_ANY";
        let filters = inbound::http_filters(&[], PASSTHROUGH);
        let listener = listener(authority, filters, rule, PortProtocol::Auto);
        return present(LISTENER, &listener);
    }
    let (service, port) = match find(mesh, node, authority) {
        Ok(found) => found,
        Err(reason) => return LookupResult::Missing(reason),
    };
    let manager = HttpConnectionManager {
        stat_prefix: authority.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(wire::ads()),
            route_config_name: routes::name(&service.host, port.number),
        })),
        http_filters: vec![wire::router()],
        ..HttpConnectionManager::default()
    };
    if node.client == Client::Grpc {
        return match port.protocol {
            PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Auto => {
                present(LISTENER, &grpc::grpc_listener(authority, &manager))
            }
            PortProtocol::Tcp => LookupResult::Missing(format!("{authority} does not carry HTTP")),
        };
    }
    let filter = match port.protocol {
        PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Auto => {
            wire::filter("envoy.filters.network.http_connection_manager", &manager)
        }
        PortProtocol::Tcp => wire::filter(
            "envoy.filters.network.tcp_proxy",
            &TcpProxy {
                stat_prefix: authority.to_owned(),
                cluster_specifier: Some(ClusterSpecifier::Cluster(cluster_name(
                    port.number,
                    None,
                    &service.host,
                ))),
                ..TcpProxy::default()
            },
        ),
    };
    let listener = listener(authority, vec![filter], &service.object, port.protocol);
    present(LISTENER, &listener)
}

fn listener(authority: &str, filters: Vec<Filter>, rule: &str, protocol: PortProtocol) -> Listener {
    let mut fields = vec![("rule", rule)];
    if protocol == PortProtocol::Auto {
        // It is detected from the first bytes, of either peer.
        fields.push(("protocol", "auto"));
    }
    Listener {
        name: authority.to_owned(),
        traffic_direction: TrafficDirection::Outbound.into(),
        filter_chains: vec![FilterChain {
            filters,
            metadata: Some(wire::metadata(&fields)),
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

/// The RouteConfiguration that a Listener names, if it carries HTTP.
pub(super) fn route_name(mesh: &Mesh, node: &Node, authority: &str) -> Option<String> {
    let (service, port) = find(mesh, node, authority).ok()?;
    let http = port.protocol != PortProtocol::Tcp;
    http.then(|| routes::name(&service.host, port.number))
}

/// Every cluster that a Listener leads to.
pub(super) fn cluster_names(mesh: &Mesh, node: &Node, authority: &str) -> BTreeSet<String> {
    if is_passed_through(mesh, node, authority) {
        return [PASSTHROUGH.to_owned()].into();
    }
    let Ok((service, port)) = find(mesh, node, authority) else {
        return BTreeSet::new();
    };
    match port.protocol {
        PortProtocol::Tcp => [cluster_name(port.number, None, &service.host)].into(),
        PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Auto => {
            routes::cluster_names(service, port.number)
        }
    }
}
