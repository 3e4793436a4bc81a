//! Authorization of requests: RBAC policies, DENY before ALLOW; pure.

use crate::config::rbac::{Action, Permission, Policy, Principal, Rbac};
use crate::route::matcher::{RequestView, header_matches};

/// Decision of the policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// The request may pass.
    Allowed,
    /// Denied by the rule of this name in a DENY policy.
    DeniedBy(&'a str),
    /// An ALLOW policy has no rule that matches; the name of its rule that came nearest, if it has any.
    NotAllowed(Option<&'a str>),
}

/// The authenticated identity of the peer.
#[derive(Debug, Clone, Copy)]
pub struct PeerIdentity<'a> {
    /// Its SPIFFE ID, when it connected by mutual TLS.
    pub principal: Option<&'a str>,
}

/// Evaluates the policies on a request: no DENY policy may match, then every ALLOW policy must.
pub fn authorize<'a>(
    policies: &'a [Rbac],
    caller: PeerIdentity<'_>,
    request: &RequestView<'_>,
) -> Decision<'a> {
    let of = |action| policies.iter().filter(move |rbac| rbac.action == action);
    let asks = |policy: &Policy| policy.permissions.iter().any(|p| permits(p, request));
    let holds = |policy: &&Policy| asks(policy) && is_one(&policy.principals, caller);
    for rbac in of(Action::Deny) {
        if let Some(policy) = rbac.policies.iter().find(holds) {
            return Decision::DeniedBy(&policy.name);
        }
    }
    for rbac in of(Action::Allow) {
        if !rbac.policies.iter().any(|policy| holds(&policy)) {
            let near = rbac.policies.iter().find(|policy| asks(policy));
            return Decision::NotAllowed(near.or(rbac.policies.first()).map(|p| p.name.as_str()));
        }
    }
    Decision::Allowed
}

/// Evaluates the policies on a connection that carries no HTTP. Rules about HTTP never allow it; in a DENY policy their
/// conditions on HTTP count as met.
pub fn authorize_tcp<'a>(policies: &'a [Rbac], caller: PeerIdentity<'_>) -> Decision<'a> {
    let of = |action| policies.iter().filter(move |rbac| rbac.action == action);
    let asks = |policy: &Policy| {
        policy
            .permissions
            .iter()
            .any(|p| matches!(p, Permission::Any))
    };
    let mut denying = of(Action::Deny).flat_map(|rbac| &rbac.policies);
    if let Some(policy) = denying.find(|policy| is_one(&policy.principals, caller)) {
        return Decision::DeniedBy(&policy.name);
    }
    let holds = |policy: &Policy| asks(policy) && is_one(&policy.principals, caller);
    match of(Action::Allow).find(|rbac| !rbac.policies.iter().any(holds)) {
        None => Decision::Allowed,
        Some(rbac) => Decision::NotAllowed(rbac.policies.first().map(|p| p.name.as_str())),
    }
}

fn is_one(principals: &[Principal], caller: PeerIdentity<'_>) -> bool {
    principals.iter().any(|principal| is(principal, caller))
}

fn permits(permission: &Permission, request: &RequestView<'_>) -> bool {
    match permission {
        Permission::Any => true,
        Permission::All(all) => all.iter().all(|p| permits(p, request)),
        Permission::One(one) => one.iter().any(|p| permits(p, request)),
        Permission::Header(header) => header_matches(header, request),
        Permission::Path(path) => path.matches(request.path),
    }
}

fn is(principal: &Principal, caller: PeerIdentity<'_>) -> bool {
    match principal {
        Principal::Any => true,
        Principal::All(all) => all.iter().all(|p| is(p, caller)),
        Principal::One(one) => one.iter().any(|p| is(p, caller)),
        Principal::Authenticated(name) => caller.principal.is_some_and(|id| {
            let matches = |m: &crate::config::matching::StringMatch| m.matches(id.as_bytes());
            name.as_ref().is_none_or(matches)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::matching::{HeaderMatch, StringMatch, Subject};
    use leno_http::head::Head;

    const ORDER: &str = "spiffe://cluster.local/ns/default/sa/order-service";

    fn method(name: &str) -> Permission {
        Permission::Header(HeaderMatch {
            subject: Subject::Method,
            value: Some(StringMatch::Exact(name.to_owned())),
            invert: false,
        })
    }

    fn rbac(action: Action, permission: Permission, principal: Principal) -> Rbac {
        let policy = Policy {
            name: "rule".to_owned(),
            permissions: vec![permission],
            principals: vec![principal],
        };
        Rbac {
            action,
            policies: vec![policy],
        }
    }

    fn order() -> Principal {
        Principal::Authenticated(Some(StringMatch::Exact(ORDER.to_owned())))
    }

    /// The policy of the guide: only order-service, GET, /users/*.
    fn guide() -> Rbac {
        let path = Permission::Path(StringMatch::Prefix("/users/".to_owned()));
        rbac(
            Action::Allow,
            Permission::All(vec![method("GET"), path]),
            order(),
        )
    }

    #[test]
    fn only_what_a_rule_allows_passes() {
        let policies = [guide()];
        for (method, path, principal, allowed) in [
            ("GET", "/users/1", Some(ORDER), true),
            ("GET", "/users/1?x=/y", Some(ORDER), true),
            ("GET", "/users", Some(ORDER), false),
            ("POST", "/users/1", Some(ORDER), false),
            (
                "GET",
                "/users/1",
                Some("spiffe://cluster.local/ns/default/sa/web"),
                false,
            ),
            ("GET", "/users/1", None, false),
        ] {
            let head = Head::request(method, path);
            let got = authorize(
                &policies,
                PeerIdentity { principal },
                &RequestView::new(&head, "h"),
            );
            assert_eq!(
                got == Decision::Allowed,
                allowed,
                "{method} {path} {principal:?}"
            );
        }
    }

    #[test]
    fn deny_wins_and_an_empty_allow_denies_everything() {
        let head = Head::request("GET", "/users/1");
        let view = RequestView::new(&head, "h");
        let caller = PeerIdentity {
            principal: Some(ORDER),
        };
        let deny = rbac(Action::Deny, method("GET"), Principal::Any);
        assert_eq!(
            authorize(&[guide(), deny], caller, &view),
            Decision::DeniedBy("rule")
        );
        let nothing = Rbac {
            action: Action::Allow,
            policies: Vec::new(),
        };
        assert_eq!(
            authorize(&[nothing], caller, &view),
            Decision::NotAllowed(None)
        );
        assert_eq!(authorize(&[], caller, &view), Decision::Allowed);
    }

    #[test]
    fn a_rule_about_http_never_allows_bytes_and_always_denies_them() {
        let caller = PeerIdentity {
            principal: Some(ORDER),
        };
        let allow = rbac(Action::Allow, method("GET"), order());
        assert_ne!(authorize_tcp(&[allow], caller), Decision::Allowed);
        let deny = rbac(Action::Deny, method("GET"), order());
        assert_ne!(authorize_tcp(&[deny], caller), Decision::Allowed);
        let any = rbac(Action::Allow, Permission::Any, order());
        assert_eq!(authorize_tcp(&[any], caller), Decision::Allowed);
    }
}
