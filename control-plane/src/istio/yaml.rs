//! A YAML document as a tree of nodes with their places in the text.
//!
//! All mistakes of an object are reported in one pass, each with its place, which a parser straight into types can't
//! do. Everything is bounded: depth, aliases, nodes with aliases expanded.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Options, Parser, ScalarStyle, Span};

use super::Limits;

/// Maximum nodes of a document, aliases expanded.
const MAX_NODES: usize = 100_000;

/// A node of a [`Tree`].
pub(super) type Id = usize;

/// A place within a document: line and column count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: u64,
    pub(super) column: u64,
}

/// A mistake in the syntax of a document, or a bound that it exceeds.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) mark: Mark,
    pub(super) message: String,
}

/// One document.
#[derive(Debug)]
pub(super) struct Tree<'t> {
    nodes: Vec<Node<'t>>,
    pub(super) root: Id,
}

#[derive(Debug)]
struct Node<'t> {
    mark: Mark,
    content: Content<'t>,
}

/// The content of a node.
#[derive(Debug)]
pub(super) enum Content<'t> {
    /// A scalar; one that isn't plain is a string, whatever it looks like.
    Scalar { text: Cow<'t, str>, plain: bool },
    /// A sequence.
    Sequence(Vec<Id>),
    /// A mapping, in the order of the text; keys may repeat.
    Mapping(Vec<(Id, Id)>),
}

impl<'t> Tree<'t> {
    /// Parses `text`, a single document.
    pub(super) fn parse(text: &'t str, limits: &Limits) -> Result<Tree<'t>, SyntaxError> {
        let mut options = Options::default();
        options.set_emit_comments(false);
        let mut builder = Builder {
            nodes: Vec::new(),
            open: Vec::new(),
            anchors: HashMap::new(),
            aliases: 0,
            size: 0,
            root: None,
            limits,
        };
        for next in Parser::new_from_str_with_options(text, options) {
            let (event, span) = next.map_err(|error| SyntaxError {
                mark: mark(error.marker()),
                message: error.info().to_owned(),
            })?;
            builder.take(event, &span)?;
        }
        let nothing = || SyntaxError {
            mark: Mark { line: 1, column: 1 },
            message: "there is nothing in it".to_owned(),
        };
        let root = builder.root.ok_or_else(nothing)?;
        let mut tree = Tree {
            nodes: builder.nodes,
            root,
        };
        tree.merge()?;
        Ok(tree)
    }

    pub(super) fn content(&self, id: Id) -> &Content<'t> {
        &self.nodes[id].content
    }

    pub(super) fn mark(&self, id: Id) -> Mark {
        self.nodes[id].mark
    }

