//! A server connection, on which the peer opens streams.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::core::{Core, Role, Slot};
use super::driver::Driver;
use super::header_block::Peer;
use super::stream::{ServerStream, Streams};
use super::{CLOSE_TIMEOUT, MAX_STREAMS};
use crate::clock;
use crate::error::Reason;
use crate::h1::{HeadLimits, InvalidHead, Timeouts};
use crate::head::Head;
use crate::stream::Stream;

/// Idle tasks kept for further requests, so that most requests need no new one.
const SPARE: usize = MAX_STREAMS as usize;
/// Time that they are kept after the last request.
const REST: Duration = Duration::from_secs(1);

/// A request that a peer opened a stream for.
#[derive(Debug)]
pub struct StreamRequest {
    /// The stream of the request and its response; taken when it becomes a tunnel.
    pub stream: Option<ServerStream>,
    /// Its head.
    pub head: Head,
    /// Time at which the head was read.
    pub at: Instant,
    /// The error in the head, if there is one.
    pub read: Result<(), InvalidHead>,
}

/// Settings for serving the streams of a connection.
#[derive(Debug)]
pub struct ServerConfig {
    /// Bounds on messages.
    pub limits: HeadLimits,
    /// Timeouts for the peer.
    pub timeouts: Timeouts,
    /// Set if the peer proved to be in the mesh.
    pub is_mesh: bool,
    /// Set if the peer is a sidecar of ours, which carries its callers' messages in any version.
    pub is_ours: bool,
    /// Expiry of the peer's certificate: from then on its new streams are refused.
    pub until: Option<Instant>,
}

