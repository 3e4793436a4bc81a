//! The configuration in force: what sources read, joined and compiled, published with what is resolved and drains, and kept
//! on disk for a restart.
//!
//! State: `last-good.yaml` in the state directory, written by rename when the forms change.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::dns::Addresses;
use super::last_good::{Applied, Good, LastGood, Reading};
use super::{Counts, ObjectEntry, Rejected, State};
use crate::compile::Settings;
use crate::istio::{self, Limits};
use crate::mesh::{Draining, Mesh};
use crate::object::{ObjectKey, Problem, Severity};

/// Comment before each last good form, with the file that it came from.
const FROM: &str = "# from: ";
/// Comment with the time of the reading that brought it, in seconds since 1970.
const TAKEN: &str = "# taken: ";
/// Comment with the time since which the file holds another text, if it does.
const STALE: &str = "# stale since: ";

/// The configuration in force.
#[derive(Debug)]
pub(super) struct Configuration {
    settings: Settings,
    last: LastGood,
    /// File of the last good forms, if they are kept, and its text.
    path: Option<PathBuf>,
    saved: String,
    complete: bool,
    /// The compiled mesh, without resolved addresses and draining workloads.
    mesh: Mesh,
    problems: Arc<Vec<Problem>>,
    objects: Arc<Vec<ObjectEntry>>,
    rejected: Arc<Vec<Rejected>>,
    counts: Counts,
}

impl Configuration {
    /// A configuration without objects yet, but with the good forms that `path` kept.
    pub(super) fn new(settings: Settings, limits: Limits, path: Option<PathBuf>) -> Configuration {
        let restored = path.as_deref().map(|path| restore(path, &limits));
        Configuration {
            settings,
            last: LastGood::restore(restored.unwrap_or_default()),
            path,
            saved: String::new(),
            complete: false,
            mesh: Mesh::default(),
            problems: Arc::default(),
            objects: Arc::default(),
            rejected: Arc::default(),
            counts: Counts::default(),
        }
    }

    /// Puts a reading in force, of which `skipped` files were left out.
    pub(super) fn apply(&mut self, reading: Reading, skipped: usize) {
        let read = reading.values().flat_map(|contents| &contents.objects);
        let objects = read.map(|object| ObjectEntry {
            key: object.key.clone(),
            origin: object.origin.clone(),
            text: Arc::clone(&object.text),
        });
        self.objects = Arc::new(objects.collect());
        let applied = self.last.apply(&self.settings, reading, SystemTime::now());
        self.take(applied, skipped);
        self.save();
    }

    /// Reports that nothing could be read. The mesh stays as it was.
    pub(super) fn fail(&mut self, error: Problem) {
        tracing::error!("{error}");
        self.problems = Arc::new(vec![error]);
    }

    /// The configuration without what is resolved and drains.
    pub(super) fn state(&self) -> State {
        self.state_of(self.mesh.clone())
    }

    fn state_of(&self, mesh: Mesh) -> State {
        State {
            mesh: Arc::new(mesh),
            problems: Arc::clone(&self.problems),
            objects: Arc::clone(&self.objects),
            rejected: Arc::clone(&self.rejected),
            counts: self.counts,
            complete: self.complete,
        }
    }

    /// Takes the outcome of a reading, and logs the changes.
    fn take(&mut self, applied: Applied, skipped: usize) {
        let Applied {
            mesh,
            problems,
            rejected,
            mut counts,
        } = applied;
        counts.skipped = skipped;
        let known: HashSet<&Problem> = self.problems.iter().collect();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
                Severity::Notice => tracing::info!("{problem}"),
            }
        }
        let known: HashSet<&Rejected> = self.rejected.iter().collect();
        for one in rejected.iter().filter(|one| !known.contains(one)) {
            tracing::error!("{}: {}: {}", one.origin, one.key, one.standing());
        }
        let still: HashSet<&ObjectKey> = rejected.iter().map(|one| &one.key).collect();
        for one in self.rejected.iter().filter(|one| !still.contains(&one.key)) {
            tracing::info!("{}: in force again, or gone", one.key);
        }
        if counts != self.counts || !self.complete {
            tracing::info!("{counts}");
        }
        self.mesh = mesh;
        self.problems = Arc::new(problems);
        self.rejected = Arc::new(rejected);
        self.counts = counts;
        self.complete = true;
    }

    /// Publishes the configuration if it changed.
    pub(super) fn publish(
        &self,
        publish: &watch::Sender<State>,
        addresses: &mut watch::Receiver<Arc<Addresses>>,
        draining: &mut watch::Receiver<Arc<Draining>>,
    ) {
        let mut mesh = self.mesh.clone();
        mesh.resolved = Arc::clone(&addresses.borrow_and_update());
        mesh.draining = Arc::clone(&draining.borrow_and_update());
        let state = self.state_of(mesh);
        publish.send_if_modified(|before| {
            let changed = *before.mesh != *state.mesh
                || before.problems != state.problems
                || before.objects != state.objects
                || before.rejected != state.rejected
                || before.counts != state.counts
                || before.complete != state.complete;
            *before = state;
            changed
        });
    }

    /// Keeps the last good forms on disk, by rename, when they changed.
    fn save(&mut self) {
        let Some(path) = &self.path else {
            return;
        };
        let document = |good: &Good| {
            let (file, text) = (good.object.origin.source(), &good.object.text);
            let taken = seconds(good.taken);
            let stale = good
                .stale
                .map(|since| format!("{STALE}{}\n", seconds(since)));
            format!(
                "{FROM}{file}\n{TAKEN}{taken}\n{}{text}",
                stale.unwrap_or_default()
            )
        };
        let documents: Vec<String> = self.last.forms().map(document).collect();
        let text = documents.join("\n---\n");
        if text == self.saved {
            return;
        }
        let next = path.with_extension("next");
        let written = std::fs::write(&next, &text).and_then(|()| std::fs::rename(&next, path));
        match written {
            Ok(()) => self.saved = text,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "last good forms not kept")
            }
        }
    }
}

/// The forms that were good before a restart. Each names its file, so that it runs on while that file can't be read.
fn restore(path: &Path, limits: &Limits) -> Vec<Good> {
    let Ok(text) = std::fs::read_to_string(path) else {
        return Vec::new();
    };
    let saved = std::fs::metadata(path).and_then(|about| about.modified());
    let saved = saved.unwrap_or(UNIX_EPOCH);
    let everything = Limits {
        bytes: usize::MAX,
        ..*limits
    };
    let read = |document: &str| {
        let comment = |name: &str| document.lines().find_map(|line| line.strip_prefix(name));
        let time = |name: &str| {
            let seconds = comment(name)?.parse().ok()?;
            UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        };
        let file = Arc::new(comment(FROM).map_or_else(|| path.to_owned(), PathBuf::from));
        let (taken, stale) = (time(TAKEN).unwrap_or(saved), time(STALE));
        let objects = istio::read(&file, document, &everything).objects;
        let good = objects.into_iter().map(move |object| Good {
            object: Arc::new(object),
            taken,
            stale,
        });
        good.collect::<Vec<_>>()
    };
    text.split("\n---\n").flat_map(read).collect()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
