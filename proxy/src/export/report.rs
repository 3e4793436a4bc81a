//! Reports to the control plane each second: traffic between peers, failures with their reasons, the state of
//! endpoints, the sidecar's health. The live map is built from that; without a control plane there is none.
//!
//! State: the values of all cells at the last report, bounded by the metric series.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leno_proto::leno::reports_client::ReportsClient;
use leno_proto::leno::{
    Ejection, EndpointState, Failure as FailureMessage, Health as HealthMessage, Party,
    ReportRequest, Traffic,
};
use leno_proto::tonic::transport::Endpoint;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep};
use tokio_stream::wrappers::ReceiverStream;

use crate::control::channel::{ControlPlane, error_text};
use crate::drain::Watch;
use crate::observe::failures::{FailureRecord, WAITING};
use crate::observe::labels::Labels;
use crate::observe::metrics::Metrics;
use crate::observe::queue::Queue;
use crate::observe::standard::{RequestProtocol, ResultLabels, Series, SeriesCell};
use crate::status::Status;
use crate::tls::Credentials;

/// Interval of reports.
const EACH: Duration = Duration::from_secs(1);
/// Pause before the stream is opened again.
const AGAIN: Duration = Duration::from_secs(2);
/// Most endpoints of one report.
const MAX_ENDPOINTS: usize = 2000;

/// Sends the reports of this sidecar.
#[derive(Debug)]
pub struct ReportClient {
    /// Address and identity of the control plane.
    pub target: ControlPlane,
    /// Node ID of this sidecar.
    pub node: String,
    /// Credentials for mutual TLS.
    pub credentials: Arc<Credentials>,
    /// Metrics to report.
    pub metrics: Arc<Metrics>,
    /// Queue of failures.
    pub failures: Arc<Queue<FailureRecord>>,
    /// Running clusters and endpoints.
    pub status: Arc<Status>,
}

/// Values of a cell at the last report.
#[derive(Debug, Clone, Default)]
struct Seen {
    count: u64,
    durations: Vec<u64>,
    bytes: u64,
}

/// Values of all cells at the last report: a report holds only the difference.
#[derive(Debug, Default)]
struct LastReport(HashMap<(Labels, ResultLabels), Seen>);

impl ReportClient {
    /// Reports until the proxy ends; a stream that ends is opened again.
    pub async fn run(self, watch: Watch) {
        let mut before = LastReport::default();
        loop {
            let ended = tokio::select! {
                ended = self.stream(&mut before) => ended,
                () = watch.ended() => return,
            };
            tracing::debug!(reason = ended, "not reporting");
            tokio::select! {
                () = sleep(AGAIN) => {}
                () = watch.ended() => return,
            }
        }
    }

    /// Runs one stream; returns the reason that it ended for.
    async fn stream(&self, before: &mut LastReport) -> String {
        self.credentials.ready().await;
        let connector = match self.target.mtls_dialer(&self.credentials) {
            Ok(connector) => connector,
            Err(reason) => return reason,
        };
        let endpoint = Endpoint::from_static("http://control-plane");
        let channel = match endpoint.connect_with_connector(connector).await {
            Ok(channel) => channel,
            Err(error) => return error_text(&error),
        };
        let (requests, receiver) = mpsc::channel(1);
        // Traffic from before the stream is dropped: the map shows the present.
        drop(before.since(&self.metrics.standard().all()));
        let mut tick = interval(EACH);
        tick.tick().await;
        let _ = requests.try_send(self.report(before));
        let mut asked = SystemTime::now();
        let stream = ReportsClient::new(channel)
            .report(ReceiverStream::new(receiver))
            .await;
        let mut answers = match stream {
            Ok(answers) => answers.into_inner(),
            Err(status) => return error_text(&status),
        };
        loop {
            let sent_at = match answers.message().await {
                Ok(Some(answer)) => answer.unix_millis,
                Ok(None) => return "the stream was closed".to_owned(),
                Err(status) => return error_text(&status),
            };
            let sent_at = Duration::from_millis(u64::try_from(sent_at).unwrap_or_default());
            self.metrics.health.clock(asked, UNIX_EPOCH + sent_at);
            tick.tick().await;
            asked = SystemTime::now();
            if requests.send(self.report(before)).await.is_err() {
                return "the stream was closed".to_owned();
            }
        }
    }

    fn report(&self, before: &mut LastReport) -> ReportRequest {
        let health = &self.metrics.health;
        ReportRequest {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            traffic: before.since(&self.metrics.standard().all()),
            failures: together(self.failures.take(WAITING)),
            endpoints: self.endpoints(),
            health: Some(HealthMessage {
                certificate_expires: health.certificate_expires(),
                config_age_millis: millis(health.config_age()),
                clock_skew_seconds: health.skew(),
                clock: health.clock_words(),
            }),
        }
    }

    fn endpoints(&self) -> Vec<EndpointState> {
        let endpoints = self.status.endpoints().into_iter().take(MAX_ENDPOINTS);
        let message = |endpoint: crate::status::Endpoint| EndpointState {
            cluster: endpoint.cluster,
            address: endpoint.address.to_string(),
            in_flight: endpoint.in_flight,
            ejected: endpoint.ejected.map(|(reason, times, left)| Ejection {
                reason,
                times,
                returns_in_millis: millis(left),
            }),
        };
        endpoints.map(message).collect()
    }
}

