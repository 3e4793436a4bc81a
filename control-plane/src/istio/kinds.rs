//! The kinds of objects, and the severity of those that aren't read: an error for one that may restrict access, a
//! notice for one without effect on access or routing.

use super::nearest::nearest;
use crate::object::{ClosedEffect, Severity};

/// Group of routing objects.
pub(super) const NETWORKING: &str = "networking.istio.io";
/// Group of security objects.
pub(super) const SECURITY: &str = "security.istio.io";

/// Kinds that restrict access.
pub(super) const SECURITY_KINDS: [&str; 3] = [
    "AuthorizationPolicy",
    "PeerAuthentication",
    "RequestAuthentication",
];

/// A kind that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Kind {
    Service,
    ServiceEntry,
    WorkloadEntry,
    VirtualService,
    DestinationRule,
    PeerAuthentication,
    AuthorizationPolicy,
}

/// The effect of an object of `kind` that isn't in force; `None` for a kind that doesn't restrict access.
pub(super) fn closed_by(kind: &str) -> Option<ClosedEffect> {
    match kind {
        "PeerAuthentication" => Some(ClosedEffect::Strict),
        "AuthorizationPolicy" | "RequestAuthentication" => Some(ClosedEffect::Deny),
        _ => None,
    }
}

/// The classification of an object by its `apiVersion` and `kind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Class {
    /// It is read.
    Read(Kind),
    /// A `List`: its items are read.
    List,
    /// It isn't read.
    Unread {
        severity: Severity,
        message: String,
        /// Its effect until it can be read.
        closed: Option<ClosedEffect>,
    },
}

/// Kinds that are known and not read, each with its severity and message.
const UNREAD: [(&str, &str, Severity, &str); 14] = [
    (
        SECURITY,
        "RequestAuthentication",
        Severity::Error,
        "RequestAuthentication is Istio's, and not supported yet by this version of Leno",
    ),
    (
        NETWORKING,
        "EnvoyFilter",
        Severity::Error,
        "EnvoyFilter is not supported: what it adds to Envoy's configuration, authorization among it, is not in force; use an \
         AuthorizationPolicy, a VirtualService or a DestinationRule",
    ),
    (
        "extensions.istio.io",
        "WasmPlugin",
        Severity::Error,
        "WasmPlugin is not supported: what the plugin would check is not checked; use an AuthorizationPolicy",
    ),
    (
        "extensions.istio.io",
        "TrafficExtension",
        Severity::Error,
        "TrafficExtension is not supported: what the extension would check is not checked; use an AuthorizationPolicy",
    ),
    (
        NETWORKING,
        "Gateway",
        Severity::Notice,
        "Gateway is Istio's, and not supported yet by this version of Leno",
    ),
    (
        NETWORKING,
        "ProxyConfig",
        Severity::Notice,
        "ProxyConfig is Istio's, and not used: a sidecar is set by its own flags",
    ),
    (
        NETWORKING,
        "Sidecar",
        Severity::Notice,
        "Sidecar is Istio's, and not supported: a sidecar learns of a host when it is first called",
    ),
    (
        NETWORKING,
        "WorkloadGroup",
        Severity::Notice,
        "WorkloadGroup is Istio's, and not supported yet: name each workload by a WorkloadEntry",
    ),
    (
        "telemetry.istio.io",
        "Telemetry",
        Severity::Notice,
        "Telemetry is Istio's, and not supported yet: a sidecar is set by its own flags",
    ),
    (
        "rbac.istio.io",
        "ServiceRole",
        Severity::Error,
        "Istio itself reads it no more: use an AuthorizationPolicy of security.istio.io/v1",
    ),
    (
        "rbac.istio.io",
        "ServiceRoleBinding",
        Severity::Error,
        "Istio itself reads it no more: use an AuthorizationPolicy of security.istio.io/v1",
    ),
    (
        "rbac.istio.io",
        "ClusterRbacConfig",
        Severity::Error,
        "Istio itself reads it no more: use an AuthorizationPolicy of security.istio.io/v1",
    ),
    (
        "authentication.istio.io",
        "Policy",
        Severity::Error,
        "Istio itself reads it no more: use a PeerAuthentication of security.istio.io/v1",
    ),
    (
        "authentication.istio.io",
        "MeshPolicy",
        Severity::Error,
        "Istio itself reads it no more: use a PeerAuthentication of security.istio.io/v1",
    ),
];

/// Kinds of Kubernetes' core group, of which `Service` is read.
const CORE: [&str; 18] = [
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "List",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "Service",
    "ServiceAccount",
];

