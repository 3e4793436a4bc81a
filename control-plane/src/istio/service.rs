//! `v1/Service`: a name and ports for the workloads that a selector matches.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::scalar::Port;

/// The spec of a Kubernetes Service. Other fields are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Labels of the workloads behind it.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// Its ports.
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    /// Its addresses; the word `None` for a headless Service.
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
    /// The port that callers dial.
    pub port: Port,
    /// The workload's port, as a number or by its name; the same number when absent.
    #[serde(default)]
    pub target_port: Option<TargetPort>,
    /// Its name; a prefix such as `http-` names the protocol.
    #[serde(default)]
    pub name: String,
    /// The transport protocol.
    #[serde(default)]
    pub protocol: Option<String>,
    /// The application protocol, which takes precedence over the name's prefix.
    #[serde(default)]
    pub app_protocol: Option<String>,
    /// Kubernetes' own, ignored.
    #[serde(default)]
    #[allow(dead_code)]
    node_port: Ignored,
}

/// A value that is ignored.
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
