//! The fields of a head, as ranges of its buffer, and how they are looked at from outside.

use std::ops::Range;

use super::field_name::{Known, Set};

/// A range of the head's buffer. Heads are limited to far less than 4 GiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    /// The range `start..end`; positions beyond 4 GiB can't occur, heads are limited to a few hundred KiB.
    #[allow(clippy::cast_possible_truncation)]
    pub fn new(start: usize, end: usize) -> Span {
        let (start, end) = (start as u32, end as u32);
        Span { start, end }
    }

    pub(super) fn len(self) -> u32 {
        self.end - self.start
    }

    /// The same range, counted from `at` on.
    #[allow(clippy::cast_possible_truncation)] // as in `new`
    pub(super) fn from(self, at: usize) -> Span {
        let (start, end) = (self.start - at as u32, self.end - at as u32);
        Span { start, end }
    }

    /// The range that this one is, when it is counted from `at` on.
    #[allow(clippy::cast_possible_truncation)] // as in `new`
    pub(super) fn behind(self, at: usize) -> Span {
        let (start, end) = (self.start + at as u32, self.end + at as u32);
        Span { start, end }
    }

    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// One field line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: Span,
    pub(super) value: Span,
    pub(super) known: Known,
    /// Whether the buffer holds it as `name: value`, CR and LF.
    pub(super) is_plain: bool,
    /// Whether its name may have upper-case letters.
    pub(super) is_mixed: bool,
}

/// A field line of a head.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    pub(super) field: &'a Field,
    pub(super) bytes: &'a [u8],
}

impl<'a> Line<'a> {
    /// What the path knows it as.
    pub fn known(&self) -> Known {
        self.field.known
    }

    /// Whether its name may have upper-case letters.
    pub fn is_mixed(&self) -> bool {
        self.field.is_mixed
    }

    /// Its name.
    pub fn name(&self) -> &'a [u8] {
        &self.bytes[self.field.name.range()]
    }

    /// Its value.
    pub fn value(&self) -> &'a [u8] {
        &self.bytes[self.field.value.range()]
    }

    /// All of it as HTTP/1 has it, if it stands so somewhere.
    pub fn plain(&self) -> Option<&'a [u8]> {
        let (name, value) = (self.field.name.range(), self.field.value.range());
        (self.field.is_plain).then(|| &self.bytes[name.start..value.end + 2])
    }
}

/// Lines of a head that follow each other in it.
#[derive(Debug, Clone, Copy)]
pub struct Stretch<'a> {
    pub(super) fields: &'a [Field],
    pub(super) bytes: &'a [u8],
}

impl<'a> Stretch<'a> {
    /// The lines.
    pub fn lines(&self) -> impl Iterator<Item = Line<'a>> {
        let bytes = self.bytes;
        self.fields.iter().map(move |field| Line { field, bytes })
    }

    /// The text of several lines, which stand one after another as HTTP/1 has them.
    pub fn text(&self) -> Option<&'a [u8]> {
        match self.fields {
            [first, .., last] => {
                Some(&self.bytes[first.name.start as usize..last.value.end as usize + 2])
            }
            _ => None,
        }
    }
}

/// Parsed fields of a head, for another one with the same text.
#[derive(Debug, Clone)]
pub struct Section {
    /// Where they are from its beginning on.
    pub(super) fields: Vec<Field>,
    pub(super) known: Set,
    pub(super) places: [u8; 32],
    pub(super) straight: Option<Span>,
    pub(super) size: u32,
}
