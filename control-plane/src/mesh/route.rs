//! Routing as it is meant: rules with resolved hosts, and how endpoints are spoken to.

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
    /// Which rule of which object it is: `default/user-service VirtualService http[0]`.
    pub object: String,
    /// Where it stands.
    pub file: String,
    /// What requests it takes: any of these; all when empty.
    pub matches: Vec<Match>,
    /// Where they go.
    pub targets: Vec<Target>,
    /// How long an exchange may take.
    pub timeout: Option<Duration>,
    /// When a request is sent again.
    pub retries: Retries,
}

/// When a request is sent again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Retries {
    /// Nothing is said: twice, when it was never sent, or may be repeated.
    #[default]
    Default,
    /// Never.
    Never,
    /// As somebody wrote.
    Explicit(RetryPolicy),
}

/// A retry policy that somebody wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often, after the first time.
    pub attempts: u32,
    /// How long each try may take.
    pub per_try: Option<Duration>,
    /// Envoy's names of conditions; nothing means the default ones.
    pub on: Vec<String>,
    /// Statuses.
    pub codes: Vec<u16>,
    /// The first step of the wait between tries.
    pub backoff: Option<Duration>,
}

/// What requests a rule takes: all of it must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Match {
    /// The path.
    pub uri: Option<StringMatch>,
    /// The method.
    pub method: Option<StringMatch>,
    /// Headers.
    pub headers: BTreeMap<String, StringMatch>,
    /// Query parameters.
    pub query: BTreeMap<String, StringMatch>,
}

/// How a string is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Regex(String),
    Present,
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The canonical host.
    pub host: String,
    /// A subset of it.
    pub subset: Option<String>,
    /// One of its ports; the one that was dialled otherwise.
    pub port: Option<u16>,
    /// Its share.
    pub weight: u32,
}

/// How a host's endpoints are spoken to.
#[derive(Debug, Clone, PartialEq)]
pub struct DestinationRule {
    /// Which object it is.
    pub object: String,
    /// How, for all of them.
    pub policy: Policy,
    /// Its subsets, by name.
    pub subsets: BTreeMap<String, Subset>,
}

/// Endpoints with certain labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Subset {
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// How they are spoken to.
    pub policy: Policy,
}

/// How endpoints are spoken to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    /// How one is picked.
    pub balance: Balance,
    /// How long a connection may take.
    pub connect_timeout: Option<Duration>,
    /// Connections at once.
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests at once.
    pub max_requests: Option<u32>,
    /// Retries at once.
    pub max_retries: Option<u32>,
    /// Requests that one connection to the app carries.
    pub max_requests_per_connection: Option<u32>,
    /// How long a connection is kept without a request.
    pub idle_timeout: Option<Duration>,
    /// TCP keepalive.
    pub keepalive: Option<Keepalive>,
    /// Whether endpoints are spoken to in another version of HTTP than their port's.
    pub version: HttpVersion,
    /// When one is ejected.
    pub ejection: Option<Ejection>,
}

/// The version of HTTP that endpoints are spoken to in.
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

/// How an endpoint is picked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Balance {
    #[default]
    LeastRequest,
    RoundRobin,
    Random,
}

/// When an endpoint is ejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row.
    pub consecutive_5xx: Option<u32>,
    /// Gateway errors in a row.
    pub consecutive_gateway: Option<u32>,
    /// Between two looks.
    pub interval: Option<Duration>,
    /// For how long, times how often it was.
    pub base_time: Option<Duration>,
    /// How many at once, in percent.
    pub max_percent: Option<u32>,
    /// Failed connections in a row, where they are told apart.
    pub consecutive_local: Option<u32>,
    /// Whether connections that fail are told apart from responses.
    pub split: bool,
}

/// TCP keepalive; what isn't set is as for every connection of a sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes without an answer until the connection is dead.
    pub probes: Option<u32>,
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
}
