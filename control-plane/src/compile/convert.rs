//! Istio's types as the mesh's: pure conversions that [`super::compile`] puts together.

use std::collections::BTreeMap;

use crate::istio::Object;
use crate::istio::destination_rule::{self as dr, SimpleLb};
use crate::istio::peer_authentication::Mode as IstioMode;
use crate::istio::virtual_service as vs;
use crate::istio::wildcard::Wildcard;
use crate::mesh::policy::Mode;
use crate::mesh::route::{
    Balance, HttpVersion, Keepalive, Match, OutlierDetection, Policy, Retries, RetryPolicy, Rule,
    StringMatch, Target,
};
use crate::mesh::service::PortProtocol;

/// The protocol of a port, by Istio's names: the prefix up to a dash, or the whole. Without a known name it is detected
/// from the first bytes.
pub(super) fn protocol(name: &str) -> PortProtocol {
    // Kubernetes' own values of `appProtocol`.
    match name {
        "kubernetes.io/h2c" => return PortProtocol::Http2,
        "kubernetes.io/ws" => return PortProtocol::Http,
        _ => {}
    }
    let word = name
        .split('-')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match word.as_str() {
        "tcp" | "tls" | "https" | "mongo" | "mysql" | "redis" | "udp" => PortProtocol::Tcp,
        "http" => PortProtocol::Http,
        "http2" | "grpc" => PortProtocol::Http2,
        _ => PortProtocol::Auto,
    }
}

/// Qualifies a short host in a rule by the rule's namespace.
pub(super) fn qualified(host: &str, namespace: &str) -> String {
    match host.contains('.') {
        true => host.to_owned(),
        false => format!("{host}.{namespace}.svc.cluster.local"),
    }
}

pub(super) fn rule(object: &Object, index: usize, spec: &vs::HttpRoute) -> Result<Rule, String> {
    if spec.route.is_empty() {
        return Err("route is required".to_owned());
    }
    let lone = spec.route.len() == 1;
    let target = |route: &vs::RouteDestination| Target {
        host: qualified(&route.destination.host.0, &object.key.namespace),
        subset: route.destination.subset.clone(),
        port: route.destination.port.map(|port| port.number.0),
        // A lone destination's weight doesn't matter; among several, one without a weight gets nothing, as in Istio.
        weight: match (lone, route.weight) {
            (true, _) => 1,
            (false, weight) => weight.map_or(0, |weight| weight.0),
        },
    };
    let targets: Vec<Target> = spec.route.iter().map(target).collect();
    if targets.iter().all(|target| target.weight == 0) {
        return Err("the weights add up to 0".to_owned());
    }
    let name = match spec.name.is_empty() {
        true => String::new(),
        false => format!(" ({})", spec.name),
    };
    Ok(Rule {
        object: format!("{} http[{index}]{name}", object.key),
        file: object.origin.name_and_line(),
        matches: spec
            .matches
            .iter()
            .map(http_match)
            .collect::<Result<_, _>>()?,
        targets,
        timeout: spec
            .timeout
            .map(|timeout| timeout.0)
            .filter(|timeout| !timeout.is_zero()),
        retries: retries(spec.retries.as_ref()),
    })
}

/// Retries of a route. `retries: {}`, and anything without `attempts`, turns them off, as with Istio.
fn retries(spec: Option<&vs::HttpRetry>) -> Retries {
    let Some(spec) = spec else {
        return Retries::Default;
    };
    if spec.attempts == 0 {
        return Retries::Never;
    }
    let on = spec.retry_on.clone().unwrap_or_default();
    Retries::Explicit(RetryPolicy {
        attempts: spec.attempts,
        per_try: spec.per_try_timeout.map(|time| time.0),
        on: on.names,
        codes: on.codes,
        backoff: spec.backoff.map(|time| time.0),
    })
}

fn http_match(spec: &vs::HttpMatch) -> Result<Match, String> {
    let convert = |spec: &vs::StringMatch| match spec {
        vs::StringMatch::Exact(text) => StringMatch::Exact(text.clone()),
        vs::StringMatch::Prefix(text) => StringMatch::Prefix(text.clone()),
        vs::StringMatch::Regex(text) => StringMatch::Regex(text.clone()),
        vs::StringMatch::Present => StringMatch::Present,
    };
    let part = |name: &str, spec: &Option<vs::StringMatch>| match spec {
        Some(vs::StringMatch::Present) => Err(format!("match.{name} needs exact, prefix or regex")),
        other => Ok(other.as_ref().map(convert)),
    };
    let all = |spec: &BTreeMap<String, vs::StringMatch>, lower: bool| {
        let name = |name: &String| {
            if lower {
                name.to_ascii_lowercase()
            } else {
                name.clone()
            }
        };
        spec.iter()
            .map(|(n, value)| (name(n), convert(value)))
            .collect()
    };
    Ok(Match {
        uri: part("uri", &spec.uri)?,
        method: part("method", &spec.method)?,
        headers: all(&spec.headers, true),
        query: all(&spec.query_params, false),
    })
}