/// The kinds that are read, each with its group and its versions.
const READ: [(&str, &str, &[&str], Kind); 7] = [
    ("", "Service", &["v1"], Kind::Service),
    (NETWORKING, "ServiceEntry", &V1, Kind::ServiceEntry),
    (NETWORKING, "WorkloadEntry", &V1, Kind::WorkloadEntry),
    (NETWORKING, "VirtualService", &V1, Kind::VirtualService),
    (NETWORKING, "DestinationRule", &V1, Kind::DestinationRule),
    (
        SECURITY,
        "PeerAuthentication",
        &V1BETA1,
        Kind::PeerAuthentication,
    ),
    (
        SECURITY,
        "AuthorizationPolicy",
        &V1BETA1,
        Kind::AuthorizationPolicy,
    ),
];
const V1: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];
const V1BETA1: [&str; 2] = ["v1", "v1beta1"];

/// The groups and kinds that Leno knows of, read or not.
fn known() -> impl Iterator<Item = (&'static str, &'static str)> {
    let read = READ.iter().map(|(group, kind, ..)| (*group, *kind));
    read.chain(UNREAD.iter().map(|(group, kind, ..)| (*group, *kind)))
}

/// Classifies an object by its `apiVersion` and `kind`, either of which may be missing.
pub(super) fn classify(api_version: Option<&str>, kind: Option<&str>) -> Class {
    let (api_version, kind) = match (api_version, kind) {
        (Some(version), Some(kind)) => (version, kind),
        (version, kind) => return classify_partial(version, kind),
    };
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if let Some((_, _, versions, known)) =
        (READ.iter()).find(|(g, k, ..)| (*g, *k) == (group, kind))
    {
        if versions.contains(&version) {
            return Class::Read(*known);
        }
        return error(not_read(api_version, kind), closed_by(kind));
    }
    // `kubectl get -o yaml` writes a List; the API's own lists are named after their kind.
    let listed = kind.strip_suffix("List");
    if (api_version, kind) == ("v1", "List")
        || listed.is_some_and(|kind| known().any(|known| known == (group, kind)))
    {
        return Class::List;
    }
    if let Some((_, _, severity, text)) =
        (UNREAD.iter()).find(|(g, k, ..)| (*g, *k) == (group, kind))
    {
        return Class::Unread {
            severity: *severity,
            message: (*text).to_owned(),
            closed: closed_by(kind).filter(|_| group == SECURITY),
        };
    }
    unknown(api_version, group, kind)
}

/// Classifies a document with only one of `apiVersion` and `kind`, as a chart's description and values may have.
fn classify_partial(api_version: Option<&str>, kind: Option<&str>) -> Class {
    let group = api_version.map(|version| version.rsplit_once('/').map_or("", |(group, _)| group));
    let groups = known().map(|(group, _)| group);
    let is_group = group.is_some_and(|group| !group.is_empty() && nearest(group, groups).is_some());
    let near = kind.and_then(|kind| nearest(kind, known().map(|(_, kind)| kind)));
    let closed = match (near, group) {
        (Some(kind), _) => closed_by(kind),
        (_, Some(group)) => {
            (nearest(group, [SECURITY].into_iter()).is_some()).then_some(ClosedEffect::Deny)
        }
        _ => None,
    };
    let missing = if api_version.is_none() {
        "apiVersion"
    } else {
        "kind"
    };
    Class::Unread {
        severity: match is_group || near.is_some() {
            true => Severity::Error,
            false => Severity::Notice,
        },
        message: format!("this is no object: {missing} is required"),
        closed,
    }
}

/// Classifies a kind that its group doesn't have, as far as Leno knows.
fn unknown(api_version: &str, group: &str, kind: &str) -> Class {
    if group.is_empty() && api_version != "v1" {
        return error(not_read(api_version, kind), closed_by(kind));
    }
    if group.is_empty() && CORE.contains(&kind) && kind != "List" {
        return not_used(api_version, kind);
    }
    let groups: Vec<&str> = known().map(|(group, _)| group).collect();
    if !groups.contains(&group) {
        // A misspelled group hides an object as much as a misspelled kind.
        let near = nearest(group, groups.iter().copied().filter(|g| !g.is_empty()));
        return match near {
            Some(near) => {
                let closed = (near == SECURITY).then(|| nearest_effect(kind));
                error(
                    format!("no such group {group}; the nearest is {near}"),
                    closed,
                )
            }
            None if is_lost(group, kind) => {
                error(not_read(api_version, kind), Some(nearest_effect(kind)))
            }
            None if group == "config.istio.io" => {
                let text = "Istio itself reads it no more: use an AuthorizationPolicy of security.istio.io/v1";
                error(text.to_owned(), None)
            }
            None => not_used(api_version, kind),
        };
    }
    if READ.iter().any(|(g, k, ..)| *g != group && *k == kind) {
        return error(not_read(api_version, kind), closed_by(kind));
    }
    let own = known().chain(CORE.iter().map(|kind| ("", *kind)));
    let own: Vec<&str> = own.filter(|(g, _)| *g == group).map(|(_, k)| k).collect();
    let near = match nearest(kind, own.iter().copied()) {
        Some(near) => format!("the nearest is {near}"),
        None => format!("there are {}", own.join(", ")),
    };
    let closed = (group == SECURITY).then(|| nearest_effect(kind));
    error(format!("{api_version} has no kind {kind}; {near}"), closed)
}

