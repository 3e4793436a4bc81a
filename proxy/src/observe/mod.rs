//! Observation of requests: one [`RequestStats`] each, recorded once, on drop if need be; at the end it is reported to the
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

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use failures::FailureRecord;
use leno_http::clock;
use leno_http::head::{FieldName, Head};
use queue::Queue;
pub use record::{LogContext, Reporter, RequestRecord, UpstreamInfo};
use standard::{RequestProtocol, ResultLabels, Series, SeriesCell, Sizes};
use trace::{ActiveSpan, TraceContext, Tracer};

/// Result of a request, filled in as it becomes known; dropping it records it.
#[derive(Debug)]
pub struct RequestStats {
    series: Arc<Series>,
    begun: Instant,
    ended: Option<Instant>,
    key: ResultLabels,
    /// Sizes of request and response, heads included.
    pub sizes: Sizes,
    /// Bytes of their bodies.
    pub bodies: (u64, u64),
    /// Its span, if it is sampled.
    pub trace: Option<Box<ActiveSpan>>,
    /// Upstream of the last attempt; set only for an error, the access log or a span.
    pub reached: Option<Box<UpstreamInfo>>,
    /// True if it is sampled for the access log, even without an error.
    pub is_logged: bool,
}

impl RequestStats {
    /// A request that began at `at`. Dropped before a response, it counts as a client that left, as with Envoy: code 0,
    /// `DC`.
    pub fn new(series: &Arc<Series>, at: Instant) -> RequestStats {
        RequestStats {
            series: Arc::clone(series),
            begun: at,
            ended: None,
            key: ResultLabels {
                protocol: RequestProtocol::Http,
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
    pub fn finish(&mut self) -> Instant {
        *self.ended.insert(clock::now())
    }

    /// Duration of the request; up to now, if it hasn't ended.
    fn took(&self) -> Duration {
        let ended = self.ended.unwrap_or_else(Instant::now);
        ended.duration_since(self.begun)
    }

    /// Moves the request to the series of its destination, once that is known.
    pub fn set_destination(&mut self, series: &Arc<Series>) {
        self.series = Arc::clone(series);
    }

    /// Marks the request as a gRPC call.
    pub fn mark_grpc(&mut self) {
        self.key.protocol = RequestProtocol::Grpc;
    }

    /// Series that counts the messages of a gRPC call; `None` for other requests.
    pub fn grpc_series(&self) -> Option<&Arc<Series>> {
        (self.key.protocol == RequestProtocol::Grpc).then_some(&self.series)
    }

    /// Sets the gRPC status.
    pub fn set_grpc_status(&mut self, status: Option<u8>) {
        self.key.grpc = status;
    }

    /// Records that a retriable response found no attempt left (`URX`, upstream retry limit exceeded).
    pub fn set_retry_limit_exceeded(&mut self) {
        self.key.flag = "URX";
    }

    /// Records that the upstream's response was passed on.
    pub fn set_upstream_response(&mut self, status: u16) {
        let flag = match self.key.flag {
            "URX" => "URX",
            _ => "-",
        };
        self.set_response(status, flag);
    }

    /// Records the status and response flag of the response.
    pub fn set_response(&mut self, status: u16, flag: &'static str) {
        (self.key.status, self.key.flag) = (status, flag);
    }
}

impl Drop for RequestStats {
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
    pub traces: Option<Tracer>,
    /// Failures, for the live map.
    pub failures: Option<Arc<Queue<FailureRecord>>>,
}

impl Observer {
    /// Access log decision for a request that ends with `status` and no error of ours: any 5xx, else a sample.
    pub fn logs(&self, status: u16, dice: impl FnOnce() -> u32) -> bool {
        let log = self.log.as_ref();
        log.is_some_and(|log| status >= 500 || log.samples(dice()))
    }

    /// Reports a finished request.
    pub fn report_request(
        &self,
        stats: &RequestStats,
        log_context: LogContext<'_>,
        heads: (&Head, &Head),
        error: Option<&Error>,
        dice: impl Fn() -> u64,
    ) {
        if error.is_none() && !stats.is_logged && stats.trace.is_none() {
            return;
        }
        let record = RequestRecord {
            log_context,
            request: heads.0,
            response: heads.1,
            labels: stats.series.labels(),
            protocol: stats.key.protocol,
            status: stats.key.status,
            flag: stats.key.flag,
            grpc: stats.key.grpc,
            took: stats.took(),
            bodies: stats.bodies,
            reached: stats.reached.as_deref(),
            error,
            is_logged: stats.is_logged,
        };
        self.trace(&record, stats.trace.as_deref(), &dice);
        self.report(&record);
    }

    /// Reports a finished request or connection to the access log and the live map.
    pub fn report(&self, record: &RequestRecord<'_>) {
        if let Some(log) = &self.log {
            log.write(record);
        }
        if let Some(failures) = &self.failures
            && let Some(failure) = FailureRecord::of(record)
        {
            failures.push(failure);
        }
    }

    /// Queues the span of a request. An error has one even if it isn't sampled, unless the client left.
    fn trace(
        &self,
        record: &RequestRecord<'_>,
        trace: Option<&ActiveSpan>,
        dice: impl Fn() -> u64,
    ) {
        let Some(traces) = &self.traces else {
            return;
        };
        match (trace, record.error) {
            (Some(trace), _) => traces.record(record, trace),
            (None, Some(error)) if !error.is_client_disconnect() => {
                let traceparent = record.request.get(FieldName::Traceparent);
                let parent = traceparent.and_then(TraceContext::parse);
                let own = TraceContext {
                    trace: parent.map_or_else(
                        || u128::from(dice()) << 64 | u128::from(dice() | 1),
                        |p| p.trace,
                    ),
                    span: dice() | 1,
                    sampled: Some(true),
                };
                // An unrecorded parent would leave the span without a root.
                let parent = parent.filter(|parent| parent.sampled == Some(true));
                traces.record(
                    record,
                    &ActiveSpan::new(own, parent.map_or(0, |parent| parent.span)),
                );
            }
            _ => {}
        }
    }
}

/// Counters of a TCP connection; dropping them counts it as closed.
#[derive(Debug)]
pub struct TcpStats {
    cell: Arc<SeriesCell>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl TcpStats {
    /// An open connection between the peers of `series`.
    pub fn opened(series: &Series) -> TcpStats {
        TcpStats::ended(series, "-")
    }

    /// A connection that was never opened, with the reason as Envoy's response flag.
    pub fn ended(series: &Series, flag: &'static str) -> TcpStats {
        let cell = series.cell(ResultLabels::tcp(flag));
        cell.count.fetch_add(1, Ordering::Relaxed);
        TcpStats {
            cell,
            received: Cell::new(0),
            sent: Cell::new(0),
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

impl Drop for TcpStats {
    fn drop(&mut self) {
        self.cell.closed.fetch_add(1, Ordering::Relaxed);
    }
}
