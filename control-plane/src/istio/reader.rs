//! A file's documents as objects, and as problems whatever can't be one.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::de::{self, MAX_FAULTS, Mistake};
use super::documents::{self, Hidden, documents, hidden};
use super::header::{METADATA, closes, header, items, labels_at, parts};
use super::kinds::{self, Class, Closed, Kind};
use super::wildcard::{self, Flaw, Wildcard};
use super::yaml::{Id, Mark, Tree};
use super::{Closes, Contents, Key, Limits, Object, Place, Pods, Problem, Severity, Spec};

/// An object's frame around its spec.
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

/// An object's metadata, of which no field is unknown. What it says is read apart.
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
                while map.next_key::<Field>()?.is_some() {
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(Metadata)
            }
        }
        deserializer.deserialize_struct("ObjectMeta", &METADATA, Fields)
    }
}

/// The name of a field of metadata.
struct Field;

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Field, D::Error> {
        let name = String::deserialize(deserializer)?;
        match METADATA.contains(&name.as_str()) {
            true => Ok(Field),
            false => Err(serde::de::Error::unknown_field(&name, &METADATA)),
        }
    }
}

/// Reads every document of a file.
pub fn read(file: &Arc<PathBuf>, text: &str, limits: &Limits) -> Contents {
    let mut reader = Reader {
        file,
        limits,
        line: 0,
        out: Contents::default(),
    };
    if text.len() > limits.bytes {
        let message = format!("{} bytes; at most {} are read", text.len(), limits.bytes);
        reader.unreadable(Mark { line: 1, column: 1 }, &message, text);
        return reader.out;
    }
    let text = documents::normalise(text);
    for (line, document) in documents(&text) {
        reader.line = line;
        reader.document(document);
    }
    reader.out
}

/// A file that can't be read, for the reason `message`, and in which `hidden` seem to stand: they hold closed.
pub fn unreadable(file: &Arc<PathBuf>, message: &str, hidden: Vec<Hidden>) -> Contents {
    let mut reader = Reader {
        file,
        limits: &Limits::default(),
        line: 0,
        out: Contents::default(),
    };
    reader.hide(Mark { line: 1, column: 1 }, message, hidden);
    reader.out
}

/// A file as it is read.
struct Reader<'a> {
    file: &'a Arc<PathBuf>,
    limits: &'a Limits,
    /// Lines before the document.
    line: u64,
    out: Contents,
}

