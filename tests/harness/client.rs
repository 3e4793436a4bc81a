//! A client that writes exactly the bytes it is given, over TCP or TLS, and reads responses one by one.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::TIMEOUT;

/// A response.
#[derive(Debug, Clone)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its head, as received, without the empty line.
    pub head: String,
    /// Its body, decoded.
    pub body: Vec<u8>,
    /// Its trailer section, as received.
    pub trailers: String,
}

impl Response {
    /// The first value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(n, _)| n.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.trim())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Leno's explanation, `proxy-status`, or nothing.
    pub fn proxy_status(&self) -> &str {
        self.header("proxy-status").unwrap_or_default()
    }
}

/// A connection.
pub struct Client<S = TcpStream> {
    stream: S,
    read: Vec<u8>,
}

impl Client {
    /// Connects to `address`.
    ///
    /// # Panics
    /// When it can't.
    pub async fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Client::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// A client over any stream.
    pub fn over(stream: S) -> Client<S> {
        Client {
            stream,
            read: Vec::new(),
        }
    }

    /// Writes bytes. A peer that has closed is not an error: its last bytes are still to be read.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
        let _ = self.stream.flush().await;
    }

    /// Shuts down our direction.
    pub async fn shutdown(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Sends a request and reads its response.
    ///
    /// # Panics
    /// When there is none.
    pub async fn round_trip(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request).await;
        self.response().await.expect("a response")
    }

    /// Opens a tunnel to `authority` by CONNECT: a success has no body, the bytes that follow are the tunnel's.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn tunnel(&mut self, authority: &str) -> Response {
        self.send(format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
        ))
        .await;
        self.response_to(true).await.expect("an answer")
    }

    /// Reads a response to a request that isn't a HEAD; `None` when the connection ends first.
    pub async fn response(&mut self) -> Option<Response> {
        self.response_to(false).await
    }

    /// Reads a response; `None` when the connection ends first.
    pub async fn response_to(&mut self, head: bool) -> Option<Response> {
        timeout(TIMEOUT, self.read_response(head))
            .await
            .ok()
            .flatten()
    }

    /// True when the connection ends within `within`, without another byte.
    pub async fn is_closed_within(&mut self, within: Duration) -> bool {
        let mut byte = [0; 1];
        self.read.is_empty()
            && matches!(
                timeout(within, self.stream.read(&mut byte)).await,
                Ok(Ok(0) | Err(_))
            )
    }

    /// Reads until the connection ends.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.read);
        let _ = timeout(TIMEOUT, self.stream.read_to_end(&mut all)).await;
        all
    }

    /// Reads exactly `count` bytes.
    ///
    /// # Panics
    /// When the connection ends first.
    pub async fn read_exact(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(
                self.more().await,
                "ended after {:?}",
                String::from_utf8_lossy(&self.read)
            );
        }
        self.read.drain(..count).collect()
    }

    async fn more(&mut self) -> bool {
        let read = timeout(TIMEOUT, self.stream.read_buf(&mut self.read)).await;
        matches!(read, Ok(Ok(count)) if count > 0)
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.read.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..at + 2).collect();
                return Some(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.read.len() < count {
            if !self.more().await {
                return None;
            }
        }
        Some(self.read.drain(..count).collect())
    }

    async fn section(&mut self) -> Option<String> {
        let mut section = String::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(section);
            }
            section.push_str(&line);
            section.push('\n');
        }
    }

    async fn read_response(&mut self, is_head: bool) -> Option<Response> {
        let head = self.section().await?;
        let mut response = Response {
            status: head.split(' ').nth(1)?.parse().ok()?,
            head,
            body: Vec::new(),
            trailers: String::new(),
        };
        if is_head || matches!(response.status, 100..=199 | 204 | 304) {
            return Some(response);
        }
        if let Some(length) = response.header("content-length") {
            let length = length.parse().ok()?;
            response.body = self.take(length).await?;
        } else if response.header("transfer-encoding").is_some() {
            loop {
                let size = usize::from_str_radix(self.line().await?.trim(), 16).ok()?;
                if size == 0 {
                    response.trailers = self.section().await?;
                    break;
                }
                response.body.extend(self.take(size).await?);
                self.line().await?;
            }
        } else {
            response.body = self.read_to_end().await;
        }
        Some(response)
    }
}

/// Sends a GET over a connection of its own.
///
/// # Panics
/// When there is no response.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Response {
    let mut client = Client::connect(address).await;
    client
        .round_trip(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
        .await
}
