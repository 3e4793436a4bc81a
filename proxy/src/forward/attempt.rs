//! A request to a cluster: attempts, each at one endpoint, until one is answered or no further one can help.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::answer::{self, Audience, refuse};
use super::checkout::{Wanted, is_of_http1};
use super::exchange::unless_gone;
use super::retry::{self, Decision, Failure};
use super::retry_state::{Policy, Tries};
use crate::balance::limits::{Leave, Load};
use crate::balance::outlier::Verdict;
use crate::balance::{Ask, Cluster};
use crate::error::{Error, Kind, Progress, Side};
use crate::observe::standard::Sizes;
use crate::observe::{Outcome, Reached, Teller};
use crate::upstream::pool::Upstream;
use crate::upstream::{Carries, dial};
use crate::worker::Worker;
use leno_http::Incoming;
use leno_http::clock;
use leno_http::deadline::Deadline;
use leno_http::h1::Length;
use leno_http::head::{Head, Known};
use leno_http::peers::Down;
use leno_rules::config::cluster::Protocol;
use leno_rules::config::peer;

/// Reason for a withheld retry when the policy allows no more.
const USED_UP: &str = "attempts used up";

/// A request to a cluster, over all its attempts.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// The worker that serves it.
    pub worker: &'a Worker,
    /// The downstream peer.
    pub down: Down<'a>,
    /// The request's head, as it will be sent.
    pub request: &'a mut Head,
    /// Buffer for the response's head.
    pub response: &'a mut Head,
    /// Record of the request for metrics, access log and spans.
    pub outcome: &'a mut Outcome,
    /// Reporter and downstream connection, for that record.
    pub teller: Teller<'a>,
}

/// Time limit of a request.
#[derive(Debug)]
pub struct Limit<'a> {
    /// The connection's timer.
    pub deadline: &'a mut Deadline,
    /// Start of the limit.
    pub since: Instant,
    /// Length of the limit; `None` is unlimited.
    pub at_most: Option<Duration>,
}

/// A response whose head has arrived.
#[derive(Debug)]
struct Begun {
    upstream: Box<Upstream>,
    leave: Leave,
    /// Arrival of its head.
    heard: Instant,
}

/// End of an attempt without a response for the client.
#[derive(Debug)]
enum Ended {
    Error(Error),
    /// A response on which the policy retries.
    Unwanted,
}

