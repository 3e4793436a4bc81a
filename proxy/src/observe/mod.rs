//! What is seen of a request: one [`Outcome`] each, recorded once, on drop if need be; and what is told of it when it is
//! over, to whoever wants to know.

pub mod access_log;
mod exposition;
pub mod failures;
pub mod grpc;
pub mod health;
pub mod labels;
pub mod metrics;
pub mod queue;
pub mod standard;
pub mod time;
pub mod trace;

use std::cell::Cell as Held;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use failures::Failure;
use labels::Labels;
use leno_http::clock;
use leno_http::head::{Head, Known};
use queue::Queue;
use standard::{Cell, Key, Protocol, Series, Sizes};
use trace::{Context, Trace, Traces};

/// Who tells of a request: `reporter` of Istio's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reporter {
    /// The caller's sidecar.
    Source,
    /// The callee's.
    Destination,
}

/// Who tells of a request or connection: its own end of the connection that it came on.
#[derive(Debug, Clone, Copy)]
pub struct Teller<'a> {
    /// Which sidecar it is.
    pub reporter: Reporter,
    /// Who connected.
    pub peer: SocketAddr,
    /// What it connected to: the address that it dialled, where the connection was taken over.
    pub local: Option<SocketAddr>,
    /// The server name that its TLS asked for.
    pub server_name: Option<&'a str>,
}

/// A share of requests, chosen by dice.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// How many of 2³².
    threshold: u64,
}

impl Share {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share is 0 to 1
    fn new(share: f64) -> Share {
        Share {
            threshold: (share.clamp(0.0, 1.0) * 4_294_967_296.0) as u64,
        }
    }

    fn has(self, dice: u32) -> bool {
        u64::from(dice) < self.threshold
    }
}

/// What became of a request. Whoever holds it says what it learns; dropping it records.
#[derive(Debug)]
pub struct Outcome {
    series: Arc<Series>,
    begun: Instant,
    ended: Option<Instant>,
    key: Key,
    /// How large request and response were.
    pub sizes: Sizes,
    /// Bytes of their bodies.
    pub bodies: (u64, u64),
    /// Its span, if it is recorded.
    pub trace: Option<Box<Trace>>,
    /// Where it was sent, if anybody wants to know.
    pub reached: Option<Box<Reached>>,
    /// Whether it is in the access log, however it went.
    pub is_logged: bool,
}

/// Where a request or connection was sent.
#[derive(Debug, Clone)]
pub struct Reached {
    /// The cluster.
    pub cluster: Arc<str>,
    /// The endpoint.
    pub address: SocketAddr,
    /// The own end of the connection to it.
    pub local: Option<SocketAddr>,
    /// The rule that chose it.
    pub rule: Option<Arc<str>>,
}

impl Outcome {
    /// A request that was begun at `at`. Dropped before an answer it counts as Envoy counts a caller that left: code 0,
    /// `DC`.
    pub fn begun(series: &Arc<Series>, at: Instant) -> Outcome {
        Outcome {
            series: Arc::clone(series),
            begun: at,
            ended: None,
            key: Key {
                protocol: Protocol::Http,
                status: 0,
                flag: "DC",
                grpc: None,
            },
            sizes: Sizes::default(),
            bodies: (0, 0),
            is_logged: false,
            trace: None,
            reached: None,
        }
    }

    /// It is over, now.
    pub fn over(&mut self) -> Instant {
        *self.ended.insert(clock::now())
    }

    /// How long it took, or takes so far.
    fn took(&self) -> Duration {
        let ended = self.ended.unwrap_or_else(Instant::now);
        ended.duration_since(self.begun)
    }

    /// Its destination is known: from here on it is counted there.
    pub fn toward(&mut self, series: &Arc<Series>) {
        self.series = Arc::clone(series);
    }

    /// It is a gRPC call.
    pub fn is_call(&mut self) {
        self.key.protocol = Protocol::Grpc;
    }

    /// Where the messages of a gRPC call are counted, if it is one.
    pub fn call(&self) -> Option<&Arc<Series>> {
        (self.key.protocol == Protocol::Grpc).then_some(&self.series)
    }

    /// The gRPC status that it ended with.
    pub fn concluded(&mut self, status: Option<u8>) {
        self.key.grpc = status;
    }

    /// The peer's answer was wanted no more, and there was no try left to get another.
    pub fn exhausted(&mut self) {
        self.key.flag = "URX";
    }

    /// The request was answered with what the peer answered.
    pub fn passed_on(&mut self, status: u16) {
        let flag = match self.key.flag {
            "URX" => "URX",
            _ => "-",
        };
        self.answered(status, flag);
    }

    /// The request was answered.
    pub fn answered(&mut self, status: u16, flag: &'static str) {
        (self.key.status, self.key.flag) = (status, flag);
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.series.count(self.key, self.took(), self.sizes);
    }
}

