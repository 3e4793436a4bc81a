//! `envoy.config.route.v3.RouteConfiguration`.

use std::time::Duration;

use leno_proto::pb::envoy::config::route::v3::{
    QueryParameterMatcher, RetryPolicy, Route as RouteMessage, RouteAction, RouteConfiguration,
    RouteMatch as MatchMessage, VirtualHost as VirtualHostMessage,
    query_parameter_matcher::QueryParameterMatchSpecifier, route, route_action,
    route_match::PathSpecifier,
};

use leno_proto::pb::google::protobuf::Duration as Period;

use super::matching::{HeaderMatch, StringMatch, full_match};
use super::{Invalid, Resource};

/// Envoy's timeout for a route that sets none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// The routes of one authority.
#[derive(Debug, Clone)]
pub struct RouteConfig {
    /// Its name.
    pub name: String,
    /// Virtual hosts.
    pub hosts: Vec<VirtualHost>,
}

/// The routes of one set of domains.
#[derive(Debug, Clone)]
pub struct VirtualHost {
    /// Its name, for messages.
    pub name: String,
    /// Exact names, `*.suffix`, or `*`.
    pub domains: Vec<String>,
    /// Tried in order; the first that matches wins.
    pub routes: Vec<Route>,
}

/// One route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Object and rule that it comes from.
    pub rule: String,
    /// Match on requests.
    pub matches: RouteMatch,
    /// Clusters by weight; at least one, not all zero.
    pub targets: Vec<(String, u32)>,
    /// Timeout of the whole exchange, retries included; `None` for none.
    pub timeout: Option<Duration>,
    /// Retry policy; without it, a request is never retried.
    pub retry: Option<Retry>,
}

/// Retry policy (`envoy.config.route.v3.RetryPolicy`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Most retries, after the first attempt.
    pub attempts: u32,
    /// Timeout of each attempt, up to the head of its response.
    pub per_try: Option<Duration>,
    /// True if the operator wrote the policy: only then do its conditions count, since its author knows the requests
    /// that may be repeated.
    pub is_explicit: bool,
    /// Retry conditions.
    pub on: Vec<RetryOn>,
    /// First step and limit of the backoff.
    pub backoff: (Duration, Duration),
}

/// A condition of a retry policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    /// Any 5xx, and the failures that Envoy counts as one: resets, failed connections, attempts that time out.
    FiveXx,
    /// 502, 503, 504, and the same failures.
    GatewayError,
    /// No response: the connection broke, or the attempt timed out.
    Reset,
    /// 409.
    Retriable4xx,
    /// This status.
    Status(u16),
    /// This gRPC status, in a response without a body.
    Grpc(u8),
}

impl RetryOn {
    /// Parses `retry_on`, separated by commas. After a failed connection or a refused stream, the request was never
    /// sent and is always retried, so their names add nothing.
    fn parse(text: &str) -> Result<Vec<RetryOn>, Invalid> {
        let mut on = Vec::new();
        for word in text
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            on.push(match word {
                "5xx" => RetryOn::FiveXx,
                "gateway-error" => RetryOn::GatewayError,
                "reset" => RetryOn::Reset,
                "retriable-4xx" => RetryOn::Retriable4xx,
                "connect-failure"
                | "refused-stream"
                | "reset-before-request"
                | "http3-post-connect-failure"
                | "retriable-status-codes" => continue,
                "cancelled" => RetryOn::Grpc(1),
                "deadline-exceeded" => RetryOn::Grpc(4),
                "resource-exhausted" => RetryOn::Grpc(8),
                "internal" => RetryOn::Grpc(13),
                "unavailable" => RetryOn::Grpc(14),
                _ => {
                    return Err(Invalid::new(
                        "retry_on",
                        format!("{word:?} is not supported"),
                    ));
                }
            });
        }
        Ok(on)
    }
}

