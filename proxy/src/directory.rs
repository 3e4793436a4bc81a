//! The door between the path and the configuration: the path looks an authority up, and asks for it when it isn't
//! there; the stream's side publishes what arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Kind};
use crate::snapshot::{InboundPlan, OutboundPlan, Snapshot};

/// Bounds on what the path may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Authorities that the proxy is subscribed to.
    pub names: usize,
    /// Requests that wait for an answer of the control plane.
    pub waiting: usize,
    /// How long each of them waits.
    pub wait: Duration,
}

/// What runs, and how to ask for more.
#[derive(Debug)]
pub struct Directory {
    snapshot: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
    generation: AtomicU64,
    demand: mpsc::UnboundedSender<String>,
    waiting: AtomicUsize,
    names: AtomicUsize,
    link: ArcSwap<Link>,
    started: Instant,
    limits: Limits,
}

/// Whether the control plane can be reached, in words.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Whether the stream is up.
    pub up: bool,
    /// Since when, as a person reads it, and what went wrong last.
    pub words: String,
}

impl Directory {
    /// An empty directory; what the path asks for comes out of the receiver.
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

    /// What runs now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Grows with each snapshot: what was found under one number is what runs for as long as it stays the same.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What is done with requests for `authority`, if that is known already.
    pub fn find(&self, authority: &str) -> Option<Result<Arc<OutboundPlan>, Error>> {
        let snapshot = self.snapshot.load();
        let entry = snapshot.find(authority, self.clock())?;
        Some(match &entry.answer {
            Ok(plan) => Ok(Arc::clone(plan)),
            Err(reason) => Err(Error::own(Kind::UnknownAuthority, reason.to_string())),
        })
    }

    /// What is done with requests for `authority`; asks for it and waits, within bounds, when that isn't known yet.
    ///
    /// # Errors
    /// [`Kind::UnknownAuthority`] when there is no such thing, [`Kind::NotConfigured`] when no answer came in time,
    /// [`Kind::Overload`] when too many authorities or requests are waiting already.
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
        // The receiver lives as long as the process's stream does.
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

    /// What is done with connections to the app. Until the first inbound Listener is accepted, connections wait here.
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

    /// What is done with connections to the app, if that is known.
    pub fn inbound_now(&self) -> Option<Arc<InboundPlan>> {
        self.snapshot.load().inbound.clone()
    }

    /// How long somebody waits for configuration.
    pub fn patience(&self) -> Duration {
        self.limits.wait
    }

    /// Whether connections to the app have a plan.
    pub fn has_inbound(&self) -> bool {
        self.snapshot.load().inbound.is_some()
    }

    /// This is what runs from now on.
    pub fn publish(&self, snapshot: Snapshot, names: usize) {
        self.names.store(names, Ordering::Relaxed);
        self.snapshot.store(Arc::new(snapshot));
        self.generation.fetch_add(1, Ordering::Release);
        self.changed.send_modify(|count| *count += 1);
    }

    /// How it stands with the control plane.
    pub fn set_link(&self, link: Link) {
        self.link.store(Arc::new(link));
    }

    /// How it stands with the control plane.
    pub fn link(&self) -> Arc<Link> {
        self.link.load_full()
    }

    /// Seconds since the start: the clock of [`Snapshot::uses`].
    pub fn clock(&self) -> u64 {
        self.clock_at(Instant::now())
    }

    /// For how many whole seconds no destination has been used, by the clock; `None` when none ever was.
    pub fn quiet(&self) -> Option<u64> {
        let snapshot = self.snapshot();
        let last = snapshot.uses().map(|(_, used)| used).max();
        last.map(|last| self.clock().saturating_sub(last))
    }

    /// The clock at `now`.
    pub fn clock_at(&self, now: Instant) -> u64 {
        now.duration_since(self.started).as_secs()
    }
}

/// A request that waits, counted until it is dropped.
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
