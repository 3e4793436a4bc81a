//! Buffers that busy connections borrow from their thread, so that an idle connection holds none, and that the same
//! few, warm in the cache, serve all of them.
//!
//! Bounds: at most 1 MiB a thread; a buffer that is unused from one sweep to the next, a second, is freed.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::{io, mem};

use tokio::io::AsyncReadExt;

use crate::stream::Stream;

/// Capacity of a fresh buffer; most messages fit.
pub const SIZE: usize = 8 * 1024;
/// Room for reads grows to this: large bodies then cost few system calls.
const MAX_READ: usize = 128 * 1024;
/// Bytes that a thread keeps for reuse.
const KEPT: usize = 1024 * 1024;

#[derive(Debug)]
struct Free {
    /// The one that was given back last is lent first.
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    /// Number of them that weren't lent since the last [`trim`].
    unused: usize,
}

const NONE: Free = Free {
    buffers: Vec::new(),
    bytes: 0,
    unused: 0,
};

thread_local! {
    static FREE: RefCell<Free> = const { RefCell::new(NONE) };
}

/// Makes sure that `buffer` has capacity: if it has none, it becomes a buffer that was given back, or a fresh one.
pub fn lend(buffer: &mut Vec<u8>) {
    if buffer.capacity() > 0 {
        return;
    }
    let free = FREE.with_borrow_mut(|free| {
        let last = free.buffers.pop()?;
        free.bytes -= last.capacity();
        free.unused = free.unused.min(free.buffers.len());
        Some(last)
    });
    *buffer = free.unwrap_or_else(|| Vec::with_capacity(SIZE));
}

/// Returns a buffer to the thread's pool; its contents are dropped.
pub fn give_back(buffer: &mut Vec<u8>) {
    let mut buffer = mem::take(buffer);
    let capacity = buffer.capacity();
    if capacity < SIZE {
        return;
    }
    buffer.clear();
    FREE.with_borrow_mut(|free| {
        if free.bytes + capacity <= KEPT {
            free.bytes += capacity;
            free.buffers.push(buffer);
        }
    });
}

/// Reads more behind the contents of `buffer`, and returns the number of bytes. The buffer is lent first, and given
/// back when the read is pending and the buffer is empty. Reserves `room` bytes; `room` doubles while reads fill the
/// buffer.
///
/// # Errors
/// When the transport failed.
pub fn poll_fill(
    io: &mut Stream,
    buffer: &mut Vec<u8>,
    room: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    lend(buffer);
    if buffer.capacity() - buffer.len() < *room / 2 {
        buffer.reserve(*room);
    }
    let before = buffer.capacity() - buffer.len();
    let filled = pin!(io.read_buf(buffer)).poll(cx);
    if filled.is_pending() && buffer.is_empty() {
        give_back(buffer);
    }
    let count = ready!(filled)?;
    if count == before {
        *room = (*room * 2).min(MAX_READ);
    }
    Poll::Ready(Ok(count))
}

/// Frees the buffers that weren't lent since the last call.
pub fn trim() {
    FREE.with_borrow_mut(|free| {
        let unused = free.buffers.drain(..free.unused);
        free.bytes -= unused.map(|buffer| buffer.capacity()).sum::<usize>();
        free.unused = free.buffers.len();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_lent_again_empty() {
        let mut buffer = Vec::new();
        lend(&mut buffer);
        buffer.extend_from_slice(b"secret");
        let address = buffer.as_ptr();
        give_back(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
        lend(&mut buffer);
        assert_eq!(
            (buffer.as_ptr(), buffer.len(), buffer.capacity()),
            (address, 0, SIZE)
        );
    }

    #[test]
    fn what_is_kept_is_bounded() {
        for _ in 0..3 {
            give_back(&mut Vec::with_capacity(KEPT / 2));
        }
        FREE.with_borrow(|free| assert_eq!((free.bytes, free.buffers.len()), (KEPT, 2)));
        trim();
        FREE.with_borrow(|free| assert_eq!(free.buffers.len(), 2, "they were wanted a moment ago"));
        let mut buffer = Vec::new();
        lend(&mut buffer);
        give_back(&mut buffer);
        trim();
        FREE.with_borrow(|free| assert_eq!((free.bytes, free.buffers.len()), (KEPT / 2, 1)));
        trim();
        FREE.with_borrow(|free| assert_eq!((free.bytes, free.buffers.len()), (0, 0)));
    }
}
