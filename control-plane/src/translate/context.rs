//! The inputs of a translation and its result; names of clusters; the service behind an authority.

use leno_proto::{Any, fields, pack};

use crate::mesh::service::{Port, Service};
use crate::mesh::workload::WorkloadDescription;
use crate::mesh::{Client, Mesh, Node, OutboundTrafficPolicy, ServiceLookup, address_of};

/// The name of the one inbound Listener.
pub const INBOUND: &str = "virtualInbound";
/// The name of the Secret with the roots.
pub const ROOTS: &str = "ROOTCA";

/// The cluster of connections to their original destination, under Istio's name.
pub const PASSTHROUGH: &str = "PassthroughCluster";

/// The result of looking a resource up.
#[derive(Debug, Clone, PartialEq)]
pub enum LookupResult {
    /// A resource, with its version.
    Present(Any, String),
    /// No such resource, for this reason.
    Missing(String),
    /// Not known yet: these names must be resolved first.
    Pending(Vec<String>),
}

/// Everything that a client's resources are made from.
#[derive(Debug, Clone, Copy)]
pub struct TranslationContext<'a> {
    /// The compiled configuration.
    pub mesh: &'a Mesh,
    /// The client's workload.
    pub workload: &'a WorkloadDescription,
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

/// True when connections to `authority` go to their original destination, because it is an unknown address.
pub(super) fn is_passed_through(mesh: &Mesh, node: &Node, authority: &str) -> bool {
    let host = authority.rsplit_once(':').map(|(host, _)| host);
    mesh.outbound_traffic_policy == OutboundTrafficPolicy::AllowAny
        && node.client == Client::Leno
        && host.and_then(address_of).is_some()
        && find(mesh, node, authority).is_err()
}

/// The service and port that `authority` names.
pub(super) fn find<'a>(
    mesh: &'a Mesh,
    node: &Node,
    authority: &str,
) -> Result<(&'a Service, &'a Port), String> {
    let (host, number) = authority
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
        .ok_or_else(|| format!("{authority:?} is not host:port"))?;
    match mesh.find(host, &node.namespace) {
        ServiceLookup::Nothing(near) => {
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
        ServiceLookup::Service(service) => match service.port(number) {
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

pub(super) fn present<M: leno_proto::prost::Message + leno_proto::prost::Name>(
    type_url: &str,
    message: &M,
) -> LookupResult {
    let any = pack(message);
    match fields::version(type_url, &any.value) {
        Ok(version) => LookupResult::Present(any, version),
        // The field table covers all that is made here, which the golden tests hold.
        Err(error) => LookupResult::Missing(format!("cannot be translated: {error}")),
    }
}
