//! One coarse timer for all that a task waits for in turn. Setting a later deadline costs a store: the timer underneath
//! stays, and is reset when it fires too early.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A movable deadline. Most of the futures that it limits are ready at once, and need no timer.
#[derive(Debug, Default)]
pub struct Deadline {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Waits for `future`, until `at` at most; `None` when it isn't ready in time.
    pub async fn limit<F: Future>(&mut self, at: Instant, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll(at, cx).map(|()| None),
        })
        .await
    }

    fn poll(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if at < timer.deadline() {
            timer.as_mut().reset(at);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if at <= timer.deadline() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_moves_both_ways() {
        let second = Duration::from_secs(1);
        let mut deadline = Deadline::default();
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
