//! ClusterLoadAssignments: the endpoints of a cluster, each with its transport and its workload.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use leno_proto::pb::envoy::config::core::v3::{HealthStatus, Locality, Metadata};
use leno_proto::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EndpointMessage, LbEndpoint, LocalityLbEndpoints,
    lb_endpoint::HostIdentifier,
};
use leno_proto::type_url::ENDPOINTS;

use super::context::{LookupResult, present};
use super::{clusters, wire};
use crate::mesh::service::{Endpoint, Endpoints};
use crate::mesh::{Mesh, Node, selects};

/// The assignment of the cluster `name`. A subset without endpoints has an empty one; the object in the cluster's
/// metadata explains it.
pub fn assignment(mesh: &Mesh, node: &Node, name: &str) -> LookupResult {
    let (service, parsed, rule) = match clusters::find(mesh, node, name) {
        Ok(found) => found,
        Err(reason) => return LookupResult::Missing(reason),
    };
    let none = BTreeMap::new();
    let subset = rule.and_then(|rule| rule.subsets.get(parsed.subset));
    let labels = subset.map_or(&none, |subset| &subset.labels);
    let mut seen = BTreeSet::new();
    let mut endpoints = Vec::new();
    match &service.endpoints {
        Endpoints::Static(list) => {
            for endpoint in list.iter().filter(|e| selects(labels, &e.labels)) {
                let port = endpoint
                    .ports
                    .get(&parsed.port)
                    .copied()
                    .unwrap_or(parsed.port);
                if seen.insert((endpoint.address, port)) {
                    endpoints.push(meshed(mesh, endpoint, port));
                }
            }
        }
        Endpoints::Dns(names) => {
            let unknown: Vec<String> = (names.iter())
                .filter(|name| !mesh.resolved.contains_key(&name.name))
                .filter(|name| name.name.parse::<IpAddr>().is_err())
                .map(|name| name.name.clone())
                .collect();
            if !unknown.is_empty() {
                return LookupResult::Pending(unknown);
            }
            for name in names.iter().filter(|name| selects(labels, &name.labels)) {
                let port = name.ports.get(&parsed.port).copied().unwrap_or(parsed.port);
                let own: Vec<IpAddr> = name.name.parse().into_iter().collect();
                let resolved = mesh.resolved.get(&name.name).unwrap_or(&own);
                let fresh = resolved
                    .iter()
                    .filter(|address| seen.insert((**address, port)));
                endpoints.extend(fresh.map(|address| plain(*address, port, name.weight)));
            }
        }
    }
    let localities = match endpoints.is_empty() {
        true => Vec::new(),
        false => vec![LocalityLbEndpoints {
            // gRPC drops endpoints without a locality and its weight.
            locality: Some(Locality::default()),
            load_balancing_weight: Some(wire::number(1)),
            lb_endpoints: endpoints,
            ..LocalityLbEndpoints::default()
        }],
    };
    let assignment = ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: localities,
        ..ClusterLoadAssignment::default()
    };
    present(ENDPOINTS, &assignment)
}

fn plain(address: IpAddr, port: u16, weight: u32) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(EndpointMessage {
            address: Some(wire::address((&address.to_string(), port))),
            ..EndpointMessage::default()
        })),
        load_balancing_weight: Some(wire::number(weight.max(1))),
        ..LbEndpoint::default()
    }
}

fn meshed(mesh: &Mesh, endpoint: &Endpoint, port: u16) -> LbEndpoint {
    let mut message = plain(endpoint.address, port, endpoint.weight);
    let identity = mesh.identity(endpoint).unwrap_or_default();
    let tls = mesh.uses_mtls(endpoint, port);
    let mut metadata = wire::metadata(&[
        ("workload", &endpoint.workload),
        ("namespace", &endpoint.namespace),
        ("app", label(endpoint, "app")),
        ("version", label(endpoint, "version")),
        ("identity", if tls { &identity } else { "" }),
    ]);
    if tls {
        add_tls(&mut metadata);
    }
    message.metadata = Some(metadata);
    if mesh.is_draining(endpoint) {
        message.health_status = HealthStatus::Draining.into();
    }
    message
}

fn add_tls(metadata: &mut Metadata) {
    let matched = wire::texts(&[("tlsMode", "istio")]);
    metadata
        .filter_metadata
        .insert("envoy.transport_socket_match".to_owned(), matched);
}

fn label<'a>(endpoint: &'a Endpoint, name: &str) -> &'a str {
    endpoint.labels.get(name).map_or("", String::as_str)
}
