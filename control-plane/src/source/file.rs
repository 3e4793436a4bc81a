//! Directories of YAML: watched, read after a moment of quiet, whole each time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::directory::{self, Files, Large};
use super::dns::Addresses;
use super::last_good::{Applied, Good, LastGood, Reading};
use super::{Counts, Known, Rejected, State};
use crate::compile::Settings;
use crate::istio::{self, Contents, Limits};
use crate::mesh::{Draining, Mesh};
use crate::object::{Key, Origin, Place, Problem, Severity};

/// Comment before each last good form, with the file that it came from.
const FROM: &str = "# from: ";
/// Comment with the time of the reading that brought it, in seconds since 1970.
const TAKEN: &str = "# taken: ";
/// Comment with the time since which the file holds another text, if it does.
const STALE: &str = "# stale since: ";
/// Quiet time before a change is read: an editor's save is several events.
const QUIET: Duration = Duration::from_millis(100);
/// Longest wait for quiet: changes that never end are read all the same.
const MAX_QUIET: Duration = Duration::from_secs(1);
/// Time after which an emptied file counts as empty: some editors truncate first.
const EMPTY: Duration = Duration::from_secs(2);
/// Interval of readings without any event: a watch can be lost.
const REREAD: Duration = Duration::from_secs(30);

/// Paths, settings and limits of a source.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directories, or files; together they are one configuration.
    pub paths: Vec<PathBuf>,
    /// File of the last good forms, if they are kept.
    pub last_good: Option<PathBuf>,
    /// Mesh-wide settings.
    pub settings: Settings,
    /// Bounds on YAML.
    pub limits: Limits,
}

/// The directory as a source.
#[derive(Debug)]
pub struct Source {
    options: Options,
    last: LastGood,
    saved: String,
    /// Files that were emptied, each with the time at which that was seen.
    emptied: HashMap<PathBuf, Instant>,
    held: BTreeMap<PathBuf, bool>,
    large: Large,
    complete: bool,
    /// The compiled mesh, without resolved addresses and draining workloads.
    mesh: Mesh,
    problems: Arc<Vec<Problem>>,
    objects: Arc<Vec<Known>>,
    rejected: Arc<Vec<Rejected>>,
    counts: Counts,
}

impl Source {
    /// A source with the good forms from before a restart.
    pub fn new(options: Options) -> Source {
        let restored = options
            .last_good
            .as_deref()
            .map(|path| restore(path, &options.limits));
        Source {
            last: LastGood::restore(restored.unwrap_or_default()),
            options,
            saved: String::new(),
            emptied: HashMap::new(),
            held: BTreeMap::new(),
            large: Large::new(),
            complete: false,
            mesh: Mesh::default(),
            problems: Arc::default(),
            objects: Arc::default(),
            rejected: Arc::default(),
            counts: Counts::default(),
        }
    }

