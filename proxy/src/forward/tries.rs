//! What the tries of one request share, and when there is another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::http::{Exchange, Transfer};
use super::replay::Replay;
use super::retry::{self, Decision, Failure};
use crate::balance::Lease;
use crate::balance::limits::Held;
use crate::connect::pool::Upstream;
use crate::error::{Error, Kind, Progress, Side};
use crate::observe::grpc::Messages;
use crate::observe::standard::{Series, Way};
use leno_http::h1::Length;
use leno_http::head::Head;
use leno_http::peers::{Down, Up};
use leno_rules::config::route::{Retry, RetryOn};

/// What the tries of one request share.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    pub(super) policy: Policy<'a>,
    pub(super) is_idempotent: bool,
    /// Whether it may be sent again although it was sent.
    pub(super) is_repeatable: bool,
    pub(super) replay: Replay,
    pub(super) upload: Transfer,
    pub(super) download: Transfer,
    pub(super) progress: Progress,
    /// Endpoints of the tries before.
    pub(super) tried: Vec<u64>,
    /// The endpoint of the moment.
    pub(super) lease: Option<Lease>,
    /// The own end of the connection of the moment.
    pub(super) local: Option<SocketAddr>,
    /// Whether the connection of the moment had carried a request before.
    pub(super) is_reused: bool,
    /// The place in the budget of retries.
    pub(super) held: Option<Held>,
}

/// When a request is tried again.
#[derive(Debug, Clone, Copy)]
pub enum Policy<'a> {
    /// As the route says.
    Route(Option<&'a Retry>),
    /// Once, when an idle connection turned out to be closed: what the app itself does is for its callers to judge.
    Stale,
}

impl<'a> Tries<'a> {
    /// The tries of `request`. Its body is kept for a try that may follow; also, if `keeps`, for one that follows only
    /// because the request wasn't processed, as HTTP/2 and sidecars can say of what was sent.
    pub(super) fn new(policy: Policy<'a>, request: &Head, body: Length, keeps: bool) -> Tries<'a> {
        let is_idempotent = retry::is_idempotent(request);
        let is_repeatable = is_idempotent || policy.repeats_anything();
        // Otherwise a request that can't be repeated once it was sent needs nothing of what was sent.
        let keeps = keeps || is_repeatable || policy.repeats_answered();
        let keeps = keeps && policy.attempts() > 0;
        Tries {
            policy,
            is_idempotent,
            is_repeatable,
            replay: Replay::new(keeps && body != Length::Empty),
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

    /// The next try goes by `upstream`, and begins with the body's first byte. Messages of a gRPC call are counted by `call`.
    pub(super) fn restart(&mut self, upstream: &Upstream, call: Option<&Arc<Series>>) {
        self.local = upstream.local;
        // What becomes of one stream of many says nothing of the connection.
        self.is_reused = matches!(&upstream.half, Up::H1(half) if half.exchanges() > 0);
        self.replay.restart();
        let of = |way| Transfer::of_messages(call.map(|series| Messages::new(series, way)));
        self.upload = of(Way::Request);
        self.download = of(Way::Response);
    }

    pub(super) fn exchange<'t, 'd>(
        &'t mut self,
        down: &'t mut Down<'d>,
        up: &'t mut Up,
        patience: Duration,
    ) -> Exchange<'t, 'd> {
        Exchange {
            down,
            replay: &mut self.replay,
            up,
            progress: &mut self.progress,
            upload: &mut self.upload,
            download: &mut self.download,
            patience,
        }
    }

    pub(super) fn decide(&self, failure: Failure<'_>) -> Decision {
        match (self.policy, failure) {
            (Policy::Route(Some(retry)), _) => retry::decide(retry, self.is_idempotent, failure),
            (Policy::Stale, Failure::Error(error)) => {
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

impl Policy<'_> {
    pub(super) fn attempts(self) -> u32 {
        match self {
            Policy::Route(retry) => retry.map_or(0, |retry| retry.attempts),
            Policy::Stale => 1,
        }
    }

    pub(super) fn per_try(self) -> Option<Duration> {
        match self {
            Policy::Route(retry) => retry?.per_try,
            Policy::Stale => None,
        }
    }

    /// Whether whoever wrote it names answers after which a request is sent again.
    fn repeats_answered(self) -> bool {
        let answers = |on: &RetryOn| !matches!(on, RetryOn::Reset);
        let Policy::Route(Some(retry)) = self else {
            return false;
        };
        retry.is_explicit && retry.on.iter().any(answers)
    }

    /// Whether whoever wrote it says that requests may be repeated that were sent.
    fn repeats_anything(self) -> bool {
        let broken = Error::up(Kind::Reset, "").at(Progress::Sent);
        let Policy::Route(Some(retry)) = self else {
            return false;
        };
        retry.is_explicit
            && !retry.on.is_empty()
            && retry::decide(retry, false, Failure::Error(&broken)) == Decision::Again
    }
}
