//! Exports, besides metrics: lines of the access log, spans, reports. Each has its own task, off the path.

pub mod log;
pub mod otlp;
pub mod report;

use std::io::{self, Write};
use std::sync::Arc;

use crate::observe::Observer;
use crate::observe::access_log::{self, Format, Log};
use crate::observe::failures::{self, FailureRecord};
use crate::observe::metrics::Metrics;
use crate::observe::queue::Queue;
use crate::observe::trace::{self, Tracer};
use log::Sink;
use otlp::{Address, Exporter, Protocol};

/// Settings of the access log and of traces.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// Destination and format of the access log, if there is one.
    pub log: Option<(Sink, Format)>,
    /// Share of the successful requests that are logged; failed ones always are.
    pub log_share: f64,
    /// Log failed requests only.
    pub log_errors_only: bool,
    /// Endpoint and protocol for spans, if they are exported.
    pub otlp: Option<(Address, Protocol)>,
    /// Share of the traces that are recorded.
    pub trace_share: f64,
}

/// Lines of the access log, and their destination.
pub type Lines = (Arc<Queue<Vec<u8>>>, Box<dyn Write + Send>);

/// Consumers of the queues that the path fills.
pub struct Exports {
    /// Lines of the access log.
    pub log: Option<Lines>,
    /// Spans.
    pub spans: Option<Exporter>,
    /// Failures, for reports.
    pub failures: Arc<Queue<FailureRecord>>,
}

/// Creates the queues, the [`Observer`] that fills them and the [`Exports`] that empty them. `service` and `node` name
/// the resource of spans.
///
/// # Errors
/// When the access log can't be opened.
pub fn start(
    telemetry: &Telemetry,
    metrics: &Metrics,
    service: String,
    node: &str,
) -> io::Result<(Observer, Exports)> {
    let lines = Arc::new(Queue::new(access_log::WAITING, metrics.log_dropped.clone()));
    let spans = Arc::new(Queue::new(trace::WAITING, metrics.spans_dropped.clone()));
    let dropped = metrics.failures_dropped.clone();
    let failures = Arc::new(Queue::new(failures::WAITING, dropped));
    let observer = Observer {
        log: telemetry.log.as_ref().map(|(_, format)| {
            let (share, errors_only) = (telemetry.log_share, telemetry.log_errors_only);
            Log::new(format.clone(), share, errors_only, Arc::clone(&lines))
        }),
        traces: telemetry
            .otlp
            .as_ref()
            .map(|_| Tracer::new(telemetry.trace_share, node, Arc::clone(&spans))),
        failures: Some(Arc::clone(&failures)),
    };
    let log = match &telemetry.log {
        Some((sink, _)) => Some((lines, sink.open()?)),
        None => None,
    };
    let spans = telemetry.otlp.clone().map(|(address, protocol)| Exporter {
        address,
        protocol,
        service,
        node: node.to_owned(),
        spans,
    });
    let exports = Exports {
        log,
        spans,
        failures,
    };
    Ok((observer, exports))
}
