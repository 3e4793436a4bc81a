//! Protocol detection from the first bytes of a connection.

use std::future::poll_fn;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use leno_http::h1::{Conn, Timeouts};
use leno_http::h2::PREFACE;
use leno_http::head::Version;

/// Most bytes that are inspected; a ClientHello with post-quantum keys takes about 2 KiB.
const MAX_SNIFF: usize = 16 * 1024;

/// Protocol of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectedProtocol {
    /// TLS, with the plaintext part of its ClientHello.
    Tls(Hello),
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else, or nothing recognised within the time limit.
    Opaque,
}

/// Contents of a ClientHello.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// The ALPN protocols offered.
    pub alpn: Vec<Vec<u8>>,
    /// The server name (SNI), in lower case.
    pub server_name: Option<String>,
}

/// Reads from `tcp` until its protocol is detected, the time limit is over, or it ends. The bytes read are in `read`,
/// even if this is dropped.
pub async fn detect_protocol(
    tcp: &mut TcpStream,
    read: &mut Vec<u8>,
    within: Duration,
) -> DetectedProtocol {
    let deadline = Instant::now() + within;
    loop {
        match timeout_at(deadline, tcp.read_buf(read)).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => return DetectedProtocol::Opaque,
        }
        if let Some(protocol) = sniff(read) {
            return protocol;
        }
    }
}

/// Reads the first bytes of HTTP on `conn`, and detects its version; `None` when the connection ends or the idle
/// timeout passes before a byte was read.
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
            // The HTTP/1 reader reports the error.
            _ => return Some(Version::Http11),
        }
    }
}

/// Detects the protocol from its first bytes; `None` when more of them are needed.
pub fn sniff(bytes: &[u8]) -> Option<DetectedProtocol> {
    if bytes.len() >= MAX_SNIFF {
        return Some(DetectedProtocol::Opaque);
    }
    match bytes {
        [] => None,
        [0x16] => None,
        [0x16, 3, ..] => sniff_tls(bytes),
        _ if bytes.starts_with(PREFACE) => Some(DetectedProtocol::Http2),
        _ if PREFACE.starts_with(bytes) => None,
        _ => sniff_http1(bytes),
    }
}

fn sniff_tls(mut bytes: &[u8]) -> Option<DetectedProtocol> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return Some(DetectedProtocol::Opaque);
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let alpn = hello.alpn().map(|offers| offers.map(Vec::from).collect());
                return Some(DetectedProtocol::Tls(Hello {
                    alpn: alpn.unwrap_or_default(),
                    server_name: hello.server_name().map(str::to_ascii_lowercase),
                }));
            }
            // Its record header is TLS's: the TLS server reports the error.
            Err(_) => return Some(DetectedProtocol::Tls(Hello::default())),
        }
    }
    None
}

/// Detects a method, a space, and a byte that can start a target.
fn sniff_http1(bytes: &[u8]) -> Option<DetectedProtocol> {
    const LONGEST_METHOD: usize = 32;
    let end = bytes
        .iter()
        .position(|b| !b.is_ascii_uppercase() && *b != b'-');
    match end {
        None if bytes.len() <= LONGEST_METHOD => None,
        Some(end) if end > 0 && bytes[end] == b' ' => match bytes.get(end + 1) {
            None => None,
            Some(b) if b.is_ascii_graphic() => Some(DetectedProtocol::Http1),
            Some(_) => Some(DetectedProtocol::Opaque),
        },
        _ => Some(DetectedProtocol::Opaque),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_told_from_their_first_bytes() {
        for (bytes, expected) in [
            (&b""[..], None),
            (b"GET / HTTP/1.1", Some(DetectedProtocol::Http1)),
            (b"GE", None),
            (b"GET ", None),
            (b"M-SEARCH * HTTP/1.1", Some(DetectedProtocol::Http1)),
            (
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                Some(DetectedProtocol::Http2),
            ),
            (b"PRI * HT", None),
            (b"PRIVATE /", Some(DetectedProtocol::Http1)),
            (b"\x16", None),
            (b"\x16\x03\x01", None),
            (b"\x16\x02\x01", Some(DetectedProtocol::Opaque)),
            (b"SSH-2.0-OpenSSH", Some(DetectedProtocol::Opaque)),
            (b"AMQP\x00\x00\x09\x01", Some(DetectedProtocol::Opaque)),
            (b"*1\r\n$4\r\nPING", Some(DetectedProtocol::Opaque)),
            (b"get / HTTP/1.1", Some(DetectedProtocol::Opaque)),
        ] {
            assert_eq!(sniff(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(sniff(&[b'A'; 40]), Some(DetectedProtocol::Opaque));
    }
}
