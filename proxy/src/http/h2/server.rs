//! A connection on which a peer opens streams.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::core::{Core, Role};
use super::driver::Driver;
use super::frame::Reason;
use super::heads::Peer;
use super::stream::{Opened, ServerStream, Streams};
use super::{FAREWELL, MAX_STREAMS};
use crate::http::h1::{Invalid, Limits, Timeouts};
use crate::http::head::Head;
use crate::stream::Stream;

/// Tasks that wait for a next request, so that most need none of their own made.
const SPARE: usize = MAX_STREAMS as usize;
/// How long after the last request they wait.
const REST: Duration = Duration::from_secs(1);

/// A request that a peer opened a stream for.
#[derive(Debug)]
pub struct Arrived {
    /// Where it came, and where its response goes.
    pub stream: ServerStream,
    /// Its head.
    pub head: Head,
    /// Why that isn't one, if it isn't.
    pub read: Result<(), Invalid>,
}

/// How the streams of a connection are served.
#[derive(Debug)]
pub struct Served {
    /// Bounds on messages.
    pub limits: Limits,
    /// How long the peer may take.
    pub timeouts: Timeouts,
    /// Whether it proved to be in the mesh.
    pub is_mesh: bool,
    /// Whether it is a sidecar of ours, which carries what others sent it in any version.
    pub is_ours: bool,
    /// When its certificate ends: from then on it may open no stream.
    pub until: Option<Instant>,
}

impl Served {
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

/// A connection that is served.
#[derive(Debug)]
struct Session {
    core: Rc<RefCell<Core>>,
    how: Served,
    streams: Rc<Streams>,
    began: Instant,
    /// When it was told to end.
    closed: Option<Instant>,
}

/// Requests on their way to the tasks that serve them.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arrived>,
    /// Tasks that wait for one, each with whether it does, so that none stands there twice.
    spare: Vec<(Rc<Cell<bool>>, Waker)>,
    /// Whether none waits, since none comes for now.
    is_resting: bool,
}

impl Queue {
    /// Ends the spare tasks.
    fn rest(&mut self) {
        self.is_resting = true;
        self.spare.drain(..).for_each(wake);
    }
}

/// Serves the streams that the peer opens on `io`, of which `read` was read, each by what `handle` makes, until
/// the connection ends. It is ended in two steps (RFC 9113, section 6.8) when `closing` is ready, when no stream has been
/// open for long, or when the peer's certificate ends.
pub async fn serve<F: Future<Output = ()> + 'static>(
    io: Stream,
    read: Vec<u8>,
    how: Served,
    closing: impl Future<Output = ()>,
    handle: impl Fn(Arrived) -> F + 'static,
) {
    let now = Instant::now();
    let core = Core::new(Role::Server, how.peer(), how.limits, now);
    let mut session = Session {
        core: Rc::new(RefCell::new(core)),
        how,
        streams: Rc::default(),
        began: now,
        closed: None,
    };
    let mut driver = Driver::new(io, read, &session.core);
    let (queue, handle) = (Rc::<RefCell<Queue>>::default(), Rc::new(handle));
    let mut closing = pin!(closing);
    loop {
        let rest = session.rest(&queue.borrow());
        let wake = rest.map_or(session.wake(), |rest| rest.min(session.wake()));
        let is_open = session.closed.is_none();
        tokio::select! {
            biased;
            () = poll_fn(|cx| {
                let ended = driver.poll(cx, |_| {});
                session.hand_out(&queue, &handle);
                ended
            }) => break,
            () = &mut closing, if is_open => session.close(),
            () = sleep_until(wake) => {
                // Streams may have begun or ended meanwhile.
                let now = Instant::now();
                if rest.is_some_and(|rest| rest <= now) && session.streams.count.get() == 0 {
                    queue.borrow_mut().rest();
                }
                let is_due = session.wake() <= now;
                match session.closed {
                    _ if is_due && !session.core.borrow().is_settled() => break,
                    Some(_) if is_due => break,
                    None if is_due || session.how.is_over(now) => session.close(),
                    _ => {}
                }
            }
        }
    }
    let end = session.core.borrow_mut().over();
    if let Some(error) = end {
        tracing::info!(%error, "HTTP/2 connection ended");
    }
    queue.borrow_mut().rest();
}