    /// A node's entries, if it is a mapping.
    pub(super) fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.content(id) {
            Content::Mapping(entries) => Some(entries),
            _ => None,
        }
    }

    /// A node's elements, if it is a sequence.
    pub(super) fn elements(&self, id: Id) -> Option<&[Id]> {
        match self.content(id) {
            Content::Sequence(elements) => Some(elements),
            _ => None,
        }
    }

    /// A scalar's text; `None` for null and for collections.
    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.content(id) {
            Content::Scalar { plain: true, text } if is_null(text) => None,
            Content::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The values under `key`: more than one if the key repeats.
    pub(super) fn all<'a>(&'a self, id: Id, key: &'a str) -> impl Iterator<Item = Id> + 'a {
        let entries = self.entries(id).unwrap_or_default().iter();
        let own = entries.filter(move |(name, _)| self.text(*name) == Some(key));
        own.map(|(_, value)| *value)
    }

    /// The first value under `key`.
    pub(super) fn get(&self, id: Id, key: &str) -> Option<Id> {
        self.all(id, key).next()
    }

    /// The value under a path of keys.
    pub(super) fn find(&self, id: Id, path: &[&str]) -> Option<Id> {
        path.iter().try_fold(id, |at, key| self.get(at, key))
    }

    /// Adds a mapping of some of another mapping's entries.
    pub(super) fn part(&mut self, entries: &[(Id, Id)]) -> Id {
        let first = entries.first().map_or(self.root, |(key, _)| *key);
        self.nodes.push(Node {
            mark: self.mark(first),
            content: Content::Mapping(entries.to_vec()),
        });
        self.nodes.len() - 1
    }

    /// Removes a node from every collection that holds it as key, value or element; returns those collections.
    pub(super) fn cut(&mut self, id: Id) -> Vec<Id> {
        let mut held = Vec::new();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let before = match &node.content {
                Content::Scalar { .. } => continue,
                Content::Sequence(elements) => elements.len(),
                Content::Mapping(entries) => entries.len(),
            };
            let after = match &mut node.content {
                Content::Scalar { .. } => continue,
                Content::Sequence(elements) => {
                    elements.retain(|element| *element != id);
                    elements.len()
                }
                Content::Mapping(entries) => {
                    entries.retain(|(key, value)| *key != id && *value != id);
                    entries.len()
                }
            };
            if after < before {
                held.push(at);
            }
        }
        held
    }

    /// Duplicate keys below `id`, each with the first key of that name.
    pub(super) fn duplicates(&self, id: Id) -> Vec<(Id, Id)> {
        let (mut found, mut todo, mut seen) = (Vec::new(), vec![id], vec![false; self.nodes.len()]);
        while let Some(at) = todo.pop() {
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            match self.content(at) {
                Content::Scalar { .. } => {}
                Content::Sequence(elements) => todo.extend(elements),
                Content::Mapping(entries) => {
                    let mut first: HashMap<Cow<'_, str>, Id> = HashMap::new();
                    for (key, value) in entries {
                        todo.push(*value);
                        let Some(name) = self.key_name(*key) else {
                            continue;
                        };
                        match first.get(&name) {
                            Some(before) => found.push((*key, *before)),
                            None => drop(first.insert(name, *key)),
                        }
                    }
                }
            }
        }
        found.sort_unstable_by_key(|(key, _)| self.mark(*key));
        found
    }

    /// The normalised name of a key: 80 and 0x50 are equal. `None` for a collection.
    fn key_name(&self, key: Id) -> Option<Cow<'_, str>> {
        match self.content(key) {
            Content::Scalar { text, plain: true } => Some(match integer(text) {
                Some(number) => Cow::Owned(number.to_string()),
                None => Cow::Borrowed(text),
            }),
            Content::Scalar { text, .. } => Some(Cow::Borrowed(text)),
            _ => None,
        }
    }

    /// Expands merge keys (`<<`); a mapping's own keys take precedence.
    fn merge(&mut self) -> Result<(), SyntaxError> {
        for at in 0..self.nodes.len() {
            let Some(entries) = self.entries(at) else {
                continue;
            };
            let is_merge = |key: &Id| matches!(self.content(*key), Content::Scalar { text, plain: true } if text == "<<");
            if !entries.iter().any(|(key, _)| is_merge(key)) {
                continue;
            }
            let (merges, mut own): (Vec<_>, Vec<_>) =
                entries.iter().partition(|(key, _)| is_merge(key));
            let fail = |at: Id, message: &str| SyntaxError {
                mark: self.mark(at),
                message: message.to_owned(),
            };
            if let Some((again, _)) = merges.get(1) {
                return Err(fail(*again, "`<<` stands in this mapping already"));
            }
            let mut names: HashSet<_> = own.iter().map(|(key, _)| self.key_name(*key)).collect();
            for (_, value) in merges {
                let sources = self.elements(value).map_or(vec![value], <[Id]>::to_vec);
                for source in sources {
                    let not = || fail(source, "`<<` takes a mapping, or a list of mappings");
                    let entries = self.entries(source).ok_or_else(not)?.iter();
                    own.extend(entries.filter(|(key, _)| names.insert(self.key_name(*key))));
                }
            }
            self.nodes[at].content = Content::Mapping(own);
        }
        Ok(())
    }

    /// A node as text of its own, in flow style, aliases expanded. Scalars keep their type.
    pub(super) fn flow(&self, id: Id) -> String {
        let list = |texts: Vec<String>| texts.join(", ");
        match self.content(id) {
            Content::Sequence(elements) => {
                format!(
                    "[{}]",
                    list(elements.iter().map(|id| self.flow(*id)).collect())
                )
            }
            Content::Mapping(entries) => {
                let entry =
                    |(key, value): &(Id, Id)| format!("{}: {}", self.flow(*key), self.flow(*value));
                format!("{{{}}}", list(entries.iter().map(entry).collect()))
            }
            Content::Scalar { text, plain } => {
                // A plain word may be of another type, and stays plain; any other text is a string either way.
                let is_word = text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"+-.~".contains(&b));
                match *plain && is_word {
                    true => text.to_string(),
                    false => serde_json::Value::from(text.as_ref()).to_string(),
                }
            }
        }
    }
}