/// What is told of a request or a connection that is over.
#[derive(Debug)]
pub struct Told<'a> {
    /// Who tells.
    pub teller: Teller<'a>,
    /// The request's head, as it was sent on; empty for a connection of bytes.
    pub request: &'a Head,
    /// The response's head.
    pub response: &'a Head,
    /// Who the peers are.
    pub labels: &'a Labels,
    /// What was spoken.
    pub protocol: Protocol,
    /// HTTP status.
    pub status: u16,
    /// Envoy's response flag.
    pub flag: &'static str,
    /// gRPC status.
    pub grpc: Option<u8>,
    /// How long it took.
    pub took: Duration,
    /// Bytes of the bodies, or of each direction.
    pub bodies: (u64, u64),
    /// Where it was sent.
    pub reached: Option<&'a Reached>,
    /// What went wrong.
    pub error: Option<&'a Error>,
    /// Whether it is in the access log, however it went.
    pub is_logged: bool,
}

impl Told<'_> {
    /// The path without the query, which may hold what nobody else must know.
    fn path(&self) -> String {
        let target = self.request.target();
        let path = target.split(|b| *b == b'?').next().unwrap_or_default();
        String::from_utf8_lossy(path).into_owned()
    }

    fn authority(&self) -> String {
        let host = self.request.get(Known::Host).unwrap_or_default();
        String::from_utf8_lossy(host).into_owned()
    }
}

/// Who wants to know of requests that are over, besides the metrics.
#[derive(Debug, Default)]
pub struct Observer {
    /// The access log.
    pub log: Option<access_log::Log>,
    /// Spans.
    pub traces: Option<Traces>,
    /// Failures, for the live map.
    pub failures: Option<Arc<Queue<Failure>>>,
}

impl Observer {
    /// Whether what is over now with `status` is in the access log, if it isn't a failure of ours.
    pub fn logs(&self, status: u16, dice: impl FnOnce() -> u32) -> bool {
        let log = self.log.as_ref();
        log.is_some_and(|log| status >= 500 || log.samples(dice()))
    }

    /// A request is over.
    pub fn over(
        &self,
        outcome: &Outcome,
        teller: Teller<'_>,
        heads: (&Head, &Head),
        error: Option<&Error>,
        dice: impl Fn() -> u64,
    ) {
        if error.is_none() && !outcome.is_logged && outcome.trace.is_none() {
            return;
        }
        let told = Told {
            teller,
            request: heads.0,
            response: heads.1,
            labels: outcome.series.labels(),
            protocol: outcome.key.protocol,
            status: outcome.key.status,
            flag: outcome.key.flag,
            grpc: outcome.key.grpc,
            took: outcome.took(),
            bodies: outcome.bodies,
            reached: outcome.reached.as_deref(),
            error,
            is_logged: outcome.is_logged,
        };
        self.trace(&told, outcome.trace.as_deref(), &dice);
        self.told(&told);
    }

    /// A request or connection is over.
    pub fn told(&self, told: &Told<'_>) {
        if let Some(log) = &self.log {
            log.over(told);
        }
        if let Some(failures) = &self.failures
            && let Some(failure) = Failure::of(told)
        {
            failures.push(failure);
        }
    }

    /// What Leno answered itself has a span whatever the sampling says.
    fn trace(&self, told: &Told<'_>, trace: Option<&Trace>, dice: impl Fn() -> u64) {
        let Some(traces) = &self.traces else {
            return;
        };
        match (trace, told.error) {
            (Some(trace), _) => traces.over(told, trace),
            (None, Some(error)) if !error.is_farewell() => {
                let said = told.request.get(Known::Traceparent);
                let parent = said.and_then(Context::parse);
                let own = Context {
                    trace: parent.map_or_else(
                        || u128::from(dice()) << 64 | u128::from(dice() | 1),
                        |p| p.trace,
                    ),
                    span: dice() | 1,
                    sampled: Some(true),
                };
                // A parent that nobody records would leave the span without a root.
                let parent = parent.filter(|parent| parent.sampled == Some(true));
                traces.over(
                    told,
                    &Trace::new(own, parent.map_or(0, |parent| parent.span)),
                );
            }
            _ => {}
        }
    }
}

/// A connection of bytes; dropping it counts it as closed.
#[derive(Debug)]
pub struct Carried {
    cell: Arc<Cell>,
    received: Held<u64>,
    sent: Held<u64>,
}

impl Carried {
    /// A connection between the peers of `series`, which was opened.
    pub fn opened(series: &Series) -> Carried {
        Carried::ended(series, "-")
    }

    /// A connection that came to nothing; why, as Envoy's flag.
    pub fn ended(series: &Series, flag: &'static str) -> Carried {
        let cell = series.cell(Key::tcp(flag));
        cell.count.fetch_add(1, Ordering::Relaxed);
        Carried {
            cell,
            received: Held::new(0),
            sent: Held::new(0),
        }
    }

    /// Bytes came from whoever connected.
    pub fn received(&self, count: usize) {
        self.received.set(self.received.get() + count as u64);
        self.cell
            .received
            .fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Bytes were sent to whoever connected.
    pub fn sent(&self, count: usize) {
        self.sent.set(self.sent.get() + count as u64);
        self.cell.sent.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// How many of each there were.
    pub fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.cell.closed.fetch_add(1, Ordering::Relaxed);
    }
}
