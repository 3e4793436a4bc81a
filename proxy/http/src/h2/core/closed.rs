//! Streams that ended by a reset. What a frame on a closed stream means depends on how the stream was closed (RFC 9113,
//! section 5.1); a stream that isn't here was closed by END_STREAM in both directions.

use std::collections::VecDeque;

/// Resets that are remembered in each direction: as many as streams may be open.
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
}

/// The last streams that were reset.
#[derive(Debug, Default)]
pub(super) struct Resets {
    by_us: VecDeque<u32>,
    by_peer: VecDeque<u32>,
}

impl Resets {
    /// Remembers a stream that we reset.
    pub(super) fn add_ours(&mut self, id: u32) {
        push(&mut self.by_us, id);
    }

    /// Remembers a stream that the peer reset.
    pub(super) fn add_peers(&mut self, id: u32) {
        push(&mut self.by_peer, id);
    }

    /// The end of a stream that was open once, and isn't any more.
    pub(super) fn end(&self, id: u32) -> End {
        match (self.by_us.contains(&id), self.by_peer.contains(&id)) {
            (true, _) => End::ResetByUs,
            (_, true) => End::ResetByPeer,
            _ => End::Ended,
        }
    }
}

fn push(resets: &mut VecDeque<u32>, id: u32) {
    if resets.len() == REMEMBERED {
        resets.pop_front();
    }
    resets.push_back(id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hundred_resets_of_each_end_are_remembered() {
        let mut resets = Resets::default();
        (1..=101).for_each(|id| resets.add_ours(id));
        resets.add_peers(103);
        for (id, end) in [
            (1, End::Ended),
            (2, End::ResetByUs),
            (101, End::ResetByUs),
            (103, End::ResetByPeer),
            (105, End::Ended),
        ] {
            assert_eq!(resets.end(id), end, "{id}");
        }
    }
}
