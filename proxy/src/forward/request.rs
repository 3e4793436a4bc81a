//! A request to a cluster: attempts, each at one endpoint, until one is answered or no further one can help.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use leno_http::deadline::Deadline;
use leno_http::h1::Framing;
use leno_http::head::{FieldName, Head};
use leno_http::peers::Down;
use tokio::time::{Instant, sleep, timeout};

use super::answer::{self, Audience, send_local_reply};
use super::attempt::{Attempt, AttemptError, speaks_http2};
use super::exchange::unless_reset;
use super::report;
use super::retry::{self, Failure};
use super::retry_state::{RetryPolicy, RetryState};
use crate::balance::Cluster;
use crate::error::{Error, Kind, Progress};
use crate::observe::standard::Sizes;
use crate::observe::{LogContext, RequestStats, UpstreamInfo};
use crate::worker::Worker;

/// A request to a cluster, over all its attempts.
#[derive(Debug)]
pub struct UpstreamRequest<'a> {
    /// The worker that serves it.
    pub worker: &'a Worker,
    /// The downstream peer.
    pub down: Down<'a>,
    /// The request's head, as it will be sent.
    pub request: &'a mut Head,
    /// Buffer for the response's head.
    pub response: &'a mut Head,
    /// Record of the request for metrics, access log and spans.
    pub stats: &'a mut RequestStats,
    /// Reporter and downstream connection, for that record.
    pub log_context: LogContext<'a>,
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

impl UpstreamRequest<'_> {
    /// Ends the request: sends a local reply if there was no response, and records the outcome. Returns the time at which
    /// the response ended; `None` when it is truncated.
    pub fn conclude(mut self, forwarded: Result<(), Error>, audience: Audience) -> Option<Instant> {
        let is_whole = self.answer(&forwarded, audience);
        let over = self.stats.finish();
        let worker = self.worker;
        let dice = || worker.random(|rng| rng.u64(..));
        let heads = (&*self.request, &*self.response);
        let observer = &worker.shared.observer;
        observer.report_request(
            self.stats,
            self.log_context,
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
                self.stats.set_upstream_response(status);
                true
            }
            Err(error) if error.progress == Progress::Answered => {
                self.stats.set_response(status, error.flag());
                tracing::debug!(%error, "response cut short");
                let (down, request) = (&mut self.down, &*self.request);
                answer::conclude_call(down, self.stats, error, request, audience)
            }
            Err(error) => {
                send_local_reply(&mut self.down, self.stats, error, self.request, audience);
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
        policy: RetryPolicy<'_>,
        edit: impl FnOnce(&Head, &mut Head, Instant),
    ) -> Result<(), Error> {
        let is_upgrade = self.request.get(FieldName::Upgrade).is_some();
        let body = self.down.body_framing();
        let keeps =
            body != Framing::Empty && (speaks_http2(cluster, &self.down) || cluster.has_sidecars());
        let mut retry_state = RetryState::new(policy, self.request, body, keeps);
        let now = limit.since;
        let answering = self.attempts(cluster, now, &mut retry_state, edit);
        // No limit for an upgrade: the protocol that is switched to may run for any time.
        let at_most = limit.at_most.filter(|_| !is_upgrade);
        let outcome = match at_most {
            None => answering.await,
            Some(at_most) => {
                let limited = limit.deadline.limit(now + at_most, answering).await;
                limited.unwrap_or_else(|| {
                    report::late(self.worker, cluster, &mut retry_state);
                    Err(late(at_most))
                })
            }
        };
        self.record_sizes(&retry_state);
        let observer = &self.worker.shared.observer;
        let status = self.response.status();
        self.stats.is_logged = observer.logs(status, || self.worker.random_u32());
        if outcome.is_err() || self.stats.is_logged || self.stats.trace.is_some() {
            let address = retry_state
                .lease
                .as_ref()
                .map(|lease| lease.endpoint().address);
            self.stats.reached = address.map(|address| {
                let cluster = Arc::clone(&cluster.name);
                Box::new(UpstreamInfo {
                    cluster,
                    address,
                    local: retry_state.local,
                    rule: None,
                })
            });
        }
        outcome.map_err(|error| explain(error, &retry_state).behind(&cluster.object))
    }

    /// Records the sizes of request and response, as far as they were transferred.
    fn record_sizes(&mut self, retry_state: &RetryState<'_>) {
        let has_response = retry_state.progress == Progress::Answered;
        let response = if has_response {
            self.response.size()
        } else {
            0
        };
        self.stats.bodies = (retry_state.upload.count(), retry_state.download.count());
        self.stats.sizes = Sizes {
            request: self.request.size() + retry_state.upload.count(),
            response: response + retry_state.download.count(),
        };
    }

    async fn attempts(
        &mut self,
        cluster: &Arc<Cluster>,
        now: Instant,
        retry_state: &mut RetryState<'_>,
        edit: impl FnOnce(&Head, &mut Head, Instant),
    ) -> Result<(), Error> {
        let _request = cluster.circuit_breaker.begin()?;
        let (mut number, mut now) = (1, now);
        loop {
            let per_try = retry_state.policy.per_try();
            let mut attempt = Attempt {
                worker: self.worker,
                cluster,
                down: &mut self.down,
                request: self.request,
                response: self.response,
                stats: self.stats,
                retry_state,
                number,
            };
            let beginning = attempt.begin(now);
            let begun = match per_try {
                None => beginning.await,
                // Limits the time to the response's head; the body may take longer.
                Some(at_most) => Box::pin(timeout(at_most, beginning))
                    .await
                    .unwrap_or_else(|_| Err(AttemptError::Error(late(at_most)))),
            };
            let ended = match begun {
                Ok(begun) => return attempt.finish(begun, edit).await,
                Err(ended) => ended,
            };
            let reason = attempt.stats.trace.is_some().then(|| match &ended {
                AttemptError::Error(error) => error.to_string(),
                AttemptError::Unwanted => format!("status {}", attempt.response.status()),
            });
            if let AttemptError::Error(error) = ended {
                let error = error.at(attempt.retry_state.progress);
                match error.kind {
                    Kind::Timeout => report::late(self.worker, cluster, attempt.retry_state),
                    _ => report::error(self.worker, cluster, attempt.retry_state, &error),
                }
                if !attempt.reserve_retry(Failure::Error(&error)) {
                    return Err(error);
                }
            }
            let lease = retry_state.lease.take();
            retry_state
                .tried
                .extend(lease.map(|lease| lease.endpoint().id));
            if let (Some(trace), Some(reason)) = (&mut self.stats.trace, reason) {
                trace.retried(number, reason);
            }
            number += 1;
            self.worker.shared.metrics.retries.inc();
            if let RetryPolicy::Route(Some(retry)) = retry_state.policy {
                let pause = sleep(retry::backoff(retry, number, self.worker.random_u32()));
                unless_reset(&mut self.down, pin!(pause)).await?;
            }
            now = Instant::now();
        }
    }
}

fn late(at_most: Duration) -> Error {
    let detail = format!("no complete response after {at_most:?}");
    Error::own(Kind::Timeout, detail)
}

/// Adds the progress of the last attempt, and the number of attempts if there were several.
fn explain(error: Error, retry_state: &RetryState<'_>) -> Error {
    let mut error = error.at(retry_state.progress);
    let count = retry_state.tried.len();
    if count > 0 {
        error.detail = format!("{} (after {} tries)", error.detail, count + 1);
    }
    error
}
