//! Connections to the control plane: one address, TLS verified by SPIFFE ID, for each of its gRPC services.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use leno_proto::tonic::transport;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::tls::Credentials;
use crate::tls::client::Connector;
use leno_http::stream::connect_to;
use leno_rules::spiffe::SpiffeId;

/// Timeout of connecting to the control plane, TLS handshake included.
const CONNECT: Duration = Duration::from_secs(5);

/// Address of the control plane, and the SPIFFE ID that it must prove.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// `host:port`.
    pub address: String,
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
}

impl fmt::Display for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl ControlPlane {
    /// A dialer that presents the workload's certificate.
    ///
    /// # Errors
    /// When the address is invalid.
    pub fn mtls_dialer(&self, credentials: &Arc<Credentials>) -> Result<Dialer, String> {
        let allowed = vec![self.identity.clone()];
        let connector = Connector::new(credentials, self.host(), &[b"h2"], allowed)?;
        self.dialer(connector.config())
    }

    /// A dialer with the caller's TLS configuration.
    ///
    /// # Errors
    /// When the address is invalid.
    pub fn dialer(&self, config: Arc<ClientConfig>) -> Result<Dialer, String> {
        let name = ServerName::try_from(self.host().to_owned());
        let name = name.map_err(|error| format!("{:?}: {error}", self.address))?;
        let address = self.address.clone();
        Ok(Dialer::new(move || {
            dial(address.clone(), name.clone(), Arc::clone(&config))
        }))
    }

    fn host(&self) -> &str {
        let host = self
            .address
            .rsplit_once(':')
            .map_or(&*self.address, |(host, _)| host);
        host.trim_matches(['[', ']'])
    }
}

/// A byte stream in both directions that is `Send`, as tonic requires.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A connection that tonic speaks HTTP/2 on.
type Connection = TokioIo<Box<dyn Duplex>>;
type Dialling = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;

/// A connector for tonic. One type for every kind of connection: each further one would put another copy of the code
/// above it into the program.
#[derive(Clone)]
pub struct Dialer(Arc<dyn Fn() -> Dialling + Send + Sync>);

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

impl Dialer {
    /// A connector that calls `dial` for each connection.
    pub fn new<F, T>(dial: impl Fn() -> F + Send + Sync + 'static) -> Dialer
    where
        F: Future<Output = io::Result<T>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Dialer(Arc::new(move || {
            let dialling = dial();
            Box::pin(async move {
                let io: Box<dyn Duplex> = Box::new(dialling.await?);
                Ok(TokioIo::new(io))
            })
        }))
    }
}

impl tower::Service<transport::Uri> for Dialer {
    type Response = Connection;
    type Error = io::Error;
    type Future = Dialling;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: transport::Uri) -> Dialling {
        (self.0)()
    }
}

async fn dial(
    address: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let connecting = async {
        let tcp = connect_to(&address).await?;
        tcp.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(config);
        connector.connect(name, tcp).await
    };
    timeout(CONNECT, connecting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "not connected in time"))?
}

/// The chain of causes of a transport error; its own text says only "transport error".
pub fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
