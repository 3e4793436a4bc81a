//! One attempt at a request: an endpoint, a connection, the response's head, and the decision on another attempt.

use std::pin::pin;
use std::sync::Arc;

use leno_http::head::{Head, Known};
use leno_http::peers::Down;
use leno_http::{Incoming, clock};
use leno_rules::config::cluster::Protocol;
use leno_rules::config::peer;
use tokio::time::Instant;

use super::answer;
use super::checkout::{Wanted, is_of_http1};
use super::exchange::unless_gone;
use super::report;
use super::retry::{Decision, Failure};
use super::retry_state::{Policy, Tries};
use crate::balance::limits::{Leave, Load};
use crate::balance::outlier::Verdict;
use crate::balance::{Ask, Cluster};
use crate::error::{Error, Kind, Progress};
use crate::observe::Outcome;
use crate::upstream::connection::Upstream;
use crate::worker::Worker;

/// Reason for a withheld retry when the policy allows no more.
const USED_UP: &str = "attempts used up";

/// One attempt at a request.
#[derive(Debug)]
pub(super) struct Attempt<'t, 'd, 'p> {
    pub(super) worker: &'t Worker,
    pub(super) cluster: &'t Arc<Cluster>,
    pub(super) down: &'t mut Down<'d>,
    pub(super) request: &'t mut Head,
    pub(super) response: &'t mut Head,
    pub(super) outcome: &'t mut Outcome,
    /// State shared with the other attempts.
    pub(super) tries: &'t mut Tries<'p>,
    /// Its number, from 1.
    pub(super) number: u32,
}

/// A response whose head has arrived.
#[derive(Debug)]
pub(super) struct Begun {
    upstream: Box<Upstream>,
    leave: Leave,
    /// Arrival of its head.
    heard: Instant,
}

/// End of an attempt without a response for the client.
#[derive(Debug)]
pub(super) enum Ended {
    Error(Error),
    /// A response on which the policy retries.
    Unwanted,
}

impl Attempt<'_, '_, '_> {
    /// One attempt, up to the response's head. A response on which the policy retries is an error as long as another
    /// attempt is allowed.
    pub(super) async fn begin(&mut self, mut now: Instant) -> Result<Begun, Ended> {
        let cluster = self.cluster;
        let tries = &mut *self.tries;
        tries.progress = Progress::Nothing;
        tries.local = None;
        let is_http2 = speaks_http2(cluster, self.down);
        let leave = match leave_now(cluster, self.down, self.request, is_http2) {
            Some(leave) => leave,
            None => {
                // Boxed, as below: futures that few requests await must not enlarge every request's future.
                let leave = Box::pin(cluster.load.connection());
                let leave = unless_gone(self.down, pin!(leave)).await;
                now = Instant::now();
                leave.and_then(|leave| leave).map_err(Ended::Error)?
            }
        };
        report::look_after(cluster, now);
        let ask = Ask {
            tried: &tries.tried,
            is_replayable: tries.is_repeatable,
            now,
        };
        let lease = cluster.pick(ask, || self.worker.dice());
        let lease = tries.lease.insert(lease.map_err(Ended::Error)?);
        let endpoint = Arc::clone(lease.endpoint());
        if let Some(series) = &endpoint.series {
            self.outcome.toward(series);
        }
        if let Policy::Route(_) = tries.policy {
            tell_number(self.request, self.number);
        }
        let wanted = Wanted {
            cluster,
            endpoint: &endpoint,
            is_http2,
            request: self.request,
            is_repeatable: tries.is_repeatable,
        };
        let mut upstream = match wanted.at_hand(self.worker, now) {
            Some(upstream) => upstream,
            None => {
                let new = Box::pin(wanted.connection(self.worker, now));
                let new = unless_gone(self.down, pin!(new)).await;
                new.and_then(|new| new).map_err(Ended::Error)?
            }
        };
        let is_new = upstream.half.exchanges() == 0 || self.number > 1;
        if is_new && matches!(tries.policy, Policy::Route(_)) {
            introduce(self.worker, self.request, endpoint.tls.is_some());
        }
        tries.restart(&upstream, self.outcome.call());
        let patience = self.worker.shared.timeouts.flush;
        let mut exchange = tries.exchange(self.down, &mut upstream.half, patience);
        let begun = exchange.begin(self.request, self.response).await;
        begun.map_err(Ended::Error)?;
        let heard = clock::now();
        self.judge(heard)?;
        Ok(Begun {
            upstream,
            leave,
            heard,
        })
    }

    /// Forwards a response whose head has arrived.
    pub(super) async fn finish(
        self,
        mut begun: Begun,
        edit: impl FnOnce(&Head, &mut Head, Instant),
    ) -> Result<(), Error> {
        let patience = self.worker.shared.timeouts.flush;
        let tries = self.tries;
        let mut exchange = tries.exchange(self.down, &mut begun.upstream.half, patience);
        let heard = begun.heard;
        let edit = |request: &Head, response: &mut Head| edit(request, response, heard);
        let finished = exchange.finish(self.request, self.response, edit).await;
        if self.outcome.call().is_some() {
            let status = begun.upstream.half.trailers().and_then(grpc_status);
            self.outcome
                .concluded(status.or(grpc_status(self.response)));
        }
        match finished {
            Ok(()) => self.worker.pool.give_back(begun.upstream),
            Err(error) => {
                report::error(self.worker, self.cluster, tries, &error);
                return Err(error);
            }
        }
        drop(begun.leave);
        Ok(())
    }

    /// Reports the response's status to outlier detection. Returns an error when the policy retries on it.
    fn judge(&mut self, heard: Instant) -> Result<(), Ended> {
        let status = self.response.status();
        let grpc = grpc_status(self.response);
        if self.cluster.is_watched() {
            let status = grpc.filter(|_| status == 200).map_or(status, http_status);
            let verdict = Verdict::Status(status);
            report::verdict(self.worker, self.cluster, self.tries, verdict, heard);
        }
        if status < 400 && grpc.is_none() {
            return Ok(());
        }
        let refused = Error::up(Kind::Connect, "the sidecar could not reach its app");
        let failure = match self.never_reached() {
            // As if it had not been sent: another endpoint may take it, with any method.
            true => {
                self.tries.progress = Progress::Nothing;
                Failure::Error(&refused)
            }
            false => Failure::Status(status, grpc),
        };
        match self.may_try_again(failure) {
            true => Err(Ended::Unwanted),
            false => Ok(()),
        }
    }

    /// True when the sidecar at the other end reports that the request never reached its app.
    fn never_reached(&self) -> bool {
        let is_mesh =
            (self.tries.lease.as_ref()).is_some_and(|lease| lease.endpoint().tls.is_some());
        let said = self.response.get(Known::ProxyStatus).unwrap_or_default();
        is_mesh && answer::says_never_reached(said)
    }

    /// Decides on another attempt after this one, and takes its place in the retry budget.
    pub(super) fn may_try_again(&mut self, failure: Failure<'_>) -> bool {
        let (cluster, tries) = (self.cluster, &mut *self.tries);
        // The retry that just ended is no part of the budget any more.
        tries.held = None;
        let withheld = match tries.decide(failure) {
            Decision::Final => return false,
            Decision::Withheld(reason) => reason,
            Decision::Again if self.number > tries.policy.attempts() => USED_UP,
            Decision::Again if tries.progress > Progress::Sent => "a response had begun",
            Decision::Again if !tries.replay.is_whole() => "body not kept",
            // The budget bounds the load that retries add: an attempt that was never sent added none, so another one is
            // free, at any endpoint. A configured limit applies all the same.
            Decision::Again
                if tries.progress == Progress::Nothing
                    && cluster.load.limits().retries.is_none() =>
            {
                return true;
            }
            Decision::Again => match cluster.load.retry() {
                Some(held) => {
                    tries.held = Some(held);
                    return true;
                }
                None => "budget used up",
            },
        };
        if withheld == USED_UP && matches!(failure, Failure::Status(..)) {
            self.outcome.exhausted();
        }
        self.worker.shared.metrics.withheld(withheld);
        false
    }
}

