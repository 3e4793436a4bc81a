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
#[serde(try_from = "SaidRule")]
pub struct Rule {
    /// Who; anyone when absent.
    pub from: Option<Vec<From>>,
    /// What; anything when absent.
    pub to: Option<Vec<To>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SaidRule {
    from: Option<Vec<From>>,
    to: Option<Vec<To>>,
}

impl TryFrom<SaidRule> for Rule {
    type Error = String;

    /// A list that is there and empty would mean anyone, or anything: a template that renders to nothing must not open
    /// what it was written to close.
    fn try_from(said: SaidRule) -> Result<Rule, String> {
        let empty = |name: &str| Err(format!("{name} is empty; leave it out to mean any"));
        if said.from.as_ref().is_some_and(Vec::is_empty) {
            return empty("from");
        }
        if said.to.as_ref().is_some_and(Vec::is_empty) {
            return empty("to");
        }
        let mut sources = said.from.iter().flatten().map(|from| &from.source);
        if sources.any(|source| *source == Source::default()) {
            return empty("source");
        }
        let mut operations = said.to.iter().flatten().map(|to| &to.operation);
        if operations.any(|operation| *operation == Operation::default()) {
            return empty("operation");
        }
        let mut paths = said.to.iter().flatten().flat_map(|to| &to.operation.paths);
        match paths.find(|path| path.contains(['{', '}'])) {
            Some(path) => Err(format!("path {path:?}: templates are not supported yet")),
            None => Ok(Rule {
                from: said.from,
                to: said.to,
            }),
        }
    }
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
