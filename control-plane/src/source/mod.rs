//! Sources of configuration: objects are read, joined, compiled to a [`Mesh`] and published.

mod configuration;
mod directory;
pub mod dns;
pub mod file;
pub mod last_good;

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::mesh::Mesh;
use crate::object::{ClosedEffect, FailClosed, ObjectKey, Origin, Problem};

/// An object that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its kind, namespace and name.
    pub key: ObjectKey,
    /// Its origin: the place where it begins.
    pub origin: Origin,
    /// Its text, as it stands in the file.
    pub text: Arc<str>,
}

/// A snapshot of the source.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The compiled mesh.
    pub mesh: Arc<Mesh>,
    /// Errors, warnings and notices.
    pub problems: Arc<Vec<Problem>>,
    /// Objects that could be read.
    pub objects: Arc<Vec<ObjectEntry>>,
    /// Objects whose text is not in force.
    pub rejected: Arc<Vec<Rejected>>,
    /// Counts of the last reading.
    pub counts: Counts,
    /// True once the source has been read whole: until then no resource is reported as removed.
    pub complete: bool,
}

/// An object whose text is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rejected {
    /// The object, as far as it can be identified.
    pub key: ObjectKey,
    /// The origin of its text.
    pub origin: Origin,
    /// The reason why it is not in force.
    pub reason: String,
    /// The time at which this was seen first.
    pub since: SystemTime,
    /// The form that runs instead.
    pub runs: EffectiveForm,
}

/// The form that runs instead of a text that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EffectiveForm {
    /// Nothing.
    Nothing,
    /// The form that was in force before, taken at this time.
    LastGood(SystemTime),
    /// A form that closes, for these of the known workloads.
    Closed {
        /// Its effect and selector.
        closes: FailClosed,
        /// Workloads that it closes.
        workloads: Vec<String>,
    },
}

impl Rejected {
    /// The object's effect on its workloads until it can be read, in words; none unless it closes.
    pub fn closes(&self) -> Option<String> {
        let EffectiveForm::Closed { closes, workloads } = &self.runs else {
            return None;
        };
        let how = match closes.effect {
            ClosedEffect::Strict => "requires mutual TLS of",
            ClosedEffect::Deny => "denies every request to",
        };
        let known = match workloads.is_empty() {
            true => String::new(),
            false => format!(" ({})", workloads.join(", ")),
        };
        Some(format!(
            "{how} {}{known}",
            closed_workloads(&self.key, closes)
        ))
    }

    /// The form that runs instead, since when, and why, in words.
    pub fn standing(&self) -> String {
        let runs = match &self.runs {
            EffectiveForm::LastGood(taken) => format!("runs the form of {}", rfc3339(*taken)),
            _ => self.closes().unwrap_or_else(|| "not in force".to_owned()),
        };
        format!("{runs}, since {}: {}", rfc3339(self.since), self.reason)
    }

    /// The labels of its metric: kind, namespace, name, the form that runs, the workloads that it closes, the reason.
    pub fn labels(&self) -> [String; 6] {
        let ObjectKey {
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

    /// The same as JSON.
    pub fn json(&self) -> Value {
        let taken = match &self.runs {
            EffectiveForm::LastGood(taken) => Some(rfc3339(*taken)),
            _ => None,
        };
        json!({
            "object": self.key.to_string(), "place": self.origin.to_string(), "reason": self.reason,
            "since": rfc3339(self.since), "runs": self.runs.name(), "form_of": taken,
            "closes": self.closes(), "standing": self.standing(),
        })
    }
}

impl EffectiveForm {
    /// Its name, in JSON and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            EffectiveForm::Nothing => "nothing",
            EffectiveForm::LastGood(_) => "last_good",
            EffectiveForm::Closed { .. } => "closed",
        }
    }
}

/// The workloads that an object holds closed, in words.
fn closed_workloads(key: &ObjectKey, closes: &FailClosed) -> String {
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

/// Formats a time to the second (RFC 3339).
pub fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time).truncate_to_second();
    time.format(&Rfc3339).unwrap_or_default()
}

/// Counts of one reading of the source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files that were read.
    pub files: usize,
    /// Files that were left out: nothing in their names says that they are YAML.
    pub skipped: usize,
    /// Objects whose text is in force.
    pub objects: usize,
    /// Objects whose text is not in force.
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
