//! What the workloads of connected proxies were last described as.
//!
//! Invariant: as long as a proxy is connected, labels that were known of its workload stay known: an endpoint that is
//! removed, as in a drain, opens nothing and closes nothing. Another life of the proxy begins anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::mesh::workload::Described;
use crate::mesh::{Mesh, Node, WorkloadKey};

/// A proxy whose stream broke comes back within this, or doesn't.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// What connected workloads were last described as.
#[derive(Debug, Default)]
pub(super) struct Workloads(Mutex<BTreeMap<WorkloadKey, Last>>);

/// What a workload was last described as, in one life of its proxy.
#[derive(Debug)]
struct Last {
    instance: String,
    described: Arc<Described>,
    streams: usize,
    /// When the last stream ended.
    left: Instant,
}

impl Last {
    /// Whether a proxy that calls its life `instance` is this one. One that doesn't call it anything is only known by its
    /// open streams.
    fn is(&self, instance: &str) -> bool {
        self.instance == instance && (self.streams > 0 || !instance.is_empty())
    }
}

impl Workloads {
    fn held(&self) -> MutexGuard<'_, BTreeMap<WorkloadKey, Last>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A proxy opens a stream.
    pub(super) fn join(&self, node: &Node, instance: &str) -> Seat<'_> {
        let (key, now) = (node.workload(), Instant::now());
        let mut held = self.held();
        held.retain(|_, last| last.streams > 0 || now < last.left + FORGOTTEN);
        let fresh = || Last {
            instance: instance.to_owned(),
            described: Arc::default(),
            streams: 0,
            left: now,
        };
        let last = held.entry(key.clone()).or_insert_with(fresh);
        if !last.is(instance) {
            *last = fresh();
        }
        last.streams += 1;
        drop(held);
        Seat {
            of: self,
            key,
            instance: instance.to_owned(),
        }
    }
}

/// A proxy's place among the workloads, until its stream ends.
#[derive(Debug)]
pub(super) struct Seat<'a> {
    of: &'a Workloads,
    key: WorkloadKey,
    instance: String,
}

impl Seat<'_> {
    /// What the workload is in `mesh`; what was known of it and stands nowhere any more stays.
    pub(super) fn describe(&self, mesh: &Mesh, node: &Node) -> Arc<Described> {
        let described = mesh.describe(node);
        let mut held = self.of.held();
        let Some(last) = held
            .get_mut(&self.key)
            .filter(|last| last.instance == self.instance)
        else {
            return Arc::new(described);
        };
        last.described = Arc::new(described.or(&last.described));
        Arc::clone(&last.described)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut held = self.of.held();
        if let Some(last) = held
            .get_mut(&self.key)
            .filter(|last| last.instance == self.instance)
        {
            last.streams = last.streams.saturating_sub(1);
            last.left = Instant::now();
        }
    }
}