    /// Reads and watches for ever; publishes whenever something changed.
    ///
    /// # Errors
    /// When the directory can't be watched.
    pub async fn run(
        self,
        publish: watch::Sender<State>,
        mut addresses: watch::Receiver<Arc<Addresses>>,
        mut draining: watch::Receiver<Arc<Draining>>,
    ) -> Result<(), String> {
        let (events, mut changed) = mpsc::unbounded_channel();
        let _watcher = watch_all(&self.options.paths, events)?;
        let mut source = self.read_aside().await?;
        source.publish(&publish, &mut addresses, &mut draining);
        loop {
            let pause = source.emptied.values().min().map_or(REREAD, |since| {
                (*since + EMPTY).saturating_duration_since(Instant::now()) + QUIET / 10
            });
            tokio::select! {
                event = changed.recv() => {
                    if event.is_none() {
                        return Err("the watch on the directory ended".to_owned());
                    }
                    settle(&mut changed).await;
                    source = source.read_aside().await?;
                }
                () = sleep(pause) => source = source.read_aside().await?,
                resolved = addresses.changed() => {
                    // Addresses skip the quiet: nothing about them is half written.
                    if resolved.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                changed = draining.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            }
            source.publish(&publish, &mut addresses, &mut draining);
        }
    }

    /// Reads everything on a thread that may block: the disk may be slow, or the directory large.
    async fn read_aside(mut self) -> Result<Source, String> {
        let reading = tokio::task::spawn_blocking(move || {
            self.read();
            self
        });
        reading
            .await
            .map_err(|error| format!("the reading of the configuration ended: {error}"))
    }

    /// Reads everything once, without watching.
    pub fn read_once(mut self) -> State {
        self.read();
        self.state(self.mesh.clone())
    }

    fn state(&self, mesh: Mesh) -> State {
        State {
            mesh: Arc::new(mesh),
            problems: Arc::clone(&self.problems),
            objects: Arc::clone(&self.objects),
            rejected: Arc::clone(&self.rejected),
            counts: self.counts,
            complete: self.complete,
        }
    }

    fn read(&mut self) {
        let (reading, skipped) = match self.read_all() {
            Ok(read) => read,
            Err(error) => {
                // The mesh stays as it was.
                self.emptied.clear();
                tracing::error!("{error}");
                self.problems = Arc::new(vec![error]);
                return;
            }
        };
        let read = reading.values().flat_map(|contents| &contents.objects);
        let objects = read.map(|object| Known {
            key: object.key.clone(),
            origin: object.origin.clone(),
            text: Arc::clone(&object.text),
        });
        self.objects = Arc::new(objects.collect());
        let applied = self
            .last
            .apply(&self.options.settings, reading, SystemTime::now());
        self.take(applied, skipped);
        self.save();
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
        let still: HashSet<&Key> = rejected.iter().map(|one| &one.key).collect();
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

    /// The contents of all files, and the number of those left out.
    fn read_all(&mut self) -> Result<(Reading, usize), Problem> {
        let mut files = Files::default();
        for path in &self.options.paths {
            let failed =
                |error| at_file(Arc::new(path.clone()), format!("cannot be read: {error}"));
            files.add(directory::walk(path).map_err(failed)?);
        }
        let (mut reading, mut held) = (Reading::new(), BTreeMap::new());
        for (path, severity, message) in files.unread {
            let mut problem = at_file(Arc::new(path.clone()), message);
            problem.severity = severity;
            let contents: &mut Contents = reading.entry(Arc::new(path)).or_default();
            contents.is_torn |= severity == Severity::Error;
            contents.problems.push(problem);
        }
        for path in files.read {
            let file = Arc::new(path.clone());
            let contents = match directory::read(&path, &self.options.limits, &mut self.large) {
                Ok(text) => self.read_text(&file, &text, &mut held),
                Err(error) => {
                    held.insert(path, true);
                    istio::unreadable(&file, &error.message, error.hidden)
                }
            };
            reading.insert(file, contents);
        }
        self.emptied.retain(|path, _| held.contains_key(path));
        self.large.retain(|path, _| held.contains_key(path));
        self.held = held;
        Ok((reading, files.skipped))
    }

    fn read_text(
        &mut self,
        file: &Arc<PathBuf>,
        text: &str,
        held: &mut BTreeMap<PathBuf, bool>,
    ) -> Contents {
        let path = file.to_path_buf();
        if !text.trim().is_empty() {
            self.emptied.remove(&path);
            held.insert(path, true);
            return istio::read(file, text, &self.options.limits);
        }
        let held_something = self.held.get(&path).copied().unwrap_or(false);
        let since = *self
            .emptied
            .entry(path.clone())
            .or_insert_with(Instant::now);
        if held_something && since.elapsed() < EMPTY {
            held.insert(path, true);
            let message = "is empty; what it held runs on for a moment";
            return istio::unreadable(file, message, Vec::new());
        }
        self.emptied.remove(&path);
        held.insert(path, false);
        Contents::default()
    }

    fn publish(
        &self,
        publish: &watch::Sender<State>,
        addresses: &mut watch::Receiver<Arc<Addresses>>,
        draining: &mut watch::Receiver<Arc<Draining>>,
    ) {
        let mut mesh = self.mesh.clone();
        mesh.resolved = Arc::clone(&addresses.borrow_and_update());
        mesh.draining = Arc::clone(&draining.borrow_and_update());
        let state = self.state(mesh);
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
        let Some(path) = &self.options.last_good else {
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
        let said = |name: &str| document.lines().find_map(|line| line.strip_prefix(name));
        let time = |name: &str| {
            let seconds = said(name)?.parse().ok()?;
            UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        };
        let file = Arc::new(said(FROM).map_or_else(|| path.to_owned(), PathBuf::from));
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

fn watch_all(
    paths: &[PathBuf],
    events: mpsc::UnboundedSender<()>,
) -> Result<RecommendedWatcher, String> {
    let take = move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too; answering it by reading would never end.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = events.send(());
        }
    };
    let failed =
        |path: &Path, error: notify::Error| format!("cannot watch {}: {error}", path.display());
    // Links lead to places of the directory itself; those that lead out of it aren't read.
    let options = notify::Config::default().with_follow_symlinks(false);
    let mut watcher =
        RecommendedWatcher::new(take, options).map_err(|e| failed(Path::new(""), e))?;
    for path in paths {
        // The target of a link is watched, not the link.
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        let watched = watcher.watch(&real, RecursiveMode::Recursive);
        watched.map_err(|error| failed(path, error))?;
    }
    Ok(watcher)
}

/// Waits for [`QUIET`] without an event, at most [`MAX_QUIET`].
async fn settle(changed: &mut mpsc::UnboundedReceiver<()>) {
    let quiet = async { while timeout(QUIET, changed.recv()).await.is_ok() {} };
    let _ = timeout(MAX_QUIET, quiet).await;
}

fn at_file(file: Arc<PathBuf>, message: String) -> Problem {
    Problem {
        origin: Origin::File(Place {
            file,
            line: 1,
            column: 1,
        }),
        key: None,
        closes: None,
        severity: Severity::Error,
        message,
    }
}
