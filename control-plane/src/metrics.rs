//! Metrics of the control plane, under Istio's names where it has one, so that its dashboards show them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Istio's histogram buckets of a push, in seconds.
const PUSH: [f64; 9] = [0.01, 0.1, 0.3, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0];

/// Longest label with an explanation, in bytes.
const MAX_LABEL: usize = 256;

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Responses that were sent, by type: `lds`, `rds`, `cds`, `eds`, `sds`.
    pub pushes: IntCounterVec,
    /// Seconds to build the responses of a push, by type.
    pub push_time: HistogramVec,
    /// Seconds from a change until the client has answered (ACK or NACK) every response.
    pub convergence: Histogram,
    /// Responses that proxies refused (NACK), by type.
    pub rejects: IntCounterVec,
    rejects_of: [(&'static str, IntGauge); 4],
    /// Open ADS streams, by the proxy's version, which is always `unknown`.
    pub connected: IntGaugeVec,
    /// Objects that hold a workload closed because its labels aren't known, by node.
    held_closed: OfNodes,
    /// Nodes that refuse a change of inbound access.
    closed: OfNodes,
    /// Objects with a text that is not in force; the value is the time since which that is so.
    rejected: IntGaugeVec,
    /// Certificate requests.
    pub asked: IntCounter,
    /// Certificates that were issued.
    pub issued: IntCounter,
    /// Certificate requests that were denied.
    pub denied: IntCounter,
    /// Expiry of the root certificate, in seconds since 1970.
    pub root_expiry: IntGauge,
    /// Services.
    pub services: IntGauge,
    /// VirtualServices.
    pub virtual_services: IntGauge,
    /// Objects that were added, updated or deleted, by kind.
    pub events: IntCounterVec,
    /// Objects that were added or updated and are valid.
    pub passed: IntCounter,
    /// Validation errors.
    pub failed: IntCounter,
}

/// A gauge by node, set by the node's open streams.
#[derive(Debug)]
struct OfNodes {
    gauge: IntGaugeVec,
    streams: Mutex<BTreeMap<u64, String>>,
}

impl OfNodes {
    fn new(makes: &Makes<'_>, name: &str, help: &str) -> Result<OfNodes, prometheus::Error> {
        Ok(OfNodes {
            gauge: makes.gauges(name, help, &["node"])?,
            streams: Mutex::default(),
        })
    }

    /// Sets the value for a stream's node; `None` when it has none or the stream ended. A node's series goes with its
    /// last stream.
    fn set(&self, stream: u64, number: Option<(&str, usize)>) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let before = streams.remove(&stream);
        if let Some((node, number)) = number {
            streams.insert(stream, node.to_owned());
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            self.gauge.with_label_values(&[node]).set(number);
        }
        if let Some(node) = before.filter(|node| !streams.values().any(|other| other == node)) {
            // A node without a series is no error.
            let _ = self.gauge.remove_label_values(&[node.as_str()]);
        }
    }
}

/// Registers metrics.
struct Makes<'a>(&'a Registry);

impl Makes<'_> {
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let counter = IntCounter::new(name, help)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    fn times(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(PUSH.to_vec());
        let times = HistogramVec::new(options, labels)?;
        self.0.register(Box::new(times.clone()))?;
        Ok(times)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let gauge = IntGauge::new(name, help)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }
}

/// Registers the process collector and the build information.
fn describe_process(registry: &Registry) -> Result<(), prometheus::Error> {
    registry.register(Box::new(ProcessCollector::for_self()))?;
    registry.register(Box::new(build()?))
}

/// Component and version, as Istio's components report them.
fn build() -> Result<IntGauge, prometheus::Error> {
    let build = Opts::new("istio_build", "Component and version.")
        .const_label("component", "pilot")
        .const_label("tag", env!("CARGO_PKG_VERSION"));
    let build = IntGauge::with_opts(build)?;
    build.set(1);
    Ok(build)
}

fn held_closed(makes: &Makes<'_>) -> Result<OfNodes, prometheus::Error> {
    let help =
        "Objects that may be for a workload, whose labels are not known, and hold it closed.";
    OfNodes::new(makes, "leno_workload_labels_unknown", help)
}

fn closed(makes: &Makes<'_>) -> Result<OfNodes, prometheus::Error> {
    let help = "1 for a node that refuses a change of who gets in: its inbound is closed.";
    OfNodes::new(makes, "leno_security_change_refused", help)
}

