//! State that the attempts of one request share, and the decision on another one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::exchange::{Exchange, Transfer};
use super::replay::Replay;
use super::retry::{self, Decision, Failure};
use crate::balance::Lease;
use crate::balance::limits::Permit;
use crate::error::{Error, Kind, Progress, Side};
use crate::observe::grpc::Messages;
use crate::observe::standard::{MessageDirection, Series};
use crate::upstream::connection::Upstream;
use leno_http::h1::Framing;
use leno_http::head::Head;
use leno_http::peers::{Down, Up};
use leno_rules::config::route::{Retry, RetryOn};

/// State that the attempts of one request share.
#[derive(Debug)]
pub(super) struct RetryState<'a> {
    pub(super) policy: RetryPolicy<'a>,
    pub(super) is_idempotent: bool,
    /// True when it may be sent again after it was sent.
    pub(super) is_repeatable: bool,
    pub(super) replay: Replay,
    pub(super) upload: Transfer,
    pub(super) download: Transfer,
    pub(super) progress: Progress,
    /// Ids of the endpoints of earlier attempts.
    pub(super) tried: Vec<u64>,
    /// The current endpoint.
    pub(super) lease: Option<Lease>,
    /// Local address of the current connection.
    pub(super) local: Option<SocketAddr>,
    /// True when the current connection, one of HTTP/1, had carried a request before.
    pub(super) is_reused: bool,
    /// Place in the retry budget.
    pub(super) held: Option<Permit>,
}

/// Conditions on which a request is sent again.
#[derive(Debug, Clone, Copy)]
pub enum RetryPolicy<'a> {
    /// The route's retry policy.
    Route(Option<&'a Retry>),
    /// One retry, when an idle connection turned out to be closed: failures of the app itself are left to its clients.
    Stale,
}

impl<'a> RetryState<'a> {
    /// State for `request`. Its body is kept for a retry that is possible; with `keeps`, also for one that is possible
    /// only because the request wasn't processed, as HTTP/2 and sidecars can report of one that was sent.
    pub(super) fn new(
        policy: RetryPolicy<'a>,
        request: &Head,
        body: Framing,
        keeps: bool,
    ) -> RetryState<'a> {
        let is_idempotent = retry::is_idempotent(request);
        let is_repeatable = is_idempotent || policy.repeats_anything();
        // Otherwise a request that isn't repeatable once it was sent needs no copy of the sent body.
        let keeps = keeps || is_repeatable || policy.repeats_answered();
        let keeps = keeps && policy.attempts() > 0;
        RetryState {
            policy,
            is_idempotent,
            is_repeatable,
            replay: Replay::new(keeps && body != Framing::Empty),
            progress: Progress::Nothing,
            upload: Transfer::default(),
            download: Transfer::default(),
            tried: Vec::new(),
            lease: None,
            local: None,
            is_reused: false,
            held: None,
        }
    }

    /// Starts the next attempt, on `upstream`, with the body's first byte. Messages of a gRPC call are counted in
    /// `call`.
    pub(super) fn restart(&mut self, upstream: &Upstream, call: Option<&Arc<Series>>) {
        self.local = upstream.local;
        // The failure of one stream doesn't show that a shared connection was stale.
        self.is_reused = matches!(&upstream.half, Up::H1(half) if half.requests_sent() > 0);
        self.replay.restart();
        let of = |way| Transfer::of_messages(call.map(|series| Messages::new(series, way)));
        self.upload = of(MessageDirection::Request);
        self.download = of(MessageDirection::Response);
    }

    pub(super) fn exchange<'t, 'd>(
        &'t mut self,
        down: &'t mut Down<'d>,
        up: &'t mut Up,
        stall_timeout: Duration,
    ) -> Exchange<'t, 'd> {
        Exchange {
            down,
            replay: &mut self.replay,
            up,
            progress: &mut self.progress,
            upload: &mut self.upload,
            download: &mut self.download,
            stall_timeout,
        }
    }

    pub(super) fn decide(&self, failure: Failure<'_>) -> Decision {
        match (self.policy, failure) {
            (RetryPolicy::Route(Some(retry)), _) => {
                retry::decide(retry, self.is_idempotent, failure)
            }
            (RetryPolicy::Stale, Failure::Error(error)) => {
                let is_unseen = match self.progress {
                    Progress::Nothing => true,
                    _ => self.is_reused && self.is_idempotent,
                };
                match error.side == Side::Up && error.kind == Kind::Reset && is_unseen {
                    true => Decision::Again,
                    false => Decision::Final,
                }
            }
            _ => Decision::Final,
        }
    }
}

impl RetryPolicy<'_> {
    pub(super) fn attempts(self) -> u32 {
        match self {
            RetryPolicy::Route(retry) => retry.map_or(0, |retry| retry.attempts),
            RetryPolicy::Stale => 1,
        }
    }

    pub(super) fn per_try(self) -> Option<Duration> {
        match self {
            RetryPolicy::Route(retry) => retry?.per_try,
            RetryPolicy::Stale => None,
        }
    }

    /// True when an explicit policy names responses after which a request is sent again.
    fn repeats_answered(self) -> bool {
        let answers = |on: &RetryOn| !matches!(on, RetryOn::Reset);
        let RetryPolicy::Route(Some(retry)) = self else {
            return false;
        };
        retry.is_explicit && retry.on.iter().any(answers)
    }

    /// True when an explicit policy repeats requests of any method after they were sent.
    fn repeats_anything(self) -> bool {
        let broken = Error::up(Kind::Reset, "").at(Progress::Sent);
        let RetryPolicy::Route(Some(retry)) = self else {
            return false;
        };
        retry.is_explicit
            && !retry.on.is_empty()
            && retry::decide(retry, false, Failure::Error(&broken)) == Decision::Again
    }
}
