//! Cells as the metric families that Prometheus scrapes, under Istio's names.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramMessage, LabelPair, Metric, MetricFamily,
    MetricType,
};

use super::standard::{
    BUCKETS, Histogram, MessageDirection, RequestProtocol, Series, SeriesCell, Standard,
};

/// Source of a family's values.
#[derive(Debug, Clone, Copy)]
enum Value {
    /// Counts of HTTP and gRPC requests.
    Requests,
    Histogram(fn(&SeriesCell) -> &Histogram),
    /// Counts of TCP connections, or of their bytes.
    Tcp(fn(&SeriesCell) -> u64),
    /// Counts of gRPC messages.
    Messages(MessageDirection),
}

const FAMILIES: [(&str, &str, Value); 10] = [
    (
        "istio_requests_total",
        "Requests that ended.",
        Value::Requests,
    ),
    (
        "istio_request_duration_milliseconds",
        "Time from a request's head to the end of its response.",
        Value::Histogram(|cell| &cell.duration),
    ),
    (
        "istio_request_bytes",
        "Size of requests, heads included.",
        Value::Histogram(|cell| &cell.request_bytes),
    ),
    (
        "istio_response_bytes",
        "Size of responses, heads included.",
        Value::Histogram(|cell| &cell.response_bytes),
    ),
    (
        "istio_request_messages_total",
        "gRPC messages from callers.",
        Value::Messages(MessageDirection::Request),
    ),
    (
        "istio_response_messages_total",
        "gRPC messages to callers.",
        Value::Messages(MessageDirection::Response),
    ),
    (
        "istio_tcp_connections_opened_total",
        "TCP connections opened.",
        Value::Tcp(|cell| cell.count.load(Ordering::Relaxed)),
    ),
    (
        "istio_tcp_connections_closed_total",
        "TCP connections closed.",
        Value::Tcp(|cell| cell.closed.load(Ordering::Relaxed)),
    ),
    (
        "istio_tcp_received_bytes_total",
        "Bytes received from whoever connected.",
        Value::Tcp(|cell| cell.received.load(Ordering::Relaxed)),
    ),
    (
        "istio_tcp_sent_bytes_total",
        "Bytes sent to whoever connected.",
        Value::Tcp(|cell| cell.sent.load(Ordering::Relaxed)),
    ),
];

/// Istio's standard metrics, for a registry.
#[derive(Debug)]
pub(super) struct Exposition {
    standard: Arc<Standard>,
    descriptions: Vec<Desc>,
}

impl Exposition {
    pub(super) fn new(standard: &Arc<Standard>) -> Result<Exposition, prometheus::Error> {
        let descriptions = FAMILIES.iter().map(|(name, help, _)| {
            Desc::new(
                (*name).to_owned(),
                (*help).to_owned(),
                Vec::new(),
                std::collections::HashMap::new(),
            )
        });
        Ok(Exposition {
            standard: Arc::clone(standard),
            descriptions: descriptions.collect::<Result<_, _>>()?,
        })
    }
}

impl Exposition {
    /// Families of the series' number, and of the times that their limit was exceeded.
    fn room(&self) -> [MetricFamily; 2] {
        let (cells, overflow) = self.standard.room();
        let family = |name: &str, help: &str, kind, metric| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family.set_metric(vec![metric]);
            family
        };
        [
            family(
                "leno_metric_series",
                "Series of Istio's standard metrics, each of all families; --max-metric-series bounds them.",
                MetricType::GAUGE,
                gauge(cells),
            ),
            family(
                "leno_metric_series_overflow_total",
                "Times that a metric series was counted as `other`.",
                MetricType::COUNTER,
                counter(Vec::new(), overflow),
            ),
        ]
    }
}

impl Collector for Exposition {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let all = self.standard.all();
        let families = FAMILIES.iter().map(|(name, help, value)| {
            let metrics: Vec<Metric> = all.iter().flat_map(|s| metrics(s, *value)).collect();
            let kind = match value {
                Value::Histogram(_) => MetricType::HISTOGRAM,
                _ => MetricType::COUNTER,
            };
            let mut family = MetricFamily::default();
            family.set_name((*name).to_owned());
            family.set_help((*help).to_owned());
            family.set_field_type(kind);
            family.set_metric(metrics);
            family
        });
        // The encoder rejects a family without metrics.
        let families = families.filter(|family| !family.get_metric().is_empty());
        families.chain(self.room()).collect()
    }
}

fn metrics(series: &Series, value: Value) -> Vec<Metric> {
    if let Value::Messages(way) = value {
        let count = series.messages_of(way);
        let labels = labels(series, RequestProtocol::Grpc, &[("response_flags", "-")]);
        return (count > 0)
            .then(|| counter(labels, count))
            .into_iter()
            .collect();
    }
    let cells = series.cells();
    let wanted = cells.iter().filter(|cell| {
        let is_tcp = cell.key.protocol == RequestProtocol::Tcp;
        is_tcp == matches!(value, Value::Tcp(_))
    });
    wanted
        .map(|cell| {
            let code = cell.key.code();
            let grpc = cell.key.grpc.map(|status| status.to_string());
            let own = [
                ("response_flags", cell.key.flag),
                ("response_code", &*code),
                ("grpc_response_status", grpc.as_deref().unwrap_or_default()),
            ];
            let own = match value {
                Value::Tcp(_) => &own[..1],
                _ => &own[..],
            };
            let labels = labels(series, cell.key.protocol, own);
            match value {
                Value::Histogram(of) => histogram(labels, of(cell)),
                Value::Tcp(of) => counter(labels, of(cell)),
                _ => counter(labels, cell.count.load(Ordering::Relaxed)),
            }
        })
        .collect()
}

fn labels(series: &Series, protocol: RequestProtocol, own: &[(&str, &str)]) -> Vec<LabelPair> {
    let protocol = [("request_protocol", protocol.as_str())];
    let all = series.labels().iter().chain(protocol);
    let all = all.map(|(name, value)| pair(name, value));
    let own = own.iter().map(|(name, value)| pair(name, value));
    all.chain(own).collect()
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

#[allow(clippy::cast_precision_loss)] // Prometheus has no other numbers
fn counter(labels: Vec<LabelPair>, count: u64) -> Metric {
    let mut value = Counter::default();
    value.set_value(count as f64);
    let mut metric = Metric::from_label(labels);
    metric.set_counter(value);
    metric
}

#[allow(clippy::cast_precision_loss)] // bounded by a flag
fn gauge(count: usize) -> Metric {
    let mut value = Gauge::default();
    value.set_value(count as f64);
    let mut metric = Metric::default();
    metric.set_gauge(value);
    metric
}

#[allow(clippy::cast_precision_loss)] // bounds are small
fn histogram(labels: Vec<LabelPair>, histogram: &Histogram) -> Metric {
    let counts = histogram.counts();
    let mut total = 0;
    let buckets = BUCKETS.iter().zip(&counts).map(|(bound, count)| {
        total += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64 / 1000.0);
        bucket.set_cumulative_count(total);
        bucket
    });
    let mut value = HistogramMessage::default();
    value.set_bucket(buckets.collect());
    value.set_sample_count(counts.iter().sum());
    value.set_sample_sum(histogram.sum());
    let mut metric = Metric::from_label(labels);
    metric.set_histogram(value);
    metric
}
