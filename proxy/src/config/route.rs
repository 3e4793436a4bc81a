//! `envoy.config.route.v3.RouteConfiguration`.

use std::time::Duration;

use leno_proto::pb::envoy::config::route::v3::{
    QueryParameterMatcher, Route as RouteMessage, RouteAction, RouteConfiguration,
    RouteMatch as MatchMessage, VirtualHost as VirtualHostMessage,
    query_parameter_matcher::QueryParameterMatchSpecifier, route, route_action,
    route_match::PathSpecifier,
};

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
    /// Which rule of which object it comes from.
    pub rule: String,
    /// What requests it takes.
    pub matches: RouteMatch,
    /// Where they go: clusters by weight; at least one, not all zero.
    pub targets: Vec<(String, u32)>,
    /// How long a whole exchange may take; `None` is for ever.
    pub timeout: Option<Duration>,
}

/// What requests a route takes: everything must hold.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// The path, without the query.
    pub path: StringMatch,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters: name, and value where it matters.
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
    /// Validates a configuration that stands inside a Listener, where it needs no name.
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
        let (targets, timeout) = validate_action(action).map_err(|e| e.within("route"))?;
        Ok(Route {
            rule: rule.unwrap_or(message.name),
            matches: matches.map_err(|e| e.within("match"))?,
            targets,
            timeout,
        })
    }
}

type Action = (Vec<(String, u32)>, Option<Duration>);

fn validate_action(action: RouteAction) -> Result<Action, Invalid> {
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
        1..=0xffff_ffff => Ok((targets, timeout)),
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