impl ServerConfig {
    fn peer(&self) -> Peer {
        match self.is_mesh && self.is_ours {
            true => Peer::Mesh,
            false => Peer::Foreign,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// State of a connection that is served.
#[derive(Debug)]
struct Session {
    core: Rc<RefCell<Core>>,
    how: ServerConfig,
    streams: Rc<Streams>,
    began: Instant,
    /// Time at which its graceful shutdown began.
    closed: Cell<Option<Instant>>,
    /// Tasks that wait for a request, each with a flag that is set while it is listed here, so that none is listed
    /// twice.
    spare: RefCell<Vec<(Rc<Cell<bool>>, Waker)>>,
    /// Set while no task is kept, since requests have paused.
    is_resting: Cell<bool>,
    /// Arrived requests for which a task was woken or spawned.
    dispatched: Cell<usize>,
}

/// Serves the streams that the peer opens on `io`, of which `read` was read already, each with a call of `handle`,
/// until the connection ends. Graceful shutdown in two steps (RFC 9113, section 6.8) begins when `closing` is ready,
/// when no stream has been open for the idle timeout, or when the peer's certificate expires.
pub async fn serve(
    io: Stream,
    read: Vec<u8>,
    how: ServerConfig,
    closing: impl Future<Output = ()>,
    handle: impl AsyncFn(&mut StreamRequest) + 'static,
) {
    let now = clock::now();
    let session = Rc::new(Session::new(how, now));
    let mut driver = Driver::new(io, read, &session.core);
    let handle = Rc::new(handle);
    let mut closing = pin!(closing);
    loop {
        let rest = session.rest();
        let wake = rest.map_or(session.wake(), |rest| rest.min(session.wake()));
        let is_open = session.closed.get().is_none();
        tokio::select! {
            biased;
            () = poll_fn(|cx| {
                let ended = driver.poll(cx, |_| {});
                session.dispatch(&handle);
                ended
            }) => break,
            () = &mut closing, if is_open => session.close(),
            () = sleep_until(wake) => {
                // Streams may have begun or ended meanwhile. The turn's clock may be behind: with it the timer would be
                // over at once, over and over.
                let now = Instant::now();
                if rest.is_some_and(|rest| rest <= now) && session.under_way() == 0 {
                    session.end_spare();
                }
                let is_due = session.wake() <= now;
                match session.closed.get() {
                    _ if is_due && !session.core.borrow().is_settled() => break,
                    Some(_) if is_due => break,
                    None if is_due || session.how.is_over(now) => session.close(),
                    _ => {}
                }
            }
        }
    }
    let end = session.core.borrow_mut().finish();
    if let Some(error) = end {
        tracing::info!(%error, "HTTP/2 connection ended");
    }
    session.end_spare();
}

impl Session {
    fn new(how: ServerConfig, now: Instant) -> Session {
        let core = Core::new(Role::Server, how.peer(), how.limits, now);
        Session {
            core: Rc::new(RefCell::new(core)),
            how,
            streams: Rc::default(),
            began: now,
            closed: Cell::new(None),
            spare: RefCell::default(),
            is_resting: Cell::new(false),
            dispatched: Cell::new(0),
        }
    }

    /// Time of the next check: the idle timeout, the certificate's expiry, or the deadline to send SETTINGS or to
    /// close.
    fn wake(&self) -> Instant {
        let now = clock::now();
        if !self.core.borrow().is_settled() {
            return self.began + self.how.timeouts.head;
        }
        let since = match self.under_way() {
            0 => self.streams.idle_since.get(),
            _ => now,
        };
        match (self.closed.get(), self.how.until) {
            (Some(closed), _) => since.max(closed) + CLOSE_TIMEOUT,
            (None, Some(until)) => until.min(since + self.how.timeouts.idle),
            (None, None) => since + self.how.timeouts.idle,
        }
    }

    /// Number of requests in progress or waiting for a task.
    fn under_way(&self) -> usize {
        self.streams.count.get() + self.core.borrow().arrived.len()
    }

    /// Time at which the spare tasks may end; `None` while none are kept.
    fn rest(&self) -> Option<Instant> {
        let since = match self.under_way() {
            0 => self.streams.idle_since.get(),
            _ => clock::now(),
        };
        (!self.is_resting.get()).then(|| since + REST)
    }

    /// Ends the spare tasks.
    fn end_spare(&self) {
        self.is_resting.set(true);
        self.spare.borrow_mut().drain(..).for_each(wake);
    }

    fn close(&self) {
        self.closed.set(Some(clock::now()));
        self.core.borrow_mut().shut_down();
    }

    /// Wakes or spawns a task for each request that arrived; ends a connection that floods.
    fn dispatch(self: &Rc<Self>, handle: &Rc<impl AsyncFn(&mut StreamRequest) + 'static>) {
        let arrived = self.core.borrow().arrived.len();
        let promised = self.dispatched.replace(arrived);
        if promised >= arrived {
            return;
        }
        // A stream that the peer reset is no longer counted by the connection, but may still be in progress here.
        let is_crowded = self.streams.count.get() + arrived > 2 * MAX_STREAMS as usize;
        // A sidecar carries requests of many callers, all of which may give up when the app hangs.
        let is_flood = !self.how.is_mesh && self.core.borrow().is_flood();
        if is_crowded || is_flood {
            self.core.borrow_mut().enhance_your_calm();
            return self.dispatched.set(0);
        }
        self.is_resting.set(false);
        for _ in promised..arrived {
            let spare = self.spare.borrow_mut().pop();
            if let Some(spare) = spare {
                wake(spare);
                continue;
            }
            let (session, handle) = (Rc::clone(self), Rc::clone(handle));
            tokio::task::spawn_local(async move {
                let waits = Rc::default();
                while let Some(slot) = session.next(&waits).await {
                    let mut arrived = session.arrived(slot);
                    if !session.how.is_over(arrived.at) {
                        handle(&mut arrived).await;
                    } else if let Some(stream) = &mut arrived.stream {
                        stream.reset(Reason::REFUSED_STREAM);
                    }
                }
            });
        }
    }

    /// Waits for the next request; `None` when requests have paused, or enough other tasks wait. `waits` is set while
    /// the task is a spare one.
    async fn next(&self, waits: &Rc<Cell<bool>>) -> Option<Rc<Slot>> {
        poll_fn(|cx| {
            let mut spare = self.spare.borrow_mut();
            if waits.replace(false) {
                // Something else woke the task: it is no spare one any more.
                spare.retain(|(other, _)| !Rc::ptr_eq(other, waits));
            }
            let arrived = self.core.borrow_mut().arrived.pop_front();
            if arrived.is_some() {
                self.dispatched.set(self.dispatched.get().saturating_sub(1));
                return Poll::Ready(arrived);
            }
            if self.is_resting.get() || spare.len() >= SPARE {
                return Poll::Ready(None);
            }
            waits.set(true);
            spare.push((Rc::clone(waits), cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Takes the request from a new stream.
    fn arrived(&self, slot: Rc<Slot>) -> StreamRequest {
        let mut state = slot.state.borrow_mut();
        let head = state.head.take().unwrap_or_default();
        let (at, invalid) = (state.opened, state.invalid);
        drop(state);
        let (stream, read) = ServerStream::new(&self.core, slot, &head, &self.streams);
        StreamRequest {
            stream: Some(stream),
            head,
            at,
            read: invalid.map_or(read, Err),
        }
    }
}

fn wake((waits, waker): (Rc<Cell<bool>>, Waker)) {
    waits.set(false);
    waker.wake();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let (head, idle, flush) = (REST, REST, REST);
        let how = ServerConfig {
            limits: HeadLimits::default(),
            timeouts: Timeouts { idle, head, flush },
            is_mesh: true,
            is_ours: true,
            until: None,
        };
        Session::new(how, Instant::now())
    }

    #[tokio::test]
    async fn a_task_that_is_woken_by_something_else_waits_once() {
        let (session, waits) = (session(), Rc::default());
        let mut next = pin!(session.next(&waits));
        for _ in 0..3 {
            poll_fn(|cx| {
                assert!(next.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            assert_eq!(session.spare.borrow().len(), 1);
        }
        session.end_spare();
        assert!(next.await.is_none());
        assert!(session.spare.borrow().is_empty() && !waits.get());
    }
}
