//! Compiled routing: rules with resolved hosts, and the traffic policies of endpoints.

use std::collections::BTreeMap;
use std::time::Duration;

/// The rules of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// In order; the first that matches is taken.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its object and index in it: `default/user-service VirtualService http[0]`.
    pub object: String,
    /// File name and line of the object.
    pub file: String,
    /// Conditions, any of which must match; empty for all requests.
    pub matches: Vec<Match>,
    /// Weighted destinations.
    pub targets: Vec<Target>,
    /// Timeout of an exchange.
    pub timeout: Option<Duration>,
    /// The retry policy.
    pub retries: Retries,
}

/// The retry policy of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Retries {
    /// Not configured: two retries, of a request that was never sent or may be repeated.
    #[default]
    Default,
    /// No retries.
    Never,
    /// The policy of the VirtualService.
    Explicit(RetryPolicy),
}

/// The retry policy of a VirtualService.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Maximum retries, after the first attempt.
    pub attempts: u32,
    /// Timeout of each attempt.
    pub per_try: Option<Duration>,
    /// Envoy's names of conditions; the default ones if these and `codes` are empty.
    pub on: Vec<String>,
    /// Status codes.
    pub codes: Vec<u16>,
    /// Base interval of the backoff between attempts.
    pub backoff: Option<Duration>,
}

/// A condition on requests; all of its parts must match.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Match {
    /// The path.
    pub uri: Option<StringMatch>,
    /// The method.
    pub method: Option<StringMatch>,
    /// Headers, by lower-case name.
    pub headers: BTreeMap<String, StringMatch>,
    /// Query parameters.
    pub query: BTreeMap<String, StringMatch>,
}

/// A string match.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Regex(String),
    Present,
}

/// A weighted destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The canonical host.
    pub host: String,
    /// A subset of it.
    pub subset: Option<String>,
    /// One of its ports; `None` for the port that was dialled.
    pub port: Option<u16>,
    /// Its weight.
    pub weight: u32,
}

/// The traffic policy of a host, and its subsets.
#[derive(Debug, Clone, PartialEq)]
pub struct DestinationRule {
    /// The object that it comes from.
    pub object: String,
    /// The traffic policy of the host.
    pub policy: Policy,
    /// Its subsets, by name.
    pub subsets: BTreeMap<String, Subset>,
}

/// Endpoints with certain labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Subset {
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// Their traffic policy.
    pub policy: Policy,
}

/// The traffic policy of endpoints.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    /// The load-balancing policy.
    pub balance: Balance,
    /// Timeout for establishing a connection.
    pub connect_timeout: Option<Duration>,
    /// Maximum concurrent connections.
    pub max_connections: Option<u32>,
    /// Maximum requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Maximum concurrent requests.
    pub max_requests: Option<u32>,
    /// Maximum concurrent retries.
    pub max_retries: Option<u32>,
    /// Maximum requests per connection.
    pub max_requests_per_connection: Option<u32>,
    /// Idle time after which a connection is closed.
    pub idle_timeout: Option<Duration>,
    /// TCP keepalive.
    pub keepalive: Option<Keepalive>,
    /// The version of HTTP towards the endpoints.
    pub version: HttpVersion,
    /// Ejection of failing endpoints; off when absent.
    pub ejection: Option<OutlierDetection>,
}

/// The version of HTTP towards endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HttpVersion {
    /// That of the port.
    #[default]
    Port,
    /// HTTP/2, where the port carries HTTP/1.
    Upgraded,
    /// That of the request.
    Client,
}

/// The load-balancing policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Balance {
    #[default]
    LeastRequest,
    RoundRobin,
    Random,
}

/// Thresholds and duration of an endpoint's ejection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Consecutive failures before an ejection; 0 is off.
    pub consecutive_5xx: Option<u32>,
    /// Consecutive gateway errors before an ejection; 0 is off.
    pub consecutive_gateway: Option<u32>,
    /// Interval of the ejection analysis.
    pub interval: Option<Duration>,
    /// Base ejection time, multiplied by the number of ejections.
    pub base_time: Option<Duration>,
    /// Maximum share of ejected endpoints, in percent.
    pub max_percent: Option<u32>,
    /// Consecutive failed connections before an ejection, if these are counted apart.
    pub consecutive_local: Option<u32>,
    /// True to count failed connections apart from error responses.
    pub split: bool,
}

/// TCP keepalive; unset values are those of every connection of a sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes without an answer until the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Interval between probes.
    pub interval: Option<Duration>,
}
