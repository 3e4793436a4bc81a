//! The header fields of an object of any kind, and its fail-closed effect.

use std::collections::BTreeMap;

use super::Selector;
use super::de;
use super::nearest::nearest;
use super::yaml::{Id, Tree};
use crate::object::{ClosedEffect, FailClosed, ObjectKey};

/// Replaces bytes that aren't UTF-8: a name with it isn't the one in the file.
const REPLACEMENT: &str = "\u{fffd}";

/// Fields of Kubernetes' ObjectMeta.
pub(super) const METADATA: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "selfLink",
];

/// The header of an object of any kind.
pub(super) struct Header<'a> {
    pub(super) api_version: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    name: Option<&'a str>,
    /// `None` when it can't be determined.
    namespace: Option<&'a str>,
}

impl Header<'_> {
    /// True when `apiVersion` or `kind` is present.
    pub(super) fn is_object(&self) -> bool {
        self.api_version.is_some() || self.kind.is_some()
    }

    pub(super) fn key(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind.unwrap_or_default().to_owned(),
            namespace: self.namespace.unwrap_or_default().to_owned(),
            name: self.name.unwrap_or_default().to_owned(),
        }
    }
}

pub(super) fn header<'a>(tree: &'a Tree<'_>, root: Id) -> Header<'a> {
    let filled = |at: Id| tree.text(at).filter(|text| !text.is_empty());
    let text = |key: &str| tree.all(root, key).find_map(filled);
    let names = tree
        .all(root, "metadata")
        .flat_map(|at| tree.all(at, "name"));
    Header {
        api_version: text("apiVersion"),
        kind: text("kind"),
        name: names.filter_map(filled).next(),
        namespace: namespace(tree, root),
    }
}

/// The namespace of an object, `default` when it names none; `None` when it names two or an invalid one, or when a
/// misspelled field may hold it.
fn namespace<'a>(tree: &'a Tree<'_>, root: Id) -> Option<&'a str> {
    let metadata: Vec<Id> = tree.all(root, "metadata").collect();
    let namespaces = metadata.iter().flat_map(|at| tree.all(*at, "namespace"));
    let mut namespaces: Vec<Option<&str>> = namespaces
        .filter(|at| !is_nothing(tree, *at))
        .map(|at| tree.text(at))
        .collect();
    namespaces.dedup();
    match namespaces[..] {
        [] => is_clear(tree, root, &metadata).then_some("default"),
        [namespace] => namespace.filter(|namespace| is_namespace(namespace)),
        _ => None,
    }
}

/// True for null and the empty string.
fn is_nothing(tree: &Tree<'_>, at: Id) -> bool {
    match tree.text(at) {
        Some(text) => text.is_empty(),
        None => tree.entries(at).is_none() && tree.elements(at).is_none(),
    }
}

/// True when an object without a namespace intends none: no other field may be a misspelled or misplaced one.
fn is_clear(tree: &Tree<'_>, root: Id, metadata: &[Id]) -> bool {
    let keys = |at: Id| {
        tree.entries(at)
            .unwrap_or_default()
            .iter()
            .map(|(key, _)| tree.text(*key).unwrap_or(REPLACEMENT))
    };
    let may_be = |key: &str| {
        let meant = ["metadata", "namespace"];
        key.contains(REPLACEMENT)
            || (key != "metadata" && nearest(key, meant.into_iter()).is_some())
    };
    let is_known =
        |at: &Id| tree.entries(*at).is_some() && keys(*at).all(|key| METADATA.contains(&key));
    let spec = tree.all(root, "spec").flat_map(keys);
    !metadata.is_empty()
        && metadata.iter().all(is_known)
        && !keys(root).any(may_be)
        && !spec.into_iter().any(|key| key == "namespace")
}

/// True for a valid name of a namespace: a DNS label.
pub(super) fn is_namespace(name: &str) -> bool {
    let is_edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_inner = |b: &u8| is_edge(b) || *b == b'-';
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(is_inner)
        && bytes.first().is_some_and(is_edge)
        && bytes.last().is_some_and(is_edge)
}

/// Labels that a security object selects; empty when it is for its namespace, or when they can't be read, as with
/// duplicate keys.
fn selector(tree: &Tree<'_>, root: Id) -> BTreeMap<String, String> {
    let selector = tree.find(root, &["spec", "selector"]);
    let selector = selector.filter(|_| tree.duplicates(root).is_empty());
    let read: Option<Selector> = selector.and_then(|id| de::try_read(tree, id));
    let labels = read.unwrap_or_default().match_labels;
    let is_torn = |(name, value): (&String, &String)| {
        name.contains(REPLACEMENT) || value.contains(REPLACEMENT)
    };
    match labels.iter().any(is_torn) {
        true => BTreeMap::new(),
        false => labels,
    }
}

/// The fail-closed effect of the security object at a node, until it can be read.
pub(super) fn closes(tree: &Tree<'_>, root: Id, effect: ClosedEffect) -> FailClosed {
    let is_for_the_mesh = header(tree, root).namespace.is_none();
    FailClosed {
        effect,
        selector: match (effect, is_for_the_mesh) {
            // No selector of a PeerAuthentication reaches into another namespace.
            (ClosedEffect::Strict, true) => BTreeMap::new(),
            _ => selector(tree, root),
        },
    }
}

/// Labels under a path; entries that aren't text are left out.
pub(super) fn labels_at(tree: &Tree<'_>, root: Id, path: &[&str]) -> BTreeMap<String, String> {
    let entries = tree.find(root, path).and_then(|id| tree.entries(id));
    let entries = entries.unwrap_or_default().iter();
    let text = |(name, value): &(Id, Id)| {
        Some((tree.text(*name)?.to_owned(), tree.text(*value)?.to_owned()))
    };
    entries.filter_map(text).collect()
}

/// A mapping's entries, split where `apiVersion` or `kind` is repeated.
pub(super) fn parts(tree: &Tree<'_>, root: Id) -> Vec<Vec<(Id, Id)>> {
    let mut parts: Vec<Vec<(Id, Id)>> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for entry in tree.entries(root).unwrap_or_default() {
        let name = tree.text(entry.0).unwrap_or_default();
        let is_header = name == "apiVersion" || name == "kind";
        if parts.is_empty() || is_header && seen.contains(&name) {
            parts.push(Vec::new());
            seen.clear();
        }
        if is_header {
            seen.push(name);
        }
        if let Some(part) = parts.last_mut() {
            part.push(*entry);
        }
    }
    parts
}

/// The items of a List, of every `items` that it has; `None` without any.
pub(super) fn items(tree: &Tree<'_>, root: Id) -> Option<Vec<Id>> {
    let all = tree.all(root, "items").filter_map(|id| tree.elements(id));
    let all: Vec<&[Id]> = all.collect();
    (!all.is_empty()).then(|| all.concat())
}
