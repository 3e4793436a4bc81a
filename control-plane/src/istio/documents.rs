//! Splits a file into YAML documents, and searches text that can't be parsed for security objects.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;

use super::Limits;
use super::header::{closes, header, is_namespace, parts};
use super::kinds::{Class, SECURITY, SECURITY_KINDS, classify, closed_by, nearest_effect};
use super::nearest::nearest;
use super::yaml::{Id, Tree};
use crate::object::{ClosedEffect, FailClosed, ObjectKey};

/// Turns line breaks into `\n` and removes byte order marks at line starts, as in files made on Windows or concatenated
/// from several. Line numbers don't change.
pub(super) fn normalise(text: &str) -> Cow<'_, str> {
    const MARK: char = '\u{feff}';
    if !text.contains(['\r', MARK]) {
        return Cow::Borrowed(text);
    }
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines = text.split_inclusive('\n');
    Cow::Owned(lines.map(|line| line.trim_start_matches(MARK)).collect())
}

/// The documents of a file that aren't blank, each with the number of lines before it.
pub fn documents(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut out = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    for (number, line) in (0_u64..).zip(text.split_inclusive('\n')) {
        let marker = ["---", "..."].into_iter().find(|marker| {
            let rest = line.strip_prefix(marker);
            rest.is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with([' ', '\t']))
        });
        if let Some(marker) = marker {
            out.push((start_line, &text[start..at]));
            // A document may begin on the line of its marker.
            let begins_here = marker == "---" && !is_blank(&line[3..]);
            let begin = if begins_here { 3 } else { line.len() };
            (start, start_line) = (at + begin, number + u64::from(!begins_here));
        }
        at += line.len();
    }
    out.push((start_line, &text[start..]));
    out.into_iter().filter(|(_, document)| !is_blank(document))
}

/// True for text of empty lines, comments and directives.
fn is_blank(document: &str) -> bool {
    let mut lines = document.lines().map(str::trim);
    lines.all(|line| line.is_empty() || line.starts_with(['#', '%']))
}

/// Maximum security objects that are listed for one text.
const MAX_HIDDEN: usize = 1000;

/// A security object suspected in a text that can't be read as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuspectedObject {
    /// Its identity, as far as it is known. With an unknown, empty namespace the object closes the whole mesh.
    pub key: ObjectKey,
    /// Its fail-closed effect.
    pub closes: FailClosed,
}

impl SuspectedObject {
    /// An object of unknown name and namespace: it denies every request in the whole mesh.
    pub fn of_the_mesh() -> SuspectedObject {
        SuspectedObject {
            key: ObjectKey {
                kind: SECURITY_KINDS[0].to_owned(),
                namespace: String::new(),
                name: String::new(),
            },
            closes: FailClosed {
                effect: ClosedEffect::Deny,
                selector: BTreeMap::new(),
            },
        }
    }
}

/// Finds the security objects in `text`, which isn't valid YAML as a whole: a missing bracket, in one of them or in
/// another object, must not open access that they close.
pub fn suspected_objects(text: &str, limits: &Limits) -> Vec<SuspectedObject> {
    let (text, mut found) = (normalise(text), Vec::new());
    for fragment in documents(&text).flat_map(|(_, document)| fragments(document)) {
        let mut tree = Tree::parse(fragment, limits).ok();
        // A fragment may be an item of a list.
        let objects = tree.as_ref().map(|tree| {
            let root = tree.root;
            let all = tree.elements(root).map_or(vec![root], <[Id]>::to_vec);
            let are = |id: &Id| header(tree, *id).is_object();
            all.iter().all(are).then_some(all)
        });
        match (&mut tree, objects.flatten()) {
            (Some(tree), Some(objects)) => {
                let before = found.len();
                for object in objects {
                    read(tree, object, &mut found);
                }
                // One may be nested in another's fields. Its group alone isn't enough: labels of other objects name it
                // as well.
                let guess =
                    guess(fragment).filter(|_| found.len() == before && names_a_kind(fragment));
                found.extend(guess);
            }
            _ => found.extend(guess(fragment)),
        }
        if found.len() > MAX_HIDDEN {
            // Too many for a useful list: the whole mesh is closed.
            return vec![SuspectedObject::of_the_mesh()];
        }
    }
    // Duplicates close once.
    let mut once: Vec<SuspectedObject> = Vec::new();
    for one in found {
        if !once.contains(&one) {
            once.push(one);
        }
    }
    once
}

