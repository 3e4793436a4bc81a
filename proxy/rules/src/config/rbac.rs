//! `envoy.config.rbac.v3.RBAC`: an AuthorizationPolicy on the wire.

use leno_proto::pb::envoy::config::rbac::v3::{
    Permission as PermissionMessage, Principal as PrincipalMessage, Rbac as RbacMessage,
    permission, principal, rbac::Action as ActionMessage,
};
use leno_proto::pb::envoy::r#type::matcher::v3::path_matcher;

use super::Invalid;
use super::matching::{HeaderMatch, StringMatch};

/// Action on a request that a policy matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Allows it; a request that no policy matches is denied.
    Allow,
    /// Denies it; a request that no policy matches is allowed.
    Deny,
}

/// A set of policies with one action.
#[derive(Debug, Clone)]
pub struct Rbac {
    /// Action on a match.
    pub action: Action,
    /// Policies, sorted by name.
    pub policies: Vec<Policy>,
}

/// One rule: it matches when one of its permissions and one of its principals do.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Object and rule that it comes from.
    pub name: String,
    /// Conditions on the request; one must match.
    pub permissions: Vec<Permission>,
    /// Conditions on the client; one must match.
    pub principals: Vec<Principal>,
}

/// Condition on a request.
#[derive(Debug, Clone)]
pub enum Permission {
    /// Any request.
    Any,
    /// All of these.
    All(Vec<Permission>),
    /// At least one of these.
    One(Vec<Permission>),
    /// A header, or pseudo-header such as `:method`.
    Header(HeaderMatch),
    /// The path, without the query.
    Path(StringMatch),
}

/// Condition on the client.
#[derive(Debug, Clone)]
pub enum Principal {
    /// Any client.
    Any,
    /// All of these.
    All(Vec<Principal>),
    /// At least one of these.
    One(Vec<Principal>),
    /// A client that mutual TLS authenticated, with a matching identity if one is given.
    Authenticated(Option<StringMatch>),
}

impl Rbac {
    pub(super) fn validate(message: RbacMessage) -> Result<Rbac, Invalid> {
        let action = match ActionMessage::try_from(message.action) {
            Ok(ActionMessage::Allow) => Action::Allow,
            Ok(ActionMessage::Deny) => Action::Deny,
            _ => return Err(Invalid::new("action", "must be ALLOW or DENY")),
        };
        let mut policies = Vec::new();
        for (name, policy) in message.policies {
            let field = format!("policies[{name}]");
            let permissions = convert(policy.permissions, "permissions", permission);
            let principals = convert(policy.principals, "principals", principal);
            policies.push(Policy {
                permissions: permissions.map_err(|e| e.within(&field))?,
                principals: principals.map_err(|e| e.within(&field))?,
                name,
            });
        }
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Rbac { action, policies })
    }
}

/// Converts a list that must not be empty.
fn convert<M, T>(
    messages: Vec<M>,
    field: &str,
    each: fn(M) -> Result<T, Invalid>,
) -> Result<Vec<T>, Invalid> {
    if messages.is_empty() {
        return Err(Invalid::new(field, "is required"));
    }
    let mut out = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        out.push(each(message).map_err(|e| e.within(&format!("{field}[{i}]")))?);
    }
    Ok(out)
}

/// Unwraps a list of one, so that each request evaluates its element directly, unless it has to stay in its list.
fn only<T>(mut list: Vec<T>, stays: fn(&T) -> bool) -> Result<T, Vec<T>> {
    match list.pop_if(|only| !stays(only)) {
        Some(only) if list.is_empty() => Ok(only),
        last => {
            list.extend(last);
            Err(list)
        }
    }
}

/// True for `Any`, which stays in its list: a list is a rule on HTTP, and a connection without HTTP doesn't match it.
fn is_any(permission: &Permission) -> bool {
    matches!(permission, Permission::Any)
}

fn permission(message: PermissionMessage) -> Result<Permission, Invalid> {
    use permission::Rule as R;
    match super::required(message.rule, "rule")? {
        R::Any(true) => Ok(Permission::Any),
        R::AndRules(set) => {
            let all = convert(set.rules, "and_rules", permission)?;
            Ok(only(all, is_any).unwrap_or_else(Permission::All))
        }
        R::OrRules(set) => {
            let one = convert(set.rules, "or_rules", permission)?;
            Ok(only(one, is_any).unwrap_or_else(Permission::One))
        }
        R::Header(header) => {
            let header = HeaderMatch::validate(header).map_err(|e| e.within("header"))?;
            Ok(Permission::Header(header))
        }
        R::UrlPath(matcher) => match super::required(matcher.rule, "url_path")? {
            path_matcher::Rule::Path(path) => {
                let path = StringMatch::validate(path).map_err(|e| e.within("url_path.path"))?;
                Ok(Permission::Path(path))
            }
        },
        _ => Err(Invalid::new("rule", "is not supported")),
    }
}

fn principal(message: PrincipalMessage) -> Result<Principal, Invalid> {
    use principal::Identifier as I;
    match super::required(message.identifier, "identifier")? {
        I::Any(true) => Ok(Principal::Any),
        I::AndIds(set) => {
            let all = convert(set.ids, "and_ids", principal)?;
            Ok(only(all, |_| false).unwrap_or_else(Principal::All))
        }
        I::OrIds(set) => {
            let one = convert(set.ids, "or_ids", principal)?;
            Ok(only(one, |_| false).unwrap_or_else(Principal::One))
        }
        I::Authenticated(authenticated) => {
            let name = authenticated.principal_name.map(StringMatch::validate);
            let name = name.transpose().map_err(|e| e.within("principal_name"))?;
            Ok(Principal::Authenticated(name))
        }
        _ => Err(Invalid::new("identifier", "is not supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_one_is_that_one_unless_it_asks_http_for_anything() {
        use leno_proto::pb::envoy::config::rbac::v3::permission::{Rule, Set};
        let message = |rule| PermissionMessage { rule: Some(rule) };
        let all = |rules| message(Rule::AndRules(Set { rules }));
        let one = |rules| message(Rule::OrRules(Set { rules }));
        let any = || message(Rule::Any(true));
        let shape = |message| permission(message).map(|valid| format!("{valid:?}"));
        for (message, expected) in [
            (any(), "Any"),
            (all(vec![any()]), "All([Any])"),
            (all(vec![one(vec![any()])]), "One([Any])"),
            (all(vec![one(vec![any(), any()])]), "One([Any, Any])"),
        ] {
            assert_eq!(shape(message).expect("valid"), expected);
        }
    }
}