impl Retry {
    /// Reads a retry policy. Without a number, it is one retry, as with Envoy.
    fn validate(message: &RetryPolicy, is_explicit: bool) -> Result<Retry, Invalid> {
        let mut on = RetryOn::parse(&message.retry_on)?;
        for code in &message.retriable_status_codes {
            let code = u16::try_from(*code).ok().filter(|c| (100..600).contains(c));
            let wrong = || Invalid::new("retriable_status_codes", "must be 100 to 599");
            on.push(RetryOn::Status(code.ok_or_else(wrong)?));
        }
        let time = |field: &'static str, value: Option<&Period>| {
            let value = value.map(super::duration).transpose();
            value.map_err(|reason| Invalid::new(field, reason))
        };
        let backoff = message.retry_back_off.unwrap_or_default();
        let base = time(
            "retry_back_off.base_interval",
            backoff.base_interval.as_ref(),
        )?;
        let base = base.unwrap_or(Duration::from_millis(25));
        let max = time("retry_back_off.max_interval", backoff.max_interval.as_ref())?;
        let per_try = time("per_try_timeout", message.per_try_timeout.as_ref())?;
        Ok(Retry {
            attempts: message.num_retries.map_or(1, |n| n.value),
            per_try: per_try.filter(|time| !time.is_zero()),
            is_explicit,
            on,
            backoff: (base, max.unwrap_or(base * 10)),
        })
    }
}

/// Match on requests: all conditions must hold.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// The path, without the query.
    pub path: StringMatch,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters: name, and value if one is required.
    pub query: Vec<(String, Option<StringMatch>)>,
}

impl Resource for RouteConfig {
    type Message = RouteConfiguration;

    fn name(&self) -> &str {
        &self.name
    }

    fn validate(message: RouteConfiguration) -> Result<RouteConfig, Invalid> {
        super::named(&message.name)?;
        RouteConfig::inline(message)
    }
}

impl RouteConfig {
    /// Validates a configuration inline in a Listener, where it needs no name.
    pub(super) fn inline(message: RouteConfiguration) -> Result<RouteConfig, Invalid> {
        let mut hosts = Vec::new();
        for (i, host) in message.virtual_hosts.into_iter().enumerate() {
            let valid = VirtualHost::validate(host);
            hosts.push(valid.map_err(|e| e.within(&format!("virtual_hosts[{i}]")))?);
        }
        check_domains(&hosts)?;
        Ok(RouteConfig {
            name: message.name,
            hosts,
        })
    }

    /// Every cluster that a route names.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        let routes = self.hosts.iter().flat_map(|host| &host.routes);
        routes.flat_map(|route| route.targets.iter().map(|(name, _)| name.as_str()))
    }
}

fn check_domains(hosts: &[VirtualHost]) -> Result<(), Invalid> {
    let mut seen = std::collections::HashSet::new();
    for (i, host) in hosts.iter().enumerate() {
        for domain in &host.domains {
            if !seen.insert(domain) {
                let field = format!("virtual_hosts[{i}].domains");
                return Err(Invalid::new(
                    field,
                    format!("{domain:?} stands there twice"),
                ));
            }
        }
    }
    Ok(())
}

impl VirtualHost {
    fn validate(message: VirtualHostMessage) -> Result<VirtualHost, Invalid> {
        if message.domains.is_empty() {
            return Err(Invalid::new("domains", "is required"));
        }
        let mut routes = Vec::new();
        for (i, route) in message.routes.into_iter().enumerate() {
            let valid = Route::validate(route);
            routes.push(valid.map_err(|e| e.within(&format!("routes[{i}]")))?);
        }
        let domains = message.domains.iter().map(|d| d.to_ascii_lowercase());
        Ok(VirtualHost {
            domains: domains.collect(),
            name: message.name,
            routes,
        })
    }
}

