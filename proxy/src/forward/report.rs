//! Reports of attempts to outlier detection.

use std::sync::Arc;

use tokio::time::Instant;

use super::retry_state::RetryState;
use crate::balance::Cluster;
use crate::balance::outlier::EndpointResult;
use crate::error::{Error, Kind, Progress, Side};
use crate::upstream::{Carries, dial};
use crate::worker::Worker;

/// Reports an error to outlier detection, if it is the endpoint's.
pub(super) fn error(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    retry_state: &mut RetryState<'_>,
    error: &Error,
) {
    let verdict = match (error.side, error.kind) {
        (Side::Up, Kind::ConnectTimeout) => EndpointResult::TimedOut,
        (Side::Up, _) => EndpointResult::Failed,
        _ => return,
    };
    self::verdict(worker, cluster, retry_state, verdict, Instant::now());
}

/// Reports to outlier detection that there was no response in time, if the endpoint had the whole request: it isn't
/// at fault for a client that sends or reads slowly.
pub(super) fn late(worker: &Worker, cluster: &Arc<Cluster>, retry_state: &mut RetryState<'_>) {
    if retry_state.progress < Progress::Answered && retry_state.upload.is_done() {
        verdict(
            worker,
            cluster,
            retry_state,
            EndpointResult::TimedOut,
            Instant::now(),
        );
    }
}

/// Reports `verdict` on the current endpoint to outlier detection, and logs an ejection or a return.
pub(super) fn verdict(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    retry_state: &mut RetryState<'_>,
    verdict: EndpointResult,
    now: Instant,
) {
    let Some(lease) = retry_state.lease.as_mut() else {
        return;
    };
    let was_probe = lease.is_probe();
    let ejection = cluster.report(lease, verdict, now);
    let address = lease.endpoint().address;
    match ejection {
        Some(ejection) => {
            worker.shared.metrics.ejections.inc();
            let (cluster, times) = (&cluster.name, ejection.times);
            tracing::warn!(%cluster, %address, reason = ejection.reason, times, "ejected");
        }
        None if was_probe => tracing::info!(cluster = %cluster.name, %address, "returned"),
        None => {}
    }
}

/// Probes an ejected endpoint that no request is sent to, by connecting to it in the background.
pub(super) fn probe_ejected(cluster: &Arc<Cluster>, now: Instant) {
    let Some(mut lease) = cluster.next_probe(now) else {
        return;
    };
    let cluster = Arc::clone(cluster);
    tokio::task::spawn_local(async move {
        let endpoint = Arc::clone(lease.endpoint());
        let verdict = match dial(&cluster, &endpoint, Carries::Http).await {
            Ok(_) => EndpointResult::Status(200),
            Err(_) => EndpointResult::Failed,
        };
        cluster.report(&mut lease, verdict, Instant::now());
    });
}