impl LastReport {
    /// Traffic since the last call.
    fn since(&mut self, all: &[Arc<Series>]) -> Vec<Traffic> {
        let mut next = HashMap::new();
        let mut traffic: Vec<Traffic> = Vec::new();
        for series in all {
            let mut new: Vec<Traffic> = Vec::new();
            for cell in series.cells().iter() {
                let key = (series.labels().clone(), cell.key);
                let now = Seen::of(cell);
                let before = self
                    .0
                    .remove(&key)
                    .filter(|before| before.count <= now.count);
                let before = before.unwrap_or_default();
                add(&mut new, series.labels(), cell, &now, &before);
                next.insert(key, now);
            }
            let is_news = |t: &Traffic| t.count > 0 || t.bytes > 0 || t.open > 0;
            traffic.extend(new.into_iter().filter(is_news));
        }
        self.0 = next;
        traffic
    }
}

impl Seen {
    fn of(cell: &SeriesCell) -> Seen {
        use std::sync::atomic::Ordering::Relaxed;
        Seen {
            count: cell.count.load(Relaxed),
            durations: match cell.key.protocol {
                RequestProtocol::Tcp => Vec::new(),
                _ => cell.duration.counts().to_vec(),
            },
            bytes: cell.received.load(Relaxed) + cell.sent.load(Relaxed),
        }
    }
}

/// Adds the difference in a cell to the traffic between the same peers by the same protocol.
fn add(new: &mut Vec<Traffic>, labels: &Labels, cell: &SeriesCell, now: &Seen, before: &Seen) {
    let protocol = cell.key.protocol.as_str();
    let at = new.iter().position(|traffic| traffic.protocol == protocol);
    let at = at.unwrap_or_else(|| {
        new.push(traffic(labels, protocol));
        new.len() - 1
    });
    let traffic = &mut new[at];
    let count = now.count - before.count;
    traffic.count += count;
    traffic.bytes += now.bytes.saturating_sub(before.bytes);
    if cell.key.protocol == RequestProtocol::Tcp {
        let closed = cell.closed.load(std::sync::atomic::Ordering::Relaxed);
        traffic.open += now.count.saturating_sub(closed);
    }
    if cell.key.is_failure() {
        traffic.errors += count;
    }
    if cell.key.flag != "-" && count > 0 {
        *traffic.flags.entry(cell.key.flag.to_owned()).or_default() += count;
    }
    traffic
        .durations
        .resize(now.durations.len().max(traffic.durations.len()), 0);
    for (at, total) in now.durations.iter().enumerate() {
        let old = before.durations.get(at).copied().unwrap_or_default();
        traffic.durations[at] += total.saturating_sub(old);
    }
}

fn traffic(labels: &Labels, protocol: &str) -> Traffic {
    let own = |name: &str| labels.get(name).to_owned();
    let party = |names: [&str; 4]| Party {
        namespace: own(names[0]),
        canonical_service: own(names[1]),
        workload: own(names[2]),
        principal: own(names[3]),
    };
    Traffic {
        reporter: own("reporter"),
        source: Some(party([
            "source_workload_namespace",
            "source_canonical_service",
            "source_workload",
            "source_principal",
        ])),
        destination: Some(party([
            "destination_workload_namespace",
            "destination_canonical_service",
            "destination_workload",
            "destination_principal",
        ])),
        service_namespace: own("destination_service_namespace"),
        service_name: own("destination_service_name"),
        protocol: protocol.to_owned(),
        security: own("connection_security_policy"),
        ..Traffic::default()
    }
}

/// Merges failures that are alike, with their count.
fn together(failures: Vec<FailureRecord>) -> Vec<FailureMessage> {
    let mut all: Vec<(FailureRecord, u64)> = Vec::new();
    for failure in failures {
        match all.iter_mut().find(|(other, _)| other.is_like(&failure)) {
            Some((other, count)) => (*other, *count) = (failure, *count + 1),
            None => all.push((failure, 1)),
        }
    }
    let message = |(failure, count): (FailureRecord, u64)| FailureMessage {
        unix_millis: i64::try_from(millis(
            failure.at.duration_since(UNIX_EPOCH).unwrap_or_default(),
        ))
        .unwrap_or_default(),
        source: Some(Party {
            namespace: failure.source.0,
            canonical_service: failure.source.1,
            ..Party::default()
        }),
        service_namespace: failure.destination.0,
        service_name: failure.destination.1,
        method: failure.method,
        path: failure.path,
        status: failure.status.into(),
        flag: failure.flag.to_owned(),
        explanation: failure.explanation,
        request_id: failure.request_id,
        count,
    };
    all.into_iter().map(message).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::labels::Party;
    use crate::observe::standard::{Sizes, Standard};

    #[test]
    fn a_report_tells_what_is_new_since_the_one_before() {
        let (standard, none) = (Standard::new(10), Party::default());
        let labels = Labels::new("source", &none, &none, "a.b.svc.cluster.local", "unknown");
        let series = standard.series(labels);
        let key = |status, flag| ResultLabels {
            protocol: RequestProtocol::Http,
            status,
            flag,
            grpc: None,
        };
        let count = |key| series.count(key, Duration::from_millis(3), Sizes::default());
        let mut before = LastReport::default();
        count(key(200, "-"));
        assert_eq!(before.since(&standard.all())[0].count, 1);
        assert!(before.since(&standard.all()).is_empty(), "nothing is new");
        count(key(200, "-"));
        count(key(503, "UH"));
        let new = before.since(&standard.all());
        assert_eq!((new.len(), new[0].count, new[0].errors), (1, 2, 1));
        assert_eq!(new[0].flags.get("UH"), Some(&1));
        assert_eq!(new[0].durations.iter().sum::<u64>(), 2);
        assert_eq!(
            (&*new[0].service_name, &*new[0].service_namespace),
            ("a", "b")
        );
        for _ in 0..9 {
            standard.sweep(1);
        }
        assert!(before.since(&standard.all()).is_empty());
        count(key(200, "-"));
        assert_eq!(before.since(&standard.all())[0].count, 1, "counted anew");
    }
}