/// A traffic policy; the blocks that a subset leaves out are its host's.
pub(super) fn policy(spec: Option<&dr::TrafficPolicy>, host: Option<&Policy>) -> Policy {
    let mut policy = host.cloned().unwrap_or_default();
    let Some(spec) = spec else {
        return policy;
    };
    if let Some(balancer) = spec.load_balancer {
        policy.balance = match balancer.simple {
            SimpleLb::LeastRequest => Balance::LeastRequest,
            SimpleLb::RoundRobin => Balance::RoundRobin,
            SimpleLb::Random => Balance::Random,
        };
    }
    if let Some(pool) = &spec.connection_pool {
        let (tcp, http) = (
            pool.tcp.clone().unwrap_or_default(),
            pool.http.clone().unwrap_or_default(),
        );
        // 0 always means the default.
        let limit = |limit: Option<u32>| limit.filter(|limit| *limit > 0);
        policy.connect_timeout = tcp.connect_timeout.map(|timeout| timeout.0);
        policy.max_connections = limit(tcp.max_connections);
        policy.max_pending_requests = limit(http.http1_max_pending_requests);
        policy.max_requests = limit(http.http2_max_requests);
        policy.max_retries = limit(http.max_retries);
        policy.max_requests_per_connection = limit(http.max_requests_per_connection);
        policy.idle_timeout = http.idle_timeout.map(|time| time.0);
        policy.version = match (http.use_client_protocol, http.h2_upgrade_policy) {
            (true, _) => HttpVersion::Client,
            (false, dr::H2UpgradePolicy::Upgrade) => HttpVersion::Upgraded,
            (false, _) => HttpVersion::Port,
        };
        policy.keepalive = tcp.tcp_keepalive.map(|spec| Keepalive {
            probes: spec.probes,
            time: spec.time.map(|time| time.0),
            interval: spec.interval.map(|time| time.0),
        });
    }
    if let Some(spec) = &spec.outlier_detection {
        policy.ejection = Some(OutlierDetection {
            consecutive_5xx: spec.consecutive_5xx_errors,
            consecutive_gateway: spec.consecutive_gateway_errors,
            interval: spec.interval.map(|period| period.0),
            base_time: spec.base_ejection_time.map(|period| period.0),
            max_percent: spec.max_ejection_percent,
            consecutive_local: spec.consecutive_local_origin_failures,
            split: spec.split_external_local_origin_errors,
        });
    }
    policy
}

pub(super) fn mode(istio: IstioMode) -> Mode {
    match istio {
        IstioMode::Unset => Mode::Unset,
        IstioMode::Disable => Mode::Disable,
        IstioMode::Permissive => Mode::Permissive,
        IstioMode::Strict => Mode::Strict,
    }
}

/// A string of a rule.
pub(super) fn wildcard(pattern: &Wildcard) -> StringMatch {
    match pattern {
        Wildcard::Present => StringMatch::Present,
        Wildcard::Exact(text) => StringMatch::Exact(text.clone()),
        Wildcard::Prefix(text) => StringMatch::Prefix(text.clone()),
        Wildcard::Suffix(text) => StringMatch::Suffix(text.clone()),
    }
}

/// Istio's alias of the mesh's own trust domain.
const OWN_DOMAIN: &str = "cluster.local";

/// A principal as a match on the whole SPIFFE ID, of which `spiffe://` is no part that a suffix may reach into. As with
/// Istio, `cluster.local` is the mesh's own trust domain where all five parts are named.
pub(super) fn principal(pattern: &Wildcard, domain: &str) -> StringMatch {
    let own = |text: &str| match text.split_once('/') {
        Some((OWN_DOMAIN, rest)) if rest.matches('/').count() == 3 => format!("{domain}/{rest}"),
        _ => text.to_owned(),
    };
    match pattern {
        Wildcard::Present => StringMatch::Present,
        Wildcard::Exact(text) => StringMatch::Exact(format!("spiffe://{}", own(text))),
        Wildcard::Prefix(text) => StringMatch::Prefix(format!("spiffe://{}", own(text))),
        // With at most four slashes it begins within the trust domain, not in the scheme.
        Wildcard::Suffix(text) if text.matches('/').count() <= 4 => {
            StringMatch::Suffix(text.clone())
        }
        Wildcard::Suffix(text) => StringMatch::Regex(format!("spiffe://.*{}", regex::escape(text))),
    }
}

