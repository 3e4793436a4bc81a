//! One coarse timer for everything that a task waits for in turn. Setting a later deadline costs a store: the timer
//! underneath stays where it is, and moves on when it fires too early.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A deadline that moves.
#[derive(Debug)]
pub struct Deadline {
    at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Deadline {
    /// A deadline `after` from now.
    pub fn new(after: Duration) -> Deadline {
        let at = Instant::now() + after;
        Deadline {
            at,
            timer: Box::pin(sleep_until(at)),
        }
    }

    /// Waits for `future`, until `at` at most; `None` when it didn't come in time.
    pub async fn limit<F: Future>(&mut self, at: Instant, future: F) -> Option<F::Output> {
        self.at = at;
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll(cx).map(|()| None),
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.at < self.timer.deadline() {
            self.timer.as_mut().reset(self.at);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if self.at <= self.timer.deadline() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_moves_both_ways() {
        let second = Duration::from_secs(1);
        let mut deadline = Deadline::new(10 * second);
        let start = Instant::now();
        for after in [1, 5, 2, 20] {
            let begun = Instant::now();
            let late = deadline.limit(begun + after * second, std::future::pending::<()>());
            assert_eq!(late.await, None);
            assert_eq!(begun.elapsed().as_secs(), u64::from(after));
            let early = deadline.limit(Instant::now() + second, std::future::ready(7));
            assert_eq!(early.await, Some(7));
        }
        assert_eq!(start.elapsed().as_secs(), 28);
    }
}
