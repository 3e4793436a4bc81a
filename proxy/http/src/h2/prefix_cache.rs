//! Cache of field block prefixes. Messages of one kind begin with the same indexed lines, one byte each: the head
//! decoded from such a prefix is copied when the prefix comes again.
//!
//! Bound: 4 prefixes a connection, with heads of at most 2 KiB.

/// Prefixes cached per connection.
const KNOWN: usize = 4;
/// Lengths of the prefixes worth caching: fewer lines are decoded faster than looked up, and more are no usual head.
const LINES: std::ops::Range<usize> = 3..64;

/// Prefixes of recent blocks, with the value decoded from each.
#[derive(Debug)]
pub(super) struct PrefixCache<T> {
    prefixes: [Prefix<T>; KNOWN],
    /// Index of the prefix that was replaced last: they are replaced in turn.
    turn: usize,
}

#[derive(Debug)]
struct Prefix<T> {
    lines: Vec<u8>,
    /// Version of the dynamic table for which these bytes are valid.
    changes: u64,
    value: Option<T>,
}

/// Result of a lookup.
#[derive(Debug)]
pub(super) enum CacheLookup<'a, T> {
    /// The cached value.
    Hit(&'a T),
    /// A repeated prefix without a value: the one decoded now is worth caching here.
    Fill(&'a mut Option<T>),
    /// A new prefix, or one of an unsuitable length.
    Miss,
}

impl<T> Default for PrefixCache<T> {
    fn default() -> PrefixCache<T> {
        let none = || Prefix {
            lines: Vec::new(),
            changes: 0,
            value: None,
        };
        PrefixCache {
            prefixes: std::array::from_fn(|_| none()),
            turn: 0,
        }
    }
}

impl<T> PrefixCache<T> {
    /// Looks up the prefix `lines` of a block, at version `changes` of the dynamic table.
    pub(super) fn find(&mut self, lines: &[u8], changes: u64) -> CacheLookup<'_, T> {
        if !LINES.contains(&lines.len()) {
            return CacheLookup::Miss;
        }
        let is_same = |one: &Prefix<T>| one.changes == changes && one.lines == lines;
        let Some(at) = self.prefixes.iter().position(is_same) else {
            self.turn = (self.turn + 1) % KNOWN;
            let oldest = &mut self.prefixes[self.turn];
            oldest.lines.clear();
            oldest.lines.extend_from_slice(lines);
            (oldest.changes, oldest.value) = (changes, None);
            return CacheLookup::Miss;
        };
        match &mut self.prefixes[at].value {
            Some(value) => CacheLookup::Hit(value),
            none => CacheLookup::Fill(none),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_twice_is_known_until_the_table_changes() {
        let mut prefixes = PrefixCache::default();
        assert!(matches!(prefixes.find(b"abc", 1), CacheLookup::Miss));
        let CacheLookup::Fill(value) = prefixes.find(b"abc", 1) else {
            panic!("it comes again");
        };
        *value = Some(7);
        assert!(matches!(prefixes.find(b"abc", 1), CacheLookup::Hit(7)));
        for (lines, changes) in [(&b"abc"[..], 2), (b"abcd", 1), (b"ab", 1), (b"", 1)] {
            let found = prefixes.find(lines, changes);
            assert!(matches!(found, CacheLookup::Miss), "{lines:?} {changes}");
        }
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut prefixes = PrefixCache::<()>::default();
        for lines in ["abc", "abd", "abe", "abf", "abg"] {
            assert!(matches!(
                prefixes.find(lines.as_bytes(), 0),
                CacheLookup::Miss
            ));
        }
        assert!(matches!(prefixes.find(b"abg", 0), CacheLookup::Fill(_)));
        assert!(matches!(prefixes.find(b"abc", 0), CacheLookup::Miss));
    }
}
