//! RouteConfigurations: a service's port, under its canonical name.

use std::collections::BTreeSet;
use std::time::Duration;

use leno_proto::pack;
use leno_proto::pb::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RetryPolicy, Route, RouteAction, RouteConfiguration,
    RouteMatch, VirtualHost, WeightedCluster,
    header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier,
    retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate},
    route,
    route_action::ClusterSpecifier,
    route_match::PathSpecifier,
    weighted_cluster::ClusterWeight,
};
use leno_proto::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use leno_proto::type_url::ROUTE;

use super::context::{LookupResult, cluster_name, present};
use super::wire;
use crate::mesh::Mesh;
use crate::mesh::route::{Match, Retries, Rule, StringMatch, Target};
use crate::mesh::service::Service;

/// The name of a port's RouteConfiguration.
pub(super) fn name(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

/// The RouteConfiguration `name`.
pub fn configuration(mesh: &Mesh, name: &str) -> LookupResult {
    let missing = || LookupResult::Missing(format!("there are no routes for {name}"));
    let Some((host, port)) = name.rsplit_once(':') else {
        return missing();
    };
    let (Some(service), Ok(port)) = (mesh.service(host), port.parse()) else {
        return missing();
    };
    let configuration = RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: name.to_owned(),
            // The Listener that leads here is one authority's own: whatever name it was dialled by is this host.
            domains: vec!["*".to_owned()],
            routes: routes(service, port),
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    present(ROUTE, &configuration)
}

/// Every cluster that a port's routes name.
pub(super) fn cluster_names(service: &Service, port: u16) -> BTreeSet<String> {
    match &service.routing {
        None => [cluster_name(port, None, &service.host)].into(),
        Some(routing) => {
            let targets = routing.rules.iter().flat_map(|rule| &rule.targets);
            targets.map(|target| target_cluster(target, port)).collect()
        }
    }
}

fn target_cluster(target: &Target, port: u16) -> String {
    cluster_name(
        target.port.unwrap_or(port),
        target.subset.as_deref(),
        &target.host,
    )
}

pub(super) fn routes(service: &Service, port: u16) -> Vec<Route> {
    match &service.routing {
        None => vec![default_route(service, port)],
        Some(routing) => routing
            .rules
            .iter()
            .flat_map(|rule| rule_routes(rule, port))
            .collect(),
    }
}

/// The route of a service without a VirtualService: it takes every request.
fn default_route(service: &Service, port: u16) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster_name(
            port,
            None,
            &service.host,
        ))),
        timeout: Some(wire::duration(Duration::ZERO)),
        retry_policy: retry(&Retries::Default),
        ..RouteAction::default()
    };
    Route {
        name: "default".to_owned(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::Route(action)),
        metadata: Some(wire::metadata(&[
            ("rule", &service.object),
            ("retries", retries_word(&Retries::Default)),
        ])),
        ..Route::default()
    }
}

/// The routes of a rule: one for each of its matches, all with the same action.
fn rule_routes(rule: &Rule, port: u16) -> Vec<Route> {
    let everything = [Match::default()];
    let matches = match rule.matches.is_empty() {
        true => &everything[..],
        false => &rule.matches,
    };
    let route = |matching: &Match| Route {
        name: rule.object.clone(),
        r#match: Some(route_match(matching)),
        action: Some(route::Action::Route(action(rule, port))),
        metadata: Some(wire::metadata(&[
            ("rule", &rule.object),
            ("file", &rule.file),
            ("retries", retries_word(&rule.retries)),
        ])),
        ..Route::default()
    };
    matches.iter().map(route).collect()
}

