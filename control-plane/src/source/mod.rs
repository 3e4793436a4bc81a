//! Where configuration comes from, and what is made of it: objects in, a [`Mesh`] out.

pub mod compile;
mod convert;
mod directory;
pub mod dns;
pub mod file;
pub mod last_good;
mod security;
mod selectors;

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::istio::{Closed, Closes, Key, Place, Problem};
use crate::mesh::Mesh;

/// An object that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Which it is.
    pub key: Key,
    /// Where it begins.
    pub place: Place,
    /// What it says.
    pub text: Arc<str>,
}

/// What the source says at a moment.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// What is meant.
    pub mesh: Arc<Mesh>,
    /// What is wrong, or worth a word.
    pub problems: Arc<Vec<Problem>>,
    /// Objects that could be read.
    pub objects: Arc<Vec<Known>>,
    /// Objects whose text is not in force.
    pub rejected: Arc<Vec<Rejected>>,
    /// Counts of what was read.
    pub counts: Counts,
    /// Whether the source has been read whole at least once: until then nothing is said to be gone.
    pub complete: bool,
}

/// An object whose text is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rejected {
    /// The object, as far as that can be told.
    pub key: Key,
    /// The place of its text.
    pub place: Place,
    /// Why it is not in force.
    pub reason: String,
    /// When this was seen first.
    pub since: SystemTime,
    /// The form that runs instead.
    pub runs: Runs,
}

/// The form that runs instead of a text that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Runs {
    /// Nothing.
    Nothing,
    /// The form that was in force before, taken at this time.
    LastGood(SystemTime),
    /// A form that closes, for these of the workloads that are known.
    Closed {
        /// The closing.
        closes: Closes,
        /// Workloads that it is for.
        workloads: Vec<String>,
    },
}

impl Rejected {
    /// The object's effect on its workloads until it can be read, for a person; none unless it closes.
    pub fn closes(&self) -> Option<String> {
        let Runs::Closed { closes, workloads } = &self.runs else {
            return None;
        };
        let how = match closes.how {
            Closed::Strict => "requires mutual TLS of",
            Closed::Deny => "denies every request to",
        };
        let known = match workloads.is_empty() {
            true => String::new(),
            false => format!(" ({})", workloads.join(", ")),
        };
        Some(format!("{how} {}{known}", whom(&self.key, closes)))
    }

    /// The form that runs instead, since when, and why, for a person.
    pub fn standing(&self) -> String {
        let runs = match &self.runs {
            Runs::LastGood(taken) => format!("runs the form of {}", rfc3339(*taken)),
            _ => self.closes().unwrap_or_else(|| "not in force".to_owned()),
        };
        format!("{runs}, since {}: {}", rfc3339(self.since), self.reason)
    }

    /// The same as a metric has it: kind, namespace, name, what runs, whom it holds closed, why.
    pub fn labels(&self) -> [String; 6] {
        let Key {
            kind,
            namespace,
            name,
        } = self.key.clone();
        let (runs, closes) = (
            self.runs.name().to_owned(),
            self.closes().unwrap_or_default(),
        );
        [kind, namespace, name, runs, closes, self.reason.clone()]
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let taken = match &self.runs {
            Runs::LastGood(taken) => Some(rfc3339(*taken)),
            _ => None,
        };
        json!({
            "object": self.key.to_string(), "place": self.place.to_string(), "reason": self.reason,
            "since": rfc3339(self.since), "runs": self.runs.name(), "form_of": taken,
            "closes": self.closes(), "standing": self.standing(),
        })
    }
}

impl Runs {
    /// Its name, in JSON and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Runs::Nothing => "nothing",
            Runs::LastGood(_) => "last_good",
            Runs::Closed { .. } => "closed",
        }
    }
}

/// The workloads that an object holds closed, for a person.
fn whom(key: &Key, closes: &Closes) -> String {
    let labels: Vec<String> = (closes.selector.iter())
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let whose = match key.namespace.is_empty() {
        true => "the whole mesh".to_owned(),
        false => format!("namespace {}", key.namespace),
    };
    match labels.is_empty() {
        true => whose,
        false => format!("{} in {whose}", labels.join(",")),
    }
}

/// A time to the second, as RFC 3339 has it.
pub fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time).truncate_to_second();
    time.format(&Rfc3339).unwrap_or_default()
}

/// Counts of a reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files that were read.
    pub files: usize,
    /// Files that were left out: nothing in their names says that they are YAML.
    pub skipped: usize,
    /// Objects whose text is in force.
    pub objects: usize,
    /// Objects whose text is not.
    pub rejected: usize,
    /// Documents of kinds that aren't used.
    pub unused: usize,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts {
            files,
            skipped,
            objects,
            rejected,
            unused,
        } = self;
        write!(
            f,
            "{files} files read, {skipped} left out; {objects} objects in force, {rejected} not in force, {unused} documents not used"
        )
    }
}
