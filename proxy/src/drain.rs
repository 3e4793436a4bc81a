//! Ending in good order: a signal that everything watches, and guards that say who is still at work.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Says when to end.
#[derive(Debug)]
pub struct Signal {
    ending: watch::Sender<bool>,
    busy: watch::Sender<usize>,
}

/// Watches for the end. Clones are cheap; [`Watch::guard`] keeps the process waiting.
#[derive(Debug, Clone)]
pub struct Watch {
    ending: watch::Receiver<bool>,
    busy: watch::Sender<usize>,
}

/// Somebody is at work until this is dropped.
#[derive(Debug)]
pub struct Guard {
    busy: watch::Sender<usize>,
}

/// A signal and what watches for it.
pub fn channel() -> (Signal, Watch) {
    let (ending, receiver) = watch::channel(false);
    let busy = watch::Sender::new(0);
    let signal = Signal {
        ending,
        busy: busy.clone(),
    };
    let watch = Watch {
        ending: receiver,
        busy,
    };
    (signal, watch)
}

impl Signal {
    /// Everything is to end; waits until nobody is at work, or `at_most`. Whoever is at work then is given up.
    pub async fn drain(&self, at_most: Duration) {
        let _ = self.ending.send(true);
        let mut busy = self.busy.subscribe();
        if timeout(at_most, busy.wait_for(|count| *count == 0))
            .await
            .is_err()
        {
            let _ = self.busy.send(0);
        }
    }
}

impl Watch {
    /// Waits for the end.
    pub async fn ended(&self) {
        let mut ending = self.ending.clone();
        // A signal that was dropped is an end as well.
        let _ = ending.wait_for(|ending| *ending).await;
    }

    /// Whether it has come: it was said, or whoever could say it is gone.
    pub fn is_ending(&self) -> bool {
        *self.ending.borrow() || self.ending.has_changed().is_err()
    }

    /// Waits until nobody is at work.
    pub async fn idle(&self) {
        let _ = self.busy.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Somebody is at work.
    pub fn guard(&self) -> Guard {
        self.busy.send_modify(|count| *count += 1);
        Guard {
            busy: self.busy.clone(),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.busy
            .send_modify(|count| *count = count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_that_is_dropped_is_an_end() {
        let (signal, watch) = channel();
        assert!(!watch.is_ending());
        drop(signal);
        watch.ended().await;
        assert!(
            watch.is_ending(),
            "who asks and who waits are told the same"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_who_is_at_work_but_not_for_ever() {
        let (signal, watch) = channel();
        let guard = watch.guard();
        assert!(!watch.is_ending());
        let work = async {
            watch.ended().await;
            drop(guard);
        };
        tokio::join!(signal.drain(Duration::from_secs(60)), work);
        let _stuck = watch.guard();
        signal.drain(Duration::from_secs(60)).await;
        assert!(watch.is_ending());
    }
}
