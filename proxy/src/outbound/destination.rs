//! Destinations of the app's requests and connections: the authority as the app wrote it, and the plan for it.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use leno_http::head::{FieldName, Head};
use leno_rules::route::NotFound;
use leno_rules::route::matcher::RequestView;
use tokio::time::Instant;

use crate::error::{Error, Kind};
use crate::forward::exchange::unless_reset;
use crate::forward::request::UpstreamRequest;
use crate::observe::{LogContext, Reporter};
use crate::snapshot::{OutboundPlan, RoutePlan, Target};
use crate::worker::Worker;

/// Downstream connection of a request.
#[derive(Debug, Clone)]
pub(super) struct Downstream {
    /// Address of the app's end.
    pub(super) address: SocketAddr,
    /// Address that the app connected to.
    pub(super) local: Option<SocketAddr>,
    /// The plan of the tunnel that it is inside.
    pub(super) inside: Option<Arc<OutboundPlan>>,
}

impl Downstream {
    /// Reporter and connection, for the records of its requests.
    pub(super) fn log_context(&self) -> LogContext<'static> {
        LogContext {
            reporter: Reporter::Source,
            peer: self.address,
            local: self.local,
            server_name: None,
        }
    }
}

/// Destination of a connection's last request: the next one mostly goes there as well.
#[derive(Debug)]
pub(super) struct Destination {
    /// `Host`, as the client sent it.
    sent_host: Vec<u8>,
    pub(super) authority: String,
    /// The authority without its port.
    pub(super) host: String,
    pub(super) plan: Arc<OutboundPlan>,
    /// Configuration generation in which it was found, and the time of the lookup.
    generation: u64,
    pub(super) since: Instant,
}

/// Destination of the request: `last` if it applies, else a new one, which replaces it.
pub(super) async fn destination<'a>(
    worker: &Worker,
    upstream: &mut UpstreamRequest<'_>,
    inside: Option<&Arc<OutboundPlan>>,
    last: &'a mut Option<Rc<Destination>>,
) -> Result<&'a Destination, Error> {
    let (request, down) = (&mut *upstream.request, &mut upstream.down);
    let generation = worker.shared.directory.generation();
    let host = request.get(FieldName::Host).unwrap_or_default();
    let is_same = last.as_ref().is_some_and(|last| {
        last.generation == generation
            && last.sent_host == host
            && request.target().starts_with(b"/")
    });
    if !is_same {
        *last = None;
        let authority = take_authority(request, inside)?;
        check_loop(worker, &authority)?;
        let plan = {
            let found = pin!(find_plan(worker, &authority, inside));
            unless_reset(down, found).await??
        };
        *last = Some(Rc::new(Destination {
            sent_host: request.get(FieldName::Host).unwrap_or_default().to_vec(),
            host: host_of(&authority).to_owned(),
            authority,
            plan,
            generation,
            since: Instant::now(),
        }));
    }
    last.as_deref()
        .ok_or_else(|| Error::own(Kind::NotConfigured, "no destination"))
}

/// Adds the rule before the cluster that it led to.
pub(super) fn add_rule(mut error: Error, route: &RoutePlan) -> Error {
    error.object = Some(match error.object {
        Some(object) => format!("{} → {object}", route.rule).into(),
        None => Arc::clone(&route.rule),
    });
    error
}

pub(super) fn no_route(none: NotFound, authority: &str, view: &RequestView<'_>) -> Error {
    let path = String::from_utf8_lossy(view.path);
    let detail = match none {
        NotFound::Host => format!("no virtual host has the authority {authority}"),
        NotFound::Route => format!("no route of {authority} matches {path}"),
    };
    Error::own(Kind::NoRoute, detail)
}

pub(super) fn no_cluster(route: &RoutePlan, reason: &Arc<str>) -> Error {
    Error::own(Kind::NoCluster, reason.to_string()).behind(&route.rule)
}

pub(super) fn pick<'a>(route: &'a RoutePlan, worker: &Worker) -> Result<&'a Target, Error> {
    let none = || Error::own(Kind::NoCluster, "the route leads nowhere").behind(&route.rule);
    route.split.pick(worker.random_u32()).ok_or_else(none)
}

