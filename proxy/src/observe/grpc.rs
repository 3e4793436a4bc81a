//! gRPC messages in a body, counted as they pass (gRPC over HTTP/2, "Length-Prefixed-Message").

use std::sync::Arc;

use super::standard::{MessageDirection, Series};

/// Counts the messages of one direction of a call.
#[derive(Debug)]
pub struct Messages {
    series: Arc<Series>,
    way: MessageDirection,
    frames: Frames,
}

impl Messages {
    /// A counter of the messages in the direction `way`.
    pub fn new(series: &Arc<Series>, way: MessageDirection) -> Messages {
        Messages {
            series: Arc::clone(series),
            way,
            frames: Frames::default(),
        }
    }

    /// Counts the messages that end in `data`.
    pub fn pass(&mut self, data: &[u8]) {
        let begun = self.frames.pass(data);
        if begun > 0 {
            self.series.messages(self.way, begun);
        }
    }
}

/// Position of a body within gRPC's message framing.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes received of a prefix: one of flags, four of length.
    prefix: [u8; 5],
    have: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Frames {
    /// Number of messages that end in `data`.
    fn pass(&mut self, mut data: &[u8]) -> u64 {
        let mut ended = 0;
        while !data.is_empty() {
            if self.have < self.prefix.len() {
                let count = data.len().min(self.prefix.len() - self.have);
                self.prefix[self.have..self.have + count].copy_from_slice(&data[..count]);
                self.have += count;
                data = &data[count..];
                if self.have < self.prefix.len() {
                    break;
                }
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
            }
            let count = data.len().min(self.left);
            self.left -= count;
            data = &data[count..];
            if self.left == 0 {
                self.have = 0;
                ended += 1;
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let body = b"\0\0\0\0\x02ab\0\0\0\0\0\x01\0\0\0\x03abc\0\0\0\0\x05a";
        for size in 1..=body.len() {
            let mut frames = Frames::default();
            let count: u64 = body.chunks(size).map(|part| frames.pass(part)).sum();
            assert_eq!(count, 3, "in pieces of {size}");
        }
    }
}
