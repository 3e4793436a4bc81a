//! How the control plane is reached: one address, TLS with its SPIFFE ID, for the stream and for certificates.

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
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::stream::connect_to;
use crate::tls::client::Connector;
use crate::tls::{Credentials, SpiffeId};

/// How long a connection to the control plane may take, TLS included.
const CONNECT: Duration = Duration::from_secs(5);

/// Where the control plane is, and who it must prove to be.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host:port`.
    pub address: String,
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl Target {
    /// A connector that proves who we are by our certificate.
    ///
    /// # Errors
    /// When the address isn't one.
    pub fn connector(&self, credentials: &Arc<Credentials>) -> Result<Dialer, String> {
        let allowed = vec![self.identity.clone()];
        let connector = Connector::new(credentials, self.host(), &[b"h2"], allowed)?;
        self.dialer(connector.config())
    }

    /// A connector with a TLS configuration of the caller's.
    ///
    /// # Errors
    /// When the address isn't one.
    pub fn dialer(&self, config: Arc<ClientConfig>) -> Result<Dialer, String> {
        let name = ServerName::try_from(self.host().to_owned());
        Ok(Dialer {
            address: self.address.clone(),
            name: name.map_err(|error| format!("{:?}: {error}", self.address))?,
            config,
        })
    }

    fn host(&self) -> &str {
        let host = self
            .address
            .rsplit_once(':')
            .map_or(&*self.address, |(host, _)| host);
        host.trim_matches(['[', ']'])
    }
}

/// Dials the control plane, for tonic.
#[derive(Debug, Clone)]
pub struct Dialer {
    address: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl Dialer {
    async fn dial(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let tcp = connect_to(&self.address).await?;
        tcp.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(self.config);
        Ok(TokioIo::new(connector.connect(self.name, tcp).await?))
    }
}

impl tower::Service<transport::Uri> for Dialer {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: transport::Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            timeout(CONNECT, dialer.dial())
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "not connected in time"))?
        })
    }
}

/// The chain of causes of a transport error; its own text says only "transport error".
pub fn words(error: &dyn std::error::Error) -> String {
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
