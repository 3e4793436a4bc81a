//! The fields of a head, as ranges of its buffer, and the views of them that other modules get.

use std::ops::Range;

use super::field_name::{FieldName, FieldSet};

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

    /// The same range, relative to `at`.
    #[allow(clippy::cast_possible_truncation)] // as in `new`
    pub(super) fn from(self, at: usize) -> Span {
        let (start, end) = (self.start - at as u32, self.end - at as u32);
        Span { start, end }
    }

    /// The range in the buffer, for one that is relative to `at`.
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
    pub(super) known: FieldName,
    /// True when the buffer holds it as `name: value`, CR and LF.
    pub(super) verbatim: bool,
    /// True when its name may have upper-case letters.
    pub(super) mixed_case: bool,
}

/// A field line of a head.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    pub(super) field: &'a Field,
    pub(super) bytes: &'a [u8],
}

impl<'a> Line<'a> {
    /// Its name, as a [`FieldName`].
    pub fn known(&self) -> FieldName {
        self.field.known
    }

    /// True when its name may have upper-case letters.
    pub fn is_mixed_case(&self) -> bool {
        self.field.mixed_case
    }

    /// Its name.
    pub fn name(&self) -> &'a [u8] {
        &self.bytes[self.field.name.range()]
    }

    /// Its value.
    pub fn value(&self) -> &'a [u8] {
        &self.bytes[self.field.value.range()]
    }

    /// The whole line as HTTP/1 serialises it, CR LF included, if the buffer holds it so.
    pub fn plain(&self) -> Option<&'a [u8]> {
        let (name, value) = (self.field.name.range(), self.field.value.range());
        (self.field.verbatim).then(|| &self.bytes[name.start..value.end + 2])
    }
}

/// Adjacent lines of a head.
#[derive(Debug, Clone, Copy)]
pub struct FieldRun<'a> {
    pub(super) fields: &'a [Field],
    pub(super) bytes: &'a [u8],
}

impl<'a> FieldRun<'a> {
    /// The lines.
    pub fn lines(&self) -> impl Iterator<Item = Line<'a>> {
        let bytes = self.bytes;
        self.fields.iter().map(move |field| Line { field, bytes })
    }

    /// The serialised text of two lines or more, which the buffer holds one after another; `None` for a single line.
    pub fn text(&self) -> Option<&'a [u8]> {
        match self.fields {
            [first, .., last] => {
                Some(&self.bytes[first.name.start as usize..last.value.end as usize + 2])
            }
            _ => None,
        }
    }
}

/// Parsed fields of a head, to be reused for another head with the same text.
#[derive(Debug, Clone)]
pub struct Section {
    /// The fields, as ranges relative to the start of the text.
    pub(super) fields: Vec<Field>,
    pub(super) known: FieldSet,
    pub(super) places: [u8; 32],
    pub(super) contiguous: Option<Span>,
    pub(super) size: u32,
}
