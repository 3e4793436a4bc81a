//! The YAML as it is said: one file a kind, strict, with the place of every mistake.
//!
//! Invariant: a field that isn't understood is an error on its object, never ignored.

pub mod authorization_policy;
pub mod destination_rule;
pub mod peer_authentication;
pub mod scalar;
pub mod service;
pub mod service_entry;
pub mod virtual_service;
pub mod wildcard;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::DuplicateKeyPolicy;

pub use authorization_policy::AuthorizationPolicy;
pub use destination_rule::DestinationRule;
pub use peer_authentication::PeerAuthentication;
pub use service::Service;
pub use service_entry::{ServiceEntry, WorkloadEntry};
pub use virtual_service::VirtualService;

/// Versions of routing objects that are read.
const NETWORKING: [&str; 3] = [
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
];
/// Versions of security objects that are read.
const SECURITY: [&str; 2] = ["security.istio.io/v1", "security.istio.io/v1beta1"];

/// Bounds on YAML.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a file.
    pub bytes: usize,
    /// How deep a document may nest.
    pub depth: usize,
    /// Aliases (`*name`) of a document.
    pub aliases: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes: 4 * 1024 * 1024,
            depth: 64,
            aliases: 1000,
        }
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

/// Which object it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.namespace, self.name, self.kind)
    }
}

/// An object that could be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Which it is.
    pub key: Key,
    /// Where it begins.
    pub place: Place,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it says.
    pub spec: Spec,
    /// Its document, as it stands in the file.
    pub text: Arc<str>,
}

/// What an object says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Spec {
    Service(Service),
    ServiceEntry(ServiceEntry),
    WorkloadEntry(WorkloadEntry),
    VirtualService(VirtualService),
    DestinationRule(DestinationRule),
    PeerAuthentication(PeerAuthentication),
    AuthorizationPolicy(AuthorizationPolicy),
}

/// Something that is wrong, or worth a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Which object, as far as it could be told.
    pub key: Option<Key>,
    /// Labels that the object selects, when it is a security object and they could be read.
    pub selector: Option<BTreeMap<String, String>>,
    /// How bad it is.
    pub severity: Severity,
    /// What, for a person.
    pub message: String,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The object is not used in this form.
    Error,
    /// It is used, and something about it should be known.
    Notice,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Notice => "notice",
        };
        write!(f, "{}: {severity}: ", self.place)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Reads every document of a file.
pub fn read(file: &Arc<PathBuf>, text: &str, limits: &Limits) -> Vec<Result<Object, Problem>> {
    if text.len() > limits.bytes {
        let message = format!("{} bytes; at most {} are read", text.len(), limits.bytes);
        return vec![Err(problem(file, 1, 1, None, message))];
    }
    documents(text)
        .map(|(line, document)| read_document(file, line, document, limits))
        .collect()
}

/// The documents of a file that hold something, each with the line before its first.
pub fn documents(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut out = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    for (number, line) in (0_u64..).zip(text.split_inclusive('\n')) {
        let word = line.trim_end();
        if word == "---" || word.starts_with("--- ") {
            out.push((start_line, &text[start..at]));
            (start, start_line) = (at + line.len(), number + 1);
        }
        at += line.len();
    }
    out.push((start_line, &text[start..]));
    out.into_iter().filter(|(_, document)| !is_blank(document))
}

fn is_blank(document: &str) -> bool {
    let mut lines = document.lines().map(str::trim);
    lines.all(|line| line.is_empty() || line.starts_with('#'))
}

/// What every object says of itself, whatever its kind.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// The selector of a security object, read apart so that a mistake elsewhere in it doesn't hide whom it is for.
#[derive(Debug, Deserialize)]
struct Selecting {
    spec: Option<SelectingSpec>,
}

#[derive(Debug, Deserialize)]
struct SelectingSpec {
    selector: Option<Selector>,
}

/// Which workloads an object is for; all of its namespace without labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SaidSelector")]
pub struct Selector {
    /// Labels that a workload must have.
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SaidSelector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
}

impl TryFrom<SaidSelector> for Selector {
    type Error = String;

