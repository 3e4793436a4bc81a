//! A connection to an endpoint: TCP, then mutual TLS where it has a sidecar, within one deadline.

pub mod connection;
pub mod peer_metadata;
pub mod pool;
pub mod shared;

use std::io;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Duration, sleep, timeout};

use crate::balance::{Cluster, Endpoint};
use crate::error::{Error, Kind};
use crate::tls::Peer;
use leno_http::stream::{PrefixedTcp, Stream, connect_from, tune};
use leno_rules::config::cluster::Keepalive;

/// Delay between attempts to reach an app that may be starting.
const AGAIN: Duration = Duration::from_millis(50);

/// Protocol that a connection will carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// HTTP/1.
    Http,
    /// HTTP/1 of many clients as streams, where the peer is a sidecar of ours.
    Shared,
    /// HTTP/2, or HTTP/1 where the peer's TLS negotiates nothing newer.
    Http2,
    /// Opaque bytes.
    Tcp,
}

/// Connects to `endpoint`.
///
/// # Errors
/// [`Kind::Connect`], [`Kind::ConnectTimeout`], [`Kind::Tls`] or [`Kind::Peer`]; the request was not sent.
pub async fn dial(
    cluster: &Cluster,
    endpoint: &Endpoint,
    carries: Carries,
) -> Result<(Stream, Option<Peer>), Error> {
    let (address, within) = (endpoint.address, cluster.connect_timeout);
    match timeout(within, connect(cluster, endpoint, carries)).await {
        Ok(outcome) => outcome.map_err(|mut error| {
            error.detail = format!("{address}: {}", error.detail);
            error
        }),
        Err(_) => {
            endpoint.mark_started();
            let detail = format!("{address}: not connected after {within:?}");
            Err(Error::up(Kind::ConnectTimeout, detail))
        }
    }
}

async fn connect(
    cluster: &Cluster,
    endpoint: &Endpoint,
    carries: Carries,
) -> Result<(Stream, Option<Peer>), Error> {
    let tcp = loop {
        let tried = connect_from(endpoint.source, endpoint.address).await;
        match tried {
            // The first requests wait for an app that starts after its sidecar.
            Err(error) if is_refusal(&error) && endpoint.is_awaited() => sleep(AGAIN).await,
            tried => break tried,
        }
    };
    endpoint.mark_started();
    let tcp = tcp.map_err(|error| Error::up(Kind::Connect, error.to_string()))?;
    tune(&tcp, endpoint.address);
    if let Some(keepalive) = cluster.connections.keepalive {
        keep_alive(&tcp, keepalive);
    }
    let Some(tls) = &endpoint.tls else {
        return Ok((Stream::Plain(PrefixedTcp::new(tcp)), None));
    };
    let connector = match carries {
        Carries::Http => &tls.http,
        Carries::Shared => &tls.shared,
        Carries::Http2 => &tls.http2,
        Carries::Tcp => &tls.tcp,
    };
    // Boxed: connections to an app need no TLS, which must not enlarge them all.
    let (stream, peer) = Box::pin(connector.connect(tcp)).await?;
    Ok((stream, Some(peer)))
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// Sets TCP keepalive as configured; an unset value stays.
fn keep_alive(tcp: &TcpStream, config: Keepalive) {
    let mut keepalive = TcpKeepalive::new();
    if let Some(time) = config.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = config.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = config.probes {
        keepalive = keepalive.with_retries(probes);
    }
    // The connection works without keepalive as well.
    let _ = SockRef::from(tcp).set_tcp_keepalive(&keepalive);
}
