//! A directory of YAML: watched, read after a moment of quiet, whole each time.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::compile::Settings;
use super::dns::Addresses;
use super::last_good::{LastGood, Reading};
use super::{Known, State};
use crate::istio::{self, Limits, Object, Place, Problem, Severity};
use crate::mesh::{Draining, Mesh};

/// Stands before each last good form, with the file that it came from.
const FROM: &str = "# from: ";
/// A change is read after so much quiet: an editor's save is several events.
const QUIET: Duration = Duration::from_millis(100);
/// Changes that never end are read after this all the same.
const MAX_QUIET: Duration = Duration::from_secs(1);
/// A file that shrank to nothing is believed after this: some editors truncate first.
const EMPTY: Duration = Duration::from_secs(2);
/// Without any event the directory is read again after this: a watch can be lost.
const REREAD: Duration = Duration::from_secs(30);

/// Where the YAML is, and what bounds it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory.
    pub directory: PathBuf,
    /// Where last good forms are kept, if anywhere.
    pub last_good: Option<PathBuf>,
    /// What holds for the whole mesh.
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
    /// Files that hold nothing now and held something before, with since when.
    emptied: HashMap<PathBuf, Instant>,
    held: BTreeMap<PathBuf, bool>,
    complete: bool,
    /// The mesh without addresses.
    mesh: Mesh,
    problems: Arc<Vec<Problem>>,
    objects: Arc<Vec<Known>>,
}