    fn try_from(said: SaidSelector) -> Result<Selector, String> {
        let match_labels = said.match_labels;
        let is_literal = |(name, value): &(&String, &String)| {
            !name.is_empty() && !name.contains('*') && !value.contains('*')
        };
        match match_labels.iter().find(|label| !is_literal(label)) {
            Some((name, value)) => Err(format!(
                "no workload has the label {name:?}: {value:?}: labels have names, and a selector knows no *"
            )),
            None => Ok(Selector { match_labels }),
        }
    }
}

/// An object's frame around its spec.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Framed<S> {
    #[allow(dead_code)]
    api_version: String,
    #[allow(dead_code)]
    kind: String,
    #[allow(dead_code)]
    metadata: serde::de::IgnoredAny,
    spec: Option<S>,
    #[serde(default)]
    #[allow(dead_code)]
    status: Option<serde::de::IgnoredAny>,
}

fn read_document(
    file: &Arc<PathBuf>,
    line: u64,
    document: &str,
    limits: &Limits,
) -> Result<Object, Problem> {
    // The header is read leniently: who an object is should be known even when it says something twice.
    let header: Result<Header, Problem> = parse_with(
        file,
        line,
        document,
        None,
        limits,
        DuplicateKeyPolicy::FirstWins,
    );
    let header = header.map_err(|mut problem| {
        problem.key = guess_security(document);
        problem
    })?;
    let first = first_line(document);
    let fail = |key: Option<Key>, message: String| problem(file, line + first, 1, key, message);
    if header.kind.is_empty() || header.metadata.name.is_empty() {
        let message = "kind and metadata.name are required".to_owned();
        return Err(fail(guess_security(document), message));
    }
    let key = Key {
        kind: header.kind.clone(),
        namespace: header
            .metadata
            .namespace
            .unwrap_or_else(|| "default".to_owned()),
        name: header.metadata.name,
    };
    let place = Place {
        file: Arc::clone(file),
        line: line + first,
        column: 1,
    };
    let of = DocumentOf {
        file,
        line,
        document,
        key: &key,
        limits,
    };
    let spec = of.spec_of(&header.api_version)?;
    let labels = header.metadata.labels;
    let text = document.into();
    Ok(Object {
        key,
        place,
        labels,
        spec,
        text,
    })
}

/// What a document that can't be parsed seems to be, when that is something that protects: it must not open what it
/// closes just because a bracket is missing. Anything else stays unknown.
///
/// The namespace is empty when it can't be told: the object then closes the whole mesh.
fn guess_security(document: &str) -> Option<Key> {
    let value = |name: &str| {
        let lines = document.lines().map(str::trim);
        let mut found =
            lines.filter_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
        let value = found.next()?.split(" #").next().unwrap_or_default();
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    };
    let protects = [
        "PeerAuthentication",
        "AuthorizationPolicy",
        "RequestAuthentication",
    ];
    let kind = protects.into_iter().find(|kind| document.contains(kind))?;
    Some(Key {
        kind: kind.to_owned(),
        namespace: value("namespace").unwrap_or_default(),
        name: value("name").unwrap_or_default(),
    })
}

/// A document of which it is known what it is.
struct DocumentOf<'a> {
    file: &'a Arc<PathBuf>,
    line: u64,
    document: &'a str,
    key: &'a Key,
    limits: &'a Limits,
}

