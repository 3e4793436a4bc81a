//! One attempt at one cluster: pick an endpoint, take or make a connection, exchange, keep the connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::http::Exchange;
use crate::balance::Cluster;
use crate::connect::pool::Upstream;
use crate::connect::{Carries, dial};
use crate::deadline::Deadline;
use crate::error::{Error, Kind, Progress};
use crate::http::h1::{ClientHalf, Conn, ServerHalf};
use crate::http::head::Head;
use crate::observe::Outcome;
use crate::tls::expiry;
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

/// How long a request may take.
#[derive(Debug)]
pub struct Limit<'a> {
    /// The connection's timer.
    pub deadline: &'a mut Deadline,
    /// When the time began.
    pub since: Instant,
    /// How much there is of it.
    pub at_most: Option<Duration>,
}

impl Attempt<'_> {
    /// Makes the attempt, within `limit` when there is a limit. `edit` changes the response's head before it goes
    /// down.
    ///
    /// # Errors
    /// What went wrong; its `progress` says whether the caller can still be answered.
    pub async fn run(
        &mut self,
        cluster: &Arc<Cluster>,
        limit: Limit<'_>,
        edit: impl FnOnce(&Head, &mut Head),
    ) -> Result<(), Error> {
        let mut progress = Progress::Nothing;
        let now = limit.since;
        let exchange = self.exchange(cluster, now, &mut progress, edit);
        let outcome = match limit.at_most {
            None => exchange.await,
            Some(at_most) => {
                let limited = limit.deadline.limit(now + at_most, exchange).await;
                limited.unwrap_or_else(|| {
                    let detail = format!("no complete response after {at_most:?}");
                    Err(Error::own(Kind::Timeout, detail))
                })
            }
        };
        outcome.map_err(|error| error.at(progress).behind(&cluster.object))
    }

    async fn exchange(
        &mut self,
        cluster: &Arc<Cluster>,
        now: Instant,
        progress: &mut Progress,
        edit: impl FnOnce(&Head, &mut Head),
    ) -> Result<(), Error> {
        let lease = cluster.pick(|| self.worker.dice())?;
        let endpoint = lease.endpoint();
        if let Some(series) = &endpoint.series {
            self.outcome.toward(series);
        }
        let mut upstream = match self.worker.pool.take(endpoint, now) {
            Some(upstream) => upstream,
            None => {
                let expires = self.worker.shared.credentials.identity();
                let expires = expires.map(|identity| expiry(identity.not_after));
                let (stream, peer) = dial(endpoint, Carries::Http, cluster.connect_timeout).await?;
                let conn = Conn::new(stream, Vec::new(), self.worker.shared.limits);
                let until = peer.map(|peer| earliest(peer.expires(), expires));
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
fn earliest(peer: Instant, own: Option<Instant>) -> Instant {
    own.map_or(peer, |own| own.min(peer))
}
