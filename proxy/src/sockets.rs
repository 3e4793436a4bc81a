//! The sockets that the proxy listens on.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};

use anyhow::{Context, Result};

use crate::bootstrap::Bootstrap;
use crate::intercept;
use crate::serve::accept;

/// The sockets, bound once and cloned into each worker.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) outbound: Vec<StdListener>,
    pub(crate) inbound: Vec<StdListener>,
    pub(crate) capture: Option<StdListener>,
    pub(crate) admin: StdListener,
    pub(crate) stats: [StdListener; 2],
}

impl Sockets {
    pub(crate) fn bind(bootstrap: &Bootstrap) -> Result<Sockets> {
        let bind = |what: &str, address: SocketAddr| {
            let words = || format!("cannot listen on {address} for {what}");
            accept::bind(address).with_context(words)
        };
        let listens = bootstrap.inbound.iter().map(|inbound| inbound.listen);
        let inbound: Result<Vec<_>> = listens
            .map(|listen| bind("inbound traffic", listen))
            .collect();
        let mut outbound = vec![bind("outbound traffic", bootstrap.outbound)?];
        let capture = match bootstrap.capture {
            Some(address) => Some(bind_capture(address)?),
            None => None,
        };
        if capture.is_some() {
            // IPv6 is redirected to `::1`; a machine without it has nothing to redirect.
            let local = SocketAddr::from((Ipv6Addr::LOCALHOST, outbound[0].local_addr()?.port()));
            outbound.extend(accept::bind(local).ok());
            // Never silent plaintext: without the rules the app's connections would bypass the sidecar.
            intercept::self_test()?;
        }
        Ok(Sockets {
            outbound,
            inbound: inbound?,
            capture,
            admin: bind("admin", bootstrap.admin)?,
            stats: [
                bind("metrics", bootstrap.stats[0])?,
                bind("metrics", bootstrap.stats[1])?,
            ],
        })
    }

    /// The listeners of one worker.
    pub(crate) fn listening(&self) -> io::Result<Listeners> {
        Ok(Listeners {
            outbound: clones(&self.outbound)?,
            inbound: clones(&self.inbound)?,
            capture: clones(self.capture.as_slice())?,
        })
    }

    pub(crate) fn stats_addresses(&self) -> io::Result<[SocketAddr; 2]> {
        let [merged, own] = &self.stats;
        Ok([merged.local_addr()?, own.local_addr()?])
    }

    pub(crate) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let mut addresses = local_addresses(&self.inbound)?;
        addresses.extend(local_addresses(&self.outbound)?);
        addresses.push(self.admin.local_addr()?);
        addresses.extend(local_addresses(&self.stats)?);
        Ok(addresses)
    }
}

/// Binds the port for redirected inbound connections. `::` takes both families; without IPv6 it becomes `0.0.0.0`.
pub(crate) fn bind_capture(address: SocketAddr) -> Result<StdListener> {
    let or_v4 = |error| match address.ip() == Ipv6Addr::UNSPECIFIED {
        true => accept::bind((Ipv4Addr::UNSPECIFIED, address.port()).into()),
        false => Err(error),
    };
    let bound = accept::bind(address).or_else(or_v4);
    bound.with_context(|| format!("cannot listen on {address} for inbound traffic"))
}

pub(crate) fn local_addresses(listeners: &[StdListener]) -> io::Result<Vec<SocketAddr>> {
    listeners.iter().map(StdListener::local_addr).collect()
}

/// Listeners of one worker.
pub(crate) struct Listeners {
    pub(crate) outbound: Vec<StdListener>,
    pub(crate) inbound: Vec<StdListener>,
    pub(crate) capture: Vec<StdListener>,
}

pub(crate) fn clones(listeners: &[StdListener]) -> io::Result<Vec<StdListener>> {
    listeners.iter().map(StdListener::try_clone).collect()
}
