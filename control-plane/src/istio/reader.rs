//! Reads a file's documents into objects, and into problems for everything that can't be one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::de::{self, MAX_FAULTS};
use super::documents::{self, SuspectedObject, documents, suspected_objects};
use super::fault::Mistake;
use super::header::{METADATA, closes, header, is_namespace, items, labels_at, parts};
use super::kinds::{self, Class, Kind, SECURITY_KINDS, closed_by};
use super::nearest::nearest;
use super::unread::{pods, unsupported_sidecar};
use super::wildcard::{self, Flaw, Wildcard};
use super::yaml::{Id, Mark, Tree};
use super::{Contents, Limits, Object, Spec};
use crate::object::{ClosedEffect, FailClosed, ObjectKey, Origin, Place, Problem, Severity};

/// The top-level fields of an object around its spec.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Framed<S> {
    #[allow(dead_code)]
    api_version: IgnoredAny,
    #[allow(dead_code)]
    kind: IgnoredAny,
    #[allow(dead_code)]
    metadata: Metadata,
    spec: Option<S>,
    #[serde(default)]
    #[allow(dead_code)]
    status: Option<IgnoredAny>,
}

/// An object's metadata, only checked: unknown fields are mistakes, and so are wrong types of `name`, `namespace`,
/// `labels` and `annotations`. Their values are read by [`header`].
#[derive(Debug)]
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Metadata, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("metadata")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Metadata, M::Error> {
                while let Some(Field(name)) = map.next_key()? {
                    match name.as_str() {
                        "name" => drop(map.next_value::<Option<String>>()?),
                        "namespace" => {
                            map.next_value::<Option<Namespace>>()?;
                        }
                        "labels" | "annotations" => {
                            drop(map.next_value::<Option<BTreeMap<String, Option<String>>>>()?);
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Metadata)
            }
        }
        deserializer.deserialize_struct("ObjectMeta", &METADATA, Fields)
    }
}

/// The name of a field of metadata.
struct Field(String);

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Field, D::Error> {
        let name = String::deserialize(deserializer)?;
        match METADATA.contains(&name.as_str()) {
            true => Ok(Field(name)),
            false => Err(serde::de::Error::unknown_field(&name, &METADATA)),
        }
    }
}

/// The name of a namespace.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Namespace;

impl TryFrom<String> for Namespace {
    type Error = String;

    fn try_from(name: String) -> Result<Namespace, String> {
        match name.is_empty() || is_namespace(&name) {
            true => Ok(Namespace),
            false => Err(format!(
                "{name:?} is no name of a namespace: small letters, digits and - within"
            )),
        }
    }
}

/// Reads every document of a file.
pub fn read(file: &Arc<PathBuf>, text: &str, limits: &Limits) -> Contents {
    let mut reader = Reader::new(file, limits);
    if text.len() > limits.bytes {
        let message = format!("{} bytes; at most {} are read", text.len(), limits.bytes);
        reader.unreadable(Mark { line: 1, column: 1 }, &message, text);
        return reader.out;
    }
    let text = documents::normalise(text);
    for (line, document) in documents(&text) {
        reader.line = line;
        reader.suspected = None;
        reader.document(document);
    }
    reader.truncate_notices();
    reader.out
}

/// The contents of a file that can't be read, for the reason `message`: the objects that are `suspected` in it fail closed.
pub fn unreadable(file: &Arc<PathBuf>, message: &str, suspected: Vec<SuspectedObject>) -> Contents {
    let limits = Limits::default();
    let mut reader = Reader::new(file, &limits);
    reader.report_suspected(Mark { line: 1, column: 1 }, message, suspected);
    reader.out
}

/// The top-level fields of an object.
const OBJECT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// Maximum notices that are reported for one file.
const MAX_NOTICES: usize = 1000;

/// The reader of one file.
struct Reader<'a> {
    file: &'a Arc<PathBuf>,
    limits: &'a Limits,
    /// Lines before the current document.
    line: u64,
    /// The security objects suspected in the current document, cached after the first search.
    suspected: Option<Vec<SuspectedObject>>,
    out: Contents,
}

