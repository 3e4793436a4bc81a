//! The half that faces the peer that answers requests.

use std::task::{Context, Poll, ready};

use super::conn::Conn;
use super::parse::parse_response;
use super::{Invalid, Length, response_length};
use crate::Broken;
use crate::head::{Head, Known, Version};

/// A connection on which responses come.
#[derive(Debug)]
pub struct ClientHalf {
    conn: Conn,
    keep_alive: bool,
    exchanges: u64,
}

impl ClientHalf {
    /// A client half on `conn`.
    pub fn new(conn: Conn) -> ClientHalf {
        ClientHalf {
            conn,
            keep_alive: false,
            exchanges: 0,
        }
    }

    /// The connection: its body directions.
    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// The connection, to look at.
    pub fn conn_ref(&self) -> &Conn {
        &self.conn
    }

    /// What is sent and received from now on belongs to the protocol that was switched to.
    pub fn switch(&mut self) {
        self.keep_alive = false;
        self.conn.switch();
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
            head.set("transfer-encoding", Known::TransferEncoding, b"chunked");
        }
        // What HTTP/2 says by the end of the stream (RFC 9110, section 8.6).
        if length == Length::Empty && head.version() == Version::Http2 {
            head.remove(Known::ContentLength);
            if matches!(head.method(), b"POST" | b"PUT" | b"PATCH") {
                head.add("content-length", b"0");
            }
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
            if !self.conn.unread().is_empty() {
                let taken = self.conn.take_head(head, parse_response);
                if taken.map_err(Broken::Syntax)? {
                    return Poll::Ready(Ok(()));
                }
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
            Version::Http2 => true,
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
