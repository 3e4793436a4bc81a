//! What blocks begin with. Messages of one kind begin with the same lines of the table, a byte each: what was made of these is
//! taken whole when they come again.

/// Beginnings that a connection knows.
const KNOWN: usize = 4;
/// What begins with fewer lines is read faster than looked up, and what begins with more is no usual head.
const LINES: std::ops::Range<usize> = 3..64;

/// What blocks began with, and what was made of it.
#[derive(Debug)]
pub(super) struct Beginnings<T> {
    known: [Beginning<T>; KNOWN],
    /// Whose turn it is to be forgotten.
    turn: usize,
}

#[derive(Debug)]
struct Beginning<T> {
    lines: Vec<u8>,
    /// The state of the table in which these bytes say what they do.
    changes: u64,
    made: Option<T>,
}

/// What is known of a beginning.
#[derive(Debug)]
pub(super) enum Found<'a, T> {
    /// What was made of it.
    Known(&'a T),
    /// It comes for the second time: what is made of it is worth being remembered here.
    Again(&'a mut Option<T>),
    /// Nothing, until it comes again.
    Not,
}

impl<T> Default for Beginnings<T> {
    fn default() -> Beginnings<T> {
        let none = || Beginning {
            lines: Vec::new(),
            changes: 0,
            made: None,
        };
        Beginnings {
            known: std::array::from_fn(|_| none()),
            turn: 0,
        }
    }
}

impl<T> Beginnings<T> {
    /// Looks up the `lines` that a block begins with, when the table has changed so often.
    pub(super) fn find(&mut self, lines: &[u8], changes: u64) -> Found<'_, T> {
        if !LINES.contains(&lines.len()) {
            return Found::Not;
        }
        let is_same = |one: &Beginning<T>| one.changes == changes && one.lines == lines;
        let Some(at) = self.known.iter().position(is_same) else {
            self.turn = (self.turn + 1) % KNOWN;
            let oldest = &mut self.known[self.turn];
            oldest.lines.clear();
            oldest.lines.extend_from_slice(lines);
            (oldest.changes, oldest.made) = (changes, None);
            return Found::Not;
        };
        match &mut self.known[at].made {
            Some(made) => Found::Known(made),
            none => Found::Again(none),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_twice_is_known_until_the_table_changes() {
        let mut beginnings = Beginnings::default();
        assert!(matches!(beginnings.find(b"abc", 1), Found::Not));
        let Found::Again(made) = beginnings.find(b"abc", 1) else {
            panic!("it comes again");
        };
        *made = Some(7);
        assert!(matches!(beginnings.find(b"abc", 1), Found::Known(7)));
        for (lines, changes) in [(&b"abc"[..], 2), (b"abcd", 1), (b"ab", 1), (b"", 1)] {
            let found = beginnings.find(lines, changes);
            assert!(matches!(found, Found::Not), "{lines:?} {changes}");
        }
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut beginnings = Beginnings::<()>::default();
        for lines in ["abc", "abd", "abe", "abf", "abg"] {
            assert!(matches!(beginnings.find(lines.as_bytes(), 0), Found::Not));
        }
        assert!(matches!(beginnings.find(b"abg", 0), Found::Again(_)));
        assert!(matches!(beginnings.find(b"abc", 0), Found::Not));
    }
}
