//! A worker's clock: it is read once a turn, in which the worker's runnable tasks are polled, a few dozen at most.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;

use tokio::time::Instant;

thread_local! {
    /// True on a thread that has turns, and the time of the current turn, once it was read.
    static TURN: Cell<(bool, Option<Instant>)> = const { Cell::new((false, None)) };
}

/// Runs the main future of a thread's `LocalSet`: it is polled before each round of the spawned tasks, even if the
/// thread hasn't slept in between, so each poll begins a turn. Threads without turns read the clock each time.
pub async fn with_turns<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        TURN.set((true, None));
        future.as_mut().poll(cx)
    })
    .await
}

/// Makes the next [`now`] read the clock again: work that ends in the turn in which it began took time as well.
pub fn invalidate() {
    TURN.set((TURN.get().0, None));
}

/// The time at which this turn began, or a moment later.
pub fn now() -> Instant {
    match TURN.get() {
        (_, Some(now)) => now,
        (has_turns, None) => {
            let now = Instant::now();
            TURN.set((has_turns, has_turns.then_some(now)));
            now
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;
    use std::time::Duration;

    use tokio::runtime;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    #[tokio::test]
    async fn the_clock_is_read_once_a_turn_where_there_are_turns() {
        let pass = || std::thread::sleep(Duration::from_millis(1));
        let begun = now();
        pass();
        assert_ne!(now(), begun);
        with_turns(async {
            let begun = now();
            pass();
            assert_eq!(now(), begun);
            invalidate();
            assert!(now() > begun);
            let begun = now();
            pass();
            assert_eq!(now(), begun);
            tokio::task::yield_now().await;
            assert!(now() > begun);
        })
        .await;
    }

    #[test]
    fn the_clock_of_a_thread_that_never_sleeps_goes_on() {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let work = async {
            for _ in 0..200 {
                spawn_local(poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    Poll::<()>::Pending
                }));
            }
            let (begun, really) = (now(), Instant::now());
            poll_fn(|_| match now() > begun + Duration::from_millis(20) {
                true => Poll::Ready(()),
                false => {
                    assert!(
                        really.elapsed() < Duration::from_secs(20),
                        "it stands still"
                    );
                    Poll::Pending
                }
            })
            .await;
        };
        LocalSet::new().block_on(&runtime.expect("a runtime"), with_turns(work));
    }
}
