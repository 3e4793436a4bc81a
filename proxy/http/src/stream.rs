//! A byte stream to a peer: plain TCP, or TLS over it in either role. One concrete type, so that the path above it is
//! compiled once.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};

/// Idle time after which TCP keepalive probes the peer.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Unanswered probes after which the peer counts as gone: a minute after its last sign of life.
const PROBES: u32 = 3;

/// `SO_PRIORITY` of the sidecar's own connections, by which the rules of `init` match all of their packets: those of a
/// socket that its owner has closed have no user ID any more. The kernel queues it as it queues 0.
pub const SOCKET_PRIORITY: u32 = 4;

/// Connects to `address`, from the local address `source` if there is one. This and [`connect_to`] are how the sidecar
/// dials, except for its app's metrics.
///
/// # Errors
/// When the connection can't be established.
pub async fn connect_from(source: Option<IpAddr>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Without the rules the priority has no use.
    let _ = SockRef::from(&socket).set_priority(SOCKET_PRIORITY);
    if let Some(source) = source {
        socket.bind((source, 0).into())?;
    }
    socket.connect(address).await
}

/// Connects to `host:port`: to the first of its addresses that accepts a connection.
///
/// # Errors
/// The error of the last address; or `NotFound` when there is none.
pub async fn connect_to(authority: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host(authority).await? {
        match connect_from(None, address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Sets the options of every connection, to a peer at `peer`: `TCP_NODELAY`, since messages are written whole and
/// waiting to fill a segment would only delay them; and keepalive, so that a vanished peer is noticed on an idle
/// connection. A peer on this machine doesn't vanish without the kernel reporting it.
pub fn tune(tcp: &TcpStream, peer: SocketAddr) {
    let _ = tcp.set_nodelay(true);
    if peer.ip().to_canonical().is_loopback() {
        return;
    }
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / PROBES)
        .with_retries(PROBES);
    let _ = SockRef::from(tcp).set_tcp_keepalive(&keepalive);
}

/// The address in its usual form: an IPv4-mapped IPv6 address, as a dual-stack socket reports it, becomes IPv4.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A TCP connection; its first bytes may have been read already, to detect the protocol.
#[derive(Debug)]
pub struct PrefixedTcp {
    tcp: TcpStream,
    read: Vec<u8>,
}

impl PrefixedTcp {
    /// A connection of which no byte was read.
    pub fn new(tcp: TcpStream) -> PrefixedTcp {
        PrefixedTcp::with_prefix(tcp, Vec::new())
    }

    /// A connection of which `read` was read; these bytes are read again first.
    pub fn with_prefix(tcp: TcpStream, read: Vec<u8>) -> PrefixedTcp {
        PrefixedTcp { tcp, read }
    }

    /// The TCP connection.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl AsyncRead for PrefixedTcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.tcp).poll_read(cx, buf);
        }
        let count = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..count]);
        self.read.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PrefixedTcp {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// A duplex byte stream over any transport.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Debug {}

impl<T: AsyncRead + AsyncWrite + Unpin + Debug> Duplex for T {}

/// A byte stream to a peer.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Plain(PrefixedTcp),
    /// TLS, as its server.
    TlsServer(Box<tokio_rustls::server::TlsStream<PrefixedTcp>>),
    /// TLS, as its client.
    TlsClient(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// A stream inside another connection, such as an HTTP/2 tunnel.
    Tunnel(Box<dyn Duplex>),
}

impl Stream {
    /// The negotiated ALPN protocol.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Stream::TlsServer(tls) => tls.get_ref().1.alpn_protocol(),
            Stream::TlsClient(tls) => tls.get_ref().1.alpn_protocol(),
            Stream::Plain(_) | Stream::Tunnel(_) => None,
        }
    }

    /// The local address of the TCP connection; `None` for a stream inside another connection.
    pub fn local_address(&self) -> Option<SocketAddr> {
        let tcp = match self {
            Stream::Plain(socket) => socket.tcp(),
            Stream::TlsServer(tls) => tls.get_ref().0.tcp(),
            Stream::TlsClient(tls) => tls.get_ref().0,
            Stream::Tunnel(_) => return None,
        };
        tcp.local_addr().ok()
    }

    /// Ready when a read may make progress. Far cheaper than a read that is pending.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let (has_some, tcp) = match self {
            Stream::Plain(socket) => (!socket.read.is_empty(), socket.tcp()),
            // rustls wants no more input while it holds plaintext.
            Stream::TlsServer(tls) => {
                let (socket, connection) = tls.get_ref();
                let has_some = !connection.wants_read() || !socket.read.is_empty();
                (has_some, socket.tcp())
            }
            Stream::TlsClient(tls) => {
                let (tcp, connection) = tls.get_ref();
                (!connection.wants_read(), tcp)
            }
            Stream::Tunnel(_) => return Poll::Ready(()),
        };
        if has_some {
            return Poll::Ready(());
        }
        // A broken socket is readable: the read then returns its error.
        tcp.poll_read_ready(cx).map(drop)
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($io) => {
                let $io = Pin::new($io);
                $call
            }
            Stream::TlsServer($io) => {
                let $io = Pin::new($io.as_mut());
                $call
            }
            Stream::TlsClient($io) => {
                let $io = Pin::new($io.as_mut());
                $call
            }
            Stream::Tunnel($io) => {
                let $io = Pin::new($io.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write(cx, data))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }
}