impl Route {
    fn validate(message: RouteMessage) -> Result<Route, Invalid> {
        let rule = super::provenance(message.metadata.as_ref(), "rule");
        let matches = RouteMatch::validate(super::required(message.r#match, "match")?);
        let action = match super::required(message.action, "route")? {
            route::Action::Route(action) => action,
            _ => return Err(Invalid::new("action", "is not supported")),
        };
        let is_explicit = super::provenance(message.metadata.as_ref(), "retries").is_none();
        let (targets, timeout, retry) =
            validate_action(action, is_explicit).map_err(|e| e.within("route"))?;
        Ok(Route {
            rule: rule.unwrap_or(message.name),
            matches: matches.map_err(|e| e.within("match"))?,
            targets,
            timeout,
            retry,
        })
    }
}

type Action = (Vec<(String, u32)>, Option<Duration>, Option<Retry>);

fn validate_action(action: RouteAction, is_explicit: bool) -> Result<Action, Invalid> {
    let retry = action.retry_policy.as_ref();
    let retry = retry.map(|policy| Retry::validate(policy, is_explicit));
    let retry = retry.transpose().map_err(|e| e.within("retry_policy"))?;
    let timeout = match &action.timeout {
        None => Some(DEFAULT_TIMEOUT),
        Some(value) => {
            let value = super::duration(value).map_err(|e| Invalid::new("timeout", e))?;
            Some(value).filter(|value| !value.is_zero())
        }
    };
    let targets = match super::required(action.cluster_specifier, "cluster")? {
        route_action::ClusterSpecifier::Cluster(name) => vec![(name, 1)],
        route_action::ClusterSpecifier::WeightedClusters(weighted) => {
            let clusters = weighted.clusters.into_iter();
            clusters
                .map(|c| (c.name, c.weight.map_or(0, |weight| weight.value)))
                .collect()
        }
        _ => return Err(Invalid::new("cluster_specifier", "is not supported")),
    };
    if targets.iter().any(|(name, _)| name.is_empty()) {
        return Err(Invalid::new("cluster", "must not be empty"));
    }
    let sum: u64 = targets.iter().map(|(_, weight)| u64::from(*weight)).sum();
    match sum {
        0 => Err(Invalid::new("weighted_clusters", "the weights add up to 0")),
        1..=0xffff_ffff => Ok((targets, timeout, retry)),
        _ => Err(Invalid::new(
            "weighted_clusters",
            "the weights add up to too much",
        )),
    }
}

impl RouteMatch {
    fn validate(message: MatchMessage) -> Result<RouteMatch, Invalid> {
        let path = match super::required(message.path_specifier, "prefix")? {
            PathSpecifier::Prefix(prefix) => StringMatch::Prefix(prefix),
            PathSpecifier::Path(path) => StringMatch::Exact(path),
            PathSpecifier::SafeRegex(regex) => {
                let regex = full_match(&regex.regex);
                StringMatch::Regex(regex.map_err(|e| e.within("safe_regex"))?)
            }
            _ => return Err(Invalid::new("path_specifier", "is not supported")),
        };
        let mut headers = Vec::new();
        for (i, header) in message.headers.into_iter().enumerate() {
            let valid = HeaderMatch::validate(header);
            headers.push(valid.map_err(|e| e.within(&format!("headers[{i}]")))?);
        }
        let mut query = Vec::new();
        for (i, parameter) in message.query_parameters.into_iter().enumerate() {
            let valid = validate_query(parameter);
            query.push(valid.map_err(|e| e.within(&format!("query_parameters[{i}]")))?);
        }
        Ok(RouteMatch {
            path,
            headers,
            query,
        })
    }
}

fn validate_query(
    message: QueryParameterMatcher,
) -> Result<(String, Option<StringMatch>), Invalid> {
    super::named(&message.name)?;
    match message.query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(value)) => {
            let value = StringMatch::validate(value).map_err(|e| e.within("string_match"))?;
            Ok((message.name, Some(value)))
        }
        Some(QueryParameterMatchSpecifier::PresentMatch(true)) | None => Ok((message.name, None)),
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
            Err(Invalid::new("present_match", "must be true"))
        }
    }
}