/// Plan for `authority`. Inside a tunnel, an authority that the mesh doesn't know stands for the tunnel's destination.
pub(super) async fn find_plan(
    worker: &Worker,
    authority: &str,
    inside: Option<&Arc<OutboundPlan>>,
) -> Result<Arc<OutboundPlan>, Error> {
    let directory = &worker.shared.directory;
    let found = match directory.find(authority) {
        Some(known) => known,
        None => Box::pin(directory.resolve(authority)).await,
    };
    match (found, inside) {
        // The current plan of the tunnel's destination; the one that the tunnel began with only when that is gone.
        (Err(error), Some(plan)) if error.kind == Kind::UnknownAuthority => {
            let current = directory.find(&plan.authority).and_then(Result::ok);
            Ok(current.unwrap_or_else(|| Arc::clone(plan)))
        }
        (found, _) => found,
    }
}

pub(super) fn host_of(authority: &str) -> &str {
    authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host)
}

pub(super) fn check_loop(worker: &Worker, authority: &str) -> Result<(), Error> {
    let address: Option<SocketAddr> = authority.parse().ok();
    match address.is_some_and(|address| worker.shared.own_addresses.contains(&address)) {
        true => {
            let detail = format!("{authority} is this proxy itself");
            Err(Error::own(Kind::Loop, detail))
        }
        false => Ok(()),
    }
}

/// Authority of a request. An absolute target wins over `Host` (RFC 9112, section 3.2.2), and becomes a path and a
/// `Host`.
pub(super) fn take_authority(
    request: &mut Head,
    inside: Option<&Arc<OutboundPlan>>,
) -> Result<String, Error> {
    let bad = |text: &str| Error::down(Kind::BadRequest, text);
    if request.method() == b"CONNECT" {
        return Err(bad("CONNECT inside a tunnel"));
    }
    let port = inside.and_then(|plan| plan.authority.rsplit_once(':')?.1.parse().ok());
    if request.target().first() != Some(&b'/') && request.target() != b"*" {
        let target = String::from_utf8_lossy(&request.target()[7..]).into_owned();
        let end = target.find(['/', '?']).unwrap_or(target.len());
        let (authority, path) = target.split_at(end);
        if authority.is_empty() || authority.contains('@') {
            return Err(bad("the target's authority is not a host"));
        }
        let origin = match path.as_bytes().first() {
            Some(b'/') => path.to_owned(),
            _ => format!("/{path}"),
        };
        request.set_target(origin.as_bytes());
        request.set("host", FieldName::Host, authority.as_bytes());
        return Ok(canonical(authority, port));
    }
    match request.get(FieldName::Host) {
        Some(host) if !host.is_empty() => Ok(canonical(&String::from_utf8_lossy(host), port)),
        // An old client sends no `Host`: the tunnel's destination applies.
        None if inside.is_some() => Ok(inside
            .map(|plan| plan.authority.to_string())
            .unwrap_or_default()),
        _ => Err(bad("no Host: nothing says where the request is to go")),
    }
}

/// `host:port`, lower-case, without a trailing dot.
pub(super) fn canonical(authority: &str, default_port: Option<u16>) -> String {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (host, port.to_owned())
        }
        _ => (authority, default_port.unwrap_or(80).to_string()),
    };
    let host = host.trim_end_matches(':').trim_end_matches('.');
    format!("{}:{port}", host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_has_one_form() {
        for (host, canon) in [
            ("User-Service", "user-service:80"),
            ("user-service:8080", "user-service:8080"),
            ("user-service.", "user-service:80"),
            ("user-service.:80", "user-service:80"),
            ("user-service:", "user-service:80"),
            ("10.0.5.3:5432", "10.0.5.3:5432"),
            ("[::1]", "[::1]:80"),
            ("[::1]:81", "[::1]:81"),
        ] {
            assert_eq!(canonical(host, None), canon);
        }
        assert_eq!(canonical("a", Some(443)), "a:443");
    }

    #[test]
    fn an_absolute_target_becomes_a_path_and_a_host() {
        for (target, authority, path) in [
            ("http://A:81/x?y", "a:81", "/x?y"),
            ("http://a", "a:80", "/"),
            ("http://a?q", "a:80", "/?q"),
        ] {
            let mut head = Head::request("GET", target);
            head.add("Host", b"other");
            assert_eq!(take_authority(&mut head, None).expect("valid"), authority);
            assert_eq!(head.target(), path.as_bytes());
            assert_ne!(head.get(FieldName::Host), Some(&b"other"[..]));
        }
        for target in ["http:///x", "http://user@a/x"] {
            let mut head = Head::request("GET", target);
            assert!(take_authority(&mut head, None).is_err(), "{target}");
        }
    }
}
