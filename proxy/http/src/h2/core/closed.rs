//! Streams that ended without END_STREAM in both directions. What a frame on a closed stream means depends on how the stream
//! was closed (RFC 9113, section 5.1).

use std::collections::VecDeque;

/// Resets that are remembered in each direction, and ranges of skipped streams: as many as streams may be open.
const REMEMBERED: usize = 100;

/// The end of a stream that is no longer open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// We reset it: the peer may have sent frames before it knew.
    ResetByUs,
    /// The peer reset it.
    ResetByPeer,
    /// Both have sent END_STREAM.
    Ended,
    /// It was never open: the peer opened a later one first, which closed it (section 5.1.1).
    Skipped,
}

/// The last streams that were reset, and those that were skipped.
#[derive(Debug, Default)]
pub(super) struct ClosedStreams {
    by_us: VecDeque<u32>,
    /// The last stream that we reset and that is remembered no more: on streams up to it, frames are ignored.
    forgotten: u32,
    by_peer: VecDeque<u32>,
    /// The first and the last of each range.
    skipped: VecDeque<(u32, u32)>,
}

impl ClosedStreams {
    /// Remembers that the peer opened `id` after `last`.
    pub(super) fn add_opened(&mut self, last: u32, id: u32) {
        let next = if last == 0 { 1 } else { last + 2 };
        if id > next {
            push(&mut self.skipped, (next, id - 2));
        }
    }

    /// Remembers a stream that we reset.
    pub(super) fn add_ours(&mut self, id: u32) {
        let forgotten = push(&mut self.by_us, id).unwrap_or_default();
        self.forgotten = self.forgotten.max(forgotten);
    }

    /// Remembers a stream that the peer reset.
    pub(super) fn add_peers(&mut self, id: u32) {
        push(&mut self.by_peer, id);
    }

    /// The end of a stream that was open once, and isn't any more.
    pub(super) fn end(&self, id: u32) -> End {
        let is_skipped = |(first, last): &(u32, u32)| (*first..=*last).contains(&id);
        match () {
            () if id <= self.forgotten || self.by_us.contains(&id) => End::ResetByUs,
            () if self.by_peer.contains(&id) => End::ResetByPeer,
            () if self.skipped.iter().any(is_skipped) => End::Skipped,
            () => End::Ended,
        }
    }
}

/// Adds one; returns the one that is forgotten for it.
fn push<T>(remembered: &mut VecDeque<T>, one: T) -> Option<T> {
    remembered.push_back(one);
    (remembered.len() > REMEMBERED).then(|| remembered.pop_front())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hundred_resets_of_each_end_are_remembered() {
        let mut closed = ClosedStreams::default();
        (1..=101).for_each(|id| closed.add_ours(id));
        assert_eq!(closed.by_us.len(), REMEMBERED);
        closed.add_peers(103);
        for (id, end) in [
            // Forgotten, and ignored like those that aren't.
            (1, End::ResetByUs),
            (2, End::ResetByUs),
            (101, End::ResetByUs),
            (103, End::ResetByPeer),
            (105, End::Ended),
        ] {
            assert_eq!(closed.end(id), end, "{id}");
        }
    }

    #[test]
    fn what_a_later_stream_skips_was_never_open() {
        let mut closed = ClosedStreams::default();
        for (last, id) in [(0, 5), (5, 7), (7, 13)] {
            closed.add_opened(last, id);
        }
        for (id, end) in [
            (1, End::Skipped),
            (3, End::Skipped),
            (5, End::Ended),
            (7, End::Ended),
            (9, End::Skipped),
            (11, End::Skipped),
            (13, End::Ended),
        ] {
            assert_eq!(closed.end(id), end, "{id}");
        }
    }
}