impl DocumentOf<'_> {
    /// What the object says, if its kind and version are read.
    fn spec_of(&self, version: &str) -> Result<Spec, Problem> {
        let known = match self.key.kind.as_str() {
            "Service" => &["v1"][..],
            "ServiceEntry" | "WorkloadEntry" | "VirtualService" | "DestinationRule" => &NETWORKING,
            "PeerAuthentication" | "AuthorizationPolicy" => &SECURITY,
            _ => return Err(self.not_used()),
        };
        if !known.contains(&version) {
            let message = format!(
                "apiVersion {version:?} is not read; {} is",
                known.join(", ")
            );
            let line = self.line + first_line(self.document);
            let mut problem = problem(self.file, line, 1, Some(self.key.clone()), message);
            problem.selector = self.selector();
            return Err(problem);
        }
        Ok(match self.key.kind.as_str() {
            "Service" => Spec::Service(self.spec()?),
            "ServiceEntry" => Spec::ServiceEntry(self.spec()?),
            "WorkloadEntry" => Spec::WorkloadEntry(self.spec()?),
            "VirtualService" => Spec::VirtualService(self.spec()?),
            "DestinationRule" => Spec::DestinationRule(self.spec()?),
            "PeerAuthentication" => Spec::PeerAuthentication(self.security_spec()?),
            _ => Spec::AuthorizationPolicy(self.security_spec()?),
        })
    }

    fn spec<S: DeserializeOwned + Default>(&self) -> Result<S, Problem> {
        let framed: Framed<S> = parse(
            self.file,
            self.line,
            self.document,
            Some(self.key),
            self.limits,
        )?;
        Ok(framed.spec.unwrap_or_default())
    }

    fn security_spec<S: DeserializeOwned + Default>(&self) -> Result<S, Problem> {
        self.spec().map_err(|mut problem| {
            problem.selector = self.selector();
            problem
        })
    }

    /// Whom the object is for; `None` when that can't be read, which stands for its whole namespace.
    fn selector(&self) -> Option<BTreeMap<String, String>> {
        let read: Result<Selecting, _> =
            parse(self.file, self.line, self.document, None, self.limits);
        let selector = read.ok()?.spec?.selector;
        Some(selector.unwrap_or_default().match_labels)
    }

    fn not_used(&self) -> Problem {
        let message = format!("kind {} is not used by this version of Leno", self.key.kind);
        let line = self.line + first_line(self.document);
        let mut problem = problem(self.file, line, 1, Some(self.key.clone()), message);
        problem.severity = Severity::Notice;
        if self.key.kind == "RequestAuthentication" {
            // It restricts who may call: not using it must not open what it closes.
            problem.severity = Severity::Error;
            problem.selector = self.selector();
        }
        problem
    }
}

/// The number of a document's first line that says something, from 1.
fn first_line(document: &str) -> u64 {
    let blank = |line: &&str| line.trim().is_empty() || line.trim().starts_with('#');
    document.lines().take_while(blank).count() as u64 + 1
}

fn parse<T: DeserializeOwned>(
    file: &Arc<PathBuf>,
    line: u64,
    document: &str,
    key: Option<&Key>,
    limits: &Limits,
) -> Result<T, Problem> {
    parse_with(file, line, document, key, limits, DuplicateKeyPolicy::Error)
}

fn parse_with<T: DeserializeOwned>(
    file: &Arc<PathBuf>,
    line: u64,
    document: &str,
    key: Option<&Key>,
    limits: &Limits,
    duplicates: DuplicateKeyPolicy,
) -> Result<T, Problem> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: limits.depth,
            max_aliases: limits.aliases,
            max_nodes: 100_000,
            max_events: 400_000,
        },
        with_snippet: false,
        duplicate_keys: duplicates,
    };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        let location = error.location();
        let at = |get: fn(&serde_saphyr::Location) -> u64| location.as_ref().map_or(1, get);
        let (in_document, column) = (at(|l| l.line()), at(|l| l.column()));
        let message = explain(&error.to_string());
        problem(file, line + in_document, column, key.cloned(), message)
    })
}

/// The parser's words, without the place that stands beside them, and with a hint where one helps.
fn explain(text: &str) -> String {
    let text = text.lines().next().unwrap_or(text);
    let text = match text.rfind(" at line ") {
        Some(at) => &text[..at],
        None => text,
    };
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let text = text.split(", set ").next().unwrap_or(text);
    if text.contains("duplicate") && (text.contains("apiVersion") || text.contains("kind")) {
        return format!("{text}; is a line with `---` missing before it?");
    }
    match text.contains("unknown field") {
        true => format!("{text} (this version of Leno does not support it)"),
        false => text.to_owned(),
    }
}

fn problem(
    file: &Arc<PathBuf>,
    line: u64,
    column: u64,
    key: Option<Key>,
    message: String,
) -> Problem {
    Problem {
        place: Place {
            file: Arc::clone(file),
            line,
            column,
        },
        key,
        selector: None,
        severity: Severity::Error,
        message,
    }
}

#[cfg(test)]
mod tests;
