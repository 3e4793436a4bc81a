//! What `/config` shows: what runs, its versions, what was refused and why, the identity, the link to the control plane.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::balance::Cluster;
use crate::config::cluster;
use crate::directory::Directory;
use crate::tls::Credentials;
use crate::xds::store::Store;

/// What is shown; kept up to date by who changes it.
#[derive(Debug, Default)]
pub struct Status {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    resources: Vec<Value>,
    refused: Vec<Value>,
    clusters: Vec<(Arc<cluster::Cluster>, Arc<Cluster>)>,
}

impl Status {
    /// The resources of `store` and the clusters made of them run now.
    pub fn set_resources<'a>(
        &self,
        store: &Store,
        clusters: impl Iterator<Item = (&'a Arc<cluster::Cluster>, &'a Arc<Cluster>)>,
    ) {
        let short = leno_proto::type_url::short;
        let mut versions: Vec<_> = store.versions().collect();
        versions.sort_unstable();
        let resources = versions.into_iter().map(|(type_url, name, version)| {
            json!({"type": short(type_url), "name": name, "version": version})
        });
        let refused = store.refused().map(|refused| {
            json!({
                "type": short(&refused.r#type), "name": refused.name, "version": refused.version,
                "field": refused.field, "reason": refused.reason,
            })
        });
        let held = Held {
            resources: resources.collect(),
            refused: refused.collect(),
            clusters: clusters
                .map(|(c, r)| (Arc::clone(c), Arc::clone(r)))
                .collect(),
        };
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Everything as JSON.
    pub fn render(&self, node: &str, directory: &Directory, credentials: &Credentials) -> Value {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let link = directory.link();
        let identity = credentials.identity().map(|identity| {
            json!({
                "id": identity.id.as_str(),
                "serial": identity.serial,
                "not_before": rfc3339(identity.not_before),
                "not_after": rfc3339(identity.not_after),
            })
        });
        json!({
            "node": node,
            "control_plane": {"connected": link.up, "detail": link.words},
            "identity": identity,
            "resources": held.resources,
            "refused": held.refused,
            "clusters": held.clusters.iter().map(|(c, r)| show(c, r)).collect::<Vec<_>>(),
        })
    }

    /// Now, as a person reads it.
    pub fn now() -> String {
        rfc3339(SystemTime::now())
    }
}

fn show(config: &cluster::Cluster, running: &Cluster) -> Value {
    let endpoints = running.endpoints();
    let now = Instant::now();
    let endpoints = endpoints.endpoints().iter().map(|endpoint| {
        let ejected = endpoint.health.ejection().map(|ejection| {
            let left = ejection.until.duration_since(now).as_secs_f64();
            json!({"reason": ejection.reason, "times": ejection.times, "returns_in_seconds": left})
        });
        json!({
            "address": endpoint.address.to_string(),
            "weight": endpoint.weight,
            "mutual_tls": endpoint.tls.is_some(),
            "in_flight": endpoint.in_flight(),
            "workload": endpoint.workload.name,
            "ejected": ejected,
        })
    });
    let limits = running.load.limits();
    let [requests, pending, retries] = running.load.under_way();
    json!({
        "name": config.name,
        "object": config.rule,
        "balance": format!("{:?}", config.balance),
        "endpoints": endpoints.collect::<Vec<_>>(),
        "limits": {
            "connections": limits.connections, "pending": limits.pending,
            "requests": limits.requests, "retries": limits.retries,
            "requests_per_connection": running.connections.max_requests,
        },
        "under_way": {"requests": requests, "pending": pending, "retries": retries},
        "outlier_detection": config.outlier.as_ref().map(|outlier| format!("{outlier:?}")),
    })
}

/// RFC 3339 in UTC, to the second. Dates by Howard Hinnant's `civil_from_days`.
fn rfc3339(time: SystemTime) -> String {
    let since = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let (days, seconds) = (since / 86_400, since % 86_400);
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_people_read_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_469_133, "2026-11-23T21:25:33Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
