//! Objects of the configuration, whatever source has them: their identity, their origin, and the problems that they have.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Origin of an object, or of a part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A place in a file.
    File(Place),
}

impl Origin {
    /// True when it is a file at `path`, or below it.
    pub fn is_below(&self, path: &Path) -> bool {
        let Origin::File(place) = self;
        place.file.starts_with(path)
    }

    /// The file, without the place in it.
    pub fn source(&self) -> String {
        let Origin::File(place) = self;
        place.file.display().to_string()
    }

    /// Its name without a directory, as lists show it: `a.yaml`.
    pub fn name(&self) -> String {
        let Origin::File(place) = self;
        let name = place.file.file_name().unwrap_or(place.file.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// Its name with the line, if it has one: `a.yaml:12`.
    pub fn name_and_line(&self) -> String {
        let Origin::File(place) = self;
        format!("{}:{}", self.name(), place.line)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin::File(place) = self;
        place.fmt(f)
    }
}

/// A place in a file; line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file.
    pub file: Arc<PathBuf>,
    /// The line.
    pub line: u64,
    /// The column.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// The identity of an object; a part that isn't known is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &'_ str| if text.is_empty() { "?" } else { text }.to_owned();
        let [namespace, name, kind] =
            [&self.namespace, &self.name, &self.kind].map(|text| or_unknown(text));
        write!(f, "{namespace}/{name} {kind}")
    }
}

/// A finding about a file or an object: an error, a warning or a notice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Its origin.
    pub origin: Origin,
    /// The object, as far as it is known.
    pub key: Option<ObjectKey>,
    /// The fail-closed effect until the object can be read, for one that restricts access.
    pub fail_closed: Option<FailClosed>,
    /// Its severity.
    pub severity: Severity,
    /// The message, for a person.
    pub message: String,
}

/// The fail-closed effect of a security object that isn't in force, until it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FailClosed {
    /// The effect.
    pub effect: ClosedEffect,
    /// Labels of the workloads that it selects; empty for its whole namespace.
    pub selector: BTreeMap<String, String>,
}

/// The fail-closed effect of a security object that can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClosedEffect {
    /// Mutual TLS is required.
    Strict,
    /// Every request is denied.
    Deny,
}

/// The severity of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Information for the operator; nothing is wrong.
    Notice,
    /// The object is used, but hardly has the effect that its author intended.
    Warning,
    /// The object is not used in this form.
    Error,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        };
        write!(f, "{}: {severity}: ", self.origin)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)
    }
}
