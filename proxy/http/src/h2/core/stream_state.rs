//! The states of a stream (RFC 9113, section 5.1).

/// State of a stream. An idle one has no slot yet, and none is reserved, since nothing is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::h2) enum StreamState {
    /// Both ends may send.
    Open,
    /// We have sent END_STREAM.
    HalfClosedLocal,
    /// The peer has sent END_STREAM.
    HalfClosedRemote,
    /// Both have.
    Closed,
}

impl StreamState {
    /// The state once we have sent END_STREAM.
    #[must_use]
    pub(in crate::h2) fn end_local(self) -> StreamState {
        match self {
            StreamState::Open | StreamState::HalfClosedLocal => StreamState::HalfClosedLocal,
            StreamState::HalfClosedRemote | StreamState::Closed => StreamState::Closed,
        }
    }

    /// The state once the peer has sent END_STREAM.
    #[must_use]
    pub(in crate::h2) fn end_remote(self) -> StreamState {
        match self {
            StreamState::Open | StreamState::HalfClosedRemote => StreamState::HalfClosedRemote,
            StreamState::HalfClosedLocal | StreamState::Closed => StreamState::Closed,
        }
    }

    /// True once the peer has sent END_STREAM.
    pub(in crate::h2) fn is_remote_ended(self) -> bool {
        matches!(self, StreamState::HalfClosedRemote | StreamState::Closed)
    }

    /// True once both have sent END_STREAM.
    pub(in crate::h2) fn is_closed(self) -> bool {
        self == StreamState::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::StreamState::{Closed, HalfClosedLocal, HalfClosedRemote, Open};

    #[test]
    fn each_end_closes_its_half_once() {
        for (state, local, remote) in [
            (Open, HalfClosedLocal, HalfClosedRemote),
            (HalfClosedLocal, HalfClosedLocal, Closed),
            (HalfClosedRemote, Closed, HalfClosedRemote),
            (Closed, Closed, Closed),
        ] {
            assert_eq!((state.end_local(), state.end_remote()), (local, remote));
        }
    }
}
