//! Every protocol by which a caller may try to reach an app, and an app that answers each of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::TIMEOUT;
use crate::ca::{self, Ca, Certified, hour};
use crate::client::Client;

/// A way to reach an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/1 in plaintext.
    Http1,
    /// HTTP/2 in plaintext, with prior knowledge.
    Http2,
    /// TCP that isn't HTTP, in plaintext.
    Tcp,
    /// HTTP/1 by mutual TLS.
    Tls1,
    /// HTTP/2 by mutual TLS.
    Tls2,
    /// TCP that isn't HTTP, by mutual TLS.
    TlsTcp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Transport; 6] = [
        Transport::Http1,
        Transport::Http2,
        Transport::Tcp,
        Transport::Tls1,
        Transport::Tls2,
        Transport::TlsTcp,
    ];

    /// True without mutual TLS.
    pub fn is_plaintext(self) -> bool {
        matches!(self, Transport::Http1 | Transport::Http2 | Transport::Tcp)
    }

    /// True for HTTP.
    pub fn is_http(self) -> bool {
        !matches!(self, Transport::Tcp | Transport::TlsTcp)
    }

    fn alpn(self) -> Option<&'static [u8]> {
        match self {
            Transport::Tls1 => Some(b"istio-http/1.1"),
            Transport::Tls2 => Some(b"istio-h2"),
            Transport::TlsTcp => Some(b"istio"),
            _ => None,
        }
    }
}

/// Result of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The app answered.
    App,
    /// A sidecar answered with this status.
    Status(u16),
    /// The connection ended without an answer.
    Closed,
}

/// The app's answer to a request.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
/// A TCP payload that isn't HTTP, and the app's answer to it.
const BYTES: &[u8] = b"\x01\x02\x03no http\n";

/// Tries to reach the app at `address`; HTTP requests are `method` of `path`.
pub async fn ask(address: SocketAddr, way: Transport, ca: &Ca, method: &str, path: &str) -> Answer {
    let certified = way.alpn().map(|alpn| (alpn, caller(ca)));
    let asking = async {
        match certified {
            None => match TcpStream::connect(address).await {
                Ok(tcp) => over(tcp, way, method, path).await,
                Err(_) => Answer::Closed,
            },
            Some((alpn, certified)) => match ca::connect(address, Some(certified), &[alpn]).await {
                Ok(tls) => over(tls, way, method, path).await,
                Err(_) => Answer::Closed,
            },
        }
    };
    timeout(TIMEOUT, asking).await.expect("an answer or an end")
}

/// True when a GET, or a TCP payload, reaches the app.
pub async fn reaches_app(address: SocketAddr, way: Transport, ca: &Ca) -> bool {
    ask(address, way, ca, "GET", "/").await == Answer::App
}

/// A certificate of `default/web`.
pub fn caller(ca: &Ca) -> Certified {
    ca.certify("spiffe://cluster.local/ns/default/sa/web", hour())
}

async fn over<S>(mut stream: S, way: Transport, method: &str, path: &str) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let of = |status| match status {
        200 => Answer::App,
        status => Answer::Status(status),
    };
    match way {
        Transport::Tcp | Transport::TlsTcp => {
            let mut answer = [0; BYTES.len()];
            let sent = stream.write_all(BYTES).await.and(stream.flush().await);
            match (sent, stream.read_exact(&mut answer).await) {
                (Ok(()), Ok(_)) if answer == *BYTES => Answer::App,
                _ => Answer::Closed,
            }
        }
        Transport::Http1 | Transport::Tls1 => {
            let mut client = Client::over(stream);
            let request = format!("{method} {path} HTTP/1.1\r\nHost: users\r\n\r\n");
            client.send(request).await;
            client
                .response()
                .await
                .map_or(Answer::Closed, |r| of(r.status))
        }
        Transport::Http2 | Transport::Tls2 => {
            let Ok((sender, connection)) = h2::client::handshake(stream).await else {
                return Answer::Closed;
            };
            tokio::spawn(connection);
            let request = Request::builder().method(method);
            let request = request.uri(format!("http://users{path}"));
            let request = request.body(()).expect("a request");
            let Ok(mut sender) = sender.ready().await else {
                return Answer::Closed;
            };
            match sender.send_request(request, true) {
                Err(_) => Answer::Closed,
                Ok((response, _)) => match response.await {
                    Ok(response) => of(response.status().as_u16()),
                    Err(_) => Answer::Closed,
                },
            }
        }
    }
}

/// An app that answers HTTP of either version, and echoes other bytes.
#[derive(Clone)]
pub struct App {
    /// The address that it listens on.
    pub address: SocketAddr,
    reached: Arc<AtomicUsize>,
    paths: Arc<Mutex<Vec<String>>>,
}

impl App {
    /// Starts an app.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn start() -> App {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let app = App {
            address: listener.local_addr().expect("bound"),
            reached: Arc::default(),
            paths: Arc::default(),
        };
        let serving = app.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let app = serving.clone();
                tokio::spawn(async move { app.serve(tcp).await });
            }
        });
        app
    }

    /// Number of requests, and of TCP payloads, that reached it.
    pub fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    /// Targets of its requests, in order; empty for a TCP payload.
    pub fn paths(&self) -> Vec<String> {
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.clone()
    }

    fn record_request(&self, path: &str) {
        self.reached.fetch_add(1, Ordering::SeqCst);
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.push(path.to_owned());
    }

    async fn serve(&self, mut tcp: TcpStream) {
        let mut first = [0; 3];
        if tcp
            .peek(&mut first)
            .await
            .is_ok_and(|read| read == 3 && first == *b"PRI")
        {
            return self.serve_h2(tcp).await;
        }
        let mut read = Vec::new();
        while tcp.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&read).into_owned();
            let answer = match text.split(' ').nth(1) {
                Some(path) if text.contains(" HTTP/1.") => {
                    if !text.ends_with("\r\n\r\n") {
                        continue;
                    }
                    self.record_request(path);
                    OK
                }
                _ => {
                    self.record_request("");
                    &read
                }
            };
            if tcp.write_all(answer).await.is_err() {
                return;
            }
            read.clear();
        }
    }

    async fn serve_h2(&self, tcp: TcpStream) {
        let Ok(mut connection) = h2::server::handshake(tcp).await else {
            return;
        };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            self.record_request(request.uri().path());
            let _ = respond.send_response(Response::new(()), true);
        }
    }
}
