//! Apps behind ports that no flag names: with interception, each connection carries its original destination.
//!
//! State: clusters of the registry's ports at the pod's addresses, for the life of the process; others are not kept.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::InboundPlan;
use super::builder::app_cluster;
use crate::balance::Cluster;
use crate::balance::endpoint::Endpoint;
use leno_rules::config::cluster;

/// Apps by the address that is dialled.
#[derive(Debug, Default)]
pub struct Apps(Mutex<HashMap<SocketAddr, App>>);

/// An app's cluster, and the configuration that it was built from.
#[derive(Debug)]
struct App {
    config: Arc<cluster::Cluster>,
    cluster: Arc<Cluster>,
}

impl Apps {
    /// The app at `address`, with the settings of its port in `plan`. Apps on ports of the registry are cached; any
    /// other is built for the caller alone, so that a port scan fills nothing.
    pub fn at(&self, plan: &InboundPlan, address: SocketAddr) -> Arc<Cluster> {
        let Some(config) = plan.app_configs.get(&address.port()) else {
            let config = app_cluster(&format!("inbound|{}||", address.port()));
            return cluster(&config, Endpoint::passing(address), None);
        };
        let mut apps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = apps.get(&address);
        if let Some(app) = before
            && Arc::ptr_eq(&app.config, config)
        {
            return Arc::clone(&app.cluster);
        }
        // The registry lists this port, so the app may still be starting.
        let endpoint = Endpoint::passing(address).starting();
        let cluster = cluster(config, endpoint, before.map(|app| &*app.cluster));
        let app = App {
            config: Arc::clone(config),
            cluster: Arc::clone(&cluster),
        };
        apps.insert(address, app);
        cluster
    }
}

/// A cluster of one endpoint; keeps the endpoint of `before`, with its state.
fn cluster(
    config: &cluster::Cluster,
    endpoint: Endpoint,
    before: Option<&Cluster>,
) -> Arc<Cluster> {
    let cluster = Cluster::new(config, before);
    let known = before.and_then(|before| before.endpoints().endpoints().first().cloned());
    let endpoint = known.unwrap_or_else(|| Arc::new(endpoint));
    cluster.set_endpoints(vec![endpoint]);
    Arc::new(cluster)
}