impl Reader<'_> {
    fn place(&self, mark: Mark) -> Place {
        Place {
            file: Arc::clone(self.file),
            line: self.line + mark.line,
            column: mark.column,
        }
    }

    fn problem(&mut self, severity: Severity, mark: Mark, key: Option<Key>, message: String) {
        let place = self.place(mark);
        self.out.problems.push(Problem {
            place,
            key,
            closes: None,
            severity,
            message,
        });
    }

    /// Tells of `text` that isn't YAML, once for each security object that it seems to hold.
    fn unreadable(&mut self, mark: Mark, message: &str, text: &str) {
        self.hide(mark, message, hidden(text, self.limits));
    }

    fn hide(&mut self, mark: Mark, message: &str, found: Vec<Hidden>) {
        self.out.is_torn = true;
        if found.is_empty() {
            return self.problem(Severity::Error, mark, None, message.to_owned());
        }
        for Hidden { key, closes } in found {
            self.problem(Severity::Error, mark, Some(key), message.to_owned());
            self.close(Some(closes));
        }
    }

    /// Makes the last problem one that closes.
    fn close(&mut self, closes: Option<Closes>) {
        if let Some(last) = self.out.problems.last_mut() {
            last.closes = closes;
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

    /// Reads what stands at a node: one object, or several where `---` is missing between them.
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
            self.run_together(number > 0, mark, key, found);
        }
    }

    /// Takes what stands in one document with another object: `---` is missing, and none of it is used.
    fn run_together(&mut self, is_later: bool, mark: Mark, key: Key, found: Contents) {
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
        self.out.is_torn |= found.is_torn;
        self.out.problems.extend(found.problems);
        self.out.pods.extend(found.pods);
    }

    /// Reads the object at a node of a document whose text is `text`.
    fn object(&mut self, tree: &mut Tree<'_>, root: Id, text: &str) {
        let header = header(tree, root);
        if !header.is_object() {
            return self.no_object(tree, root, text);
        }
        let is_list = items(tree, root).is_some();
        let (key, mark) = (header.key(), tree.mark(root));
        match kinds::classify(header.api_version, header.kind) {
            Class::List => self.list(tree, root, text),
            Class::Read(kind) => self.known(tree, root, text, kind, key),
            Class::Unread {
                severity,
                message,
                closed,
            } => {
                let (severity, message) = match fence(tree, root, &key.kind) {
                    Some(message) => (Severity::Error, message),
                    None => (severity, message),
                };
                if is_list && !hidden(text, self.limits).is_empty() {
                    // A list that is cut off, or whose kind has a slip.
                    return self.unreadable(mark, &message, text);
                }
                self.out.pods.extend(pods(tree, root, &key));
                let is_named = closed.is_some() || !key.kind.is_empty();
                self.problem(severity, mark, is_named.then_some(key), message);
                self.close(closed.map(|how| closes(tree, root, how)));
            }
        }
    }

    /// Reads an object of a kind that is read.
    fn known(&mut self, tree: &mut Tree<'_>, root: Id, text: &str, kind: Kind, key: Key) {
        let (before, mark) = (self.out.problems.len(), tree.mark(root));
        let closes = Closed::by(&key.kind).map(|how| closes(tree, root, how));
        let dry_run = self.dry_run(tree, root, &key);
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
                    false => {
                        // Spaces keep the columns of an item, and so its shape.
                        let column = usize::try_from(mark.column).unwrap_or(1);
                        let item = text[tree.range(root)].trim_end();
                        format!("{}{item}", " ".repeat(column - 1)).into()
                    }
                };
                self.out.objects.push(Object {
                    place: self.place(mark),
                    labels: labels_at(tree, root, &["metadata", "labels"]),
                    dry_run,
                    spec,
                    text,
                    key,
                });
            }
            // Istio would judge it and enforce nothing.
            None if dry_run => {}
            None => errors.for_each(|problem| problem.closes.clone_from(&closes)),
        }
    }

    /// The spec of an object of a known kind; its mistakes are told.
    fn spec(&mut self, tree: &mut Tree<'_>, root: Id, kind: Kind, key: &Key) -> Option<Spec> {
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
        key: &Key,
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

    /// Tells of strings in a policy's rules that can match nothing. In a DENY that is open; in an ALLOW it opens nothing.
    fn strings(&mut self, tree: &Tree<'_>, root: Id, key: &Key) {
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

    fn string(&mut self, tree: &Tree<'_>, id: Id, field: &str, allows: bool, key: &Key) {
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

    /// True when the object's annotation says that it is judged only.
    fn dry_run(&mut self, tree: &Tree<'_>, root: Id, key: &Key) -> bool {
        const NAME: &str = "istio.io/dry-run";
        let value = tree.find(root, &["metadata", "annotations", NAME]);
        let Some((id, text)) = value.and_then(|id| Some((id, tree.text(id)?))) else {
            return false;
        };
        if key.kind != "AuthorizationPolicy" {
            return false;
        }
        // Go's ParseBool, as Istio asks it.
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
        let Some(items) = items(tree, root) else {
            let key = Some(header(tree, root).key());
            return self.unknown_items(tree.mark(root), key, text);
        };
        for item in items {
            match tree.entries(item) {
                Some(_) => self.objects(tree, item, text),
                None => self.unknown_items(tree.mark(item), None, text),
            }
        }
    }

    fn unknown_items(&mut self, mark: Mark, key: Option<Key>, text: &str) {
        let message = "a list has `items`, which are objects";
        match hidden(text, self.limits).is_empty() {
            true => self.problem(Severity::Error, mark, key, message.to_owned()),
            false => self.unreadable(mark, message, text),
        }
    }

    /// Tells of a document that is no object: values of a chart, a package's description. One that seems to be meant as an
    /// object of a group that Leno reads is an error.
    fn no_object(&mut self, tree: &Tree<'_>, root: Id, text: &str) {
        let mark = tree.mark(root);
        let entries = tree.entries(root).filter(|_| items(tree, root).is_none());
        let Some(entries) = entries else {
            let is_meant = !hidden(text, self.limits).is_empty();
            let message = "this is no object: it has no apiVersion and no kind";
            return match is_meant {
                true => self.unreadable(mark, message, text),
                false => self.problem(Severity::Notice, mark, None, message.to_owned()),
            };
        };
        let near = entries.iter().find_map(|(name, value)| {
            let near = kinds::nearest(tree.text(*name)?, ["apiVersion", "kind"].into_iter())?;
            let value = tree.text(*value)?;
            let is_ours = value.contains(".istio.io")
                || !matches!(
                    kinds::classify(Some("security.istio.io/v1"), Some(value)),
                    Class::Unread { .. }
                );
            is_ours.then_some((*name, near))
        });
        match near {
            Some((name, near)) => {
                let message = format!(
                    "no such field `{}`; the nearest is `{near}`",
                    tree.text(name).unwrap_or_default()
                );
                self.unreadable(tree.mark(name), &message, text);
            }
            None => {
                let message = "this is no object: it has no apiVersion and no kind";
                self.problem(Severity::Notice, mark, None, message.to_owned());
            }
        }
    }
}

/// What a `Sidecar` object keeps its workloads from, where it does: Leno would let them.
fn fence(tree: &Tree<'_>, root: Id, kind: &str) -> Option<String> {
    if kind != "Sidecar" {
        return None;
    }
    let mode = tree.find(root, &["spec", "outboundTrafficPolicy", "mode"]);
    let is_only = mode.and_then(|mode| tree.text(mode)) == Some("REGISTRY_ONLY");
    let egress = tree
        .find(root, &["spec", "egress"])
        .and_then(|egress| tree.elements(egress));
    let has_hosts = egress
        .unwrap_or_default()
        .iter()
        .any(|listener| tree.get(*listener, "hosts").is_some());
    match (is_only, has_hosts) {
        (false, false) => None,
        (true, _) => Some("Sidecar is not supported: its REGISTRY_ONLY is not in force; use `leno serve --outbound-traffic-policy REGISTRY_ONLY`".to_owned()),
        (false, true) => Some("Sidecar is not supported: its egress hosts fence nobody in; say who may call in an AuthorizationPolicy of the callee".to_owned()),
    }
}

/// The pods that an object makes.
fn pods(tree: &Tree<'_>, root: Id, key: &Key) -> Option<Pods> {
    let path: &[&str] = match key.kind.as_str() {
        "Pod" => &["metadata", "labels"],
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicaSet"
        | "ReplicationController"
        | "Job" => &["spec", "template", "metadata", "labels"],
        "CronJob" => &[
            "spec",
            "jobTemplate",
            "spec",
            "template",
            "metadata",
            "labels",
        ],
        _ => return None,
    };
    Some(Pods {
        key: key.clone(),
        labels: labels_at(tree, root, path),
    })
}

/// A mistake, for a person.
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
        match kinds::nearest(name, expected.iter().copied()) {
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
