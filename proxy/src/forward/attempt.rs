//! One attempt at a request: an endpoint, a connection, the response's head, and the decision on another attempt.

use std::pin::pin;
use std::sync::Arc;

use leno_http::head::{FieldName, Head};
use leno_http::peers::Down;
use leno_http::{Incoming, clock};
use leno_rules::config::cluster::UpstreamProtocol;
use leno_rules::config::peer;
use tokio::time::Instant;

use super::answer;
use super::checkout::{Checkout, needs_http1};
use super::exchange::unless_reset;
use super::report;
use super::retry::{Decision, Failure};
use super::retry_state::{RetryPolicy, RetryState};
use crate::balance::limits::{CircuitBreaker, ConnectionPermit};
use crate::balance::outlier::EndpointResult;
use crate::balance::{Cluster, PickContext};
use crate::error::{Error, Kind, Progress};
use crate::observe::RequestStats;
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
    pub(super) stats: &'t mut RequestStats,
    /// State shared with the other attempts.
    pub(super) retry_state: &'t mut RetryState<'p>,
    /// Its number, from 1.
    pub(super) number: u32,
}

/// A response whose head has arrived.
#[derive(Debug)]
pub(super) struct ResponseStart {
    upstream: Box<Upstream>,
    permit: ConnectionPermit,
    /// Arrival of its head.
    heard: Instant,
}

/// End of an attempt without a response for the client.
#[derive(Debug)]
pub(super) enum AttemptError {
    Error(Error),
    /// A response on which the policy retries.
    Unwanted,
}

impl Attempt<'_, '_, '_> {
    /// One attempt, up to the response's head. A response on which the policy retries is an error as long as another
    /// attempt is allowed.
    pub(super) async fn begin(&mut self, mut now: Instant) -> Result<ResponseStart, AttemptError> {
        let cluster = self.cluster;
        let retry_state = &mut *self.retry_state;
        retry_state.progress = Progress::Nothing;
        retry_state.local = None;
        let is_http2 = speaks_http2(cluster, self.down);
        let permit = match connection_permit(cluster, self.down, self.request, is_http2) {
            Some(permit) => permit,
            None => {
                // Boxed, as below: futures that few requests await must not enlarge every request's future.
                let permit = Box::pin(wait_for_permit(cluster, self.down)).await?;
                now = Instant::now();
                permit
            }
        };
        report::probe_ejected(cluster, now);
        let context = PickContext {
            tried: &retry_state.tried,
            is_replayable: retry_state.is_repeatable,
            now,
        };
        let lease = cluster.pick(context, || self.worker.random_u32());
        let lease = lease.map_err(AttemptError::Error)?;
        let lease = retry_state.lease.insert(lease);
        let endpoint = Arc::clone(lease.endpoint());
        if let Some(series) = &endpoint.series {
            self.stats.set_destination(series);
        }
        if let RetryPolicy::Route(_) = retry_state.policy {
            set_attempt_count(self.request, self.number);
        }
        let checkout = Checkout {
            cluster,
            endpoint: &endpoint,
            is_http2,
            request: self.request,
            is_repeatable: retry_state.is_repeatable,
        };
        let mut upstream = match checkout.try_checkout(self.worker, now) {
            Some(upstream) => upstream,
            None => Box::pin(connect(&checkout, self.worker, self.down, now)).await?,
        };
        let is_new = upstream.half.requests_sent() == 0 || self.number > 1;
        if is_new && matches!(retry_state.policy, RetryPolicy::Route(_)) {
            set_peer_metadata(self.worker, self.request, endpoint.tls.is_some());
        }
        retry_state.restart(&upstream, self.stats.grpc_series());
        let stall_timeout = self.worker.shared.timeouts.flush;
        let mut exchange = retry_state.exchange(self.down, &mut upstream.half, stall_timeout);
        let begun = exchange.begin(self.request, self.response).await;
        begun.map_err(AttemptError::Error)?;
        let heard = clock::now();
        self.judge(heard)?;
        Ok(ResponseStart {
            upstream,
            permit,
            heard,
        })
    }

    /// Forwards a response whose head has arrived.
    pub(super) async fn finish(
        self,
        mut begun: ResponseStart,
        edit: impl FnOnce(&Head, &mut Head, Instant),
    ) -> Result<(), Error> {
        let stall_timeout = self.worker.shared.timeouts.flush;
        let retry_state = self.retry_state;
        let mut exchange = retry_state.exchange(self.down, &mut begun.upstream.half, stall_timeout);
        let heard = begun.heard;
        let edit = |request: &Head, response: &mut Head| edit(request, response, heard);
        let finished = exchange.finish(self.request, self.response, edit).await;
        if self.stats.grpc_series().is_some() {
            let status = begun.upstream.half.trailers().and_then(grpc_status);
            self.stats
                .set_grpc_status(status.or(grpc_status(self.response)));
        }
        match finished {
            Ok(()) => self.worker.pool.give_back(begun.upstream),
            Err(error) => {
                report::error(self.worker, self.cluster, retry_state, &error);
                return Err(error);
            }
        }
        drop(begun.permit);
        Ok(())
    }

    /// Reports the response's status to outlier detection. Returns an error when the policy retries on it.
    fn judge(&mut self, heard: Instant) -> Result<(), AttemptError> {
        let status = self.response.status();
        let grpc = grpc_status(self.response);
        if self.cluster.is_watched() {
            let status = grpc.filter(|_| status == 200).map_or(status, http_status);
            let verdict = EndpointResult::Status(status);
            report::verdict(self.worker, self.cluster, self.retry_state, verdict, heard);
        }
        if status < 400 && grpc.is_none() {
            return Ok(());
        }
        let refused = Error::up(Kind::Connect, "the sidecar could not reach its app");
        let failure = match self.never_reached() {
            // Counts as not sent: retriable on another endpoint, idempotent or not.
            true => {
                self.retry_state.progress = Progress::Nothing;
                Failure::Error(&refused)
            }
            false => Failure::Status(status, grpc),
        };
        match self.reserve_retry(failure) {
            true => Err(AttemptError::Unwanted),
            false => Ok(()),
        }
    }

    /// True when the sidecar at the other end reports that the request never reached its app.
    fn never_reached(&self) -> bool {
        let is_mesh =
            (self.retry_state.lease.as_ref()).is_some_and(|lease| lease.endpoint().tls.is_some());
        let proxy_status = self
            .response
            .get(FieldName::ProxyStatus)
            .unwrap_or_default();
        is_mesh && answer::says_never_reached(proxy_status)
    }

    /// Decides on another attempt after this one, and takes its place in the retry budget.
    pub(super) fn reserve_retry(&mut self, failure: Failure<'_>) -> bool {
        let (cluster, retry_state) = (self.cluster, &mut *self.retry_state);
        // The retry that just ended is no part of the budget any more.
        retry_state.held = None;
        let withheld = match retry_state.decide(failure) {
            Decision::Final => return false,
            Decision::Withheld(reason) => reason,
            Decision::Again if self.number > retry_state.policy.attempts() => USED_UP,
            Decision::Again if retry_state.progress > Progress::Sent => "a response had begun",
            Decision::Again if !retry_state.replay.is_whole() => "body not kept",
            // The budget bounds the load that retries add: an attempt that was never sent added none, so another one is
            // free, at any endpoint. A configured limit applies all the same.
            Decision::Again
                if retry_state.progress == Progress::Nothing
                    && cluster.circuit_breaker.limits().retries.is_none() =>
            {
                return true;
            }
            Decision::Again => match cluster.circuit_breaker.retry() {
                Some(held) => {
                    retry_state.held = Some(held);
                    return true;
                }
                None => "budget used up",
            },
        };
        if withheld == USED_UP && matches!(failure, Failure::Status(..)) {
            self.stats.set_retry_limit_exceeded();
        }
        self.worker.shared.metrics.withheld(withheld);
        false
    }
}