impl Source {
    /// A source; what was good before a restart is read back.
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
            complete: false,
            mesh: Mesh::default(),
            problems: Arc::default(),
            objects: Arc::default(),
        }
    }

    /// Reads and watches for ever; publishes whenever something changed.
    ///
    /// # Errors
    /// When the directory can't be watched.
    pub async fn run(
        mut self,
        publish: watch::Sender<State>,
        mut addresses: watch::Receiver<Arc<Addresses>>,
        mut draining: watch::Receiver<Arc<Draining>>,
    ) -> Result<(), String> {
        let (events, mut changed) = mpsc::unbounded_channel();
        let _watcher = watch_directory(&self.options.directory, events)?;
        self.read();
        self.publish(&publish, &mut addresses, &mut draining);
        loop {
            let pause = self.emptied.values().min().map_or(REREAD, |since| {
                (*since + EMPTY).saturating_duration_since(Instant::now()) + QUIET / 10
            });
            tokio::select! {
                event = changed.recv() => {
                    if event.is_none() {
                        return Err("the watch on the directory ended".to_owned());
                    }
                    settle(&mut changed).await;
                    self.read();
                }
                () = sleep(pause) => self.read(),
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
            self.publish(&publish, &mut addresses, &mut draining);
        }
    }

    /// Reads everything once, without watching.
    pub fn read_once(mut self) -> State {
        self.read();
        State {
            mesh: Arc::new(self.mesh),
            problems: self.problems,
            objects: self.objects,
            complete: self.complete,
        }
    }

    fn read(&mut self) {
        let reading = match self.read_directory() {
            Ok(reading) => reading,
            Err(error) => {
                // What ran goes on running.
                self.emptied.clear();
                let directory = self.options.directory.clone();
                let message = format!("cannot be read: {error}");
                self.problems = Arc::new(vec![at_file(Arc::new(directory), message)]);
                return;
            }
        };
        let read = reading
            .values()
            .flatten()
            .filter_map(|read| read.as_ref().ok());
        let objects = read.map(|object| Known {
            key: object.key.clone(),
            place: object.place.clone(),
            text: Arc::clone(&object.text),
        });
        self.objects = Arc::new(objects.collect());
        let (mesh, problems) = self.last.apply(&self.options.settings, reading);
        for problem in problems
            .iter()
            .filter(|problem| !self.problems.contains(problem))
        {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Notice => tracing::info!("{problem}"),
            }
        }
        self.mesh = mesh;
        self.problems = Arc::new(problems);
        self.complete = true;
        self.save();
    }

    fn read_directory(&mut self) -> io::Result<Reading> {
        let mut reading = Reading::new();
        let mut held = BTreeMap::new();
        for path in yaml_files(&self.options.directory)? {
            let file = Arc::new(path.clone());
            let documents = match read_file(&path, self.options.limits.bytes) {
                Ok(text) => self.read_text(&file, &text, &mut held),
                Err(message) => {
                    held.insert(path, true);
                    vec![Err(at_file(Arc::clone(&file), message))]
                }
            };
            reading.insert(file, documents);
        }
        self.emptied.retain(|path, _| held.contains_key(path));
        self.held = held;
        Ok(reading)
    }

    fn read_text(
        &mut self,
        file: &Arc<PathBuf>,
        text: &str,
        held: &mut BTreeMap<PathBuf, bool>,
    ) -> Vec<Result<Object, Problem>> {
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
            let message = "is empty; what it held runs on for a moment".to_owned();
            return vec![Err(at_file(Arc::clone(file), message))];
        }
        self.emptied.remove(&path);
        held.insert(path, false);
        Vec::new()
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
        let state = State {
            mesh: Arc::new(mesh),
            problems: Arc::clone(&self.problems),
            objects: Arc::clone(&self.objects),
            complete: self.complete,
        };
        publish.send_if_modified(|before| {
            let changed = *before.mesh != *state.mesh
                || before.problems != state.problems
                || before.objects != state.objects
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
        let document = |object: &Arc<Object>| {
            format!("{FROM}{}\n{}", object.place.file.display(), object.text)
        };
        let documents: Vec<String> = self.last.objects().map(document).collect();
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

fn restore(path: &Path, limits: &Limits) -> Vec<Object> {
    let Ok(text) = std::fs::read_to_string(path) else {
        return Vec::new();
    };
    let everything = Limits {
        bytes: usize::MAX,
        ..*limits
    };
    let read = |document: &str| {
        // Each says which file it came from: what that file holds later is held against it.
        let from = document.lines().find_map(|line| line.strip_prefix(FROM));
        let file = Arc::new(from.map_or_else(|| path.to_owned(), PathBuf::from));
        istio::read(&file, document, &everything)
    };
    text.split("\n---\n")
        .flat_map(read)
        .filter_map(Result::ok)
        .collect()
}

fn watch_directory(
    directory: &Path,
    events: mpsc::UnboundedSender<()>,
) -> Result<RecommendedWatcher, String> {
    let failed = |error: notify::Error| format!("cannot watch {}: {error}", directory.display());
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too; answering it by reading would never end.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = events.send(());
        }
    })
    .map_err(failed)?;
    watcher
        .watch(directory, RecursiveMode::NonRecursive)
        .map_err(failed)?;
    Ok(watcher)
}

/// Waits until nothing has happened for a moment.
async fn settle(changed: &mut mpsc::UnboundedReceiver<()>) {
    let quiet = async { while timeout(QUIET, changed.recv()).await.is_ok() {} };
    let _ = timeout(MAX_QUIET, quiet).await;
}

/// The YAML files directly in a directory; a path that is a file is that file.
fn yaml_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        files.push(entry?.path());
    }
    files.retain(|file| is_yaml(file));
    Ok(files)
}

/// Hidden files are editors' and ConfigMaps' own.
fn is_yaml(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let extension = path.extension().and_then(|extension| extension.to_str());
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml")) && path.is_file()
}

fn read_file(path: &Path, limit: usize) -> Result<String, String> {
    let size = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    if size > limit as u64 {
        return Err(format!("{size} bytes; at most {limit} are read"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

fn at_file(file: Arc<PathBuf>, message: String) -> Problem {
    Problem {
        place: Place {
            file,
            line: 1,
            column: 1,
        },
        key: None,
        selector: None,
        severity: Severity::Error,
        message,
    }
}
