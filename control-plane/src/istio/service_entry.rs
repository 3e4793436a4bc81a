//! `networking.istio.io` ServiceEntry and WorkloadEntry: services and workloads of the registry without Kubernetes.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::{Host, Port, Weight};

/// The spec of a ServiceEntry: hosts, ports and endpoints.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntry {
    /// Names that callers dial.
    pub hosts: Vec<Host>,
    /// Addresses that callers dial, where connections are intercepted.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Ports that callers dial.
    #[serde(default)]
    pub ports: Vec<EntryPort>,
    /// Its location, inside or outside the mesh.
    #[serde(default)]
    pub location: Location,
    /// The source of its endpoints.
    #[serde(default)]
    pub resolution: Resolution,
    /// Its endpoints.
    #[serde(default)]
    pub endpoints: Vec<WorkloadEntry>,
    /// Selects the WorkloadEntries that serve it.
    #[serde(default)]
    pub workload_selector: Option<WorkloadSelector>,
}

/// A port of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EntryPort {
    /// The port that callers dial.
    pub number: Port,
    /// Its name; endpoints map it to their own port.
    #[serde(default)]
    pub name: String,
    /// HTTP, HTTPS, GRPC, HTTP2, TCP, TLS…
    #[serde(default)]
    pub protocol: String,
    /// The endpoints' port, where it differs.
    #[serde(default)]
    pub target_port: Option<Port>,
}

/// The location of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside the mesh: no mutual TLS.
    #[default]
    MeshExternal,
    /// Inside the mesh: mutual TLS with every workload that has a service account, unless `security.istio.io/tlsMode`
    /// is `disabled` among its labels.
    MeshInternal,
}

/// The source of a service's endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The caller's own resolution. Not supported yet.
    #[default]
    None,
    /// The list of endpoints.
    Static,
    /// DNS: the endpoints' names, or the host's.
    Dns,
}

/// Selects WorkloadEntries by labels.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadSelector {
    /// Labels that they must have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// One workload: an object of its own, or an endpoint of a ServiceEntry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadEntry {
    /// Its IP address; with `resolution: DNS` a name.
    pub address: String,
    /// Its own ports, by the names of the service's.
    #[serde(default)]
    pub ports: BTreeMap<String, Port>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its load-balancing weight, relative to others.
    #[serde(default)]
    pub weight: Option<Weight>,
    /// Its service account; a workload without one has no sidecar.
    #[serde(default)]
    pub service_account: Option<String>,
}
