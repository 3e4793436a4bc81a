//! `networking.istio.io` DestinationRule.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::{Host, Period};

/// The spec of a DestinationRule: the traffic policy of a host, and its subsets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DestinationRule {
    /// The host that it is for.
    pub host: MaybeHost,
    /// The traffic policy of the host.
    #[serde(default)]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Its subsets.
    #[serde(default)]
    pub subsets: Vec<Subset>,
}

/// A host; `None` when the rule has none, an error that the compiler reports.
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
    /// Its traffic policy; each block of it replaces the host's.
    #[serde(default)]
    pub traffic_policy: Option<TrafficPolicy>,
}

/// The traffic policy of endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicy {
    /// The load balancer.
    #[serde(default)]
    pub load_balancer: Option<LoadBalancer>,
    /// Limits of connections and requests.
    #[serde(default)]
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of failing endpoints.
    #[serde(default)]
    pub outlier_detection: Option<OutlierDetection>,
}

/// The settings of the load balancer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(
    rename = "LoadBalancerSettings",
    rename_all = "camelCase",
    deny_unknown_fields
)]
pub struct LoadBalancer {
    /// A policy without parameters.
    #[serde(default)]
    pub simple: SimpleLb,
}

/// Load-balancing policies without parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename = "SimpleLB", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// The fewest requests in flight. `LEAST_CONN` is its old name.
    #[default]
    #[serde(alias = "LEAST_CONN", alias = "UNSPECIFIED")]
    LeastRequest,
    /// Each endpoint in turn.
    RoundRobin,
    /// A random endpoint.
    Random,
}

/// Limits of connections and requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionPool {
    /// Limits of connections.
    #[serde(default)]
    pub tcp: Option<TcpSettings>,
    /// Limits of requests.
    #[serde(default)]
    pub http: Option<HttpSettings>,
}

/// Limits of connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename = "TCPSettings", rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSettings {
    /// Maximum concurrent connections.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// Timeout for establishing a connection.
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
    /// Idle time before the first probe.
    #[serde(default)]
    pub time: Option<Period>,
    /// Interval between probes.
    #[serde(default)]
    pub interval: Option<Period>,
}

/// Limits of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename = "HTTPSettings", rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpSettings {
    /// Maximum requests that wait for a connection.
    #[serde(default, rename = "http1MaxPendingRequests")]
    pub http1_max_pending_requests: Option<u32>,
    /// Maximum concurrent requests.
    #[serde(default, rename = "http2MaxRequests")]
    pub http2_max_requests: Option<u32>,
    /// Maximum requests per connection.
    #[serde(default)]
    pub max_requests_per_connection: Option<u32>,
    /// Maximum concurrent retries.
    #[serde(default)]
    pub max_retries: Option<u32>,
    /// Idle time after which a connection is closed.
    #[serde(default)]
    pub idle_timeout: Option<Period>,
    /// Upgrade of HTTP/1 requests to HTTP/2 towards the endpoints.
    #[serde(default, rename = "h2UpgradePolicy")]
    pub h2_upgrade_policy: H2UpgradePolicy,
    /// True for the HTTP version of the request towards the endpoints.
    #[serde(default)]
    pub use_client_protocol: bool,
}

/// The policy for upgrading HTTP/1 requests to HTTP/2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum H2UpgradePolicy {
    #[default]
    Default,
    DoNotUpgrade,
    Upgrade,
}

/// Thresholds and duration of an endpoint's ejection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// Consecutive failures before an ejection; 0 is off.
    #[serde(default, rename = "consecutive5xxErrors", alias = "consecutiveErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Consecutive gateway errors before an ejection; 0 is off.
    #[serde(default)]
    pub consecutive_gateway_errors: Option<u32>,
    /// Interval of the ejection analysis.
    #[serde(default)]
    pub interval: Option<Period>,
    /// Base ejection time, multiplied by the number of ejections.
    #[serde(default)]
    pub base_ejection_time: Option<Period>,
    /// Maximum share of ejected endpoints, in percent.
    #[serde(default)]
    pub max_ejection_percent: Option<u32>,
    /// Consecutive failed connections before an ejection, if these are counted apart.
    #[serde(default)]
    pub consecutive_local_origin_failures: Option<u32>,
    /// True to count failed connections apart from error responses.
    #[serde(default)]
    pub split_external_local_origin_errors: bool,
    /// Envoy ignores ejections below this share of healthy endpoints. Leno never does: only 0, the default, is valid.
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
