//! A connection to an endpoint: TCP, then mutual TLS where it has a sidecar, within one deadline.

pub mod pool;

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::balance::Endpoint;
use crate::error::{Error, Kind};
use crate::stream::{Socket, Stream, tune};
use crate::tls::Peer;

/// What a connection will carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// HTTP.
    Http,
    /// Any bytes.
    Tcp,
}

/// Connects to `endpoint`.
///
/// # Errors
/// [`Kind::Connect`], [`Kind::ConnectTimeout`], [`Kind::Tls`] or [`Kind::Peer`]; the request was not sent.
pub async fn dial(
    endpoint: &Endpoint,
    carries: Carries,
    within: Duration,
) -> Result<(Stream, Option<Peer>), Error> {
    let address = endpoint.address;
    match timeout(within, connect(endpoint, carries)).await {
        Ok(outcome) => outcome.map_err(|mut error| {
            error.detail = format!("{address}: {}", error.detail);
            error
        }),
        Err(_) => {
            let detail = format!("{address}: not connected after {within:?}");
            Err(Error::up(Kind::ConnectTimeout, detail))
        }
    }
}

async fn connect(endpoint: &Endpoint, carries: Carries) -> Result<(Stream, Option<Peer>), Error> {
    let tcp = TcpStream::connect(endpoint.address).await;
    let tcp = tcp.map_err(|error| Error::up(Kind::Connect, error.to_string()))?;
    tune(&tcp);
    let Some(tls) = &endpoint.tls else {
        return Ok((Stream::Plain(Socket::new(tcp)), None));
    };
    let connector = match carries {
        Carries::Http => &tls.http,
        Carries::Tcp => &tls.tcp,
    };
    let (stream, peer) = connector.connect(tcp).await?;
    Ok((stream, Some(peer)))
}