fn rejected(makes: &Makes<'_>) -> Result<IntGaugeVec, prometheus::Error> {
    let help = "Since when the text of an object is not in force, in seconds since 1970; what runs instead, and why.";
    let labels = ["kind", "namespace", "name", "runs", "closes", "reason"];
    makes.gauges("leno_config_rejected_since_seconds", help, &labels)
}

fn rejects(makes: &Makes<'_>) -> Result<IntCounterVec, prometheus::Error> {
    let help = "Responses that proxies refused.";
    let rejects = makes.counters("pilot_total_xds_rejects", help, &["type"])?;
    // An alert on an increase needs the zero before it.
    for kind in ["cds", "eds", "lds", "rds"] {
        rejects.with_label_values(&[kind]);
    }
    Ok(rejects)
}

impl Metrics {
    /// Fresh metrics.
    ///
    /// # Errors
    /// When a name is invalid or taken, which is a mistake in this file.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let makes = Makes(&registry);
        describe_process(&registry)?;
        let help = "Responses of one type that proxies refused.";
        Ok(Metrics {
            pushes: makes.counters("pilot_xds_pushes", "Responses that were sent.", &["type"])?,
            rejects: rejects(&makes)?,
            rejects_of: [
                ("cds", makes.gauge("pilot_xds_cds_reject", help)?),
                ("eds", makes.gauge("pilot_xds_eds_reject", help)?),
                ("lds", makes.gauge("pilot_xds_lds_reject", help)?),
                ("rds", makes.gauge("pilot_xds_rds_reject", help)?),
            ],
            asked: makes.counter(
                "citadel_server_csr_count",
                "Certificates that were asked for.",
            )?,
            issued: makes.counter(
                "citadel_server_success_cert_issuance_count",
                "Certificates issued.",
            )?,
            denied: makes.counter(
                "citadel_server_authentication_failure_count",
                "Requests refused.",
            )?,
            root_expiry: makes.gauge(
                "citadel_server_root_cert_expiry_timestamp",
                "When the root's certificate ends, in seconds since 1970.",
            )?,
            services: makes.gauge("pilot_services", "Services.")?,
            virtual_services: makes.gauge("pilot_virt_services", "VirtualServices.")?,
            events: makes.counters(
                "pilot_k8s_cfg_events",
                "Changes of the configuration.",
                &["type", "event"],
            )?,
            passed: makes.counter(
                "galley_validation_passed",
                "Objects that were read and are good.",
            )?,
            failed: makes.counter("galley_validation_failed", "Objects that were refused.")?,
            push_time: makes.times(
                "pilot_xds_push_time",
                "Seconds that it took to make what is sent.",
                &["type"],
            )?,
            convergence: makes
                .times(
                    "pilot_proxy_convergence_time",
                    "Seconds from a change until a proxy has taken it.",
                    &[],
                )?
                .with_label_values(&[] as &[&str]),
            held_closed: held_closed(&makes)?,
            closed: closed(&makes)?,
            rejected: rejected(&makes)?,
            connected: makes.gauges("pilot_xds", "Proxies that are connected.", &["version"])?,
            registry,
        })
    }

    /// Counts a response of a type that was refused (NACK).
    pub fn rejected(&self, kind: &str) {
        self.rejects.with_label_values(&[kind]).inc();
        for (_, gauge) in self.rejects_of.iter().filter(|(of, _)| *of == kind) {
            gauge.inc();
        }
    }

    /// Sets the number of objects that hold a stream's node closed; `None` when none do or the stream ended.
    pub fn set_held(&self, stream: u64, held: Option<(&str, usize)>) {
        self.held_closed.set(stream, held);
    }

    /// Marks a stream's node as one that refuses a change of inbound access; `None` when it doesn't.
    pub fn set_closed(&self, stream: u64, node: Option<&str>) {
        self.closed.set(stream, node.map(|node| (node, 1)));
    }

    /// Sets the objects with a text that is not in force: their labels, and since when.
    pub fn set_rejected(&self, rejected: impl Iterator<Item = ([String; 6], SystemTime)>) {
        self.rejected.reset();
        for (labels, since) in rejected {
            let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
            let gauge = self
                .rejected
                .with_label_values(&labels.each_ref().map(|label| cut(label)));
            gauge.set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            Err(error) => format!("# {error}\n"),
        }
    }
}

/// Cuts a text to [`MAX_LABEL`], at a character boundary.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_LABEL)]
}
