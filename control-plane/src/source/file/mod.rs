//! Directories of YAML: watched, read after a moment of quiet, whole each time.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::State;
use super::configuration::Configuration;
use super::directory::{self, Files, Large};
use super::dns::Addresses;
use super::last_good::Reading;
use crate::compile::Settings;
use crate::istio::{self, Contents, Limits};
use crate::mesh::Draining;
use crate::object::{Origin, Place, Problem, Severity};

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
    configuration: Configuration,
    /// Files that were emptied, each with the time at which that was seen.
    emptied: HashMap<PathBuf, Instant>,
    held: BTreeMap<PathBuf, bool>,
    large: Large,
}

impl Source {
    /// A source with the good forms from before a restart.
    pub fn new(options: Options) -> Source {
        Source {
            configuration: Configuration::new(
                options.settings.clone(),
                options.limits,
                options.last_good.clone(),
            ),
            options,
            emptied: HashMap::new(),
            held: BTreeMap::new(),
            large: Large::new(),
        }
    }

    /// Reads and watches for ever; publishes whenever something changed.
    ///
    /// # Errors
    /// When the directory can't be watched.
    pub async fn run(
        self,
        publish: watch::Sender<State>,
        addresses: watch::Receiver<Arc<Addresses>>,
        draining: watch::Receiver<Arc<Draining>>,
    ) -> Result<(), String> {
        let (events, changed) = mpsc::unbounded_channel();
        let _watcher = watch_all(&self.options.paths, events)?;
        self.follow(changed, publish, addresses, draining).await
    }

    /// Reads once, then after each event, and publishes; ends when the events do.
    async fn follow(
        self,
        mut changed: mpsc::UnboundedReceiver<()>,
        publish: watch::Sender<State>,
        mut addresses: watch::Receiver<Arc<Addresses>>,
        mut draining: watch::Receiver<Arc<Draining>>,
    ) -> Result<(), String> {
        let mut source = self.read_aside().await?;
        source
            .configuration
            .publish(&publish, &mut addresses, &mut draining);
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
            source
                .configuration
                .publish(&publish, &mut addresses, &mut draining);
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
        self.configuration.state()
    }

    fn read(&mut self) {
        match self.read_all() {
            Ok((reading, skipped)) => self.configuration.apply(reading, skipped),
            Err(error) => {
                self.emptied.clear();
                self.configuration.fail(error);
            }
        }
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
            contents.is_incomplete |= severity == Severity::Error;
            contents.problems.push(problem);
        }
        for path in files.read {
            let file = Arc::new(path.clone());
            let contents = match directory::read(&path, &self.options.limits, &mut self.large) {
                Ok(text) => self.read_text(&file, &text, &mut held),
                Err(error) => {
                    held.insert(path, true);
                    istio::unreadable(&file, &error.message, error.suspected)
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
    let quiet = async { while let Ok(Some(())) = timeout(QUIET, changed.recv()).await {} };
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
        fail_closed: None,
        severity: Severity::Error,
        message,
    }
}

#[cfg(test)]
mod tests;
