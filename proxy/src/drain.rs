//! Graceful shutdown: phases that every task watches, and guards that count the connections still open.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Time after which requests that were in flight when the last caller learned of the drain have arrived.
pub const IN_FLIGHT_GRACE: Duration = Duration::from_millis(200);

/// Phases of the shutdown, in order. The app's own connections are accepted until `Ending`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No shutdown yet.
    Serving,
    /// Callers are sent elsewhere, and served meanwhile.
    Draining,
    /// No connection to the app is accepted any more.
    Closing,
    /// No connection is accepted at all; open ones have the rest of the drain timeout.
    Ending,
}

/// Direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// To the app.
    Inbound,
    /// From the app.
    Outbound,
}

impl Side {
    /// Phase from which connections of this side are accepted no more, and take no further request.
    pub fn last_phase(self) -> Phase {
        match self {
            Side::Inbound => Phase::Closing,
            Side::Outbound => Phase::Ending,
        }
    }
}

/// Sets the phase. Dropped, it sets `Ending`.
#[derive(Debug)]
pub struct Signal {
    now: CurrentPhase,
    busy: Busy,
}

/// The current phase.
#[derive(Debug, Clone, Default)]
struct CurrentPhase(Arc<Progress>);

#[derive(Debug, Default)]
struct Progress {
    phase: AtomicU8,
    /// Set from [`Phase::Draining`] on: all that a connection's codec needs to know.
    draining: Arc<AtomicBool>,
    /// Wakers of pending [`PhaseReached`] futures. An entry stays until its future is dropped, however often that is woken
    /// or polled, so that a poll, one with each request, only loads the phase.
    waiting: Mutex<HashMap<u64, Waker>>,
    waited: AtomicU64,
}

impl Progress {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CurrentPhase {
    fn set(&self, phase: Phase) {
        self.0.phase.fetch_max(phase as u8, Ordering::Relaxed);
        self.0
            .draining
            .store(self.has_reached(Phase::Draining), Ordering::Relaxed);
        self.0.waiting().values().for_each(Waker::wake_by_ref);
    }

    fn has_reached(&self, phase: Phase) -> bool {
        self.0.phase.load(Ordering::Relaxed) >= phase as u8
    }
}

/// Future that is ready once its phase is reached.
#[derive(Debug)]
pub struct PhaseReached<'a> {
    now: &'a CurrentPhase,
    phase: Phase,
    /// Key of its entry in `Progress::waiting`, and the waker stored there.
    place: Option<(u64, Waker)>,
}

impl Future for PhaseReached<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.now.has_reached(self.phase) {
            return Poll::Ready(());
        }
        let progress = &self.now.0;
        let place = match &self.place {
            Some((_, waker)) if waker.will_wake(cx.waker()) => return Poll::Pending,
            Some((place, _)) => *place,
            None => progress.waited.fetch_add(1, Ordering::Relaxed),
        };
        progress.waiting().insert(place, cx.waker().clone());
        self.place = Some((place, cx.waker().clone()));
        // The phase may have been set before the waker was stored.
        match self.now.has_reached(self.phase) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for PhaseReached<'_> {
    fn drop(&mut self) {
        if let Some((place, _)) = self.place.take() {
            self.now.0.waiting().remove(&place);
        }
    }
}

/// Number of guards on each side.
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

/// Observes the phase. Clones are cheap; the process doesn't end before each [`Watch::guard`] is dropped.
#[derive(Debug, Clone)]
pub struct Watch {
    now: CurrentPhase,
    busy: Busy,
}

/// Counts as an open connection until it is dropped.
#[derive(Debug)]
pub struct Guard {
    busy: watch::Sender<usize>,
}

/// A signal and its watch.
pub fn channel() -> (Signal, Watch) {
    let (now, busy) = (CurrentPhase::default(), Busy::default());
    let signal = Signal {
        now: now.clone(),
        busy: busy.clone(),
    };
    let watch = Watch { now, busy };
    (signal, watch)
}

impl Signal {
    /// Sets the phase; never back to an earlier one.
    pub fn set_phase(&self, phase: Phase) {
        self.now.set(phase);
    }

    /// Waits up to `at_most` until `side` has no guards; true when it has none.
    pub async fn wait_idle(&self, side: Side, at_most: Duration) -> bool {
        let mut busy = self.busy.of(side).subscribe();
        let idle = timeout(at_most, busy.wait_for(|count| *count == 0)).await;
        idle.is_ok()
    }

    /// Sets `Ending`; waits up to `at_most` for the guards of both sides, then gives them up.
    pub async fn end(&self, at_most: Duration) {
        self.set_phase(Phase::Ending);
        let both = async {
            self.wait_idle(Side::Inbound, Duration::MAX).await;
            self.wait_idle(Side::Outbound, Duration::MAX).await;
        };
        if timeout(at_most, both).await.is_err() {
            self.busy.inbound.send_replace(0);
            self.busy.outbound.send_replace(0);
        }
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        self.now.set(Phase::Ending);
    }
}

impl Watch {
    /// Waits until `phase` is reached. A signal that was dropped has reached every phase.
    pub fn reached(&self, phase: Phase) -> PhaseReached<'_> {
        PhaseReached {
            now: &self.now,
            phase,
            place: None,
        }
    }

    /// Waits for `Ending`.
    pub fn ended(&self) -> PhaseReached<'_> {
        self.reached(Phase::Ending)
    }

    /// True once `phase` is reached, or the signal was dropped.
    pub fn has_reached(&self, phase: Phase) -> bool {
        self.now.has_reached(phase)
    }

    /// A handle to the current phase, for code that checks it with each request.
    pub fn draining(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.now.0.draining)
    }

    /// Waits until neither side has guards.
    pub async fn wait_idle(&self) {
        for side in [Side::Inbound, Side::Outbound] {
            let mut busy = self.busy.of(side).subscribe();
            let _ = busy.wait_for(|count| *count == 0).await;
        }
    }

    /// Counts a connection of `side` as open until the guard is dropped.
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
        signal.set_phase(Phase::Closing);
        watch.reached(Phase::Draining).await;
        signal.set_phase(Phase::Draining);
        assert!(watch.has_reached(Phase::Closing));
        assert!(!watch.has_reached(Phase::Ending));
        assert!(watch.draining().load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_each_phase_until_its_own_comes() {
        let (signal, watch) = channel();
        let (others, own) = (watch.clone(), watch.clone());
        let waiting = tokio::spawn(async move { own.reached(Phase::Ending).await });
        tokio::task::yield_now().await;
        for phase in [Phase::Draining, Phase::Closing, Phase::Ending] {
            assert!(!waiting.is_finished());
            signal.set_phase(phase);
            tokio::task::yield_now().await;
        }
        waiting.await.expect("the end");
        drop(others.reached(Phase::Draining));
        assert!(others.now.0.waiting().is_empty(), "nobody waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_who_is_at_work_but_not_for_ever() {
        let (signal, watch) = channel();
        let minute = Duration::from_secs(60);
        let guard = watch.guard(Side::Inbound);
        assert!(!signal.wait_idle(Side::Inbound, minute).await);
        assert!(signal.wait_idle(Side::Outbound, minute).await);
        let work = async {
            watch.ended().await;
            drop(guard);
        };
        tokio::join!(signal.end(minute), work);
        let _stuck = watch.guard(Side::Outbound);
        signal.end(minute).await;
        watch.wait_idle().await;
    }
}