impl Attempt<'_> {
    /// Ends the request: sends a local reply if there was no response, and records the outcome. Returns the time at which
    /// the response ended; `None` when it is truncated.
    pub fn conclude(mut self, forwarded: Result<(), Error>, audience: Audience) -> Option<Instant> {
        let is_whole = self.answer(&forwarded, audience);
        let over = self.outcome.over();
        let worker = self.worker;
        let dice = || worker.random(|rng| rng.u64(..));
        let heads = (&*self.request, &*self.response);
        let observer = &worker.shared.observer;
        observer.over(
            self.outcome,
            self.teller,
            heads,
            forwarded.as_ref().err(),
            dice,
        );
        is_whole.then_some(over)
    }

    /// Sends a local reply if there was no response. Returns `false` if the response is truncated.
    fn answer(&mut self, forwarded: &Result<(), Error>, audience: Audience) -> bool {
        let status = self.response.status();
        match forwarded {
            Ok(()) => {
                self.outcome.passed_on(status);
                true
            }
            Err(error) if error.progress == Progress::Answered => {
                self.outcome.answered(status, error.flag());
                tracing::debug!(%error, "response cut short");
                let (down, request) = (&mut self.down, &*self.request);
                answer::conclude_call(down, self.outcome, error, request, audience)
            }
            Err(error) => {
                refuse(&mut self.down, self.outcome, error, self.request, audience);
                true
            }
        }
    }

    /// Makes attempts until one is answered, within `limit`. `edit` changes the response's head before it goes
    /// downstream; its last argument is the arrival of that head.
    ///
    /// # Errors
    /// Error of the last attempt; its `progress` tells if the client can still be answered.
    pub async fn run(
        &mut self,
        cluster: &Arc<Cluster>,
        limit: Limit<'_>,
        policy: Policy<'_>,
        edit: impl FnOnce(&Head, &mut Head, Instant),
    ) -> Result<(), Error> {
        let is_upgrade = self.request.get(Known::Upgrade).is_some();
        let body = self.down.body_length();
        let keeps = body != Length::Empty && (self.speaks_http2(cluster) || cluster.has_sidecars());
        let mut tries = Tries::new(policy, self.request, body, keeps);
        let now = limit.since;
        let answering = self.tries(cluster, now, &mut tries, edit);
        // No limit for an upgrade: the protocol that is switched to may run for any time.
        let at_most = limit.at_most.filter(|_| !is_upgrade);
        let outcome = match at_most {
            None => answering.await,
            Some(at_most) => {
                let limited = limit.deadline.limit(now + at_most, answering).await;
                limited.unwrap_or_else(|| {
                    self.report_late(cluster, &mut tries);
                    Err(late(at_most))
                })
            }
        };
        self.measure(&tries);
        let observer = &self.worker.shared.observer;
        let status = self.response.status();
        self.outcome.is_logged = observer.logs(status, || self.worker.dice());
        if outcome.is_err() || self.outcome.is_logged || self.outcome.trace.is_some() {
            let address = tries.lease.as_ref().map(|lease| lease.endpoint().address);
            self.outcome.reached = address.map(|address| {
                let cluster = Arc::clone(&cluster.name);
                Box::new(Reached {
                    cluster,
                    address,
                    local: tries.local,
                    rule: None,
                })
            });
        }
        outcome.map_err(|error| explain(error, &tries).behind(&cluster.object))
    }

    /// Records the sizes of request and response, as far as they were transferred.
    fn measure(&mut self, tries: &Tries<'_>) {
        let has_response = tries.progress == Progress::Answered;
        let response = if has_response {
            self.response.size()
        } else {
            0
        };
        self.outcome.bodies = (tries.upload.count(), tries.download.count());
        self.outcome.sizes = Sizes {
            request: self.request.size() + tries.upload.count(),
            response: response + tries.download.count(),
        };
    }

    async fn tries(
        &mut self,
        cluster: &Arc<Cluster>,
        now: Instant,
        tries: &mut Tries<'_>,
        edit: impl FnOnce(&Head, &mut Head, Instant),
    ) -> Result<(), Error> {
        let _request = cluster.load.begin()?;
        let (mut number, mut now) = (1, now);
        loop {
            let per_try = tries.policy.per_try();
            let once = self.once(cluster, now, number, tries);
            let begun = match per_try {
                None => once.await,
                // Limits the time to the response's head; the body may take longer.
                Some(at_most) => Box::pin(timeout(at_most, once))
                    .await
                    .unwrap_or_else(|_| Err(Ended::Error(late(at_most)))),
            };
            let ended = match begun {
                Ok(begun) => return self.finish(cluster, tries, begun, edit).await,
                Err(ended) => ended,
            };
            let reason = self.outcome.trace.is_some().then(|| match &ended {
                Ended::Error(error) => error.to_string(),
                Ended::Unwanted => format!("status {}", self.response.status()),
            });
            if let Ended::Error(error) = ended {
                let error = error.at(tries.progress);
                match error.kind {
                    Kind::Timeout => self.report_late(cluster, tries),
                    _ => self.report_error(cluster, tries, &error),
                }
                if !self.may_try_again(cluster, tries, Failure::Error(&error), number) {
                    return Err(error);
                }
            }
            let lease = tries.lease.take();
            tries.tried.extend(lease.map(|lease| lease.endpoint().id));
            if let (Some(trace), Some(reason)) = (&mut self.outcome.trace, reason) {
                trace.retried(number, reason);
            }
            number += 1;
            self.worker.shared.metrics.retries.inc();
            if let Policy::Route(Some(retry)) = tries.policy {
                let pause = sleep(retry::backoff(retry, number, self.worker.dice()));
                unless_gone(&mut self.down, pin!(pause)).await?;
            }
            now = Instant::now();
        }
    }

    /// One attempt, up to the response's head. A response on which the policy retries is an error as long as another
    /// attempt is allowed.
    async fn once(
        &mut self,
        cluster: &Arc<Cluster>,
        mut now: Instant,
        number: u32,
        tries: &mut Tries<'_>,
    ) -> Result<Begun, Ended> {
        tries.progress = Progress::Nothing;
        tries.local = None;
        let is_http2 = self.speaks_http2(cluster);
        let leave = match self.leave_now(cluster, is_http2) {
            Some(leave) => leave,
            None => {
                // Boxed, as below: futures that few requests await must not enlarge every request's future.
                let leave = Box::pin(cluster.load.connection());
                let leave = unless_gone(&mut self.down, pin!(leave)).await;
                now = Instant::now();
                leave.and_then(|leave| leave).map_err(Ended::Error)?
            }
        };
        self.look_after(cluster, now);
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
            self.tell_number(number);
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
                let new = unless_gone(&mut self.down, pin!(new)).await;
                new.and_then(|new| new).map_err(Ended::Error)?
            }
        };
        let is_new = upstream.half.exchanges() == 0 || number > 1;
        if is_new && matches!(tries.policy, Policy::Route(_)) {
            self.introduce(endpoint.tls.is_some());
        }
        tries.restart(&upstream, self.outcome.call());
        let patience = self.worker.shared.timeouts.flush;
        let mut exchange = tries.exchange(&mut self.down, &mut upstream.half, patience);
        let begun = exchange.begin(self.request, self.response).await;
        begun.map_err(Ended::Error)?;
        let heard = clock::now();
        self.judge(cluster, tries, number, heard)?;
        Ok(Begun {
            upstream,
            leave,
            heard,
        })
    }

    /// Sets `x-envoy-attempt-count` to the number of the attempt.
    fn tell_number(&mut self, number: u32) {
        let mut digits = itoa::Buffer::new();
        let count = digits.format(number).as_bytes();
        let name = "x-envoy-attempt-count";
        self.request.set(name, Known::AttemptCount, count);
    }

    /// Sets `x-envoy-peer-metadata` for the sidecar at the other end of a new connection; removes it for any other
    /// endpoint.
    fn introduce(&mut self, is_mesh: bool) {
        let plan = self.worker.shared.directory.inbound_now();
        match plan.filter(|_| is_mesh) {
            Some(plan) => {
                let value = &plan.peer_metadata;
                self.request.set(peer::FIELD, Known::PeerMetadata, value);
            }
            None => self.request.remove(Known::PeerMetadata),
        }
    }

    /// Forwards a response whose head has arrived.
    async fn finish(
        &mut self,
        cluster: &Arc<Cluster>,
        tries: &mut Tries<'_>,
        mut begun: Begun,
        edit: impl FnOnce(&Head, &mut Head, Instant),
    ) -> Result<(), Error> {
        let patience = self.worker.shared.timeouts.flush;
        let mut exchange = tries.exchange(&mut self.down, &mut begun.upstream.half, patience);
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
                self.report_error(cluster, tries, &error);
                return Err(error);
            }
        }
        drop(begun.leave);
        Ok(())
    }

    /// Permit for a connection, if one is free at once. A stream on a shared connection needs none.
    fn leave_now(&self, cluster: &Cluster, is_http2: bool) -> Option<Leave> {
        match self.down.is_h2() && is_http2 && !is_of_http1(self.request) {
            true => Some(Load::shared()),
            false => cluster.load.connection_now(),
        }
    }

    /// True when requests to the cluster's endpoints go by HTTP/2.
    fn speaks_http2(&self, cluster: &Cluster) -> bool {
        match cluster.connections.protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            Protocol::Downstream => self.down.is_h2(),
        }
    }

    /// Reports the response's status to outlier detection. Returns an error when the policy retries on it.
    fn judge(
        &mut self,
        cluster: &Arc<Cluster>,
        tries: &mut Tries<'_>,
        number: u32,
        heard: Instant,
    ) -> Result<(), Ended> {
        let status = self.response.status();
        let grpc = grpc_status(self.response);
        if cluster.is_watched() {
            let status = grpc.filter(|_| status == 200).map_or(status, http_status);
            self.report(cluster, tries, Verdict::Status(status), heard);
        }
        if status < 400 && grpc.is_none() {
            return Ok(());
        }
        let refused = Error::up(Kind::Connect, "the sidecar could not reach its app");
        let failure = match self.never_reached(tries) {
            // As if it had not been sent: another endpoint may take it, with any method.
            true => {
                tries.progress = Progress::Nothing;
                Failure::Error(&refused)
            }
            false => Failure::Status(status, grpc),
        };
        match self.may_try_again(cluster, tries, failure, number) {
            true => Err(Ended::Unwanted),
            false => Ok(()),
        }
    }

    /// True when the sidecar at the other end reports that the request never reached its app.
    fn never_reached(&self, tries: &Tries<'_>) -> bool {
        let is_mesh = (tries.lease.as_ref()).is_some_and(|lease| lease.endpoint().tls.is_some());
        let said = self.response.get(Known::ProxyStatus).unwrap_or_default();
        is_mesh && answer::says_never_reached(said)
    }

    /// Decides on another attempt after attempt `number`, and takes its place in the retry budget.
    fn may_try_again(
        &mut self,
        cluster: &Arc<Cluster>,
        tries: &mut Tries<'_>,
        failure: Failure<'_>,
        number: u32,
    ) -> bool {
        // The retry that just ended is no part of the budget any more.
        tries.held = None;
        let withheld = match tries.decide(failure) {
            Decision::Final => return false,
            Decision::Withheld(reason) => reason,
            Decision::Again if number > tries.policy.attempts() => USED_UP,
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

    /// Reports an error to outlier detection, if it is the endpoint's.
    fn report_error(&self, cluster: &Arc<Cluster>, tries: &mut Tries<'_>, error: &Error) {
        let verdict = match (error.side, error.kind) {
            (Side::Up, Kind::ConnectTimeout) => Verdict::TimedOut,
            (Side::Up, _) => Verdict::Failed,
            _ => return,
        };
        self.report(cluster, tries, verdict, Instant::now());
    }

    /// Reports to outlier detection that there was no response in time, if the endpoint had the whole request: it isn't
    /// at fault for a client that sends or reads slowly.
    fn report_late(&self, cluster: &Arc<Cluster>, tries: &mut Tries<'_>) {
        if tries.progress < Progress::Answered && tries.upload.is_done() {
            self.report(cluster, tries, Verdict::TimedOut, Instant::now());
        }
    }

    /// Reports `verdict` on the current endpoint to outlier detection, and logs an ejection or a return.
    fn report(
        &self,
        cluster: &Arc<Cluster>,
        tries: &mut Tries<'_>,
        verdict: Verdict,
        now: Instant,
    ) {
        let Some(lease) = tries.lease.as_mut() else {
            return;
        };
        let was_probe = lease.is_probe();
        let ejection = cluster.report(lease, verdict, now);
        let address = lease.endpoint().address;
        match ejection {
            Some(ejection) => {
                self.worker.shared.metrics.ejections.inc();
                let (cluster, times) = (&cluster.name, ejection.times);
                tracing::warn!(%cluster, %address, reason = ejection.reason, times, "ejected");
            }
            None if was_probe => tracing::info!(cluster = %cluster.name, %address, "returned"),
            None => {}
        }
    }

    /// Probes an ejected endpoint that no request tries, by connecting to it in the background.
    fn look_after(&self, cluster: &Arc<Cluster>, now: Instant) {
        let Some(mut lease) = cluster.due_for_a_look(now) else {
            return;
        };
        let cluster = Arc::clone(cluster);
        tokio::task::spawn_local(async move {
            let endpoint = Arc::clone(lease.endpoint());
            let verdict = match dial(&cluster, &endpoint, Carries::Http).await {
                Ok(_) => Verdict::Status(200),
                Err(_) => Verdict::Failed,
            };
            cluster.report(&mut lease, verdict, Instant::now());
        });
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

fn late(at_most: Duration) -> Error {
    let detail = format!("no complete response after {at_most:?}");
    Error::own(Kind::Timeout, detail)
}

/// Adds the progress of the last attempt, and the number of attempts if there were several.
fn explain(error: Error, tries: &Tries<'_>) -> Error {
    let mut error = error.at(tries.progress);
    let count = tries.tried.len();
    if count > 0 {
        error.detail = format!("{} (after {} tries)", error.detail, count + 1);
    }
    error
}