/// The trust domain that a principal names, if it is another than the mesh's: no peer of it passes the handshake.
pub(super) fn foreign_domain<'a>(pattern: &'a Wildcard, domain: &str) -> Option<&'a str> {
    let is_own = |named: &str, rest: &str| {
        named == domain || (named == OWN_DOMAIN && rest.matches('/').count() == 3)
    };
    match pattern {
        Wildcard::Present => None,
        Wildcard::Exact(text) | Wildcard::Prefix(text) => match text.split_once('/') {
            Some((named, rest)) => (!is_own(named, rest)).then_some(named),
            None => (!domain.starts_with(text.as_str())).then_some(text),
        },
        // With all five parts its first is the end of a trust domain.
        Wildcard::Suffix(text) if text.matches('/').count() == 4 => {
            let (named, _) = text.split_once('/')?;
            (!domain.ends_with(named)).then_some(named)
        }
        Wildcard::Suffix(_) => None,
    }
}

/// A namespace, as a match on the whole identity. A star may stand anywhere in it, as with Istio.
pub(super) fn namespace_match(pattern: &Wildcard, domain: &str) -> StringMatch {
    let domain = regex::escape(domain);
    let inner = |text: &str| {
        text.split('*')
            .map(regex::escape)
            .collect::<Vec<_>>()
            .join("[^/]*")
    };
    let part = match pattern {
        Wildcard::Exact(text) => inner(text),
        Wildcard::Prefix(text) => format!("{}[^/]*", inner(text)),
        Wildcard::Suffix(text) => format!("[^/]*{}", inner(text)),
        Wildcard::Present => "[^/]+".to_owned(),
    };
    StringMatch::Regex(format!("spiffe://{domain}/ns/{part}/sa/[^/]+"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_a_namespace_stands_for_anything_in_it() {
        for (pattern, matches, differs) in [
            ("shop", "shop", "shops"),
            ("sh*", "shop", "a-shop"),
            ("s*p", "shop", "shops"),
            ("*ho*", "shop", "hip"),
        ] {
            let pattern = Wildcard::try_from(pattern.to_owned()).expect("one");
            let StringMatch::Regex(regex) = namespace_match(&pattern, "corp") else {
                panic!("{pattern:?}");
            };
            let regex = regex::Regex::new(&format!("^(?:{regex})$")).expect("a pattern");
            let of =
                |namespace: &str| regex.is_match(&format!("spiffe://corp/ns/{namespace}/sa/a"));
            assert!(of(matches) && !of(differs), "{pattern:?}");
        }
    }

    #[test]
    fn a_suffix_does_not_reach_into_the_scheme() {
        let of = |text: &str| principal(&Wildcard::try_from(text.to_owned()).expect("one"), "corp");
        let id = "spiffe://corp/ns/a/sa/b";
        for (text, matches) in [
            ("*/sa/b", true),
            ("*orp/ns/a/sa/b", true),
            ("*/corp/ns/a/sa/b", false),
            ("*//corp/ns/a/sa/b", false),
            ("*spiffe://corp/ns/a/sa/b", false),
        ] {
            let is_match = match of(text) {
                StringMatch::Suffix(suffix) => id.ends_with(&suffix),
                StringMatch::Regex(pattern) => {
                    let pattern = format!("^(?:{pattern})$");
                    regex::Regex::new(&pattern).expect("a pattern").is_match(id)
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(is_match, matches, "{text}");
        }
    }

    #[test]
    fn cluster_local_is_the_meshs_own_trust_domain() {
        let read = |text: &str| Wildcard::try_from(text.to_owned()).expect("one");
        for (pattern, whole, foreign) in [
            ("cluster.local/ns/a/sa/b", "spiffe://corp/ns/a/sa/b", None),
            ("corp/ns/a/*", "spiffe://corp/ns/a/", None),
            ("cluster.local/ns/a/sa/*", "spiffe://corp/ns/a/sa/", None),
            (
                "cluster.local/ns/a/*",
                "spiffe://cluster.local/ns/a/",
                Some("cluster.local"),
            ),
            (
                "cluster.local/*",
                "spiffe://cluster.local/",
                Some("cluster.local"),
            ),
            ("cluster*", "spiffe://cluster", Some("cluster")),
            ("co*", "spiffe://co", None),
            ("*rp/ns/a/sa/b", "rp/ns/a/sa/b", None),
            (
                "*cluster.local/ns/a/sa/b",
                "cluster.local/ns/a/sa/b",
                Some("cluster.local"),
            ),
            ("*/sa/b", "/sa/b", None),
            ("other/ns/a/sa/b", "spiffe://other/ns/a/sa/b", Some("other")),
        ] {
            let got = match principal(&read(pattern), "corp") {
                StringMatch::Exact(text)
                | StringMatch::Prefix(text)
                | StringMatch::Suffix(text) => text,
                other => panic!("{other:?}"),
            };
            assert_eq!(
                (got.as_str(), foreign_domain(&read(pattern), "corp")),
                (whole, foreign)
            );
        }
    }
}
