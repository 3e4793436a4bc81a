//! Observation of requests: one [`Outcome`] each, recorded once, on drop if need be; at the end it is reported to the
//! [`Observer`]'s access log, spans and live map.

pub mod access_log;
mod exposition;
pub mod failures;
pub mod grpc;
pub mod health;
pub mod labels;
pub mod metrics;
pub mod queue;
mod record;
pub mod standard;
pub mod time;
pub mod trace;

use std::cell::Cell as Held;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use failures::Failure;
use leno_http::clock;
use leno_http::head::{Head, Known};
use queue::Queue;
pub use record::{Reached, Reporter, Teller, Told};
use standard::{Cell, Key, Protocol, Series, Sizes};
use trace::{Context, Trace, Traces};

/// Result of a request, filled in as it becomes known; dropping it records it.
#[derive(Debug)]
pub struct Outcome {
    series: Arc<Series>,
    begun: Instant,
    ended: Option<Instant>,
    key: Key,
    /// Sizes of request and response, heads included.
    pub sizes: Sizes,
    /// Bytes of their bodies.
    pub bodies: (u64, u64),
    /// Its span, if it is sampled.
    pub trace: Option<Box<Trace>>,
    /// Upstream of the last attempt; set only for an error, the access log or a span.
    pub reached: Option<Box<Reached>>,
    /// True if it is sampled for the access log, even without an error.
    pub is_logged: bool,
}

impl Outcome {
    /// A request that began at `at`. Dropped before a response, it counts as a client that left, as with Envoy: code 0,
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

    /// Ends the request now, and returns the time.
    pub fn over(&mut self) -> Instant {
        *self.ended.insert(clock::now())
    }

    /// Duration of the request; up to now, if it hasn't ended.
    fn took(&self) -> Duration {
        let ended = self.ended.unwrap_or_else(Instant::now);
        ended.duration_since(self.begun)
    }

    /// Moves the request to the series of its destination, once that is known.
    pub fn toward(&mut self, series: &Arc<Series>) {
        self.series = Arc::clone(series);
    }

    /// Marks the request as a gRPC call.
    pub fn is_call(&mut self) {
        self.key.protocol = Protocol::Grpc;
    }

    /// Series that counts the messages of a gRPC call; `None` for other requests.
    pub fn call(&self) -> Option<&Arc<Series>> {
        (self.key.protocol == Protocol::Grpc).then_some(&self.series)
    }

    /// Sets the gRPC status.
    pub fn concluded(&mut self, status: Option<u8>) {
        self.key.grpc = status;
    }

    /// Records that a retriable response found no attempt left (`URX`, upstream retry limit exceeded).
    pub fn exhausted(&mut self) {
        self.key.flag = "URX";
    }

    /// Records that the upstream's response was passed on.
    pub fn passed_on(&mut self, status: u16) {
        let flag = match self.key.flag {
            "URX" => "URX",
            _ => "-",
        };
        self.answered(status, flag);
    }

    /// Records the status and response flag of the response.
    pub fn answered(&mut self, status: u16, flag: &'static str) {
        (self.key.status, self.key.flag) = (status, flag);
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.series.count(self.key, self.took(), self.sizes);
    }
}

/// Consumers of finished requests, besides the metrics.
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
    /// Access log decision for a request that ends with `status` and no error of ours: any 5xx, else a sample.
    pub fn logs(&self, status: u16, dice: impl FnOnce() -> u32) -> bool {
        let log = self.log.as_ref();
        log.is_some_and(|log| status >= 500 || log.samples(dice()))
    }

    /// Reports a finished request.
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

    /// Reports a finished request or connection to the access log and the live map.
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

    /// Queues the span of a request. An error has one even if it isn't sampled, unless the client left.
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
                // An unrecorded parent would leave the span without a root.
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

/// Counters of a TCP connection; dropping them counts it as closed.
#[derive(Debug)]
pub struct Carried {
    cell: Arc<Cell>,
    received: Held<u64>,
    sent: Held<u64>,
}

impl Carried {
    /// An open connection between the peers of `series`.
    pub fn opened(series: &Series) -> Carried {
        Carried::ended(series, "-")
    }

    /// A connection that was never opened, with the reason as Envoy's response flag.
    pub fn ended(series: &Series, flag: &'static str) -> Carried {
        let cell = series.cell(Key::tcp(flag));
        cell.count.fetch_add(1, Ordering::Relaxed);
        Carried {
            cell,
            received: Held::new(0),
            sent: Held::new(0),
        }
    }

    /// Counts bytes from the client.
    pub fn received(&self, count: usize) {
        self.received.set(self.received.get() + count as u64);
        self.cell
            .received
            .fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Counts bytes to the client.
    pub fn sent(&self, count: usize) {
        self.sent.set(self.sent.get() + count as u64);
        self.cell.sent.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Bytes received and sent.
    pub fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.cell.closed.fetch_add(1, Ordering::Relaxed);
    }
}
