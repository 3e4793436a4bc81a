//! Outlier detection, Envoy's arithmetic without its timer: an endpoint that failed often in a row is ejected for a
//! while.
//!
//! Nothing runs in the background: the end of an ejection is computed when it begins, up to the next sweep that Envoy
//! would make. Then one request at a time probes the endpoint, and its result decides.
//!
//! State: failures in a row and the ejection, one an endpoint, as long as the endpoint.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use leno_rules::config::cluster::Outlier;

/// Result of a request at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointResult {
    /// A response with this status.
    Status(u16),
    /// No connection, or one that broke before a response.
    Failed,
    /// No connection or response in time.
    TimedOut,
}

/// Health of an endpoint. Picks read it without a lock.
#[derive(Debug)]
pub struct Health {
    fives: AtomicU32,
    gateways: AtomicU32,
    locals: AtomicU32,
    /// Nanoseconds from `born` to the end of the ejection in force, or [`ACTIVE`].
    until: AtomicU64,
    /// True while a request probes it.
    is_probed: AtomicBool,
    born: Instant,
    state: Mutex<State>,
}

/// The end of an ejection when there is none.
const ACTIVE: u64 = u64::MAX;

#[derive(Debug, Default)]
struct State {
    /// Ejections in a row.
    times: u32,
    ejected: Option<Ejection>,
    /// Time of its last return.
    returned: Option<Instant>,
}

/// An ejection that is in force.
#[derive(Debug, Clone)]
pub struct Ejection {
    /// Reason, in words.
    pub reason: String,
    /// Time from which the endpoint may be probed.
    pub until: Instant,
    /// Number of its ejections in a row.
    pub times: u32,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            fives: AtomicU32::new(0),
            gateways: AtomicU32::new(0),
            locals: AtomicU32::new(0),
            until: AtomicU64::new(ACTIVE),
            is_probed: AtomicBool::new(false),
            born: Instant::now(),
            state: Mutex::default(),
        }
    }
}

impl Health {
    /// The ejection in force.
    pub fn ejection(&self) -> Option<Ejection> {
        self.state().ejected.clone()
    }

    /// True while it takes no request but a probe.
    pub fn is_ejected(&self) -> bool {
        self.until.load(Ordering::Relaxed) != ACTIVE
    }

    /// Time from which it may be probed, if it is ejected.
    pub(super) fn ejected_until(&self) -> Option<Instant> {
        let until = self.until.load(Ordering::Relaxed);
        (until != ACTIVE).then(|| self.born + Duration::from_nanos(until))
    }

    /// Takes the one probe of an endpoint on probation; `false` when there is none to take.
    pub(super) fn begin_probe(&self, now: Instant) -> bool {
        self.ejected_until().is_some_and(|until| until <= now)
            && !self.is_probed.load(Ordering::Relaxed)
            && !self.is_probed.swap(true, Ordering::Relaxed)
    }

    /// Gives the probe back: it had no result.
    pub(super) fn abandon_probe(&self) {
        self.is_probed.store(false, Ordering::Relaxed);
    }

    /// Counts `verdict`. Returns the reason when the endpoint is to be ejected.
    pub(super) fn count(&self, outlier: &Outlier, verdict: EndpointResult) -> Option<String> {
        let is_local = !matches!(verdict, EndpointResult::Status(_));
        if outlier.split && is_local {
            return over(
                &self.locals,
                outlier.consecutive_local,
                "failed connections",
            );
        }
        let (five, gateway) = match verdict {
            EndpointResult::Status(status) => (status >= 500, matches!(status, 502..=504)),
            EndpointResult::Failed | EndpointResult::TimedOut => (true, true),
        };
        // Read before written: a healthy endpoint's cache line stays shared between the workers.
        let reset = |counter: &AtomicU32| {
            if counter.load(Ordering::Relaxed) > 0 {
                counter.store(0, Ordering::Relaxed);
            }
        };
        reset(&self.locals);
        if !gateway {
            reset(&self.gateways);
        }
        if !five {
            reset(&self.fives);
            return None;
        }
        let of_gateway = gateway.then(|| {
            let limit = outlier.consecutive_gateway;
            over(&self.gateways, limit, "gateway errors (502, 503, 504)")
        });
        over(&self.fives, outlier.consecutive_5xx, "5xx responses").or(of_gateway.flatten())
    }

    /// Ejects it, for longer each time in a row. Sweeps are counted from `start`, when the cluster began.
    pub(super) fn eject(&self, outlier: &Outlier, reason: String, start: Instant, now: Instant) {
        let mut state = self.state();
        // Each interval that it did well since its return takes one ejection off the count.
        if let Some(returned) = state.returned.take() {
            let well = now.duration_since(returned).as_secs_f64();
            let forgotten = well / outlier.interval.as_secs_f64().max(0.001);
            // Not negative, and a cast from float to integer saturates.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let forgotten = forgotten as u32;
            state.times = state.times.saturating_sub(forgotten);
        }
        state.times = state.times.saturating_add(1);
        let longest = outlier.max_time.max(outlier.base_time);
        let time = outlier.base_time.saturating_mul(state.times).min(longest);
        let until = next_sweep(start, now + time, outlier.interval);
        state.ejected = Some(Ejection {
            reason,
            until,
            times: state.times,
        });
        let nanos = until.saturating_duration_since(self.born).as_nanos();
        let nanos = u64::try_from(nanos).unwrap_or(ACTIVE).min(ACTIVE - 1);
        self.until.store(nanos, Ordering::Relaxed);
        self.is_probed.store(false, Ordering::Relaxed);
    }

