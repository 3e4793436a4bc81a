//! `networking.istio.io` VirtualService.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::{Host, Pattern, Period, Port, Weight};

/// Where requests for its hosts go.
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
    /// What requests it takes: any of these; all when empty.
    #[serde(default, rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Where they go.
    #[serde(default)]
    pub route: Vec<RouteDestination>,
    /// How long an exchange may take; off when absent.
    #[serde(default)]
    pub timeout: Option<Period>,
    /// When a request is sent again.
    #[serde(default)]
    pub retries: Option<HttpRetry>,
}

/// When a request is sent again. Without `attempts`, never.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename = "HTTPRetry", rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRetry {
    /// How often, after the first time.
    #[serde(default)]
    pub attempts: u32,
    /// How long each try may take.
    #[serde(default)]
    pub per_try_timeout: Option<Period>,
    /// Conditions, separated by commas.
    #[serde(default)]
    pub retry_on: Option<RetryOn>,
    /// The first step of the wait between tries.
    #[serde(default)]
    pub backoff: Option<Period>,
    /// Whether other localities are tried. There are none yet.
    #[serde(default)]
    pub retry_remote_localities: Option<bool>,
    /// Whether endpoints that were tried are avoided, as they always are.
    #[serde(default)]
    pub retry_ignore_previous_hosts: Option<bool>,
}

/// Conditions under which a request is sent again: Envoy's names, and statuses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct RetryOn {
    /// Envoy's names.
    pub names: Vec<String>,
    /// Statuses.
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

/// What requests a rule takes: all of it must hold.
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
    /// Headers, lower-case.
    #[serde(default)]
    pub headers: BTreeMap<String, StringMatch>,
    /// Query parameters.
    #[serde(default)]
    pub query_params: BTreeMap<String, StringMatch>,
}

/// How a string is compared.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "OneOf")]
pub enum StringMatch {
    /// It is this.
    Exact(String),
    /// It starts with this.
    Prefix(String),
    /// This describes the whole of it.
    Regex(String),
    /// It is there.
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

    fn try_from(said: OneOf) -> Result<StringMatch, &'static str> {
        match (said.exact, said.prefix, said.regex) {
            (Some(exact), None, None) => Ok(StringMatch::Exact(exact)),
            (None, Some(prefix), None) => Ok(StringMatch::Prefix(prefix)),
            (None, None, Some(regex)) => Ok(StringMatch::Regex(regex.0)),
            (None, None, None) => Ok(StringMatch::Present),
            _ => Err("exact, prefix and regex exclude each other"),
        }
    }
}

/// A destination with its share.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    rename = "HTTPRouteDestination",
    rename_all = "camelCase",
    deny_unknown_fields
)]
pub struct RouteDestination {
    /// Where.
    pub destination: Destination,
    /// Its share.
    #[serde(default)]
    pub weight: Option<Weight>,
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Destination {
    /// The service.
    pub host: Host,
    /// A subset of it, as a DestinationRule defines it.
    #[serde(default)]
    pub subset: Option<String>,
    /// One of its ports; the one that was dialled when absent.
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
