//! What an object says of itself and of the workloads that it is for, whatever its kind.

use std::collections::BTreeMap;

use super::de;
use super::kinds::Closed;
use super::yaml::{Id, Tree};
use super::{Closes, Key, Selector};

/// What every object says of itself, whatever its kind.
pub(super) struct Header<'a> {
    pub(super) api_version: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    name: Option<&'a str>,
    namespace: Option<&'a str>,
}

impl Header<'_> {
    /// True when something of it is there.
    pub(super) fn is_object(&self) -> bool {
        self.api_version.is_some() || self.kind.is_some()
    }

    pub(super) fn key(&self) -> Key {
        Key {
            kind: self.kind.unwrap_or_default().to_owned(),
            namespace: self.namespace.unwrap_or("default").to_owned(),
            name: self.name.unwrap_or_default().to_owned(),
        }
    }
}

pub(super) fn header<'a>(tree: &'a Tree<'_>, root: Id) -> Header<'a> {
    let text = |path: &[&str]| {
        tree.text(tree.find(root, path)?)
            .filter(|text| !text.is_empty())
    };
    Header {
        api_version: text(&["apiVersion"]),
        kind: text(&["kind"]),
        name: text(&["metadata", "name"]),
        namespace: text(&["metadata", "namespace"]),
    }
}

/// Labels that a security object selects; none when it is for its namespace, or when they can't be read.
fn selector(tree: &Tree<'_>, root: Id) -> BTreeMap<String, String> {
    let selector = tree.find(root, &["spec", "selector"]);
    let read: Option<Selector> = selector.and_then(|id| de::attempt(tree, id));
    read.unwrap_or_default().match_labels
}

/// What the security object at a node does until it can be read.
pub(super) fn closes(tree: &Tree<'_>, root: Id, how: Closed) -> Closes {
    Closes {
        how,
        selector: selector(tree, root),
    }
}

/// Labels that stand under a path, as far as they are texts.
pub(super) fn labels_at(tree: &Tree<'_>, root: Id, path: &[&str]) -> BTreeMap<String, String> {
    let entries = tree.find(root, path).and_then(|id| tree.entries(id));
    let entries = entries.unwrap_or_default().iter();
    let text = |(name, value): &(Id, Id)| {
        Some((tree.text(*name)?.to_owned(), tree.text(*value)?.to_owned()))
    };
    entries.filter_map(text).collect()
}
