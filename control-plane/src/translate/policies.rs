//! AuthorizationPolicies as RBAC filters: one that denies, then those that allow, each of which must let a request
//! pass.

use std::collections::{BTreeMap, HashMap};

use leno_proto::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, permission, principal, rbac::Action,
};
use leno_proto::pb::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};

use super::{routes, wire};
use crate::mesh::policy::{AuthorizationPolicy, Operation, Source};
use crate::mesh::route::StringMatch;
use crate::mesh::selects;
use crate::mesh::workload::Fit;

/// The traffic that rules apply to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrafficKind {
    /// Requests.
    Http,
    /// TCP: as with Istio, the HTTP conditions of a DENY rule fall away, and an ALLOW rule with HTTP conditions never
    /// matches. It isn't sent: Envoy's network filter refuses rules with conditions that it can't evaluate.
    Tcp,
}

/// The filters of a workload's policies. Without an ALLOW policy everything that isn't denied passes.
///
/// A DENY that may be for it applies. An ALLOW that may be for it opens nothing, and closes where no other is surely
/// for it: only a request that each possible selection of them would allow passes. A selection holds with each policy
/// those that require fewer labels, so each selector that contains no other one is a filter of its own.
pub(super) fn filters<'a>(
    policies: impl Iterator<Item = (Fit, &'a AuthorizationPolicy)>,
    carried: TrafficKind,
) -> Vec<Rbac> {
    let (denying, allowing): (Vec<_>, Vec<_>) = policies.partition(|(_, policy)| policy.denies);
    let mut filters = Vec::new();
    if !denying.is_empty() {
        filters.push(rbac(Action::Deny, &denying, carried));
    }
    let sure: Vec<_> = allowing
        .iter()
        .copied()
        .filter(|(fit, _)| *fit == Fit::Yes)
        .collect();
    if !sure.is_empty() {
        filters.push(rbac(Action::Allow, &sure, carried));
        return filters;
    }
    let mut by_selector: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for possible in allowing {
        by_selector
            .entry(possible.1.selector.as_ref())
            .or_default()
            .push(possible);
    }
    for (selector, group) in &by_selector {
        let mut others = by_selector
            .keys()
            .filter(|other| *other != selector)
            .flatten();
        let is_least = !others.any(|other| selector.is_some_and(|own| selects(other, own)));
        if is_least {
            filters.push(rbac(Action::Allow, group, carried));
        }
    }
    filters
}

/// The filter that denies everything, for a client that refuses its policies.
pub(super) fn deny_all() -> Rbac {
    let policy = Policy {
        permissions: vec![any_permission()],
        principals: vec![any_principal()],
        ..Policy::default()
    };
    Rbac {
        action: Action::Deny.into(),
        policies: HashMap::from([(
            "closed: this client refuses its policies".to_owned(),
            policy,
        )]),
        ..Rbac::default()
    }
}

fn rbac(action: Action, policies: &[(Fit, &AuthorizationPolicy)], carried: TrafficKind) -> Rbac {
    let mut rules = HashMap::new();
    for (fit, policy) in policies {
        for (i, rule) in policy.rules.iter().enumerate() {
            // Istio's own naming, which people search for.
            let name = format!(
                "ns[{}]-policy[{}]-rule[{i}]{fit}",
                policy.namespace, policy.name
            );
            // All conditions of an operation are of HTTP.
            let is_of_http = !rule.to.is_empty();
            if is_of_http && carried == TrafficKind::Tcp && !policy.denies {
                continue;
            }
            let is_any = !is_of_http || carried == TrafficKind::Tcp;
            let permissions = match is_any {
                true => vec![any_permission()],
                false => rule.to.iter().map(permission).collect(),
            };
            let principals = match rule.from.is_empty() {
                true => vec![any_principal()],
                false => rule.from.iter().map(principal).collect(),
            };
            let policy = Policy {
                permissions,
                principals,
                ..Policy::default()
            };
            rules.insert(name, policy);
        }
    }
    Rbac {
        action: action.into(),
        policies: rules,
        ..Rbac::default()
    }
}

fn any_permission() -> Permission {
    rule(permission::Rule::Any(true))
}

fn rule(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn any_principal() -> Principal {
    identifier(principal::Identifier::Any(true))
}

fn identifier(identifier: principal::Identifier) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

/// The permission of an operation: everything that it names must match.
fn permission(operation: &Operation) -> Permission {
    let method =
        |method: &StringMatch| rule(permission::Rule::Header(routes::header(":method", method)));
    let path = |path: &StringMatch| match wire::string(path) {
        Some(path) => rule(permission::Rule::UrlPath(PathMatcher {
            rule: Some(path_matcher::Rule::Path(path)),
        })),
        None => any_permission(),
    };
    let one_of =
        |rules: Vec<Permission>| rule(permission::Rule::OrRules(permission::Set { rules }));
    let mut all = Vec::new();
    if !operation.methods.is_empty() {
        all.push(one_of(operation.methods.iter().map(method).collect()));
    }
    if !operation.paths.is_empty() {
        all.push(one_of(operation.paths.iter().map(path).collect()));
    }
    match all.is_empty() {
        true => any_permission(),
        false => rule(permission::Rule::AndRules(permission::Set { rules: all })),
    }
}

/// The principal of a source: everything that it names must match.
fn principal(source: &Source) -> Principal {
    let named = |name: &StringMatch| {
        identifier(principal::Identifier::Authenticated(
            principal::Authenticated {
                principal_name: wire::string(name),
            },
        ))
    };
    let one_of = |names: &[StringMatch]| {
        let ids = names.iter().map(named).collect();
        identifier(principal::Identifier::OrIds(principal::Set { ids }))
    };
    let given = [&source.principals, &source.namespaces];
    let ids: Vec<Principal> = given
        .into_iter()
        .filter(|names| !names.is_empty())
        .map(|names| one_of(names))
        .collect();
    match ids.is_empty() {
        true => any_principal(),
        false => identifier(principal::Identifier::AndIds(principal::Set { ids })),
    }
}
