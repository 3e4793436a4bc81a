//! What an object says of itself and of the workloads that it is for, whatever its kind.

use std::collections::{BTreeMap, BTreeSet};

use super::de;
use super::kinds::Closed;
use super::yaml::{Id, Tree};
use super::{Closes, Key, Selector};

/// Stands where bytes were that are no text: a name with it is not the one that was written.
const TORN: &str = "\u{fffd}";

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

/// What every object says of itself, whatever its kind.
pub(super) struct Header<'a> {
    pub(super) api_version: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    name: Option<&'a str>,
    /// None where it says two, or says something that may be meant as one.
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
            namespace: self.namespace.unwrap_or_default().to_owned(),
            name: self.name.unwrap_or_default().to_owned(),
        }
    }
}

pub(super) fn header<'a>(tree: &'a Tree<'_>, root: Id) -> Header<'a> {
    let said = |at: Id| tree.text(at).filter(|text| !text.is_empty());
    let text = |key: &str| tree.all(root, key).find_map(said);
    let metadata = |key: &'static str| {
        let all = tree
            .all(root, "metadata")
            .flat_map(move |at| tree.all(at, key));
        all.filter_map(said).collect::<BTreeSet<&str>>()
    };
    let mut namespaces = metadata("namespace");
    let mut fields = tree
        .all(root, "metadata")
        .flat_map(|at| tree.entries(at).unwrap_or_default());
    let is_known = |key: &str| METADATA.contains(&key);
    let is_clear = tree.get(root, "metadata").is_some()
        && fields.all(|(key, _)| tree.text(*key).is_some_and(is_known));
    let is_torn = |text: &&str| text.contains(TORN);
    let mut keys = tree
        .entries(root)
        .unwrap_or_default()
        .iter()
        .filter_map(|(key, _)| tree.text(*key));
    let is_clear = is_clear && !keys.any(|key| is_torn(&key));
    let is_torn = namespaces.iter().any(is_torn);
    if is_torn || (namespaces.is_empty() && !is_clear) {
        // Two that differ are as good as none.
        namespaces.extend(["", TORN]);
    }
    Header {
        api_version: text("apiVersion"),
        kind: text("kind"),
        name: metadata("name").pop_first(),
        namespace: match namespaces.len() {
            0 => Some("default"),
            1 => namespaces.first().copied(),
            _ => None,
        },
    }
}

/// Labels that a security object selects; none when it is for its namespace, or when they can't be read, as when it says
/// something twice.
fn selector(tree: &Tree<'_>, root: Id) -> BTreeMap<String, String> {
    let selector = tree.find(root, &["spec", "selector"]);
    let selector = selector.filter(|_| tree.duplicates(root).is_empty());
    let read: Option<Selector> = selector.and_then(|id| de::attempt(tree, id));
    let labels = read.unwrap_or_default().match_labels;
    let is_torn = |(name, value): (&String, &String)| name.contains(TORN) || value.contains(TORN);
    match labels.iter().any(is_torn) {
        true => BTreeMap::new(),
        false => labels,
    }
}

/// What the security object at a node does until it can be read.
pub(super) fn closes(tree: &Tree<'_>, root: Id, how: Closed) -> Closes {
    let is_for_the_mesh = header(tree, root).namespace.is_none();
    Closes {
        how,
        selector: match (how, is_for_the_mesh) {
            // No selector of a PeerAuthentication reaches into another namespace.
            (Closed::Strict, true) => BTreeMap::new(),
            _ => selector(tree, root),
        },
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

/// A mapping's entries, cut where one of an object's headers stands there again.
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

/// The items of a list.
pub(super) fn items(tree: &Tree<'_>, root: Id) -> Option<Vec<Id>> {
    let items = tree.get(root, "items")?;
    tree.elements(items).map(<[Id]>::to_vec)
}
