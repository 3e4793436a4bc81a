//! A request to a cluster: attempts, each at one endpoint, until one is answered or no further one can help.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use leno_http::deadline::Deadline;
use leno_http::h1::Length;
use leno_http::head::{Head, Known};
use leno_http::peers::Down;
use tokio::time::{Instant, sleep, timeout};

use super::answer::{self, Audience, refuse};
use super::attempt::{Attempt, Ended, speaks_http2};
use super::exchange::unless_gone;
use super::report;
use super::retry::{self, Failure};
use super::retry_state::{Policy, Tries};
use crate::balance::Cluster;
use crate::error::{Error, Kind, Progress};
use crate::observe::standard::Sizes;
use crate::observe::{Outcome, Reached, Teller};
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

impl UpstreamRequest<'_> {
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
        let keeps =
            body != Length::Empty && (speaks_http2(cluster, &self.down) || cluster.has_sidecars());
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
                    report::late(self.worker, cluster, &mut tries);
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
            let mut attempt = Attempt {
                worker: self.worker,
                cluster,
                down: &mut self.down,
                request: self.request,
                response: self.response,
                outcome: self.outcome,
                tries,
                number,
            };
            let beginning = attempt.begin(now);
            let begun = match per_try {
                None => beginning.await,
                // Limits the time to the response's head; the body may take longer.
                Some(at_most) => Box::pin(timeout(at_most, beginning))
                    .await
                    .unwrap_or_else(|_| Err(Ended::Error(late(at_most)))),
            };
            let ended = match begun {
                Ok(begun) => return attempt.finish(begun, edit).await,
                Err(ended) => ended,
            };
            let reason = attempt.outcome.trace.is_some().then(|| match &ended {
                Ended::Error(error) => error.to_string(),
                Ended::Unwanted => format!("status {}", attempt.response.status()),
            });
            if let Ended::Error(error) = ended {
                let error = error.at(attempt.tries.progress);
                match error.kind {
                    Kind::Timeout => report::late(self.worker, cluster, attempt.tries),
                    _ => report::error(self.worker, cluster, attempt.tries, &error),
                }
                if !attempt.may_try_again(Failure::Error(&error)) {
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
