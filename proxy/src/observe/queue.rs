//! What the path hands over to be told elsewhere. Handing over never waits, and what has no room is counted.

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
    /// An empty queue with room for `at_most`; what is more is counted by `dropped`.
    pub fn new(at_most: usize, dropped: IntCounter) -> Queue<T> {
        Queue {
            held: Mutex::default(),
            at_most,
            dropped,
            filled: Notify::new(),
        }
    }

    /// Hands over what `make` gives, or counts that there was no room for it: it isn't made then.
    pub fn push_with(&self, make: impl FnOnce() -> T) {
        if self.held().len() >= self.at_most {
            return self.dropped.inc();
        }
        // Made while nobody waits for the queue; what is pushed meanwhile may still take the last place.
        self.push(make());
    }

    /// Hands `item` over, or counts that there was no room.
    pub fn push(&self, item: T) {
        let mut held = self.held();
        if held.len() >= self.at_most {
            return self.dropped.inc();
        }
        held.push(item);
        // Whoever takes takes all there is: one word is enough.
        if held.len() == 1 {
            self.filled.notify_one();
        }
    }

    /// Waits until there is something.
    pub async fn filled(&self) {
        while self.held().is_empty() {
            self.filled.notified().await;
        }
    }

    /// Takes the oldest, `at_most` of them.
    pub fn take(&self, at_most: usize) -> Vec<T> {
        let mut held = self.held();
        let count = held.len().min(at_most);
        held.drain(..count).collect()
    }

    /// What can't be handed on is lost as well.
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
