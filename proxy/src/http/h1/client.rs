//! The half that faces the peer that answers requests.

use std::task::{Context, Poll, ready};

use super::conn::Conn;
use super::parse::{find_end, parse_response};
use super::{Invalid, Length, response_length};
use crate::http::Broken;
use crate::http::head::{Head, Version};

/// A connection on which responses come.
#[derive(Debug)]
pub struct ClientHalf {
    conn: Conn,
    scanned: usize,
    keep_alive: bool,
    exchanges: u64,
}

impl ClientHalf {
    /// A client half on `conn`.
    pub fn new(conn: Conn) -> ClientHalf {
        ClientHalf {
            conn,
            scanned: 0,
            keep_alive: false,
            exchanges: 0,
        }
    }

    /// The connection: its body directions.
    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// How many requests were sent before the one under way.
    pub fn exchanges(&self) -> u64 {
        self.exchanges
    }

    /// Starts a request whose body has `length` as its sender framed it.
    pub fn request(&mut self, head: &mut Head, length: Length) {
        self.exchanges += 1;
        self.keep_alive = false;
        if length == Length::Chunked {
            head.add("transfer-encoding", b"chunked");
        }
        self.conn.send(length, |out| {
            head.write_request(out);
            out.extend_from_slice(b"\r\n");
        });
    }

    /// Waits for a response's head.
    ///
    /// # Errors
    /// [`Broken`] when the peer left first, or what it sent isn't an acceptable response.
    pub fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut Head) -> Poll<Result<(), Broken>> {
        loop {
            let limit = self.conn.limits().head_bytes;
            let unread = self.conn.unread();
            let end = find_end(unread, self.scanned);
            self.scanned = if end.is_some() { 0 } else { unread.len() };
            if end.is_some_and(|end| end > limit) || (end.is_none() && unread.len() >= limit) {
                return Poll::Ready(Err(Broken::Syntax(Invalid::TooLarge(limit))));
            }
            if let Some(end) = end {
                self.conn.take_head(end, head);
                let parsed = parse_response(head, self.conn.limits());
                return Poll::Ready(parsed.map_err(Broken::Syntax));
            }
            if ready!(self.conn.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(Broken::Closed));
            }
        }
    }

    /// Starts receiving the body of the final response `head`; returns how it is framed.
    ///
    /// # Errors
    /// [`Invalid`] when the head leaves a doubt about it.
    pub fn receive(&mut self, head: &Head, is_head: bool) -> Result<Length, Invalid> {
        let length = response_length(head, is_head)?;
        self.keep_alive = match head.version() {
            Version::Http11 => !head.connection_has("close"),
            Version::Http10 => head.connection_has("keep-alive"),
        } && length != Length::UntilClose;
        self.conn.receive(length);
        Ok(length)
    }

    /// Whether another request may be sent on it: both messages are whole, nothing came that wasn't asked for, and the
    /// peer keeps the connection.
    pub fn is_reusable(&self) -> bool {
        self.keep_alive
            && self.conn.is_between_messages()
            && self.conn.unread().is_empty()
            && !self.conn.has_ended()
    }

    /// Whether an idle connection is still good: its peer has neither closed nor sent anything.
    pub fn is_alive(&mut self, cx: &mut Context<'_>) -> bool {
        self.conn.poll_fill(cx).is_pending()
    }
}
