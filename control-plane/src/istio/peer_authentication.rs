//! `security.istio.io` PeerAuthentication.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Selector;
use super::scalar::Port;

/// The spec of a PeerAuthentication: the mutual TLS modes of workloads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Raw")]
pub struct PeerAuthentication {
    /// The workloads that it is for.
    pub selector: Option<Selector>,
    /// The mode on every port.
    pub mtls: Option<Mtls>,
    /// The modes on single workload ports.
    pub port_level_mtls: BTreeMap<Port, Option<Mtls>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    selector: Option<Selector>,
    #[serde(default)]
    mtls: Option<Mtls>,
    #[serde(default)]
    port_level_mtls: Option<BTreeMap<Port, Option<Mtls>>>,
}

impl TryFrom<Raw> for PeerAuthentication {
    type Error = String;

    /// Rejects, as Istio does, an empty `portLevelMtls` and one without a selector.
    fn try_from(raw: Raw) -> Result<PeerAuthentication, String> {
        let selects = (raw.selector.as_ref()).is_some_and(|s| !s.match_labels.is_empty());
        match &raw.port_level_mtls {
            Some(ports) if ports.is_empty() => Err("portLevelMtls is empty".to_owned()),
            Some(_) if !selects => Err("portLevelMtls needs a selector with labels".to_owned()),
            _ => Ok(PeerAuthentication {
                selector: raw.selector,
                mtls: raw.mtls,
                port_level_mtls: raw.port_level_mtls.unwrap_or_default(),
            }),
        }
    }
}

/// A mutual TLS setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mtls {
    /// The mode.
    #[serde(default)]
    pub mode: Mode,
}

/// A mutual TLS mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// Inherited from the namespace, or the mesh.
    #[default]
    Unset,
    /// No mutual TLS.
    Disable,
    /// Mutual TLS or plaintext.
    Permissive,
    /// Mutual TLS only.
    Strict,
}
