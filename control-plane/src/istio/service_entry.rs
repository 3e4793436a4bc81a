//! `networking.istio.io` ServiceEntry and WorkloadEntry: what is in the registry without Kubernetes.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::{Host, Port, Weight};

/// Hosts, ports, and where they are served.
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
    /// Whether it is part of the mesh.
    #[serde(default)]
    pub location: Location,
    /// Where its endpoints come from.
    #[serde(default)]
    pub resolution: Resolution,
    /// Its endpoints.
    #[serde(default)]
    pub endpoints: Vec<WorkloadEntry>,
    /// WorkloadEntries that serve it.
    #[serde(default)]
    pub workload_selector: Option<WorkloadSelector>,
}

/// A port of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EntryPort {
    /// What callers dial.
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

/// Whether a service is part of the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// It isn't: no mutual TLS.
    #[default]
    MeshExternal,
    /// It is: mutual TLS wherever a workload has a service account.
    MeshInternal,
}

/// Where endpoints come from.
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

/// WorkloadEntries by labels.
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
    /// Its share relative to others.
    #[serde(default)]
    pub weight: Option<Weight>,
    /// Its service account; with it, it has a sidecar.
    #[serde(default)]
    pub service_account: Option<String>,
}
