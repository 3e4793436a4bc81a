//! A connection's IO: passes the bytes that it reads to the connection's state, and writes the frames pending there,
//! those of all streams in one piece.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::core::{Core, Failure};
use crate::buffers;
use crate::clock;
use crate::stream::Stream;

/// A connection's IO.
#[derive(Debug)]
pub(super) struct Driver {
    io: Stream,
    core: Rc<RefCell<Core>>,
    read: Vec<u8>,
    room: usize,
    write: Vec<u8>,
    written: usize,
    needs_flush: bool,
    /// Set when pending frames are still to be flushed although the connection is over.
    is_finishing: bool,
}

impl Driver {
    /// Creates the driver of a connection on `io`, of which `read` was read already.
    pub(super) fn new(io: Stream, read: Vec<u8>, core: &Rc<RefCell<Core>>) -> Driver {
        let now = Instant::now();
        let mut driver = Driver {
            io,
            core: Rc::clone(core),
            read,
            room: buffers::SIZE,
            write: Vec::new(),
            written: 0,
            needs_flush: false,
            is_finishing: false,
        };
        driver.receive(now);
        driver
    }

    /// Reads and writes as much as possible; ready when the connection is over and, after a graceful end, flushed and
    /// shut down. `heard` is called with the time of each read.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, heard: impl Fn(Instant)) -> Poll<()> {
        self.core.borrow_mut().mark_running();
        loop {
            let was_clogged = self.core.borrow().is_read_paused();
            let is_read = self.poll_read(cx, &heard).is_ready();
            let written = self.poll_write(cx);
            let mut core = self.core.borrow_mut();
            if let Poll::Ready(Err(error)) = &written {
                core.fail(&Failure::of(error));
                return Poll::Ready(());
            }
            let is_over = core.end.is_some();
            if !is_over && core.is_done() {
                core.fail(&Failure::Closed);
                self.is_finishing = true;
                continue;
            }
            // Reading that was paused for want of room goes on in another round, which reads or registers for more
            // bytes.
            let has_room_again = was_clogged && !core.is_read_paused();
            if !is_over && !is_read && !has_room_again {
                core.park(cx);
                return Poll::Pending;
            }
            drop(core);
            if is_over {
                if self.is_finishing {
                    ready!(written).ok();
                }
                let told = Pin::new(&mut self.io).poll_shutdown(cx);
                return match self.is_finishing {
                    true => told.map(drop),
                    false => Poll::Ready(()),
                };
            }
        }
    }

    /// Reads once and passes the bytes to the connection's state; pending when none are available, reading is paused or
    /// the connection is over.
    fn poll_read(&mut self, cx: &mut Context<'_>, heard: &impl Fn(Instant)) -> Poll<()> {
        {
            let core = self.core.borrow();
            if core.end.is_some() || core.is_read_paused() {
                return Poll::Pending;
            }
        }
        ready!(self.io.poll_readable(cx));
        let filled = buffers::poll_fill(&mut self.io, &mut self.read, &mut self.room, cx);
        match ready!(filled) {
            Ok(0) => self.core.borrow_mut().fail(&Failure::Closed),
            Err(error) => self.core.borrow_mut().fail(&Failure::of(&error)),
            Ok(count) => {
                // Frames after a large body need no large buffer.
                if count < self.room / 2 {
                    self.room = (self.room / 2).max(buffers::SIZE);
                }
                let now = clock::now();
                heard(now);
                self.receive(now);
            }
        }
        Poll::Ready(())
    }

    fn receive(&mut self, now: Instant) {
        let taken = self.core.borrow_mut().receive(&self.read, now);
        self.read.drain(..taken);
        if self.read.is_empty() {
            buffers::give_back(&mut self.read);
        }
    }

    /// Writes and flushes all pending frames.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.written == self.write.len() {
                let mut core = self.core.borrow_mut();
                self.written = 0;
                if core.out.is_empty() {
                    break;
                }
                self.write.clear();
                self.write = core.take_out(std::mem::take(&mut self.write));
            }
            let io = Pin::new(&mut self.io);
            let count = ready!(io.poll_write(cx, &self.write[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.needs_flush = true;
            self.core.borrow_mut().record_written(count);
        }
        buffers::give_back(&mut self.write);
        self.write = Vec::new();
        if self.needs_flush {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::h1::HeadLimits;
    use crate::h2::PREFACE;
    use crate::h2::core::Role;
    use crate::h2::frame::{ACK, PING, SETTINGS, write_frame_header};
    use crate::h2::header_block::Peer;

    #[tokio::test]
    async fn what_was_not_read_for_want_of_room_is_read_when_there_is_some() {
        let (ours, mut theirs) = tokio::io::duplex(8 * 1024 * 1024);
        let core = Core::new(
            Role::Server,
            Peer::Foreign,
            HeadLimits::default(),
            Instant::now(),
        );
        let core = Rc::new(RefCell::new(core));
        let mut driver = Driver::new(Stream::Tunnel(Box::new(ours)), Vec::new(), &core);
        let mut sent = PREFACE.to_vec();
        write_frame_header(&mut sent, 0, SETTINGS, 0, 0);
        write_frame_header(&mut sent, 8, PING, 0, 0);
        sent.extend_from_slice(b"are you?");
        theirs.write_all(&sent).await.expect("room");
        // Enough unsent bytes to pause reading, all of which go out at once.
        let much = vec![0; 2 * 1024 * 1024];
        core.borrow_mut().out.extend_from_slice(&much);
        poll_fn(|cx| {
            assert!(driver.poll(cx, |_| {}).is_pending());
            Poll::Ready(())
        })
        .await;
        let mut answer = vec![0; 4 * 1024 * 1024];
        let count = theirs.read(&mut answer).await.expect("an answer");
        let mut pong = Vec::new();
        write_frame_header(&mut pong, 8, PING, ACK, 0);
        pong.extend_from_slice(b"are you?");
        assert!(answer[..count].ends_with(&pong));
    }
}