/// True for the name of a security kind, or nearly, in a group of no other project: without a domain, or Istio's.
fn is_lost(group: &str, kind: &str) -> bool {
    let is_foreign = group.contains('.') && !group.contains("istio.io");
    !is_foreign && nearest(kind, SECURITY_KINDS.into_iter()).is_some()
}

/// The effect of a security object of an unknown kind: that of the nearest known one, or else [`ClosedEffect::Deny`].
pub(super) fn nearest_effect(kind: &str) -> ClosedEffect {
    let near = nearest(kind, SECURITY_KINDS.into_iter());
    near.and_then(closed_by).unwrap_or(ClosedEffect::Deny)
}

fn error(message: String, closed: Option<ClosedEffect>) -> Class {
    Class::Unread {
        severity: Severity::Error,
        message,
        closed,
    }
}

fn not_used(api_version: &str, kind: &str) -> Class {
    Class::Unread {
        severity: Severity::Notice,
        message: format!("{api_version} {kind} is not used by Leno"),
        closed: None,
    }
}

fn not_read(api_version: &str, kind: &str) -> String {
    let of = READ.iter().find(|(_, k, ..)| *k == kind);
    let versions = of.map(|(group, _, versions, _)| {
        let full = |version: &&str| match group.is_empty() {
            true => (*version).to_owned(),
            false => format!("{group}/{version}"),
        };
        versions.iter().map(full).collect::<Vec<_>>().join(", ")
    });
    match versions {
        Some(versions) => format!("apiVersion {api_version:?} is not read; {versions} is"),
        None => format!("apiVersion {api_version:?} is not read"),
    }
}

/// Fields and values of Istio that this version of Leno doesn't read, by their type.
const UNSUPPORTED: [(&str, &[&str]); 19] = [
    ("VirtualService", &["gateways", "tls", "tcp", "exportTo"]),
    (
        "HTTPRoute",
        &[
            "redirect",
            "directResponse",
            "delegate",
            "rewrite",
            "fault",
            "mirror",
            "mirrors",
            "mirrorPercent",
            "mirrorPercentage",
            "corsPolicy",
            "headers",
        ],
    ),
    (
        "HTTPMatchRequest",
        &[
            "scheme",
            "authority",
            "port",
            "sourceLabels",
            "gateways",
            "ignoreUriCase",
            "withoutHeaders",
            "sourceNamespace",
            "statPrefix",
        ],
    ),
    ("HTTPRouteDestination", &["headers"]),
    ("DestinationRule", &["exportTo", "workloadSelector"]),
    (
        "TrafficPolicy",
        &[
            "tls",
            "portLevelSettings",
            "tunnel",
            "proxyProtocol",
            "retryBudget",
        ],
    ),
    (
        "LoadBalancerSettings",
        &[
            "consistentHash",
            "localityLbSetting",
            "warmup",
            "warmupDurationSecs",
        ],
    ),
    ("TCPSettings", &["maxConnectionDuration", "idleTimeout"]),
    ("HTTPSettings", &["maxConcurrentStreams"]),
    ("ServiceEntry", &["exportTo", "subjectAltNames"]),
    ("WorkloadEntry", &["network", "locality"]),
    (
        "AuthorizationPolicy",
        &["targetRef", "targetRefs", "provider"],
    ),
    ("Rule", &["when"]),
    (
        "Source",
        &[
            "notPrincipals",
            "requestPrincipals",
            "notRequestPrincipals",
            "notNamespaces",
            "ipBlocks",
            "notIpBlocks",
            "remoteIpBlocks",
            "notRemoteIpBlocks",
            "serviceAccounts",
            "notServiceAccounts",
        ],
    ),
    (
        "Operation",
        &[
            "hosts",
            "notHosts",
            "ports",
            "notPorts",
            "notMethods",
            "notPaths",
        ],
    ),
    ("Action", &["AUDIT", "CUSTOM"]),
    ("SimpleLB", &["PASSTHROUGH"]),
    ("Resolution", &["DNS_ROUND_ROBIN", "DYNAMIC_DNS"]),
    ("WorkloadSelector", &["matchLabels"]),
];

