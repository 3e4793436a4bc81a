//! `networking.istio.io` DestinationRule.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::{Host, Period};

/// How a host is spoken to, and its subsets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DestinationRule {
    /// The host that it is for.
    pub host: MaybeHost,
    /// How.
    #[serde(default)]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Its subsets.
    #[serde(default)]
    pub subsets: Vec<Subset>,
}

/// A host; absent only in a default that is never used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct MaybeHost(pub Option<Host>);

/// Endpoints of a host with certain labels.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// Labels that its endpoints have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it does otherwise than the host; each block replaces the host's.
    #[serde(default)]
    pub traffic_policy: Option<TrafficPolicy>,
}

/// How endpoints are spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicy {
    /// How one is picked.
    #[serde(default)]
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    #[serde(default)]
    pub connection_pool: Option<ConnectionPool>,
    /// When one is ejected.
    #[serde(default)]
    pub outlier_detection: Option<OutlierDetection>,
}

/// How an endpoint is picked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(
    rename = "LoadBalancerSettings",
    rename_all = "camelCase",
    deny_unknown_fields
)]
pub struct LoadBalancer {
    /// By one of the simple ways.
    #[serde(default)]
    pub simple: SimpleLb,
}

/// Simple ways to pick an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename = "SimpleLB", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// The fewest requests in flight. `LEAST_CONN` is its old name.
    #[default]
    #[serde(alias = "LEAST_CONN", alias = "UNSPECIFIED")]
    LeastRequest,
    /// By turns.
    RoundRobin,
    /// By chance.
    Random,
}

/// Limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionPool {
    /// Of connections.
    #[serde(default)]
    pub tcp: Option<TcpSettings>,
    /// Of requests.
    #[serde(default)]
    pub http: Option<HttpSettings>,
}

/// Limits of connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename = "TCPSettings", rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSettings {
    /// Connections at once.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// How long one may take.
    #[serde(default)]
    pub connect_timeout: Option<Period>,
    /// TCP keepalive.
    #[serde(default)]
    pub tcp_keepalive: Option<TcpKeepalive>,
}

/// TCP keepalive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpKeepalive {
    /// Probes without an answer until the connection is dead.
    #[serde(default)]
    pub probes: Option<u32>,
    /// Silence before the first probe.
    #[serde(default)]
    pub time: Option<Period>,
    /// Between probes.
    #[serde(default)]
    pub interval: Option<Period>,
}

/// Limits of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename = "HTTPSettings", rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpSettings {
    /// Requests that wait for a connection.
    #[serde(default, rename = "http1MaxPendingRequests")]
    pub http1_max_pending_requests: Option<u32>,
    /// Requests at once.
    #[serde(default, rename = "http2MaxRequests")]
    pub http2_max_requests: Option<u32>,
    /// Requests that one connection carries.
    #[serde(default)]
    pub max_requests_per_connection: Option<u32>,
    /// Retries at once.
    #[serde(default)]
    pub max_retries: Option<u32>,
    /// How long a connection is kept without a request.
    #[serde(default)]
    pub idle_timeout: Option<Period>,
    /// Whether HTTP/1 requests are carried by HTTP/2 to the endpoints.
    #[serde(default, rename = "h2UpgradePolicy")]
    pub h2_upgrade_policy: H2UpgradePolicy,
    /// Whether endpoints are spoken to in the version of the request.
    #[serde(default)]
    pub use_client_protocol: bool,
}

/// Whether HTTP/1 requests are carried by HTTP/2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum H2UpgradePolicy {
    #[default]
    Default,
    DoNotUpgrade,
    Upgrade,
}

/// When an endpoint is ejected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// Failures in a row; 0 is off.
    #[serde(default, rename = "consecutive5xxErrors", alias = "consecutiveErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Gateway errors in a row; 0 is off.
    #[serde(default)]
    pub consecutive_gateway_errors: Option<u32>,
    /// Between two looks.
    #[serde(default)]
    pub interval: Option<Period>,
    /// For how long, times how often it was.
    #[serde(default)]
    pub base_ejection_time: Option<Period>,
    /// How many at once, in percent.
    #[serde(default)]
    pub max_ejection_percent: Option<u32>,
    /// Failed connections in a row, where they are told apart.
    #[serde(default)]
    pub consecutive_local_origin_failures: Option<u32>,
    /// Whether connections that fail are told apart from responses.
    #[serde(default)]
    pub split_external_local_origin_errors: bool,
    /// Below this share of healthy endpoints Envoy ignores ejections. Leno never does: only 0, the default, is accepted.
    #[serde(default)]
    pub min_health_percent: Zero,
}

/// A number that must be 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
pub struct Zero;

impl TryFrom<u64> for Zero {
    type Error = &'static str;

    fn try_from(number: u64) -> Result<Zero, &'static str> {
        match number {
            0 => Ok(Zero),
            _ => Err("only 0 is supported: ejections are never ignored"),
        }
    }
}
