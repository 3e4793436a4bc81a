//! Addresses of services with DNS names: resolved on first use, again when the TTL ends. A name that can't be resolved
//! keeps its last addresses.
//!
//! State: at most 10,000 names, for the life of the process; asked again by TTL, 1 s to 5 min.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Most names that one control plane resolves.
const MAX_NAMES: usize = 10_000;
/// An answer is used at least so long…
const MIN_TTL: Duration = Duration::from_secs(1);
/// … and at most so long.
const MAX_TTL: Duration = Duration::from_secs(300);
/// Time until a failed lookup without a negative TTL is repeated.
const FAILED: Duration = Duration::from_secs(5);

/// Addresses by name; empty for a name that could not be resolved yet.
pub type Addresses = BTreeMap<String, Vec<IpAddr>>;

/// Requests for names to be resolved.
#[derive(Debug, Clone)]
pub struct Demand(mpsc::UnboundedSender<String>);

impl Demand {
    /// Requests that `name` be resolved.
    pub fn want(&self, name: &str) {
        // The resolver's task ends only with the process.
        let _ = self.0.send(name.to_owned());
    }
}

/// Starts the resolver; the receiver yields the addresses whenever they change. `server` replaces the system's DNS.
///
/// # Errors
/// When the system's configuration can't be read.
pub fn start(
    server: Option<SocketAddr>,
) -> Result<(Demand, watch::Receiver<Arc<Addresses>>), String> {
    let builder = match server {
        Some(server) => {
            let mut connection = ConnectionConfig::udp();
            connection.port = server.port();
            let server = NameServerConfig::new(server.ip(), true, vec![connection]);
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
        None => TokioResolver::builder_tokio().map_err(|error| error.to_string())?,
    };
    let resolver = builder.build().map_err(|error| error.to_string())?;
    let (demand, wanted) = mpsc::unbounded_channel();
    let (publish, addresses) = watch::channel(Arc::new(Addresses::new()));
    tokio::spawn(resolve(resolver, wanted, publish));
    Ok((Demand(demand), addresses))
}

async fn resolve(
    resolver: TokioResolver,
    mut wanted: mpsc::UnboundedReceiver<String>,
    publish: watch::Sender<Arc<Addresses>>,
) {
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    let mut under_way = JoinSet::new();
    loop {
        let next = due.values().min().copied();
        tokio::select! {
            name = wanted.recv() => {
                let Some(name) = name else { return };
                if due.len() < MAX_NAMES && !due.contains_key(&name) {
                    due.insert(name, Instant::now());
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let now = Instant::now();
                for (name, at) in due.iter_mut().filter(|(_, at)| **at <= now) {
                    // Until the answer sets the time of the next lookup.
                    *at = now + MAX_TTL;
                    under_way.spawn(look_up(resolver.clone(), name.clone()));
                }
            }
            Some(Ok((name, answer, again))) = under_way.join_next() => {
                due.insert(name.clone(), Instant::now() + again);
                publish.send_if_modified(|addresses| record(addresses, name, answer));
            }
        }
    }
}

/// Records an answer; true when it changes the addresses.
fn record(addresses: &mut Arc<Addresses>, name: String, answer: Option<Vec<IpAddr>>) -> bool {
    let known = addresses.get(&name);
    let next = match (answer, known) {
        // A failed lookup keeps the last addresses.
        (None, Some(_)) => return false,
        (None, None) => Vec::new(),
        (Some(answer), known) if known == Some(&answer) => return false,
        (Some(answer), _) => answer,
    };
    Arc::make_mut(addresses).insert(name, next);
    true
}

type Answer = (String, Option<Vec<IpAddr>>, Duration);

/// Looks up a name: its sorted addresses, or `None` when it can't be resolved now; and the time until the next lookup.
async fn look_up(resolver: TokioResolver, name: String) -> Answer {
    match resolver
        .lookup_ip(format!("{}.", name.trim_end_matches('.')))
        .await
    {
        Ok(found) => {
            let mut addresses: Vec<IpAddr> = found.iter().collect();
            addresses.sort_unstable();
            let until = Instant::from_std(found.valid_until());
            let valid = until.saturating_duration_since(Instant::now());
            (name, Some(addresses), valid.clamp(MIN_TTL, MAX_TTL))
        }
        Err(error) => {
            tracing::warn!(name, %error, "cannot resolve");
            let negative = negative_ttl(&error).unwrap_or(FAILED);
            (name, None, negative.clamp(MIN_TTL, MAX_TTL))
        }
    }
}

/// Negative TTL of a name without records, as its zone sets it (RFC 2308).
fn negative_ttl(error: &NetError) -> Option<Duration> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => none
            .negative_ttl
            .map(|seconds| Duration::from_secs(u64::from(seconds))),
        _ => None,
    }
}
