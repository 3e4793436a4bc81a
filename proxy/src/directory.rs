//! Interface between the path and the configuration: the path looks an authority up, and requests it if it is missing;
//! the xDS stream publishes snapshots.
//!
//! State: the running snapshot, replaced by one swap (`--max-names` authorities); authorities that requests wait for
//! (`--config-wait`, at most `--max-waiting-requests` requests); the state of the stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Kind};
use crate::snapshot::{InboundPlan, OutboundPlan, Snapshot};

/// Limits on the configuration that the path may request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Authorities that the proxy is subscribed to.
    pub names: usize,
    /// Requests that wait for the control plane's answer.
    pub waiting: usize,
    /// Longest wait of each of them.
    pub wait: Duration,
}

/// The running configuration, and on-demand discovery of authorities that it lacks.
#[derive(Debug)]
pub struct Directory {
    snapshot: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
    generation: AtomicU64,
    demand: mpsc::UnboundedSender<String>,
    waiting: AtomicUsize,
    names: AtomicUsize,
    link: ArcSwap<ControlPlaneState>,
    started: Instant,
    limits: Limits,
}

/// State of the stream to the control plane.
#[derive(Debug, Clone, Default)]
pub struct ControlPlaneState {
    /// True while the stream is up.
    pub up: bool,
    /// Since when, and the last error, as text.
    pub words: String,
}

impl Directory {
    /// An empty directory; the receiver yields the authorities that the path requests.
    pub fn new(limits: Limits) -> (Arc<Directory>, mpsc::UnboundedReceiver<String>) {
        let (demand, asked) = mpsc::unbounded_channel();
        let directory = Directory {
            snapshot: ArcSwap::default(),
            changed: watch::Sender::new(0),
            generation: AtomicU64::new(0),
            demand,
            waiting: AtomicUsize::new(0),
            names: AtomicUsize::new(0),
            link: ArcSwap::default(),
            started: Instant::now(),
            limits,
        };
        (Arc::new(directory), asked)
    }

    /// The running configuration.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Number of the snapshot: a plan that was looked up is current for as long as this stays the same.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Plan of requests for `authority`, or the error that there is none; `None` if it hasn't been answered yet.
    pub fn find(&self, authority: &str) -> Option<Result<Arc<OutboundPlan>, Error>> {
        let snapshot = self.snapshot.load();
        let entry = snapshot.find(authority, self.clock())?;
        Some(match &entry.answer {
            Ok(plan) => Ok(Arc::clone(plan)),
            Err(reason) => Err(Error::own(Kind::UnknownAuthority, reason.to_string())),
        })
    }

    /// Plan of requests for `authority`; if it hasn't been answered yet, requests it and waits, within limits.
    ///
    /// # Errors
    /// [`Kind::UnknownAuthority`] when the authority doesn't exist, [`Kind::NotConfigured`] when no answer came in
    /// time, [`Kind::Overload`] when too many requests wait or too many authorities are in use already.
    pub async fn resolve(&self, authority: &str) -> Result<Arc<OutboundPlan>, Error> {
        let mut changed = self.changed.subscribe();
        if let Some(known) = self.find(authority) {
            return known;
        }
        let _waiting = self.wait_for(authority)?;
        let deadline = Instant::now() + self.limits.wait;
        loop {
            match timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                _ => return Err(self.unanswered(authority)),
            }
            if let Some(known) = self.find(authority) {
                return known;
            }
        }
    }

    fn wait_for(&self, authority: &str) -> Result<Waiting<'_>, Error> {
        let waiting = Waiting::enter(&self.waiting);
        if waiting.count > self.limits.waiting {
            let detail = format!(
                "{} requests wait for the control plane already",
                self.limits.waiting
            );
            return Err(Error::own(Kind::Overload, detail));
        }
        if self.names.load(Ordering::Relaxed) >= self.limits.names {
            let detail = format!("{} authorities are in use already", self.limits.names);
            return Err(Error::own(Kind::Overload, detail));
        }
        // The receiver lives as long as the xDS client's task does.
        let _ = self.demand.send(authority.to_owned());
        Ok(waiting)
    }

    fn unanswered(&self, authority: &str) -> Error {
        let link = self.link.load();
        let detail = match link.up {
            true => format!("no answer for {authority} after {:?}", self.limits.wait),
            false => format!("no configuration for {authority}: {}", link.words),
        };
        Error::own(Kind::NotConfigured, detail)
    }

    /// Plan of connections to the app. Waits until the first inbound Listener is accepted.
    pub async fn inbound(&self) -> Arc<InboundPlan> {
        if let Some(plan) = &self.snapshot.load().inbound {
            return Arc::clone(plan);
        }
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(plan) = &self.snapshot.load().inbound {
                return Arc::clone(plan);
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Plan of connections to the app, if there is one.
    pub fn inbound_now(&self) -> Option<Arc<InboundPlan>> {
        self.snapshot.load().inbound.clone()
    }

    /// Longest wait for configuration.
    pub fn config_wait(&self) -> Duration {
        self.limits.wait
    }

    /// True if connections to the app have a plan.
    pub fn has_inbound(&self) -> bool {
        self.snapshot.load().inbound.is_some()
    }

    /// Publishes a snapshot; `names` is the number of authorities that are subscribed to.
    pub fn publish(&self, snapshot: Snapshot, names: usize) {
        self.names.store(names, Ordering::Relaxed);
        self.snapshot.store(Arc::new(snapshot));
        self.generation.fetch_add(1, Ordering::Release);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Sets the state of the stream to the control plane.
    pub fn set_link(&self, link: ControlPlaneState) {
        self.link.store(Arc::new(link));
    }

    /// State of the stream to the control plane.
    pub fn link(&self) -> Arc<ControlPlaneState> {
        self.link.load_full()
    }

    /// Seconds since the start: the clock of [`Snapshot::uses`].
    pub fn clock(&self) -> u64 {
        self.clock_at(Instant::now())
    }

    /// Whole seconds since any destination was last used; `None` if the snapshot holds none.
    pub fn idle_seconds(&self) -> Option<u64> {
        let snapshot = self.snapshot();
        let last = snapshot.uses().map(|(_, used)| used).max();
        last.map(|last| self.clock().saturating_sub(last))
    }

    /// Seconds from the start to `now`.
    pub fn clock_at(&self, now: Instant) -> u64 {
        now.duration_since(self.started).as_secs()
    }
}

/// A waiting request, counted until it is dropped.
#[derive(Debug)]
struct Waiting<'a> {
    counter: &'a AtomicUsize,
    count: usize,
}

impl Waiting<'_> {
    fn enter(counter: &AtomicUsize) -> Waiting<'_> {
        let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
        Waiting { counter, count }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Relaxed);
    }
}
