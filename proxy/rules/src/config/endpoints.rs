//! `envoy.config.endpoint.v3.ClusterLoadAssignment`.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use leno_proto::pb::envoy::config::core::v3::{
    Address, HealthStatus, Metadata, address, socket_address,
};
use leno_proto::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, lb_endpoint::HostIdentifier,
};
use leno_proto::pb::google::protobuf::value::Kind;

use super::{Invalid, Resource};
use crate::spiffe::SpiffeId;

/// Most endpoints of one assignment.
const MAX_ENDPOINTS: usize = 20_000;

/// The endpoints of a cluster.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// `cluster_name`: the name that the cluster requests it by.
    pub name: String,
    /// Its endpoints; each address once.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    /// Load balancing weight; at least 1.
    pub weight: u32,
    /// True if it has a sidecar that speaks mutual TLS.
    pub tls: bool,
    /// Identities that are allowed for it; empty: those that the cluster allows.
    pub identities: Vec<SpiffeId>,
    /// Its workload, for metrics.
    pub workload: Workload,
}

/// A workload, as metrics label it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workload {
    /// Name of the workload.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Label `app`.
    pub app: String,
    /// Label `version`.
    pub version: String,
}

impl Workload {
    /// Reads the workload that Leno's control plane put into `filter_metadata.leno`.
    pub(super) fn of(metadata: Option<&Metadata>) -> Workload {
        let leno = |key| super::provenance(metadata, key).unwrap_or_default();
        Workload {
            name: leno("workload"),
            namespace: leno("namespace"),
            app: leno("app"),
            version: leno("version"),
        }
    }
}

impl Resource for Assignment {
    type Message = ClusterLoadAssignment;

    fn name(&self) -> &str {
        &self.name
    }

    fn validate(message: ClusterLoadAssignment) -> Result<Assignment, Invalid> {
        if message.cluster_name.is_empty() {
            return Err(Invalid::new("cluster_name", "is required"));
        }
        let (mut endpoints, mut draining) = (Vec::new(), Vec::new());
        for (i, locality) in message.endpoints.into_iter().enumerate() {
            for (j, endpoint) in locality.lb_endpoints.into_iter().enumerate() {
                let valid = Endpoint::validate(endpoint)
                    .map_err(|e| e.within(&format!("endpoints[{i}].lb_endpoints[{j}]")))?;
                match valid {
                    (HealthClass::Requests, endpoint) => endpoints.push(endpoint),
                    (HealthClass::Last, endpoint) => draining.push(endpoint),
                    (HealthClass::Nothing, _) => {}
                }
            }
        }
        // A draining endpoint is better than none.
        if endpoints.is_empty() {
            endpoints = draining;
        }
        if endpoints.len() > MAX_ENDPOINTS {
            let reason = format!("{} endpoints; at most {MAX_ENDPOINTS}", endpoints.len());
            return Err(Invalid::new("endpoints", reason));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = endpoints.iter().find(|e| !seen.insert(e.address)) {
            let reason = format!("{} stands there twice", twice.address);
            return Err(Invalid::new("endpoints", reason));
        }
        Ok(Assignment {
            name: message.cluster_name,
            endpoints,
        })
    }
}

/// Requests that an endpoint takes, by its health status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HealthClass {
    Requests,
    /// Only if no other endpoint takes any: it is draining.
    Last,
    Nothing,
}

impl Endpoint {
    /// Validates an endpoint; returns also the requests that it takes.
    fn validate(message: LbEndpoint) -> Result<(HealthClass, Endpoint), Invalid> {
        let weight = message
            .load_balancing_weight
            .map_or(1, |weight| weight.value);
        if weight == 0 {
            return Err(Invalid::new("load_balancing_weight", "must be at least 1"));
        }
        let address = match super::required(message.host_identifier, "endpoint")? {
            HostIdentifier::Endpoint(endpoint) => {
                super::required(endpoint.address, "endpoint.address")
                    .and_then(|a| socket_address(&a).map_err(|e| e.within("endpoint.address")))?
            }
            HostIdentifier::EndpointName(_) => {
                return Err(Invalid::new("endpoint_name", "is not supported"));
            }
        };
        let takes = match HealthStatus::try_from(message.health_status) {
            Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => {
                HealthClass::Requests
            }
            Ok(HealthStatus::Draining) => HealthClass::Last,
            Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => HealthClass::Nothing,
            Err(_) => return Err(Invalid::new("health_status", "is not a known status")),
        };
        let metadata = message.metadata.as_ref();
        let identity = super::provenance(metadata, "identity");
        let identities = identity.iter().map(|id| SpiffeId::parse(id)).collect();
        let endpoint = Endpoint {
            address,
            weight,
            tls: speaks_tls(metadata),
            identities: {
                let parsed: Result<_, String> = identities;
                parsed.map_err(|e| Invalid::new("metadata.filter_metadata[leno].identity", e))?
            },
            workload: Workload::of(metadata),
        };
        Ok((takes, endpoint))
    }
}

fn socket_address(message: &Address) -> Result<SocketAddr, Invalid> {
    let Some(address::Address::SocketAddress(socket)) = &message.address else {
        return Err(Invalid::new("socket_address", "is required"));
    };
    let ip: IpAddr = socket.address.parse().map_err(|_| {
        let reason = format!("{:?} is not an IP address", socket.address);
        Invalid::new("socket_address.address", reason)
    })?;
    let port = match socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        _ => None,
    };
    match port {
        Some(port) if port > 0 => Ok(SocketAddr::new(ip, port)),
        _ => Err(Invalid::new(
            "socket_address.port_value",
            "must be 1 to 65535",
        )),
    }
}

/// True if Istio's endpoint label for auto mTLS is set, `tlsMode: istio`.
fn speaks_tls(metadata: Option<&Metadata>) -> bool {
    let fields = metadata.and_then(|m| m.filter_metadata.get("envoy.transport_socket_match"));
    let mode = fields.and_then(|f| f.fields.get("tlsMode")?.kind.as_ref());
    matches!(mode, Some(Kind::StringValue(mode)) if mode == "istio")
}