fn action(rule: &Rule, port: u16) -> RouteAction {
    let specifier = match rule.targets.as_slice() {
        [only] => ClusterSpecifier::Cluster(target_cluster(only, port)),
        several => {
            let weighted = several.iter().filter(|target| target.weight > 0);
            let clusters = weighted.map(|target| ClusterWeight {
                name: target_cluster(target, port),
                weight: Some(wire::number(target.weight)),
                ..ClusterWeight::default()
            });
            ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: clusters.collect(),
                ..WeightedCluster::default()
            })
        }
    };
    RouteAction {
        cluster_specifier: Some(specifier),
        // Envoy's own default is 15 s; Istio's is none.
        timeout: Some(wire::duration(rule.timeout.unwrap_or_default())),
        retry_policy: retry(&rule.retries),
        ..RouteAction::default()
    }
}

/// Value of `retries` in a route's metadata. `default`: our sidecars ignore `retry_on`, which is for other clients,
/// and retry only unsent or idempotent requests. Empty for other policies.
fn retries_word(retries: &Retries) -> &'static str {
    match retries {
        Retries::Default => "default",
        Retries::Never | Retries::Explicit(_) => "",
    }
}

/// Istio's default policy, or the configured one. Each try prefers an endpoint that wasn't tried.
fn retry(retries: &Retries) -> Option<RetryPolicy> {
    const DEFAULT: &str = "connect-failure,refused-stream,unavailable,cancelled";
    let previous = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack(
            &PreviousHostsPredicate::default(),
        ))),
    };
    let default = RetryPolicy {
        retry_on: DEFAULT.to_owned(),
        num_retries: Some(wire::number(2)),
        retry_host_predicate: vec![previous],
        host_selection_retry_max_attempts: 5,
        ..RetryPolicy::default()
    };
    let policy = match retries {
        Retries::Never => return None,
        Retries::Default => return Some(default),
        Retries::Explicit(policy) => policy,
    };
    let mut on = policy.on.clone();
    if !policy.codes.is_empty() && !on.iter().any(|name| name == "retriable-status-codes") {
        on.push("retriable-status-codes".to_owned());
    }
    let on = if on.is_empty() {
        DEFAULT.to_owned()
    } else {
        on.join(",")
    };
    Some(RetryPolicy {
        retry_on: on,
        num_retries: Some(wire::number(policy.attempts)),
        per_try_timeout: policy.per_try.map(wire::duration),
        retriable_status_codes: policy.codes.iter().map(|code| u32::from(*code)).collect(),
        retry_back_off: policy.backoff.map(|base| RetryBackOff {
            base_interval: Some(wire::duration(base)),
            max_interval: Some(wire::duration(base * 10)),
        }),
        ..default
    })
}

fn route_match(matching: &Match) -> RouteMatch {
    let path = match &matching.uri {
        Some(StringMatch::Exact(path)) => PathSpecifier::Path(path.clone()),
        Some(StringMatch::Regex(regex)) => PathSpecifier::SafeRegex(wire::regex(regex)),
        Some(StringMatch::Prefix(prefix)) => PathSpecifier::Prefix(prefix.clone()),
        _ => PathSpecifier::Prefix("/".to_owned()),
    };
    let method = matching
        .method
        .iter()
        .map(|method| header(":method", method));
    let headers = matching
        .headers
        .iter()
        .map(|(name, value)| header(name, value));
    let query = matching
        .query
        .iter()
        .map(|(name, value)| QueryParameterMatcher {
            name: name.clone(),
            query_parameter_match_specifier: Some(match wire::string(value) {
                Some(value) => QueryParameterMatchSpecifier::StringMatch(value),
                None => QueryParameterMatchSpecifier::PresentMatch(true),
            }),
        });
    RouteMatch {
        path_specifier: Some(path),
        headers: method.chain(headers).collect(),
        query_parameters: query.collect(),
        ..RouteMatch::default()
    }
}

/// A header matcher, as routes and policies use it.
pub(super) fn header(name: &str, value: &StringMatch) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(match wire::string(value) {
            Some(value) => HeaderMatchSpecifier::StringMatch(value),
            None => HeaderMatchSpecifier::PresentMatch(true),
        }),
        ..HeaderMatcher::default()
    }
}
