//! Workloads that come and go: those that drain.
//!
//! State: a workload drains until a stream of another instance, or ten minutes after its call; only workloads of the
//! registry do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::mesh::{Draining, Node, WorkloadKey};

/// Time after which a drained workload that didn't come back is forgotten: its address may be another's by then.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// The workloads that drain.
#[derive(Debug, Clone, Default)]
pub struct Drains {
    published: watch::Sender<Arc<Draining>>,
    lives: Arc<Mutex<BTreeMap<WorkloadKey, Instance>>>,
}

/// The instance of a workload's proxy that drains, or has ended.
#[derive(Debug)]
struct Instance {
    /// Its name, as the proxy sends it.
    instance: String,
    /// Open `Drain` calls of it.
    calls: usize,
    /// The revision that began its drain: only this drain is forgotten later, and no other.
    revision: u64,
}

impl Drains {
    /// The workloads that drain, now and as they change.
    pub fn watch(&self) -> watch::Receiver<Arc<Draining>> {
        self.published.subscribe()
    }

    fn lives(&self) -> MutexGuard<'_, BTreeMap<WorkloadKey, Instance>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a workload's drain; returns the revision that every client must take.
    pub(crate) fn start_drain(&self, key: &WorkloadKey, instance: &str) -> u64 {
        let mut lives = self.lives();
        let revision = self.published.borrow().revision + 1;
        let life = lives.entry(key.clone()).or_insert_with(|| Instance {
            instance: String::new(),
            calls: 0,
            revision,
        });
        instance.clone_into(&mut life.instance);
        life.calls += 1;
        self.say(&lives)
    }

    /// Ends a `Drain` call. The workload drains until it comes back, or is forgotten.
    pub(crate) async fn end(&self, key: &WorkloadKey, instance: &str) {
        let revision = {
            let mut lives = self.lives();
            let Some(life) = lives.get_mut(key).filter(|life| life.instance == instance) else {
                return;
            };
            life.calls = life.calls.saturating_sub(1);
            life.revision
        };
        sleep(FORGOTTEN).await;
        let mut lives = self.lives();
        let is_over = |life: &Instance| life.revision == revision && life.calls == 0;
        if lives.get(key).is_some_and(is_over) {
            lives.remove(key);
            self.say(&lives);
        }
    }

    /// Ends a workload's drain when another instance of its proxy than the draining one opens a stream.
    pub(crate) fn new_instance(&self, node: &Node, instance: &str) {
        let (key, mut lives) = (node.workload(), self.lives());
        if lives
            .get(&key)
            .is_some_and(|life| life.instance != instance)
        {
            lives.remove(&key);
            self.say(&lives);
        }
    }

    fn say(&self, lives: &BTreeMap<WorkloadKey, Instance>) -> u64 {
        let mut revision = 0;
        self.published.send_modify(|published| {
            revision = published.revision + 1;
            *published = Arc::new(Draining {
                revision,
                workloads: lives.keys().cloned().collect(),
            });
        });
        revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ip: &str) -> Node {
        Node::sidecar(ip, "users")
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_drains_until_it_comes_back_or_is_forgotten() {
        let drains = Drains::default();
        let published = drains.watch();
        let draining = || published.borrow().workloads.len();
        let (one, other) = (node("10.0.0.1"), node("10.0.0.2"));
        let ended = |key: WorkloadKey| {
            let drains = drains.clone();
            async move { drains.end(&key, "a").await }
        };
        assert_eq!(
            (drains.start_drain(&one.workload(), "a"), draining()),
            (1, 1)
        );
        drains.new_instance(&one, "a");
        assert_eq!(draining(), 1, "its own stream came back while it drains");
        drains.new_instance(&other, "b");
        assert_eq!(draining(), 1, "somebody else's stream");
        drains.new_instance(&one, "b");
        assert_eq!(
            draining(),
            0,
            "a new life, although the old one's call is open"
        );
        ended(one.workload()).await;
        assert_eq!(draining(), 0);

        // It ends, comes back, and ends again just before the first end would be forgotten.
        drains.start_drain(&other.workload(), "a");
        let first = tokio::spawn(ended(other.workload()));
        tokio::time::sleep(FORGOTTEN / 2).await;
        drains.new_instance(&other, "b");
        drains.start_drain(&other.workload(), "a");
        first.await.expect("no panic");
        assert_eq!(draining(), 1, "the second end is not the first");
        ended(other.workload()).await;
        assert_eq!(draining(), 0, "nobody came back");
    }
}