/// A collection that is still open.
struct Open {
    id: Id,
    /// The last key, until its value follows.
    key: Option<Id>,
    anchor: usize,
    /// Nodes before it, aliases expanded.
    before: usize,
}

/// Builds a tree from the parser's events.
struct Builder<'t, 'l> {
    nodes: Vec<Node<'t>>,
    /// Open collections, the outermost first.
    open: Vec<Open>,
    /// Complete nodes by anchor, each with its size: its nodes, aliases expanded.
    anchors: HashMap<usize, (Id, usize)>,
    aliases: usize,
    /// Nodes so far, aliases expanded.
    size: usize,
    root: Option<Id>,
    limits: &'l Limits,
}

impl<'t> Builder<'t, '_> {
    fn take(&mut self, event: Event<'t>, span: &Span) -> Result<(), SyntaxError> {
        let fail = |message: String| SyntaxError {
            mark: mark(&span.start),
            message,
        };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let mut plain = style == ScalarStyle::Plain;
                match tag.as_ref().map(|tag| tag.core_suffix()) {
                    None => {}
                    Some(Some("str")) => plain = false,
                    Some(Some("int" | "float" | "bool" | "null")) => plain = true,
                    Some(_) => return Err(fail("tags of this kind are not read".to_owned())),
                }
                let id = self.add(Content::Scalar { text, plain }, span)?;
                self.anchors.insert(anchor, (id, 1));
                self.place(id).map_err(fail)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.enter(Content::Sequence(Vec::new()), anchor, span)
            }
            Event::MappingStart(_, anchor, _) => {
                self.enter(Content::Mapping(Vec::new()), anchor, span)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else {
                    return Ok(());
                };
                let whole = (open.id, self.size - open.before);
                self.anchors.insert(open.anchor, whole);
                self.place(open.id).map_err(fail)
            }
            Event::Alias(anchor) => {
                self.aliases += 1;
                if self.aliases > self.limits.aliases {
                    let most = self.limits.aliases;
                    return Err(fail(format!("more than {most} aliases")));
                }
                let Some((id, size)) = self.anchors.get(&anchor).copied() else {
                    return Err(fail("this alias refers to what it stands in".to_owned()));
                };
                self.size += size;
                self.bound(span)?;
                self.place(id).map_err(fail)
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, content: Content<'t>, span: &Span) -> Result<Id, SyntaxError> {
        self.size += 1;
        self.bound(span)?;
        self.nodes.push(Node {
            mark: mark(&span.start),
            content,
        });
        Ok(self.nodes.len() - 1)
    }

    fn enter(
        &mut self,
        content: Content<'t>,
        anchor: usize,
        span: &Span,
    ) -> Result<(), SyntaxError> {
        let before = self.size;
        let id = self.add(content, span)?;
        self.open.push(Open {
            id,
            key: None,
            anchor,
            before,
        });
        match self.open.len() > self.limits.depth {
            true => Err(SyntaxError {
                mark: mark(&span.start),
                message: format!("nested to a depth of more than {}", self.limits.depth),
            }),
            false => Ok(()),
        }
    }

    fn bound(&self, span: &Span) -> Result<(), SyntaxError> {
        match self.size > MAX_NODES {
            true => Err(SyntaxError {
                mark: mark(&span.start),
                message: format!("more than {MAX_NODES} values"),
            }),
            false => Ok(()),
        }
    }

    /// Inserts a complete node into the innermost open collection, or as the root.
    fn place(&mut self, id: Id) -> Result<(), String> {
        let Some(Open {
            id: parent, key, ..
        }) = self.open.last_mut()
        else {
            if self.root.replace(id).is_some() {
                return Err("a second document begins without `---`".to_owned());
            }
            return Ok(());
        };
        match (&mut self.nodes[*parent].content, key.take()) {
            (Content::Sequence(elements), _) => elements.push(id),
            (Content::Mapping(entries), Some(key)) => entries.push((key, id)),
            (Content::Mapping(_), None) => *key = Some(id),
            (Content::Scalar { .. }, _) => {}
        }
        Ok(())
    }
}

/// True for the texts of YAML's null.
pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Parses a plain scalar as an integer: decimal, or with `0x`, `0o` or `0b`.
pub(super) fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        _ => (10, digits),
    };
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -number } else { number })
}

fn mark(marker: &granit_parser::Marker) -> Mark {
    Mark {
        line: marker.line() as u64,
        column: marker.col() as u64 + 1,
    }
}
