//! `networking.istio.io` VirtualService.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::{Host, Pattern, Period, Port, Weight};

/// The spec of a VirtualService: the routing rules of its hosts.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualService {
    /// Hosts that it is for.
    pub hosts: Vec<Host>,
    /// Rules; the first that matches is taken.
    #[serde(default)]
    pub http: Vec<HttpRoute>,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename = "HTTPRoute", rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRoute {
    /// Its name, for people.
    #[serde(default)]
    pub name: String,
    /// Conditions, any of which must match; empty for all requests.
    #[serde(default, rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Weighted destinations.
    #[serde(default)]
    pub route: Vec<RouteDestination>,
    /// Timeout of an exchange; none when absent or 0.
    #[serde(default)]
    pub timeout: Option<Period>,
    /// The retry policy.
    #[serde(default)]
    pub retries: Option<HttpRetry>,
}

/// A retry policy; without `attempts`, no retries.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename = "HTTPRetry", rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRetry {
    /// Maximum retries, after the first attempt.
    #[serde(default)]
    pub attempts: u32,
    /// Timeout of each attempt.
    #[serde(default)]
    pub per_try_timeout: Option<Period>,
    /// Conditions, separated by commas.
    #[serde(default)]
    pub retry_on: Option<RetryOn>,
    /// Base interval of the backoff between attempts.
    #[serde(default)]
    pub backoff: Option<Period>,
    /// Retries in other localities: without effect, as there are none yet.
    #[serde(default)]
    pub retry_remote_localities: Option<bool>,
    /// Avoidance of endpoints that were tried: without effect, as they always are avoided.
    #[serde(default)]
    pub retry_ignore_previous_hosts: Option<bool>,
}

/// Retry conditions: Envoy's names, and status codes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct RetryOn {
    /// Envoy's names.
    pub names: Vec<String>,
    /// Status codes.
    pub codes: Vec<u16>,
}

impl TryFrom<String> for RetryOn {
    type Error = String;

    fn try_from(text: String) -> Result<RetryOn, String> {
        const NAMES: [&str; 13] = [
            "5xx",
            "gateway-error",
            "reset",
            "reset-before-request",
            "connect-failure",
            "refused-stream",
            "retriable-4xx",
            "retriable-status-codes",
            "cancelled",
            "deadline-exceeded",
            "internal",
            "resource-exhausted",
            "unavailable",
        ];
        let mut on = RetryOn::default();
        for word in text
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            match word.parse::<u16>() {
                Ok(code @ 100..=599) => on.codes.push(code),
                _ if NAMES.contains(&word) => on.names.push(word.to_owned()),
                _ => {
                    let names = NAMES.join(", ");
                    return Err(format!("{word:?} is neither a status nor one of {names}"));
                }
            }
        }
        Ok(on)
    }
}

/// A condition on requests; all of its parts must match.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(
    rename = "HTTPMatchRequest",
    rename_all = "camelCase",
    deny_unknown_fields
)]
pub struct HttpMatch {
    /// Its name, for people.
    #[serde(default)]
    pub name: String,
    /// The path.
    #[serde(default)]
    pub uri: Option<StringMatch>,
    /// The method.
    #[serde(default)]
    pub method: Option<StringMatch>,
    /// Headers, by name in any case.
    #[serde(default)]
    pub headers: BTreeMap<String, StringMatch>,
    /// Query parameters.
    #[serde(default)]
    pub query_params: BTreeMap<String, StringMatch>,
}

/// A string match.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "OneOf")]
pub enum StringMatch {
    /// The whole string.
    Exact(String),
    /// A prefix.
    Prefix(String),
    /// A regular expression for the whole string.
    Regex(String),
    /// Any value, if present.
    Present,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OneOf {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<Pattern>,
}

impl TryFrom<OneOf> for StringMatch {
    type Error = &'static str;

    fn try_from(raw: OneOf) -> Result<StringMatch, &'static str> {
        match (raw.exact, raw.prefix, raw.regex) {
            (Some(exact), None, None) => Ok(StringMatch::Exact(exact)),
            (None, Some(prefix), None) => Ok(StringMatch::Prefix(prefix)),
            (None, None, Some(regex)) => Ok(StringMatch::Regex(regex.0)),
            (None, None, None) => Ok(StringMatch::Present),
            _ => Err("exact, prefix and regex exclude each other"),
        }
    }
}

/// A destination with its weight.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    rename = "HTTPRouteDestination",
    rename_all = "camelCase",
    deny_unknown_fields
)]
pub struct RouteDestination {
    /// The destination.
    pub destination: Destination,
    /// Its weight.
    #[serde(default)]
    pub weight: Option<Weight>,
}

/// A service, or a subset of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Destination {
    /// The service.
    pub host: Host,
    /// A subset of it, as a DestinationRule defines it.
    #[serde(default)]
    pub subset: Option<String>,
    /// One of its ports; when absent its only port, else the port that was dialled.
    #[serde(default)]
    pub port: Option<PortSelector>,
}

/// A port by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSelector {
    /// The number.
    pub number: Port,
}
