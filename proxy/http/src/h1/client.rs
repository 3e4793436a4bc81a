//! The client half: sends requests to a server and receives its responses.

use std::task::{Context, Poll, ready};

use super::conn::Conn;
use super::parse::parse_response;
use super::{Framing, InvalidHead, response_framing};
use crate::PeerError;
use crate::head::{FieldName, Head, Version};

/// An HTTP/1 connection to a server.
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

    /// The connection, to receive and send bodies.
    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// The connection, to inspect.
    pub fn conn_ref(&self) -> &Conn {
        &self.conn
    }

    /// Ends HTTP: all bytes from now on belong to the protocol that was switched to.
    pub fn switch(&mut self) {
        self.keep_alive = false;
        self.conn.switch();
    }

    /// Number of requests sent so far.
    pub fn requests_sent(&self) -> u64 {
        self.exchanges
    }

    /// Starts a request; its body was framed as `length` by its sender.
    pub fn request(&mut self, head: &mut Head, length: Framing) {
        self.exchanges += 1;
        self.keep_alive = false;
        if length == Framing::Chunked {
            head.set("transfer-encoding", FieldName::TransferEncoding, b"chunked");
        }
        // HTTP/2 signals an empty body by END_STREAM, HTTP/1 by a `Content-Length` of 0 (RFC 9110, section 8.6).
        if length == Framing::Empty && head.version() == Version::Http2 {
            head.remove(FieldName::ContentLength);
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
    /// [`PeerError`] when the peer closed first, or sent no acceptable response.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Head,
    ) -> Poll<Result<(), PeerError>> {
        loop {
            if !self.conn.unread().is_empty() {
                let taken = self.conn.take_head(head, parse_response);
                if taken.map_err(PeerError::Syntax)? {
                    return Poll::Ready(Ok(()));
                }
            }
            if ready!(self.conn.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(PeerError::Closed));
            }
        }
    }

    /// Starts receiving the body of the final response `head`; returns its framing.
    ///
    /// # Errors
    /// [`InvalidHead`] when the head is ambiguous about it.
    pub fn receive(&mut self, head: &Head, is_head: bool) -> Result<Framing, InvalidHead> {
        let length = response_framing(head, is_head)?;
        self.keep_alive = match head.version() {
            Version::Http11 => !head.connection_has("close"),
            Version::Http10 => head.connection_has("keep-alive"),
            Version::Http2 => true,
        } && length != Framing::UntilClose;
        self.conn.receive(length);
        Ok(length)
    }

    /// True when another request may be sent: both messages are complete, no unexpected byte was received, and the peer
    /// keeps the connection open.
    pub fn is_reusable(&self) -> bool {
        self.keep_alive
            && self.conn.is_between_messages()
            && self.conn.unread().is_empty()
            && !self.conn.has_ended()
    }

    /// True when an idle connection is usable: its peer has neither closed it nor sent anything.
    pub fn is_alive(&mut self, cx: &mut Context<'_>) -> bool {
        self.conn.poll_fill(cx).is_pending()
    }
}
