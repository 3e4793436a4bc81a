//! Route selection: the virtual host by authority, then the first route that matches.

pub mod matcher;
pub mod split;

use crate::config::route::{RouteConfig, RouteMatch};
use leno_http::head::name_eq;
use matcher::{RequestView, matches};

/// Virtual hosts, their routes in order, and a plan `P` for each route.
#[derive(Debug)]
pub struct Router<P> {
    hosts: Vec<Host<P>>,
}

#[derive(Debug)]
struct Host<P> {
    domains: Vec<String>,
    routes: Vec<(RouteMatch, P)>,
}

/// Failure to find a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFound {
    /// No virtual host has this authority.
    Host,
    /// No route of the virtual host matches.
    Route,
}

impl<P> Router<P> {
    /// Compiles `config`; `plan` makes the plan of a route.
    pub fn new(
        config: &RouteConfig,
        mut plan: impl FnMut(&crate::config::route::Route) -> P,
    ) -> Router<P> {
        let host = |host: &crate::config::route::VirtualHost| Host {
            domains: host.domains.clone(),
            routes: (host.routes.iter())
                .map(|route| (route.matches.clone(), plan(route)))
                .collect(),
        };
        Router {
            hosts: config.hosts.iter().map(host).collect(),
        }
    }

    /// The plan of the first route that matches.
    ///
    /// # Errors
    /// [`NotFound`] when there is none.
    pub fn find(&self, request: &RequestView<'_>) -> Result<&P, NotFound> {
        let host = self.host(request.authority).ok_or(NotFound::Host)?;
        let found = host.routes.iter().find(|(m, _)| matches(m, request));
        found.map(|(_, plan)| plan).ok_or(NotFound::Route)
    }

    /// The virtual host of `authority`: exact domains win over suffixes, longer suffixes over shorter ones, those over
    /// `*`.
    fn host(&self, authority: &[u8]) -> Option<&Host<P>> {
        let rank = |domain: &String| domain_rank(domain, authority);
        let ranked = self.hosts.iter().filter_map(|host| {
            let best = host.domains.iter().filter_map(rank).max()?;
            Some((best, host))
        });
        ranked.max_by_key(|(rank, _)| *rank).map(|(_, host)| host)
    }
}

fn domain_rank(domain: &str, authority: &[u8]) -> Option<usize> {
    match domain.strip_prefix('*') {
        None => name_eq(authority, domain.as_bytes()).then_some(usize::MAX),
        Some("") => Some(0),
        Some(suffix) => {
            let start = authority
                .len()
                .checked_sub(suffix.len())
                .filter(|&n| n > 0)?;
            let tail = authority.get(start..)?;
            name_eq(tail, suffix.as_bytes()).then_some(suffix.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::matching::StringMatch;
    use crate::config::route::{Route, VirtualHost};
    use leno_http::head::Head;

    fn host(domains: &[&str], routes: &[(&str, &str)]) -> VirtualHost {
        let route = |(rule, prefix): &(&str, &str)| Route {
            rule: (*rule).to_owned(),
            matches: RouteMatch {
                path: StringMatch::Prefix((*prefix).to_owned()),
                headers: Vec::new(),
                query: Vec::new(),
            },
            targets: Vec::new(),
            timeout: None,
            retry: None,
        };
        VirtualHost {
            name: String::new(),
            domains: domains.iter().map(|&d| d.to_owned()).collect(),
            routes: routes.iter().map(route).collect(),
        }
    }

    #[test]
    fn the_most_specific_host_and_the_first_route_win() {
        let config = RouteConfig {
            name: String::new(),
            hosts: vec![
                host(&["*"], &[("any", "/")]),
                host(&["*.shop"], &[("shop", "/")]),
                host(&["*.eu.shop"], &[("eu", "/")]),
                host(
                    &["a.shop"],
                    &[("users", "/users"), ("late", "/users/1"), ("rest", "/b")],
                ),
            ],
        };
        let router = Router::new(&config, |route| route.rule.clone());
        for (authority, path, expected) in [
            ("other", "/", Ok("any")),
            ("b.shop", "/", Ok("shop")),
            ("x.eu.shop", "/", Ok("eu")),
            (".shop", "/", Ok("any")),
            ("A.SHOP", "/users/1", Ok("users")),
            ("a.shop", "/b", Ok("rest")),
            ("a.shop", "/c", Err(NotFound::Route)),
        ] {
            let head = Head::request("GET", path);
            let found = router.find(&RequestView::new(&head, authority));
            assert_eq!(found.map(String::as_str), expected, "{authority} {path}");
        }
    }
}
