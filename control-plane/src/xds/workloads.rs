//! The last known descriptions of the workloads of connected proxies.
//!
//! Invariant: as long as a proxy is connected, labels that were known of its workload stay known: an endpoint that is
//! removed, as in a drain, opens nothing and closes nothing. Another instance of the proxy begins anew.
//!
//! State: kept until ten minutes after the last stream; at most 10,000 that left.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::mesh::workload::WorkloadDescription;
use crate::mesh::{Mesh, Node, WorkloadKey};

/// Time for which an instance without a stream is remembered.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Most instances that are remembered without a stream.
const MAX_LEFT: usize = 10_000;

/// A workload, and the name of one instance of its proxy.
type Life = (WorkloadKey, String);

/// The last known descriptions of connected workloads.
#[derive(Debug, Default)]
pub(crate) struct Workloads(Mutex<Lives>);

#[derive(Debug, Default)]
struct Lives {
    connected: BTreeMap<Life, Last>,
    /// Instances without a stream any more, each with the time at which the last one ended.
    left: BTreeMap<Life, (Instant, Arc<WorkloadDescription>)>,
}

/// The last known description of a connected workload.
#[derive(Debug)]
struct Last {
    described: Arc<WorkloadDescription>,
    streams: usize,
}

impl Lives {
    /// Remembers an instance after its last stream.
    fn remember(&mut self, life: Life, described: Arc<WorkloadDescription>) {
        let now = Instant::now();
        self.left.insert(life, (now, described));
        if self.left.len() > MAX_LEFT {
            self.left.retain(|_, (at, _)| now < *at + FORGOTTEN);
        }
        if self.left.len() > MAX_LEFT {
            self.left.clear();
        }
    }
}

impl Workloads {
    fn lives(&self) -> MutexGuard<'_, Lives> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a stream of a proxy.
    pub(crate) fn join(&self, node: &Node, instance: &str) -> StreamRegistration<'_> {
        let life = (node.workload(), instance.to_owned());
        let mut lives = self.lives();
        let before = lives.left.remove(&life);
        let before = before.filter(|(at, _)| Instant::now() < *at + FORGOTTEN);
        let last = lives.connected.entry(life.clone());
        let last = last.or_insert_with(|| Last {
            described: before.map(|(_, described)| described).unwrap_or_default(),
            streams: 0,
        });
        last.streams += 1;
        drop(lives);
        StreamRegistration { of: self, life }
    }
}

/// The registration of a proxy's stream, until dropped.
#[derive(Debug)]
pub(crate) struct StreamRegistration<'a> {
    of: &'a Workloads,
    life: Life,
}

impl StreamRegistration<'_> {
    /// The workload as `mesh` describes it; earlier descriptions that the registry doesn't have any more stay.
    pub(crate) fn describe(&self, mesh: &Mesh, node: &Node) -> Arc<WorkloadDescription> {
        let described = mesh.describe(node);
        match self.of.lives().connected.get_mut(&self.life) {
            None => Arc::new(described),
            Some(last) => {
                last.described = Arc::new(described.or(&last.described));
                Arc::clone(&last.described)
            }
        }
    }
}

impl Drop for StreamRegistration<'_> {
    fn drop(&mut self) {
        let mut lives = self.of.lives();
        let Some(last) = lives.connected.get_mut(&self.life) else {
            return;
        };
        last.streams -= 1;
        if last.streams > 0 {
            return;
        }
        let described = Arc::clone(&last.described);
        lives.connected.remove(&self.life);
        // Instances without a name can't be distinguished, and a description without labels needn't be kept.
        let (_, instance) = &self.life;
        if !instance.is_empty() && described.labels().are_known() {
            lives.remember(self.life.clone(), described);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::service::Workload;
    use crate::mesh::workload::Index;

    fn node() -> Node {
        Node::sidecar("10.0.0.1", "users")
    }

    /// A mesh whose registry describes the node.
    fn described() -> Mesh {
        let workload = Workload {
            object: "default/users WorkloadEntry".to_owned(),
            address: node().ip,
            namespace: "default".to_owned(),
            account: None,
            labels: BTreeMap::from([("app".to_owned(), "users".to_owned())]),
        };
        let workloads = vec![workload];
        Mesh {
            index: Index::new(&BTreeMap::new(), &workloads),
            workloads: Arc::new(workloads),
            ..Mesh::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_stays_for_a_life_and_a_while_and_for_no_other() {
        let workloads = Workloads::default();
        let (nothing, described) = (Mesh::default(), described());
        let knows =
            |seat: &StreamRegistration<'_>| seat.describe(&nothing, &node()).labels().are_known();
        let first = workloads.join(&node(), "a");
        assert!(!knows(&first));
        first.describe(&described, &node());
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
        nameless.describe(&described, &node());
        assert!(knows(&nameless));
        drop(nameless);
        assert!(
            !knows(&workloads.join(&node(), "")),
            "who knows whether it is the same"
        );
        drop(other);
        let lives = workloads.lives();
        assert!(
            lives.connected.is_empty() && lives.left.is_empty(),
            "nothing is kept that tells nothing"
        );
    }
}
