//! Contents of `/config`: running resources with their versions, refused ones with the reason, the identity, the
//! control plane.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::balance::Cluster;
use crate::directory::Directory;
use crate::observe::time::rfc3339;
use crate::resources::Store;
use crate::tls::Credentials;
use leno_rules::config::cluster;

/// Resources and running clusters; updated at each change by the xDS client.
#[derive(Debug, Default)]
pub struct Status {
    held: Mutex<StatusState>,
}

/// An endpoint of a running cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// Its cluster.
    pub cluster: String,
    /// Its address.
    pub address: SocketAddr,
    /// Requests in flight.
    pub in_flight: u64,
    /// While it is ejected: the reason, the number of ejections, and the time left.
    pub ejected: Option<(String, u32, Duration)>,
}

#[derive(Debug, Default)]
struct StatusState {
    resources: Vec<Value>,
    refused: Vec<Value>,
    clusters: Vec<(Arc<cluster::Cluster>, Arc<Cluster>)>,
}

impl Status {
    /// Takes over the resources of `store`, and the clusters that run with them.
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
        let held = StatusState {
            resources: resources.collect(),
            refused: refused.collect(),
            clusters: clusters
                .map(|(c, r)| (Arc::clone(c), Arc::clone(r)))
                .collect(),
        };
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Endpoints of every running cluster.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut all = Vec::new();
        for (config, running) in held.clusters.iter() {
            for endpoint in running.endpoints().endpoints() {
                let ejection = endpoint.health.ejection();
                all.push(Endpoint {
                    cluster: config.name.to_string(),
                    address: endpoint.address,
                    in_flight: endpoint.in_flight() as u64,
                    ejected: ejection.map(|ejection| {
                        let left = ejection.until.duration_since(now);
                        (ejection.reason.to_string(), ejection.times, left)
                    }),
                });
            }
        }
        all
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

    /// The current time in RFC 3339.
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
    let limits = running.circuit_breaker.limits();
    let [requests, pending, retries] = running.circuit_breaker.under_way();
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