/// True when requests to the cluster's endpoints go by HTTP/2.
pub(super) fn speaks_http2(cluster: &Cluster, down: &Down<'_>) -> bool {
    match cluster.connections.protocol {
        Protocol::Http1 => false,
        Protocol::Http2 => true,
        Protocol::Downstream => down.is_h2(),
    }
}

/// Permit for a connection, if one is free at once. A stream on a shared connection needs none.
fn leave_now(cluster: &Cluster, down: &Down<'_>, request: &Head, is_http2: bool) -> Option<Leave> {
    match down.is_h2() && is_http2 && !is_of_http1(request) {
        true => Some(Load::shared()),
        false => cluster.load.connection_now(),
    }
}

/// Sets `x-envoy-attempt-count` to the number of the attempt.
fn tell_number(request: &mut Head, number: u32) {
    let mut digits = itoa::Buffer::new();
    let count = digits.format(number).as_bytes();
    let name = "x-envoy-attempt-count";
    request.set(name, Known::AttemptCount, count);
}

/// Sets `x-envoy-peer-metadata` for the sidecar at the other end of a new connection; removes it for any other
/// endpoint.
fn introduce(worker: &Worker, request: &mut Head, is_mesh: bool) {
    let plan = worker.shared.directory.inbound_now();
    match plan.filter(|_| is_mesh) {
        Some(plan) => {
            let value = &plan.peer_metadata;
            request.set(peer::FIELD, Known::PeerMetadata, value);
        }
        None => request.remove(Known::PeerMetadata),
    }
}

/// gRPC status in a head or in trailers.
fn grpc_status(head: &Head) -> Option<u8> {
    let text = head.get(Known::GrpcStatus)?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// HTTP status that stands for a gRPC status, as with Envoy: a 5xx where the server is at fault.
fn http_status(grpc: u8) -> u16 {
    match grpc {
        0 => 200,
        2 | 13 | 15 => 500,
        12 => 501,
        14 => 503,
        4 => 504,
        _ => 400,
    }
}
