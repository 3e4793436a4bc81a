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

/// A workload, and what its proxy calls its life.
type Life = (WorkloadKey, String);

/// What connected workloads were last described as.
#[derive(Debug, Default)]
pub(super) struct Workloads(Mutex<BTreeMap<Life, Last>>);

/// What a workload was last described as.
#[derive(Debug)]
struct Last {
    described: Arc<Described>,
    streams: usize,
    /// When the last stream ended.
    left: Instant,
}

impl Workloads {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Life, Last>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A proxy opens a stream.
    pub(super) fn join(&self, node: &Node, instance: &str) -> Seat<'_> {
        let (life, now) = ((node.workload(), instance.to_owned()), Instant::now());
        let mut held = self.held();
        // A life without a name can't be told from the next one.
        held.retain(|(_, instance), last| {
            last.streams > 0 || (!instance.is_empty() && now < last.left + FORGOTTEN)
        });
        let last = held.entry(life.clone()).or_insert_with(|| Last {
            described: Arc::default(),
            streams: 0,
            left: now,
        });
        last.streams += 1;
        drop(held);
        Seat { of: self, life }
    }
}

/// A proxy's place among the workloads, until its stream ends.
#[derive(Debug)]
pub(super) struct Seat<'a> {
    of: &'a Workloads,
    life: Life,
}

impl Seat<'_> {
    /// What the workload is in `mesh`; what was known of it and stands nowhere any more stays.
    pub(super) fn describe(&self, mesh: &Mesh, node: &Node) -> Arc<Described> {
        let described = mesh.describe(node);
        let mut held = self.of.held();
        match held.get_mut(&self.life) {
            None => Arc::new(described),
            Some(last) => {
                last.described = Arc::new(described.or(&last.described));
                Arc::clone(&last.described)
            }
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if let Some(last) = self.of.held().get_mut(&self.life) {
            last.streams -= 1;
            last.left = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Client;

    fn node() -> Node {
        Node {
            ip: "10.0.0.1".parse().expect("an address"),
            namespace: "default".to_owned(),
            account: "users".to_owned(),
            client: Client::Leno,
            labels: BTreeMap::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_stays_for_a_life_and_a_while_and_for_no_other() {
        let workloads = Workloads::default();
        let nothing = Mesh::default();
        let mut described = node();
        described
            .labels
            .insert("app".to_owned(), "users".to_owned());
        let knows = |seat: &Seat<'_>| seat.describe(&nothing, &node()).labels().are_known();
        let first = workloads.join(&node(), "a");
        assert!(!knows(&first));
        first.describe(&nothing, &described);
        assert!(knows(&first));
        let (second, other) = (workloads.join(&node(), "a"), workloads.join(&node(), "b"));
        assert!(knows(&second) && !knows(&other));
        drop((first, second));
        tokio::time::advance(FORGOTTEN / 2).await;
        assert!(
            knows(&workloads.join(&node(), "a")),
            "its stream broke, and it came back"
        );
        tokio::time::advance(FORGOTTEN).await;
        assert!(!knows(&workloads.join(&node(), "a")), "it left");

        let nameless = workloads.join(&node(), "");
        nameless.describe(&nothing, &described);
        assert!(knows(&nameless));
        drop(nameless);
        assert!(
            !knows(&workloads.join(&node(), "")),
            "who knows whether it is the same"
        );
        assert!(workloads.held().len() <= 3, "nothing is kept for ever");
    }
}