impl<'a> Reader<'a> {
    fn new(file: &'a Arc<PathBuf>, limits: &'a Limits) -> Reader<'a> {
        Reader {
            file,
            limits,
            line: 0,
            suspected: None,
            out: Contents::default(),
        }
    }

    fn origin(&self, mark: Mark) -> Origin {
        Origin::File(Place {
            file: Arc::clone(self.file),
            line: self.line + mark.line,
            column: mark.column,
        })
    }

    fn problem(&mut self, severity: Severity, mark: Mark, key: Option<ObjectKey>, message: String) {
        let origin = self.origin(mark);
        self.out.problems.push(Problem {
            origin,
            key,
            fail_closed: None,
            severity,
            message,
        });
    }

    /// Keeps the first [`MAX_NOTICES`] notices of a file, and counts the others in one more.
    fn truncate_notices(&mut self) {
        let mut count = 0;
        self.out.problems.retain(|problem| {
            count += usize::from(problem.severity == Severity::Notice);
            problem.severity != Severity::Notice || count <= MAX_NOTICES
        });
        if count > MAX_NOTICES {
            let message = format!("and {} more notices", count - MAX_NOTICES);
            self.line = 0;
            self.problem(Severity::Notice, Mark { line: 1, column: 1 }, None, message);
        }
    }

    /// The security objects suspected in `text`, the current document.
    fn suspected(&mut self, text: &str) -> Vec<SuspectedObject> {
        let found = self
            .suspected
            .get_or_insert_with(|| suspected_objects(text, self.limits));
        found.clone()
    }

    /// Reports `text` as unreadable, once for each security object suspected in it.
    fn unreadable(&mut self, mark: Mark, message: &str, text: &str) {
        let found = self.suspected(text);
        self.report_suspected(mark, message, found);
    }

    fn report_suspected(&mut self, mark: Mark, message: &str, found: Vec<SuspectedObject>) {
        self.out.is_incomplete = true;
        if found.is_empty() {
            return self.problem(Severity::Error, mark, None, message.to_owned());
        }
        for SuspectedObject { key, closes } in found {
            self.problem(Severity::Error, mark, Some(key), message.to_owned());
            self.close(Some(closes));
        }
    }

    /// Sets the fail-closed effect of the last problem.
    fn close(&mut self, closes: Option<FailClosed>) {
        if let Some(last) = self.out.problems.last_mut() {
            last.fail_closed = closes;
        }
    }

    fn document(&mut self, text: &str) {
        let mut tree = match Tree::parse(text, self.limits) {
            Ok(tree) => tree,
            Err(error) => return self.unreadable(error.mark, &error.message, text),
        };
        let root = tree.root;
        self.objects(&mut tree, root, text);
    }

    /// Reads the object at a node, or several where `---` is missing between them.
    fn objects(&mut self, tree: &mut Tree<'_>, root: Id, text: &str) {
        let objects = parts(tree, root);
        if objects.len() < 2 {
            return self.object(tree, root, text);
        }
        let second = tree.mark(objects[1][0].0);
        for (number, entries) in objects.iter().enumerate() {
            let part = tree.part(entries);
            let before = std::mem::take(&mut self.out);
            self.object(tree, part, text);
            let found = std::mem::replace(&mut self.out, before);
            let mark = match number {
                0 => second,
                _ => tree.mark(entries[0].0),
            };
            let key = header(tree, part).key();
            self.report_missing_separator(number > 0, mark, key, found);
        }
    }

    /// Reports an object that shares its document with another because `---` is missing: neither is used.
    fn report_missing_separator(
        &mut self,
        is_later: bool,
        mark: Mark,
        key: ObjectKey,
        found: Contents,
    ) {
        let message = match is_later {
            true => "a line with `---` is missing before this object",
            false => "another object begins here: a line with `---` is missing before it",
        };
        for object in &found.objects {
            let key = object.key.clone();
            self.problem(Severity::Error, mark, Some(key), message.to_owned());
            self.close(object.closes());
        }
        let has_errors = (found.problems.iter()).any(|p| p.severity == Severity::Error);
        if found.objects.is_empty() && (is_later || has_errors) {
            let key = Some(key).filter(|key| !key.kind.is_empty());
            self.problem(Severity::Error, mark, key, message.to_owned());
        }
        self.out.is_incomplete |= found.is_incomplete;
        self.out.problems.extend(found.problems);
        self.out.pods.extend(found.pods);
    }

    /// Reads the object at a node of the document `text`.
    fn object(&mut self, tree: &mut Tree<'_>, root: Id, text: &str) {
        let header = header(tree, root);
        if !header.is_object() {
            return self.no_object(tree, root, text);
        }
        let key = header.key();
        match kinds::classify(header.api_version, header.kind) {
            Class::List => self.list(tree, root, text),
            Class::Read(kind) => self.read_known(tree, root, text, kind, key),
            Class::Unread {
                severity,
                message,
                closed,
            } => {
                let fence = unsupported_sidecar(tree, root);
                let is_half = header.api_version.is_none() || header.kind.is_none();
                let severity =
                    match is_half && tree.get(root, "metadata").is_some() || fence.is_some() {
                        true => Severity::Error,
                        false => severity,
                    };
                self.report_unread(tree, root, text, severity, fence.unwrap_or(message), closed);
            }
        }
    }

    /// Reports an object of a kind that isn't read.
    fn report_unread(
        &mut self,
        tree: &Tree<'_>,
        root: Id,
        text: &str,
        severity: Severity,
        message: String,
        closed: Option<ClosedEffect>,
    ) {
        let (key, mark) = (header(tree, root).key(), tree.mark(root));
        if tree.get(root, "items").is_some() && !self.suspected(text).is_empty() {
            // A list that is truncated, or of a misspelled kind.
            let message = format!("{message}; this stands among its items");
            return self.unreadable(mark, &message, text);
        }
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in tree.entries(root).unwrap_or_default() {
            let key = tree.text(*name).unwrap_or_default();
            if names.contains(&key) {
                let message =
                    format!("duplicate key `{key}`: is a line with `---` missing before it?");
                let suspected = documents::guess(text);
                return self.report_suspected(
                    tree.mark(*name),
                    &message,
                    suspected.into_iter().collect(),
                );
            }
            // Only the field names of an object are kept: they are few, and duplicates of others don't matter.
            names.extend(OBJECT.contains(&key).then_some(key));
        }
        self.out.pods.extend(pods(tree, root, &key));
        let is_named = closed.is_some() || !key.kind.is_empty();
        self.problem(severity, mark, is_named.then_some(key), message);
        self.close(closed.map(|how| closes(tree, root, how)));
    }

    /// Reads an object of a kind that is read.
    fn read_known(
        &mut self,
        tree: &mut Tree<'_>,
        root: Id,
        text: &str,
        kind: Kind,
        key: ObjectKey,
    ) {
        let (before, mark) = (self.out.problems.len(), tree.mark(root));
        let closes = closed_by(&key.kind).map(|how| closes(tree, root, how));
        // With duplicate keys, the annotation may not be intended.
        let dry_run = self.dry_run(tree, root, &key) && tree.duplicates(root).is_empty();
        if key.name.is_empty() {
            let message = "metadata.name is required".to_owned();
            self.problem(Severity::Error, mark, Some(key.clone()), message);
        }
        if kind == Kind::AuthorizationPolicy {
            self.strings(tree, root, &key);
        }
        let spec = self.spec(tree, root, kind, &key);
        let own = self.out.problems[before..].iter_mut();
        let mut errors = own.filter(|p| p.severity == Severity::Error).peekable();
        match spec.filter(|_| errors.peek().is_none()) {
            Some(spec) => {
                let text = match root == tree.root {
                    true => text.into(),
                    // Its own text, since its anchors may be defined elsewhere in the document.
                    false => tree.flow(root).into(),
                };
                self.out.objects.push(Object {
                    origin: self.origin(mark),
                    labels: labels_at(tree, root, &["metadata", "labels"]),
                    dry_run,
                    spec,
                    text,
                    key,
                });
            }
            // Istio would evaluate a dry run and enforce nothing.
            None if dry_run => {}
            None => errors.for_each(|problem| problem.fail_closed.clone_from(&closes)),
        }
    }

    /// Reads the spec of an object of a known kind, and reports its mistakes.
    fn spec(&mut self, tree: &mut Tree<'_>, root: Id, kind: Kind, key: &ObjectKey) -> Option<Spec> {
        for (again, first) in tree.duplicates(root).into_iter().take(MAX_FAULTS) {
            let name = tree.text(again).unwrap_or_default();
            let line = self.line + tree.mark(first).line;
            let message = format!("duplicate key `{name}`: it stands in line {line} already");
            self.problem(
                Severity::Error,
                tree.mark(again),
                Some(key.clone()),
                message,
            );
            tree.cut(again);
        }
        match kind {
            Kind::Service => self.read(tree, root, key).map(Spec::Service),
            Kind::ServiceEntry => self.read(tree, root, key).map(Spec::ServiceEntry),
            Kind::WorkloadEntry => self.read(tree, root, key).map(Spec::WorkloadEntry),
            Kind::VirtualService => self.read(tree, root, key).map(Spec::VirtualService),
            Kind::DestinationRule => self.read(tree, root, key).map(Spec::DestinationRule),
            Kind::PeerAuthentication => self.read(tree, root, key).map(Spec::PeerAuthentication),
            Kind::AuthorizationPolicy => self.read(tree, root, key).map(Spec::AuthorizationPolicy),
        }
    }

    fn read<S: DeserializeOwned + Default>(
        &mut self,
        tree: &mut Tree<'_>,
        root: Id,
        key: &ObjectKey,
    ) -> Option<S> {
        match de::read::<Framed<S>>(tree, root) {
            Ok(framed) => Some(framed.spec.unwrap_or_default()),
            Err(mistakes) => {
                for (node, mistake) in mistakes {
                    self.problem(
                        Severity::Error,
                        tree.mark(node),
                        Some(key.clone()),
                        explain(mistake),
                    );
                }
                None
            }
        }
    }

    /// Reports strings in a policy's rules that can match nothing: a DENY denies nothing by them, an ALLOW allows
    /// nothing.
    fn strings(&mut self, tree: &Tree<'_>, root: Id, key: &ObjectKey) {
        let list = |at: Id, path: &[&str]| {
            let found = tree.find(at, path).and_then(|id| tree.elements(id));
            found.unwrap_or_default().to_vec()
        };
        let action = tree.find(root, &["spec", "action"]);
        let allows = !matches!(action.and_then(|id| tree.text(id)), Some("DENY"));
        for rule in list(root, &["spec", "rules"]) {
            for (side, part, fields) in [
                ("from", "source", ["principals", "namespaces"]),
                ("to", "operation", ["methods", "paths"]),
            ] {
                for one in list(rule, &[side]) {
                    for field in fields {
                        for id in list(one, &[part, field]) {
                            self.string(tree, id, field, allows, key);
                        }
                    }
                }
            }
        }
    }

    fn string(&mut self, tree: &Tree<'_>, id: Id, field: &str, allows: bool, key: &ObjectKey) {
        let text = tree.text(id).unwrap_or_default();
        let read = Wildcard::try_from(text.to_owned()).ok();
        let (severity, message) = match read.and_then(|read| wildcard::flaw(field, &read)) {
            None => return,
            Some(Flaw::Unsupported(why)) => (Severity::Error, format!("{text:?}: {why}")),
            Some(Flaw::Never(why)) if allows => {
                let message = format!("{text:?} matches nothing, and so allows nothing: {why}");
                (Severity::Warning, message)
            }
            Some(Flaw::Never(why)) => (
                Severity::Error,
                format!("{text:?} matches nothing, and so denies nothing: {why}"),
            ),
        };
        self.problem(severity, tree.mark(id), Some(key.clone()), message);
    }

    /// True for an AuthorizationPolicy that its annotation makes a dry run.
    fn dry_run(&mut self, tree: &Tree<'_>, root: Id, key: &ObjectKey) -> bool {
        const NAME: &str = "istio.io/dry-run";
        let value = tree.find(root, &["metadata", "annotations", NAME]);
        let Some((id, text)) = value.and_then(|id| Some((id, tree.text(id)?))) else {
            return false;
        };
        if key.kind != "AuthorizationPolicy" {
            return false;
        }
        // The values of Go's `ParseBool`, which Istio uses.
        match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            _ => {
                let message =
                    format!("{NAME} {text:?} is neither true nor false: the policy is enforced");
                self.problem(Severity::Warning, tree.mark(id), Some(key.clone()), message);
                false
            }
        }
    }

    /// Reads the items of a list, each as an object of its own.
    fn list(&mut self, tree: &mut Tree<'_>, root: Id, text: &str) {
        let own = ["apiVersion", "kind", "metadata", "items"];
        let mut seen: Vec<&str> = Vec::new();
        for (name, _) in tree.entries(root).unwrap_or_default() {
            let key = tree.text(*name).unwrap_or_default();
            if !own.contains(&key) || seen.contains(&key) {
                let message = format!("a list has `items`, once, and no `{key}` beside them");
                return self.unreadable(tree.mark(*name), &message, text);
            }
            seen.push(key);
        }
        let message = "a list has `items`, which are objects";
        let Some(items) = items(tree, root) else {
            return self.unreadable(tree.mark(root), message, text);
        };
        let list = header(tree, root).key().kind;
        let kind = list.strip_suffix("List");
        let closed = kind.and_then(closed_by);
        for item in items {
            if tree.entries(item).is_none() {
                return self.unreadable(tree.mark(item), message, text);
            }
            if header(tree, item).is_object() {
                self.objects(tree, item, text);
                continue;
            }
            let message = "this item is no object: apiVersion and kind are required".to_owned();
            let key = kind.map(|kind| ObjectKey {
                kind: kind.to_owned(),
                ..header(tree, item).key()
            });
            let key = key.filter(|_| closed.is_some());
            self.problem(Severity::Error, tree.mark(item), key, message);
            self.close(closed.map(|how| closes(tree, item, how)));
        }
    }

    /// Reports a document that is no object, such as a chart's values or a package's description: an error when it
    /// looks like an object of a group that Leno reads, otherwise a notice.
    fn no_object(&mut self, tree: &Tree<'_>, root: Id, text: &str) {
        let mark = tree.mark(root);
        let message = "this is no object: it has no apiVersion and no kind";
        let entries = tree
            .entries(root)
            .filter(|_| tree.get(root, "items").is_none());
        let Some(entries) = entries else {
            return match self.suspected(text).is_empty() {
                true => self.problem(Severity::Notice, mark, None, message.to_owned()),
                false => self.unreadable(mark, message, text),
            };
        };
        let meant = entries.iter().find_map(|(name, value)| {
            let value = tree.text(*value)?;
            let is_kind = nearest(value, SECURITY_KINDS.into_iter()).is_some();
            let header = ["apiVersion", "kind"].into_iter();
            let near = tree.text(*name).and_then(|name| nearest(name, header));
            let is_header = near.is_some() && value.contains("istio.io");
            (is_kind || is_header || value.contains(kinds::SECURITY)).then_some((*name, near))
        });
        match meant {
            None => self.problem(Severity::Notice, mark, None, message.to_owned()),
            Some((name, near)) => {
                let key = tree.text(name).unwrap_or_default();
                let message = match near {
                    Some(near) => format!("no such field `{key}`; the nearest is `{near}`"),
                    None => format!("{message}, though `{key}` says what one would"),
                };
                self.unreadable(tree.mark(name), &message, text);
            }
        }
    }
}

/// The message of a mistake, for a person.
fn explain(mistake: Mistake) -> String {
    let list = |names: &[&str]| {
        let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        quoted.join(", ")
    };
    let unknown = |what: &str, owner: &str, name: &str, expected: &'static [&'static str]| {
        if kinds::is_unsupported(owner, name) {
            return format!(
                "the {what} `{name}` is Istio's, and not supported yet by this version of Leno"
            );
        }
        match nearest(name, expected.iter().copied()) {
            Some(near) => format!("no such {what} `{name}`; the nearest is `{near}`"),
            None => format!("no such {what} `{name}`; there are {}", list(expected)),
        }
    };
    match mistake {
        Mistake::UnknownField {
            owner,
            field,
            expected,
        } => unknown("field", owner, &field, expected),
        Mistake::UnknownVariant {
            owner,
            variant,
            expected,
        } => unknown("value", owner, &variant, expected),
        Mistake::Missing(field) => format!("`{field}` is required"),
        Mistake::Other(text) => text,
    }
}