/// Splits a document as if `---` stood before each object: at a repeated header field, or at an item of a list.
fn fragments(document: &str) -> Vec<&str> {
    let column = |line: &str| line.len() - line.trim_start().len();
    let mut content = document.lines().filter(|line| !is_blank(line));
    let top = content.next().map_or(0, column);
    let (mut out, mut seen, mut start, mut at) = (Vec::new(), BTreeSet::new(), 0, 0);
    // The column of a List's items: that of the first one after `items:`.
    let (mut is_list, mut items) = (false, None);
    for line in document.split_inclusive('\n') {
        let is_top = column(line) <= top;
        let words = line.trim_start();
        is_list |= is_top && words.starts_with("items:");
        let item = words.strip_prefix("- ");
        if is_list && item.is_some() {
            items.get_or_insert(column(line));
        }
        let is_item = item.is_some() && (is_top || items == Some(column(line)));
        let words = item.unwrap_or(words).trim_start_matches(['"', '\'']);
        let key = ["apiVersion", "kind"].into_iter().find(|key| {
            let rest = words.strip_prefix(key);
            rest.is_some_and(|rest| rest.trim_start_matches(['"', '\'']).starts_with(':'))
        });
        if let Some(key) = key.filter(|_| is_top || is_item)
            && (is_item || !seen.insert(key))
        {
            out.push(&document[start..at]);
            (seen, start) = (BTreeSet::from([key]), at);
        }
        at += line.len();
    }
    out.push(&document[start..]);
    out.retain(|fragment| !is_blank(fragment));
    out
}

/// Finds the security objects of a fragment that is YAML.
fn read(tree: &mut Tree<'_>, root: Id, found: &mut Vec<SuspectedObject>) {
    let parts = parts(tree, root);
    if parts.len() > 1 {
        for entries in parts {
            let part = tree.part(&entries);
            read(tree, part, found);
        }
        return;
    }
    for item in possible_items(tree, root) {
        read(tree, item, found);
    }
    let header = header(tree, root);
    let closed = match classify(header.api_version, header.kind) {
        Class::Read(_) => header.kind.and_then(closed_by),
        Class::Unread { closed, .. } => closed,
        Class::List => None,
    };
    found.extend(closed.map(|how| SuspectedObject {
        key: header.key(),
        closes: closes(tree, root, how),
    }));
}

/// The items of a list, and a single one whose `-` is missing.
fn possible_items(tree: &Tree<'_>, root: Id) -> Vec<Id> {
    let all = tree.all(root, "items");
    let of = |id: Id| tree.elements(id).map_or(vec![id], <[Id]>::to_vec);
    let all = all.flat_map(of).filter(|id| tree.entries(*id).is_some());
    all.collect()
}

