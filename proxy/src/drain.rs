//! Ending in good order, in phases that everything watches, and guards that say who is still at work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// What was on its way to us when the last of the others learned that we go has arrived after this.
pub const ON_THE_WAY: Duration = Duration::from_millis(200);

/// How far the end has come. What the app itself asks for is served to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It hasn't begun.
    Serving,
    /// Callers are told to go elsewhere, and served meanwhile.
    Draining,
    /// No connection to the app is accepted any more.
    Closing,
    /// Nothing is.
    Ending,
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// One to the app.
    Inbound,
    /// One of the app's.
    Outbound,
}

/// Says when to end.
#[derive(Debug)]
pub struct Signal {
    phase: watch::Sender<Phase>,
    draining: Arc<AtomicBool>,
    busy: Busy,
}

/// How many are at work.
#[derive(Debug, Clone, Default)]
struct Busy {
    inbound: watch::Sender<usize>,
    outbound: watch::Sender<usize>,
}

impl Busy {
    fn of(&self, side: Side) -> &watch::Sender<usize> {
        match side {
            Side::Inbound => &self.inbound,
            Side::Outbound => &self.outbound,
        }
    }
}

/// Watches for the end. Clones are cheap; [`Watch::guard`] keeps the process waiting.
#[derive(Debug, Clone)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
    draining: Arc<AtomicBool>,
    busy: Busy,
}

/// Somebody is at work until this is dropped.
#[derive(Debug)]
pub struct Guard {
    busy: watch::Sender<usize>,
}

/// A signal and what watches for it.
pub fn channel() -> (Signal, Watch) {
    let (phase, receiver) = watch::channel(Phase::Serving);
    let (draining, busy) = (Arc::<AtomicBool>::default(), Busy::default());
    let signal = Signal {
        phase,
        draining: Arc::clone(&draining),
        busy: busy.clone(),
    };
    let watch = Watch {
        phase: receiver,
        draining,
        busy,
    };
    (signal, watch)
}

impl Signal {
    /// The end has come so far.
    pub fn reach(&self, phase: Phase) {
        self.draining.store(true, Ordering::Relaxed);
        self.phase.send_if_modified(|before| {
            let is_new = *before < phase;
            *before = phase.max(*before);
            is_new
        });
    }

    /// Waits until nobody is at work on a side, for `at_most`; whether that is so.
    pub async fn idle(&self, side: Side, at_most: Duration) -> bool {
        let mut busy = self.busy.of(side).subscribe();
        let idle = timeout(at_most, busy.wait_for(|count| *count == 0)).await;
        idle.is_ok()
    }

    /// Everything ends; who is still at work has `at_most`, and is given up then.
    pub async fn end(&self, at_most: Duration) {
        self.reach(Phase::Ending);
        let both = async {
            self.idle(Side::Inbound, Duration::MAX).await;
            self.idle(Side::Outbound, Duration::MAX).await;
        };
        if timeout(at_most, both).await.is_err() {
            self.busy.inbound.send_replace(0);
            self.busy.outbound.send_replace(0);
        }
    }
}

impl Watch {
    /// Waits until the end has come so far. A signal that was dropped is the end as well.
    pub async fn reached(&self, phase: Phase) {
        let mut own = self.phase.clone();
        let _ = own.wait_for(|now| *now >= phase).await;
    }

    /// Waits for the end.
    pub async fn ended(&self) {
        self.reached(Phase::Ending).await;
    }

    /// Whether it has come so far, or whoever could say so is gone.
    pub fn has_reached(&self, phase: Phase) -> bool {
        *self.phase.borrow() >= phase || self.phase.has_changed().is_err()
    }

    /// Raised when the end begins, for those that look at each request.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.draining)
    }

    /// Waits until nobody is at work.
    pub async fn idle(&self) {
        for side in [Side::Inbound, Side::Outbound] {
            let mut busy = self.busy.of(side).subscribe();
            let _ = busy.wait_for(|count| *count == 0).await;
        }
    }

    /// Somebody is at work.
    pub fn guard(&self, side: Side) -> Guard {
        let busy = self.busy.of(side).clone();
        busy.send_modify(|count| *count += 1);
        Guard { busy }
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
        assert!(!watch.has_reached(Phase::Draining));
        drop(signal);
        watch.ended().await;
        assert!(
            watch.has_reached(Phase::Ending),
            "who asks and who waits are told the same"
        );
    }

    #[tokio::test]
    async fn phases_only_go_forward() {
        let (signal, watch) = channel();
        signal.reach(Phase::Closing);
        watch.reached(Phase::Draining).await;
        signal.reach(Phase::Draining);
        assert!(watch.has_reached(Phase::Closing));
        assert!(!watch.has_reached(Phase::Ending));
        assert!(watch.flag().load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_who_is_at_work_but_not_for_ever() {
        let (signal, watch) = channel();
        let minute = Duration::from_secs(60);
        let guard = watch.guard(Side::Inbound);
        assert!(!signal.idle(Side::Inbound, minute).await);
        assert!(signal.idle(Side::Outbound, minute).await);
        let work = async {
            watch.ended().await;
            drop(guard);
        };
        tokio::join!(signal.end(minute), work);
        let _stuck = watch.guard(Side::Outbound);
        signal.end(minute).await;
        watch.idle().await;
    }
}
