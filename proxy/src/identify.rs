//! What a connection carries, told from its first bytes.

use std::future::poll_fn;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use leno_http::h1::{Conn, Timeouts};
use leno_http::h2::PREFACE;
use leno_http::head::Version;

/// First bytes that are looked at; a ClientHello with post-quantum keys takes about 2 KiB.
const MAX_SNIFF: usize = 16 * 1024;

/// What a connection carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// TLS, with what its client says in the clear.
    Tls(Hello),
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else, or nothing within the time that was given.
    Opaque,
}

/// What a ClientHello says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// The ALPN protocols that are offered.
    pub alpn: Vec<Vec<u8>>,
    /// The name of the server that is wanted.
    pub server_name: Option<String>,
}

/// Reads from `tcp` until its protocol is told, its time is over, or it ends. What was read is in `read`, also when this is dropped.
pub async fn identify(tcp: &mut TcpStream, read: &mut Vec<u8>, within: Duration) -> Protocol {
    let deadline = Instant::now() + within;
    loop {
        match timeout_at(deadline, tcp.read_buf(read)).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => return Protocol::Opaque,
        }
        if let Some(protocol) = sniff(read) {
            return protocol;
        }
    }
}

/// Reads the first bytes of HTTP on `conn`, and tells its version; `None` when nothing comes for as long as it may be
/// idle.
pub async fn http_version(conn: &mut Conn, timeouts: &Timeouts) -> Option<Version> {
    let mut until = Instant::now() + timeouts.idle;
    loop {
        match conn.unread() {
            read if read.starts_with(PREFACE) => return Some(Version::Http2),
            read if !PREFACE.starts_with(read) => return Some(Version::Http11),
            _ => {}
        }
        match timeout_at(until, poll_fn(|cx| conn.poll_fill(cx))).await {
            Ok(Ok(count)) if count > 0 => until = until.min(Instant::now() + timeouts.head),
            _ if conn.unread().is_empty() => return None,
            // Whoever reads it finds the words for what is wrong.
            _ => return Some(Version::Http11),
        }
    }
}

/// Tells the protocol from its first bytes; `None` when more of them are needed.
pub fn sniff(bytes: &[u8]) -> Option<Protocol> {
    if bytes.len() >= MAX_SNIFF {
        return Some(Protocol::Opaque);
    }
    match bytes {
        [] => None,
        [0x16] => None,
        [0x16, 3, ..] => sniff_tls(bytes),
        _ if bytes.starts_with(PREFACE) => Some(Protocol::Http2),
        _ if PREFACE.starts_with(bytes) => None,
        _ => sniff_http1(bytes),
    }
}

fn sniff_tls(mut bytes: &[u8]) -> Option<Protocol> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return Some(Protocol::Opaque);
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let alpn = hello.alpn().map(|offers| offers.map(Vec::from).collect());
                return Some(Protocol::Tls(Hello {
                    alpn: alpn.unwrap_or_default(),
                    server_name: hello.server_name().map(str::to_ascii_lowercase),
                }));
            }
            // It says that it is TLS: whoever terminates it finds the words for what is wrong.
            Err(_) => return Some(Protocol::Tls(Hello::default())),
        }
    }
    None
}

/// A method, a space, and something that can start a target.
fn sniff_http1(bytes: &[u8]) -> Option<Protocol> {
    const LONGEST_METHOD: usize = 32;
    let end = bytes
        .iter()
        .position(|b| !b.is_ascii_uppercase() && *b != b'-');
    match end {
        None if bytes.len() <= LONGEST_METHOD => None,
        Some(end) if end > 0 && bytes[end] == b' ' => match bytes.get(end + 1) {
            None => None,
            Some(b) if b.is_ascii_graphic() => Some(Protocol::Http1),
            Some(_) => Some(Protocol::Opaque),
        },
        _ => Some(Protocol::Opaque),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_told_from_their_first_bytes() {
        for (bytes, expected) in [
            (&b""[..], None),
            (b"GET / HTTP/1.1", Some(Protocol::Http1)),
            (b"GE", None),
            (b"GET ", None),
            (b"M-SEARCH * HTTP/1.1", Some(Protocol::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Http2)),
            (b"PRI * HT", None),
            (b"PRIVATE /", Some(Protocol::Http1)),
            (b"\x16", None),
            (b"\x16\x03\x01", None),
            (b"\x16\x02\x01", Some(Protocol::Opaque)),
            (b"SSH-2.0-OpenSSH", Some(Protocol::Opaque)),
            (b"AMQP\x00\x00\x09\x01", Some(Protocol::Opaque)),
            (b"*1\r\n$4\r\nPING", Some(Protocol::Opaque)),
            (b"get / HTTP/1.1", Some(Protocol::Opaque)),
        ] {
            assert_eq!(sniff(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(sniff(&[b'A'; 40]), Some(Protocol::Opaque));
    }
}
