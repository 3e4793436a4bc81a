//! One attempt at one cluster: pick an endpoint, take or make a connection, exchange, keep the connection.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::http::Exchange;
use crate::balance::Cluster;
use crate::connect::pool::Upstream;
use crate::connect::{Carries, dial};
use crate::error::{Error, Kind, Progress};
use crate::http::h1::{ClientHalf, Conn, ServerHalf};
use crate::http::head::Head;
use crate::observe::Outcome;
use crate::worker::Worker;

/// A request on its way to a cluster.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// What the worker has at hand.
    pub worker: &'a Worker,
    /// Who sent the request.
    pub down: &'a mut ServerHalf,
    /// The request's head, as it will be sent.
    pub request: &'a mut Head,
    /// Where the response's head goes.
    pub response: &'a mut Head,
    /// What became of the request.
    pub outcome: &'a mut Outcome,
}

impl Attempt<'_> {
    /// Makes the attempt, within `at_most` when there is a limit. `edit` changes the response's head before it goes
    /// down.
    ///
    /// # Errors
    /// What went wrong; its `progress` says whether the caller can still be answered.
    pub async fn run(
        &mut self,
        cluster: &Arc<Cluster>,
        at_most: Option<Duration>,
        edit: impl FnOnce(&mut Head),
    ) -> Result<(), Error> {
        let mut progress = Progress::Nothing;
        let outcome = match at_most {
            None => self.exchange(cluster, &mut progress, edit).await,
            Some(limit) => {
                let exchange = self.exchange(cluster, &mut progress, edit);
                timeout(limit, exchange).await.unwrap_or_else(|_| {
                    let detail = format!("no complete response after {limit:?}");
                    Err(Error::own(Kind::Timeout, detail))
                })
            }
        };
        outcome.map_err(|error| error.at(progress).behind(&cluster.object))
    }

    async fn exchange(
        &mut self,
        cluster: &Arc<Cluster>,
        progress: &mut Progress,
        edit: impl FnOnce(&mut Head),
    ) -> Result<(), Error> {
        let lease = cluster.pick(|| self.worker.dice())?;
        let endpoint = lease.endpoint();
        if let Some(series) = &endpoint.series {
            self.outcome.toward(series);
        }
        let mut upstream = match self.worker.pool.take(endpoint) {
            Some(upstream) => upstream,
            None => {
                let expires = self.worker.shared.credentials.identity();
                let expires = expires.map(|identity| identity.not_after);
                let (stream, peer) = dial(endpoint, Carries::Http, cluster.connect_timeout).await?;
                let conn = Conn::new(stream, Vec::new(), self.worker.shared.limits);
                let until = peer.map(|peer| earliest(peer.not_after, expires));
                Upstream::new(ClientHalf::new(conn), until, endpoint)
            }
        };
        let mut exchange = Exchange {
            down: self.down,
            up: &mut upstream.half,
            progress,
        };
        exchange.run(self.request, self.response, edit).await?;
        self.worker.pool.give_back(upstream);
        Ok(())
    }
}

/// A connection is good while both certificates that made it are.
fn earliest(peer: SystemTime, own: Option<SystemTime>) -> SystemTime {
    own.map_or(peer, |own| own.min(peer))
}
