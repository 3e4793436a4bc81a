//! `security.istio.io` PeerAuthentication.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Selector;

/// Whether peers must prove who they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthentication {
    /// Whom it is for.
    #[serde(default)]
    pub selector: Option<Selector>,
    /// On every port.
    #[serde(default)]
    pub mtls: Option<Mtls>,
    /// On single workload ports.
    #[serde(default)]
    pub port_level_mtls: BTreeMap<u16, Mtls>,
}

/// A mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mtls {
    /// The mode.
    #[serde(default)]
    pub mode: Mode,
}

/// Whether a peer must prove who it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// As the namespace, or the mesh, says.
    #[default]
    Unset,
    /// It can't.
    Disable,
    /// It may.
    Permissive,
    /// It must.
    Strict,
}
