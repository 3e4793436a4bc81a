//! Every metric of the process: Istio's standard ones, and the proxy's own.

use std::sync::Arc;

use prometheus::{Encoder, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use super::exposition::Exposition;
use super::health::{Gauges, Health};
use super::labels::Labels;
use super::standard::{Series, Standard};

/// Default limit on the series of one process; those beyond it are counted as `other`.
pub const MAX_SERIES: usize = 1000;

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    standard: Arc<Standard>,
    /// Requests with a head that our own parsers read.
    pub parsed: IntCounter,
    /// Connections open now, from apps and from peers.
    pub connections: IntGauge,
    /// Connections closed at once because the limit was reached.
    pub refused_connections: IntCounter,
    /// Resources refused, counted once for each version.
    pub refused_resources: IntCounter,
    /// Requests that were sent again.
    pub retries: IntCounter,
    /// Endpoints ejected.
    pub ejections: IntCounter,
    withheld: IntCounterVec,
    /// Scrapes in which the app's metrics were missing.
    pub app_failures: IntCounter,
    /// 1 while the stream to the control plane is up.
    pub connected: IntGauge,
    /// Health of the sidecar.
    pub health: Arc<Health>,
    /// Lines of the access log that were lost: the queue was full, or the write failed.
    pub log_dropped: IntCounter,
    /// Spans that were lost: the queue was full, the export failed, or the collector refused them.
    pub spans_dropped: IntCounter,
    /// Failures that aren't reported to the control plane because the queue was full.
    pub failures_dropped: IntCounter,
    /// Certificates put into use: issued by the CA, or restored after a restart.
    pub rotations: IntCounter,
}

impl Metrics {
    /// Counts a retry that was not made, by its reason.
    pub fn withheld(&self, reason: &'static str) {
        self.withheld.with_label_values(&[reason]).inc();
    }

    /// Fresh metrics: one set for each proxy, so that several can live in one process.
    ///
    /// # Errors
    /// When a name or label is invalid or taken, which is a mistake in this file.
    pub fn new(max_series: usize) -> Result<Arc<Metrics>, prometheus::Error> {
        let registry = Registry::new();
        let standard = Arc::new(Standard::new(max_series));
        registry.register(Box::new(Exposition::new(&standard)?))?;
        let help = "Retries that were not made, and why.";
        let withheld = Opts::new("leno_retries_withheld_total", help);
        let withheld = IntCounterVec::new(withheld, &["reason"])?;
        registry.register(Box::new(withheld.clone()))?;
        registry.register(Box::new(build()?))?;
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let health = Arc::new(Health::default());
        registry.register(Box::new(Gauges(Arc::clone(&health))))?;
        Ok(Arc::new(Metrics {
            parsed: counter(
                "leno_http1_requests_parsed_total",
                "Requests whose head Leno's own parser of HTTP/1 read, or that of HTTP/2.",
            )?,
            connections: gauge("leno_connections", "Connections open now.")?,
            refused_connections: counter(
                "leno_connections_refused_total",
                "Connections closed at once because --max-connections was reached.",
            )?,
            refused_resources: counter(
                "leno_xds_resources_refused_total",
                "xDS resources that were refused.",
            )?,
            retries: counter("leno_retries_total", "Requests that were sent again.")?,
            ejections: counter("leno_ejections_total", "Endpoints that were ejected.")?,
            withheld,
            app_failures: counter(
                "leno_app_metrics_failures_total",
                "Scrapes in which the app's own metrics were missing.",
            )?,
            connected: gauge("leno_xds_connected", "1 while the xDS stream is up.")?,
            rotations: counter("leno_certificates_total", "Certificates obtained.")?,
            health,
            log_dropped: counter(
                "leno_access_log_dropped_total",
                "Lines of the access log that had no room.",
            )?,
            spans_dropped: counter(
                "leno_spans_dropped_total",
                "Spans that could not be handed over to the collector.",
            )?,
            failures_dropped: counter(
                "leno_failures_dropped_total",
                "Failures that the control plane's map is not told of.",
            )?,
            standard,
            registry,
        }))
    }

    /// The series with these labels, made on first use.
    pub fn series(&self, labels: Labels) -> Arc<Series> {
        self.standard.series(labels)
    }

    /// Istio's standard metrics.
    pub fn standard(&self) -> &Standard {
        &self.standard
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            Err(error) => format!("# {error}\n"),
        }
    }
}

/// Component and version, as Istio's components report them.
fn build() -> Result<IntGauge, prometheus::Error> {
    let build = Opts::new("istio_build", "Component and version.")
        .const_label("component", "proxy")
        .const_label("tag", env!("CARGO_PKG_VERSION"));
    let build = IntGauge::with_opts(build)?;
    build.set(1);
    Ok(build)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::labels::Party;
    use crate::observe::standard::{MessageDirection, RequestProtocol, ResultLabels, Sizes};

    #[test]
    fn requests_are_shown_under_istios_names_and_labels() {
        let metrics = Metrics::new(MAX_SERIES).expect("valid names");
        let none = Party::default();
        let labels = Labels::new("source", &none, &none, "a.b.svc.cluster.local", "unknown");
        let series = metrics.series(labels);
        let http = |status, flag| ResultLabels {
            protocol: RequestProtocol::Http,
            status,
            flag,
            grpc: None,
        };
        let grpc = ResultLabels {
            protocol: RequestProtocol::Grpc,
            grpc: Some(14),
            ..http(200, "-")
        };
        let sizes = Sizes {
            request: 100,
            response: 2000,
        };
        for key in [http(200, "-"), http(503, "UH"), http(503, "UH"), grpc] {
            series.count(key, Duration::from_millis(7), sizes);
        }
        series.messages(MessageDirection::Response, 3);
        series.cell(ResultLabels::tcp("-"));
        let text = metrics.render();
        let line = |name: &str, part: &str| {
            let mut lines = text.lines().filter(|l| l.starts_with(name));
            lines.find(|l| l.contains(part)).unwrap_or_default()
        };
        let ok = line("istio_requests_total{", "response_code=\"200\"");
        assert!(ok.ends_with("} 1"), "{ok}");
        assert!(ok.contains("destination_service_name=\"a\""));
        assert_eq!(ok.matches("=\"").count(), 25);
        let bad = line("istio_requests_total{", "response_code=\"503\"");
        assert!(
            bad.ends_with("} 2") && bad.contains("response_flags=\"UH\""),
            "{bad}"
        );
        let call = line("istio_requests_total{", "request_protocol=\"grpc\"");
        assert!(call.contains("grpc_response_status=\"14\""), "{call}");
        let bucket = line("istio_request_duration_milliseconds_bucket{", "le=\"10\"");
        assert!(bucket.ends_with("} 1"), "{bucket}");
        let sum = line("istio_response_bytes_sum{", "503");
        assert!(sum.ends_with("} 4000"), "{sum}");
        let messages = line("istio_response_messages_total{", "grpc");
        assert!(
            messages.ends_with("} 3") && messages.matches("=\"").count() == 23,
            "{messages}"
        );
        let tcp = line("istio_tcp_connections_opened_total{", "tcp");
        assert_eq!(tcp.matches("=\"").count(), 23, "{tcp}");
    }
}