    /// Ends the ejection.
    pub(super) fn restore(&self, now: Instant) {
        let mut state = self.state();
        state.ejected = None;
        state.returned = Some(now);
        self.until.store(ACTIVE, Ordering::Relaxed);
        self.is_probed.store(false, Ordering::Relaxed);
        for counter in [&self.fives, &self.gateways, &self.locals] {
            counter.store(0, Ordering::Relaxed);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Increments a counter; at the limit, resets it and returns the reason.
fn over(counter: &AtomicU32, limit: u32, what: &str) -> Option<String> {
    let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
    if limit == 0 || count < limit {
        return None;
    }
    counter.store(0, Ordering::Relaxed);
    Some(format!("{count} {what} in a row"))
}

/// True when one more of `hosts` may be ejected beside those `ejected`.
pub(super) fn may_eject(outlier: &Outlier, ejected: usize, hosts: usize) -> bool {
    let within = 100 * (ejected + 1) <= outlier.max_percent as usize * hosts;
    within || (ejected == 0 && hosts >= 2)
}

/// The first sweep at or after `at`.
fn next_sweep(start: Instant, at: Instant, interval: Duration) -> Instant {
    let interval = interval.max(Duration::from_millis(1)).as_nanos();
    let sweeps = at.duration_since(start).as_nanos().div_ceil(interval);
    let after = u64::try_from(sweeps * interval).unwrap_or(u64::MAX);
    start + Duration::from_nanos(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlier() -> Outlier {
        Outlier {
            consecutive_5xx: 3,
            consecutive_gateway: 0,
            consecutive_local: 2,
            split: false,
            interval: Duration::from_secs(10),
            base_time: Duration::from_secs(30),
            max_time: Duration::from_secs(300),
            max_percent: 10,
        }
    }

    /// Number of these verdicts after which the endpoint is to be ejected.
    fn ejected_after(outlier: &Outlier, verdicts: &[EndpointResult]) -> Option<usize> {
        let health = Health::default();
        let at = verdicts
            .iter()
            .position(|verdict| health.count(outlier, *verdict).is_some());
        at.map(|at| at + 1)
    }

    #[test]
    fn what_counts_is_what_fails_in_a_row() {
        use EndpointResult::{Failed, Status, TimedOut};
        let all = outlier();
        let gateway = Outlier {
            consecutive_5xx: 0,
            consecutive_gateway: 2,
            ..outlier()
        };
        let split = Outlier {
            split: true,
            ..outlier()
        };
        let never = Outlier {
            consecutive_5xx: 0,
            ..outlier()
        };
        for (outlier, verdicts, expected) in [
            (&all, &[Status(500), Status(503), Status(500)][..], Some(3)),
            (
                &all,
                &[Status(500), Status(500), Status(404), Status(500)],
                None,
            ),
            (&all, &[Failed, TimedOut, Status(500)], Some(3)),
            (&gateway, &[Status(500), Status(500), Status(500)], None),
            (&gateway, &[Status(502), Status(504)], Some(2)),
            (&gateway, &[Status(502), Status(500), Status(504)], None),
            (&split, &[Failed, Failed], Some(2)),
            (&split, &[Status(500), Failed, Status(500), Failed], None),
            (&split, &[Status(500), Status(500), Status(500)], Some(3)),
            (&never, &[Failed, Failed, Failed, Failed], None),
        ] {
            assert_eq!(ejected_after(outlier, verdicts), expected, "{verdicts:?}");
        }
    }

    #[test]
    fn the_percentage_is_envoys_but_one_of_two_may_always_go() {
        for (max_percent, hosts, expected) in [
            (50, 3, 1),
            (10, 3, 1),
            (10, 1, 0),
            (100, 1, 1),
            (0, 2, 1),
            (50, 4, 2),
            (100, 4, 4),
            (34, 3, 1),
            (67, 3, 2),
        ] {
            let outlier = Outlier {
                max_percent,
                ..outlier()
            };
            let mut ejected = 0;
            while ejected < hosts && may_eject(&outlier, ejected, hosts) {
                ejected += 1;
            }
            assert_eq!(ejected, expected, "{max_percent} % of {hosts}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_ejection_in_a_row_lasts_longer_and_ends_with_a_sweep() {
        let (health, outlier, start) = (Health::default(), outlier(), Instant::now());
        tokio::time::advance(Duration::from_secs(4)).await;
        for (times, seconds) in [(1, 40), (2, 70), (3, 100), (4, 130)] {
            let now = start + Duration::from_secs(4);
            health.eject(&outlier, "bad".to_owned(), start, now);
            let ejection = health.ejection().expect("ejected");
            assert_eq!(ejection.times, times);
            assert_eq!(ejection.until, start + Duration::from_secs(seconds));
        }
        for _ in 0..20 {
            health.eject(&outlier, "bad".to_owned(), start, start);
        }
        let longest = health.ejection().expect("ejected").until;
        assert_eq!(longest, start + Duration::from_secs(300));
        // It comes back, does well for two sweeps, and two ejections are forgotten.
        health.restore(start);
        let later = start + Duration::from_secs(20);
        health.eject(&outlier, "bad".to_owned(), start, later);
        assert_eq!(health.ejection().expect("ejected").times, 23);
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_tries_who_may_return() {
        let (health, outlier, start) = (Health::default(), outlier(), Instant::now());
        health.eject(&outlier, "bad".to_owned(), start, start);
        let until = start + Duration::from_secs(30);
        let before = until - Duration::from_millis(1);
        assert!(health.is_ejected());
        assert!(!health.begin_probe(before));
        assert!(health.begin_probe(until));
        assert!(!health.begin_probe(until));
        health.abandon_probe();
        assert!(health.begin_probe(until));
        health.restore(until);
        assert!(!health.is_ejected() && !health.begin_probe(until));
    }
}
