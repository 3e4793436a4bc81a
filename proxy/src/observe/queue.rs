//! Queues from the path to the tasks that export. Pushing never waits, and items without room are counted.
//!
//! Bounds: 4,096 lines, 512 spans, 256 failures.

use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::IntCounter;
use tokio::sync::Notify;

/// A bounded queue from the workers to one task.
#[derive(Debug)]
pub struct Queue<T> {
    held: Mutex<Vec<T>>,
    at_most: usize,
    dropped: IntCounter,
    filled: Notify,
}

impl<T> Queue<T> {
    /// An empty queue of up to `at_most` items; those beyond it are counted by `dropped`.
    pub fn new(at_most: usize, dropped: IntCounter) -> Queue<T> {
        Queue {
            held: Mutex::default(),
            at_most,
            dropped,
            filled: Notify::new(),
        }
    }

    /// Pushes the item that `make` returns; if the queue is full, counts a drop and doesn't call `make`.
    pub fn push_with(&self, make: impl FnOnce() -> T) {
        if self.held().len() >= self.at_most {
            return self.dropped.inc();
        }
        // Made while the queue isn't locked; another push may still take the last place.
        self.push(make());
    }

    /// Pushes `item`, or counts a drop if the queue is full.
    pub fn push(&self, item: T) {
        let mut held = self.held();
        if held.len() >= self.at_most {
            return self.dropped.inc();
        }
        held.push(item);
        // One notification is enough: `filled` looks at the queue before it waits.
        if held.len() == 1 {
            self.filled.notify_one();
        }
    }

    /// Waits until the queue holds an item.
    pub async fn filled(&self) {
        while self.held().is_empty() {
            self.filled.notified().await;
        }
    }

    /// Takes the oldest items, up to `at_most` of them.
    pub fn take(&self, at_most: usize) -> Vec<T> {
        let mut held = self.held();
        let count = held.len().min(at_most);
        held.drain(..count).collect()
    }

    /// Counts items that were taken, but couldn't be exported.
    pub fn lost(&self, count: usize) {
        self.dropped.inc_by(count as u64);
    }

    fn held(&self) -> MutexGuard<'_, Vec<T>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_no_room_is_counted_and_the_rest_comes_in_order() {
        let dropped = IntCounter::new("dropped", "dropped").expect("a name");
        let queue = Queue::new(3, dropped.clone());
        for number in 0..5 {
            queue.push(number);
        }
        queue.push_with(|| unreachable!("there is no room for it"));
        queue.filled().await;
        assert_eq!((queue.take(2), queue.take(2)), (vec![0, 1], vec![2]));
        assert_eq!(dropped.get(), 3);
        queue.push_with(|| 8);
        queue.filled().await;
        assert_eq!(queue.take(9), [8]);
        queue.push(9);
        queue.filled().await;
        assert_eq!(queue.take(9), [9]);
    }
}