/// True when requests to the cluster's endpoints go by HTTP/2.
pub(super) fn speaks_http2(cluster: &Cluster, down: &Down<'_>) -> bool {
    match cluster.connections.protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Downstream => down.is_h2(),
    }
}

/// Permit for a connection, if one is free at once. A stream on a shared connection needs none.
fn connection_permit(
    cluster: &Cluster,
    down: &Down<'_>,
    request: &Head,
    is_http2: bool,
) -> Option<ConnectionPermit> {
    match down.is_h2() && is_http2 && !needs_http1(request) {
        true => Some(CircuitBreaker::shared()),
        false => cluster.circuit_breaker.try_acquire(),
    }
}

async fn wait_for_permit(
    cluster: &Cluster,
    down: &mut Down<'_>,
) -> Result<ConnectionPermit, AttemptError> {
    let permit = unless_reset(down, pin!(cluster.circuit_breaker.connection())).await;
    permit
        .and_then(|permit| permit)
        .map_err(AttemptError::Error)
}

async fn connect(
    checkout: &Checkout<'_>,
    worker: &Worker,
    down: &mut Down<'_>,
    now: Instant,
) -> Result<Box<Upstream>, AttemptError> {
    let new = unless_reset(down, pin!(checkout.connection(worker, now))).await;
    new.and_then(|new| new).map_err(AttemptError::Error)
}

/// Sets `x-envoy-attempt-count` to the number of the attempt.
fn set_attempt_count(request: &mut Head, number: u32) {
    let mut digits = itoa::Buffer::new();
    let count = digits.format(number).as_bytes();
    let name = "x-envoy-attempt-count";
    request.set(name, FieldName::AttemptCount, count);
}

/// Sets `x-envoy-peer-metadata` for the sidecar at the other end of a new connection; removes it for any other
/// endpoint.
fn set_peer_metadata(worker: &Worker, request: &mut Head, is_mesh: bool) {
    let plan = worker.shared.directory.inbound_now();
    match plan.filter(|_| is_mesh) {
        Some(plan) => {
            let value = &plan.peer_metadata;
            request.set(peer::FIELD, FieldName::PeerMetadata, value);
        }
        None => request.remove(FieldName::PeerMetadata),
    }
}

/// gRPC status in a head or in trailers.
fn grpc_status(head: &Head) -> Option<u8> {
    let text = head.get(FieldName::GrpcStatus)?;
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