/// True for a field, or a value, that Istio's type `owner` has and this version of Leno doesn't read.
pub(super) fn is_unsupported(owner: &str, name: &str) -> bool {
    let of = UNSUPPORTED.iter().find(|(of, _)| *of == owner);
    of.is_some_and(|(_, names)| names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// apiVersion, kind, severity, effect, words of the message.
    const TABLE: &str = "\
security.istio.io/v1 AuthorisationPolicy error deny nearest is AuthorizationPolicy
security.istio.io/v1 Authorizationpolicy error deny nearest is AuthorizationPolicy
security.istio.io/v1 PeerAuthenticaton error strict nearest is PeerAuthentication
security.istio.io/v1 Fence error deny there are
security.istio.io/v1 RequestAuthentication error deny not supported yet
security.istio.io/v2 AuthorizationPolicy error deny security.istio.io/v1
v1 AuthorizationPolicy error deny security.istio.io/v1
v2 PeerAuthentication error strict security.istio.io/v1
security.istio.oi/v1 AuthorizationPolicy error deny nearest is security.istio.io
Security.istio.io/v1 PeerAuthentication error strict nearest is security.istio.io
networking.istio.io/v1 AuthorizationPolicy error deny security.istio.io/v1
networking.istio.io/v1 VirtualServices error - nearest is VirtualService
networking.istio.io/v1 EnvoyFilter error - AuthorizationPolicy
networking.istio.io/v1 Gateway notice - not supported yet
networking.istio/v1 VirtualService error - nearest is networking.istio.io
extensions.istio.io/v1alpha1 WasmPlugin error - AuthorizationPolicy
telemetry.istio.io/v1 Telemetry notice - not supported yet
rbac.istio.io/v1alpha1 ServiceRole error - AuthorizationPolicy
v1 Servise error - nearest is Service
v1 ConfigMap notice - not used
apps/v1 Deployment notice - not used
serving.knative.dev/v1 Service notice - not used
policy.linkerd.io/v1alpha1 AuthorizationPolicy notice - not used
istio.io/v1 AuthorizationPolicy error deny security.istio.io/v1
security/v1 PeerAuthentication error strict security.istio.io/v1
v1/security.istio.io AuthorizationPolicy error deny security.istio.io/v1
config.istio.io/v1alpha2 rule error - AuthorizationPolicy
example.com/v1 Sidecar notice - not used
networking.k8s.io/v1 NetworkPolicy notice - not used
gateway.networking.k8s.io/v1 HTTPRoute notice - not used
";

    #[test]
    fn what_is_not_read_is_an_error_where_it_may_protect_and_a_notice_elsewhere() {
        for line in TABLE.lines() {
            let mut words = line.splitn(5, ' ');
            let mut next = || words.next().expect("five columns");
            let (api_version, kind, severity, closes, text) =
                (next(), next(), next(), next(), next());
            let Class::Unread {
                severity: own,
                message,
                closed,
            } = classify(Some(api_version), Some(kind))
            else {
                panic!("{line}: it is read");
            };
            let own = match own {
                Severity::Error => "error",
                _ => "notice",
            };
            let closed = match closed {
                Some(ClosedEffect::Deny) => "deny",
                Some(ClosedEffect::Strict) => "strict",
                None => "-",
            };
            assert_eq!((own, closed), (severity, closes), "{line}");
            assert!(message.contains(text), "{line}: {message}");
        }
    }

    #[test]
    fn lists_are_of_kinds_that_are_read_or_known() {
        for (api_version, kind) in [
            ("v1", "List"),
            ("networking.istio.io/v1", "VirtualServiceList"),
            ("security.istio.io/v1", "AuthorizationPolicyList"),
            ("networking.istio.io/v1", "GatewayList"),
        ] {
            assert_eq!(
                classify(Some(api_version), Some(kind)),
                Class::List,
                "{kind}"
            );
        }
    }

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["timeout", "retries", "route"];
        for (name, near) in [
            ("timeouts", Some("timeout")),
            ("Timeout", Some("timeout")),
            ("retrys", Some("retries")),
            ("rout", Some("route")),
            ("mirror", None),
            ("x", None),
        ] {
            assert_eq!(nearest(name, known.into_iter()), near, "{name}");
        }
    }
}