/// Guesses the security object that a text is, or contains, from the words in it.
pub(super) fn guess(text: &str) -> Option<SuspectedObject> {
    let text = without_comments(text).collect::<Vec<_>>().join("\n");
    let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for found in VALUE.captures_iter(&text) {
        if let (Some(name), Some(value)) = (found.get(1), found.get(2)) {
            values
                .entry(name.as_str())
                .or_default()
                .push(value.as_str());
        }
    }
    let lower = text.to_ascii_lowercase();
    let named = values.get("kind").into_iter().flatten().copied();
    let mut kinds: BTreeSet<&str> = named.filter_map(near).collect();
    kinds.extend(
        (SECURITY_KINDS.into_iter()).filter(|kind| lower.contains(&kind.to_ascii_lowercase())),
    );
    if kinds.is_empty() && !lower.contains(SECURITY) {
        return None;
    }
    // With two objects in a text, it is unknown which of them has a value.
    let is_one = values.get("kind").is_none_or(|kinds| kinds.len() < 2);
    let only = |name: &str| match values.get(name).map(Vec::as_slice) {
        Some([value]) if is_one => Some((*value).to_owned()),
        _ => None,
    };
    let namespace =
        only("namespace").filter(|namespace| is_namespace(namespace) && is_of_metadata(&text));
    // Of several kinds, the one that closes more.
    let kind = kinds.first().map(|kind| (*kind).to_owned());
    let kind = kind.or_else(|| only("kind"));
    let kind = kind.unwrap_or_else(|| SECURITY_KINDS[0].to_owned());
    Some(SuspectedObject {
        closes: FailClosed {
            effect: nearest_effect(&kind),
            selector: BTreeMap::new(),
        },
        key: ObjectKey {
            kind,
            namespace: namespace.unwrap_or_default(),
            name: only("name").unwrap_or_default(),
        },
    })
}

/// The lines of a text that aren't comments.
fn without_comments(text: &str) -> impl Iterator<Item = &str> {
    let is_comment = |line: &&str| line.trim_start().starts_with('#');
    text.lines().filter(move |line| !is_comment(line))
}

/// The security kind that a `kind` nearly is.
fn near(kind: &str) -> Option<&'static str> {
    nearest(kind, SECURITY_KINDS.into_iter())
}

/// True when a text names a security kind outside comments, or nearly does as a `kind`.
fn names_a_kind(text: &str) -> bool {
    let is_near = |line: &str| {
        let mut values = VALUE.captures_iter(line);
        values.any(|found| &found[1] == "kind" && near(&found[2]).is_some())
    };
    let is_named = |line: &str| SECURITY_KINDS.iter().any(|kind| line.contains(kind));
    without_comments(text).any(|line| is_named(line) || is_near(line))
}

/// True when the `namespace` of a text is part of its `metadata`, as far as can be determined: indented below it, or
/// after it without `labels`, `annotations` or `spec` in between.
fn is_of_metadata(text: &str) -> bool {
    let Some(at) = text.find("namespace") else {
        return false;
    };
    let column = |line: &str| line.len() - line.trim_start().len();
    let start = text[..at].rfind('\n').map_or(0, |at| at + 1);
    let line = &text[start..];
    if line
        .trim_start()
        .trim_start_matches(['"', '\''])
        .starts_with("namespace")
    {
        let own = column(line);
        let mut above = text[..start].lines().rev();
        let parent = above.find(|line| !is_blank(line) && column(line) < own);
        let parent = parent.unwrap_or_default().trim_start();
        return parent
            .trim_start_matches("- ")
            .trim_start_matches(['"', '\''])
            .starts_with("metadata");
    }
    let before = text[..at].rfind("metadata").map(|from| &text[from..at]);
    before.is_some_and(|before| {
        !["labels", "annotations", "spec"]
            .iter()
            .any(|word| before.contains(word))
    })
}

