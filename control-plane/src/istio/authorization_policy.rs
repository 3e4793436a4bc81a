//! `security.istio.io` AuthorizationPolicy.

use serde::Deserialize;

use super::Selector;
use super::wildcard::{Wildcard, not_empty};

/// The spec of an AuthorizationPolicy: the requests that it allows or denies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Raw")]
pub struct AuthorizationPolicy {
    /// The workloads that it is for.
    pub selector: Option<Selector>,
    /// The action on a match.
    pub action: Action,
    /// Rules; any of them matches. Without rules nothing matches, and nothing is allowed.
    pub rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(
    rename = "AuthorizationPolicy",
    rename_all = "camelCase",
    deny_unknown_fields
)]
struct Raw {
    #[serde(default)]
    selector: Option<Selector>,
    #[serde(default)]
    action: Action,
    #[serde(default)]
    rules: Vec<Rule>,
}

impl TryFrom<Raw> for AuthorizationPolicy {
    type Error = String;

    fn try_from(raw: Raw) -> Result<AuthorizationPolicy, String> {
        if raw.action == Action::Deny && raw.rules.is_empty() {
            let text =
                "a DENY policy without rules denies nothing; `rules: [{}]` denies everything";
            return Err(text.to_owned());
        }
        Ok(AuthorizationPolicy {
            selector: raw.selector,
            action: raw.action,
            rules: raw.rules,
        })
    }
}

/// The action on a request that matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Allows the request.
    #[default]
    Allow,
    /// Denies the request.
    Deny,
}

/// One rule: a source and an operation must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Sources, any of which must match; any peer when absent.
    #[serde(default, deserialize_with = "not_empty")]
    pub from: Vec<From>,
    /// Operations, any of which must match; any request when absent.
    #[serde(default, deserialize_with = "not_empty")]
    pub to: Vec<To>,
}

/// One source of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// The source.
    pub source: Source,
}

/// Conditions on the peer: every list that is given must match.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawSource")]
pub struct Source {
    /// `cluster.local/ns/default/sa/name`.
    pub principals: Vec<Wildcard>,
    /// Namespaces.
    pub namespaces: Vec<Wildcard>,
}

#[derive(Debug, Deserialize)]
#[serde(rename = "Source", rename_all = "camelCase", deny_unknown_fields)]
struct RawSource {
    #[serde(default, deserialize_with = "not_empty")]
    principals: Vec<Wildcard>,
    #[serde(default, deserialize_with = "not_empty")]
    namespaces: Vec<Wildcard>,
}

impl TryFrom<RawSource> for Source {
    type Error = String;

    fn try_from(raw: RawSource) -> Result<Source, String> {
        if raw.principals.is_empty() && raw.namespaces.is_empty() {
            return Err("source is empty; leave `from` out to mean anyone".to_owned());
        }
        Ok(Source {
            principals: raw.principals,
            namespaces: raw.namespaces,
        })
    }
}

/// One operation of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// The operation.
    pub operation: Operation,
}

/// Conditions on the request: every list that is given must match.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawOperation")]
pub struct Operation {
    /// Methods.
    pub methods: Vec<Wildcard>,
    /// Paths.
    pub paths: Vec<Wildcard>,
}

#[derive(Debug, Deserialize)]
#[serde(rename = "Operation", rename_all = "camelCase", deny_unknown_fields)]
struct RawOperation {
    #[serde(default, deserialize_with = "not_empty")]
    methods: Vec<Wildcard>,
    #[serde(default, deserialize_with = "not_empty")]
    paths: Vec<Wildcard>,
}

impl TryFrom<RawOperation> for Operation {
    type Error = String;

    fn try_from(raw: RawOperation) -> Result<Operation, String> {
        if raw.methods.is_empty() && raw.paths.is_empty() {
            return Err("operation is empty; leave `to` out to mean anything".to_owned());
        }
        Ok(Operation {
            methods: raw.methods,
            paths: raw.paths,
        })
    }
}
