//! `security.istio.io` AuthorizationPolicy.

use serde::Deserialize;

use super::Selector;

/// Who may do what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicy {
    /// Whom it is for.
    #[serde(default)]
    pub selector: Option<Selector>,
    /// What a match means.
    #[serde(default)]
    pub action: Action,
    /// Rules; any of them matches. Without rules nothing matches.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// What a match means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// The request passes.
    #[default]
    Allow,
    /// It doesn't.
    Deny,
}

/// One rule: a source and an operation must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Who; anyone when absent.
    #[serde(default)]
    pub from: Option<Vec<From>>,
    /// What; anything when absent.
    #[serde(default)]
    pub to: Option<Vec<To>>,
}

/// One source of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// The source.
    #[serde(default)]
    pub source: Source,
}

/// Who asks: everything that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// `cluster.local/ns/default/sa/name`, with `*` at either end.
    #[serde(default)]
    pub principals: Vec<String>,
    /// Namespaces, with `*` at either end.
    #[serde(default)]
    pub namespaces: Vec<String>,
}

/// One operation of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// The operation.
    #[serde(default)]
    pub operation: Operation,
}

/// What is asked for: everything that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    /// Methods.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Paths, with `*` at either end.
    #[serde(default)]
    pub paths: Vec<String>,
}
