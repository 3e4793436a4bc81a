//! `v1/Service`: a name and ports over the workloads that a selector finds.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::scalar::Port;

/// The spec of a Kubernetes Service. What concerns addresses inside a cluster has no meaning here and is read over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Labels of the workloads behind it.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// Its ports.
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    /// Its addresses; a headless Service says `None`.
    #[serde(default, rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// The first of them.
    #[serde(default, rename = "clusterIP")]
    pub cluster_ip: Option<String>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// What callers dial.
    pub port: Port,
    /// What the workload listens on; the same when absent. A name of a workload's port, or a number.
    #[serde(default)]
    pub target_port: Option<TargetPort>,
    /// Its name; a prefix such as `http-` names the protocol.
    #[serde(default)]
    pub name: String,
    /// The transport.
    #[serde(default)]
    pub protocol: Option<String>,
    /// The protocol.
    #[serde(default)]
    pub app_protocol: Option<String>,
    /// Kubernetes' own.
    #[serde(default)]
    #[allow(dead_code)]
    node_port: Ignored,
}

/// Something that is read over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Ignored, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Ignored)
    }
}

/// A number, or the name of a workload's port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// A number.
    Number(Port),
    /// A name.
    Name(String),
}