impl Session {
    /// When to look at it again: it is idle for too long then, or has had time enough to begin or to end.
    fn wake(&self) -> Instant {
        let now = Instant::now();
        if !self.core.borrow().is_settled() {
            return self.began + self.how.timeouts.head;
        }
        let since = match self.streams.count.get() {
            0 => self.streams.idle_since.get(),
            _ => now,
        };
        match (self.closed, self.how.until) {
            (Some(closed), _) => since.max(closed) + FAREWELL,
            (None, Some(until)) => until.min(since + self.how.timeouts.idle),
            (None, None) => since + self.how.timeouts.idle,
        }
    }

    /// When the tasks that wait for requests may end, if there are any.
    fn rest(&self, queue: &Queue) -> Option<Instant> {
        let since = match self.streams.count.get() {
            0 => self.streams.idle_since.get(),
            _ => Instant::now(),
        };
        (!queue.is_resting).then(|| since + REST)
    }

    fn close(&mut self) {
        self.closed = Some(Instant::now());
        self.core.borrow_mut().shut_down();
    }

    /// Gives each request that came to a task.
    fn hand_out<F: Future<Output = ()> + 'static>(
        &self,
        queue: &Rc<RefCell<Queue>>,
        handle: &Rc<impl Fn(Arrived) -> F + 'static>,
    ) {
        loop {
            let request = self.core.borrow_mut().arrived.pop_front();
            let Some(request) = request else { return };
            let opened = Opened::new(&self.streams);
            let (mut stream, head, read) = ServerStream::new(&self.core, request, opened);
            if self.how.until.is_some() && self.how.is_over(Instant::now()) {
                stream.reset(Reason::REFUSED_STREAM);
                continue;
            }
            // One that its peer took back is no longer counted by the connection, but may still be worked on here.
            let is_crowded = self.streams.count.get() > 2 * MAX_STREAMS as usize;
            // A sidecar speaks for many callers, who may all give up when the app hangs.
            let is_flood = !self.how.is_mesh && self.core.borrow().is_flood();
            if is_crowded || is_flood {
                return self.core.borrow_mut().calm();
            }
            let arrived = Arrived { stream, head, read };
            let mut waiting = queue.borrow_mut();
            waiting.is_resting = false;
            waiting.waiting.push_back(arrived);
            match waiting.spare.pop() {
                Some(spare) => wake(spare),
                None => {
                    let (queue, handle) = (Rc::clone(queue), Rc::clone(handle));
                    tokio::task::spawn_local(async move {
                        let waits = Rc::default();
                        while let Some(arrived) = next(&queue, &waits).await {
                            handle(arrived).await;
                        }
                    });
                }
            }
        }
    }
}

fn wake((waits, waker): (Rc<Cell<bool>>, Waker)) {
    waits.set(false);
    waker.wake();
}

/// The next request; `None` when none comes, or enough others wait for one. Whether the task `waits` is in the queue.
async fn next(queue: &RefCell<Queue>, waits: &Rc<Cell<bool>>) -> Option<Arrived> {
    poll_fn(|cx| {
        let mut queue = queue.borrow_mut();
        if waits.replace(false) {
            // Something else woke it: it is no spare one any more.
            queue.spare.retain(|(other, _)| !Rc::ptr_eq(other, waits));
        }
        if let Some(arrived) = queue.waiting.pop_front() {
            return Poll::Ready(Some(arrived));
        }
        if queue.is_resting || queue.spare.len() >= SPARE {
            return Poll::Ready(None);
        }
        waits.set(true);
        queue.spare.push((Rc::clone(waits), cx.waker().clone()));
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_is_woken_by_something_else_waits_once() {
        let (queue, waits) = (RefCell::<Queue>::default(), Rc::default());
        let mut next = pin!(next(&queue, &waits));
        for _ in 0..3 {
            poll_fn(|cx| {
                assert!(next.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            assert_eq!(queue.borrow().spare.len(), 1);
        }
        queue.borrow_mut().rest();
        assert!(next.await.is_none());
        assert!(queue.borrow().spare.is_empty() && !waits.get());
    }
}