/// Matches `name: value` in block style, flow style and JSON.
static VALUE: LazyLock<Regex> = LazyLock::new(|| {
    let pattern =
        r#"(?m)(?:^|[\s{,"'])(kind|namespace|name)["']?[ \t]*:[ \t]*["']?([A-Za-z0-9._-]+:?)"#;
    Regex::new(pattern).expect("a pattern that a test compiles")
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_cut_at_every_marker() {
        let cut = |text: &str| -> Vec<(u64, String)> {
            let text = normalise(text).into_owned();
            let all = documents(&text).map(|(line, text)| (line, text.trim().to_owned()));
            all.collect()
        };
        let of = |all: &[(u64, &str)]| -> Vec<(u64, String)> {
            all.iter()
                .map(|(line, text)| (*line, (*text).to_owned()))
                .collect()
        };
        for (text, documents) in [
            ("a: 1\n---\nb: 2\n", &[(0, "a: 1"), (2, "b: 2")][..]),
            ("--- # first\na: 1\n---\n# nothing\n", &[(1, "a: 1")]),
            (
                "a: 1\n--- {b: 2}\n---\tc: 3\n",
                &[(0, "a: 1"), (1, "{b: 2}"), (2, "c: 3")],
            ),
            ("a: 1\n...\nb: 2\n", &[(0, "a: 1"), (2, "b: 2")]),
            ("%YAML 1.2\n---\na: 1\n", &[(2, "a: 1")]),
            ("a: 1\r\n---\r\nb: 2\r\n", &[(0, "a: 1"), (2, "b: 2")]),
            ("a: 1\r---\rb: 2", &[(0, "a: 1"), (2, "b: 2")]),
            (
                "\u{feff}a: 1\n\u{feff}---\nb: 2\n",
                &[(0, "a: 1"), (2, "b: 2")],
            ),
            ("a: |\n  --- no\n----\n", &[(0, "a: |\n  --- no\n----")]),
        ] {
            assert_eq!(cut(text), of(documents), "{text:?}");
        }
    }

    #[test]
    fn what_protects_is_found_in_what_is_not_yaml() {
        let deploy = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a\n";
        let peer = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {selector: {matchLabels: {app: x}}}\n";
        let policy = "kind: AuthorizationPolicy\napiVersion: security.istio.io/v1\nmetadata: {name: q}\nspec: [\n";
        let of = |text: &str| -> Vec<String> {
            let all = suspected_objects(text, &Limits::default());
            all.iter()
                .map(|one| {
                    format!(
                        "{} {:?} {:?}",
                        one.key, one.closes.effect, one.closes.selector
                    )
                })
                .collect()
        };
        for (text, found) in [
            (deploy.to_owned(), vec![]),
            (format!("# see PeerAuthentication\n{deploy}"), vec![]),
            (
                format!("{deploy}{peer}{policy}"),
                vec![
                    r#"shop/p PeerAuthentication Strict {"app": "x"}"#,
                    "?/q AuthorizationPolicy Deny {}",
                ],
            ),
            (
                r#"{"apiVersion": "security.istio.io/v1", "kind": "Fence", "metadata": {"namespace": "a""#.to_owned(),
                vec!["a/? Fence Deny {}"],
            ),
            (
                "kind: PeerAuthentication\n namespace: a\n  namespace: b\n".to_owned(),
                vec!["?/? PeerAuthentication Strict {}"],
            ),
            (
                "apiVersion: v1\nkind: List\nitems:\n- apiVersion: security.istio.io/v1\n  kind: PeerAuthentication\n  metadata:\n    namespace: a\n- apiVersion: v1\n  kind: [\n".to_owned(),
                vec!["a/? PeerAuthentication Strict {}"],
            ),
            (
                "apiVersion: v1\nkind: List\nitems:\n  kind: AuthorisationPolicy\n  metadata: {name: p, namespace: shop}\n  spec: {selector: {matchLabels: {app: x}}}\n".to_owned(),
                vec![r#"shop/p AuthorisationPolicy Deny {"app": "x"}"#],
            ),
            (
                "apiVersion: v1\nkind: List\nitems:\n  first:\n    kind: AuthorisationPolicy\n    metadata: {name: p, namespace: shop}\n".to_owned(),
                vec!["?/? AuthorizationPolicy Deny {}"],
            ),
            (
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {kind: author}\nitems: {kind: policy}\n".to_owned(),
                vec![],
            ),
        ] {
            assert_eq!(of(&text), found, "{text}");
        }
    }
}
