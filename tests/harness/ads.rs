//! A scripted control plane for proxies, and a scripted proxy for control planes: a test drives either end of an xDS
//! stream.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use leno_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use leno_proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use leno_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use leno_proto::pb::envoy::config::core::v3::Node;
use leno_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    ResourceError, ResourceName,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use leno_proto::pb::google::rpc;
use leno_proto::tonic::transport::server::Connected;
use leno_proto::tonic::transport::{Channel, Endpoint, Server, Uri};
use leno_proto::tonic::{Request, Response, Status, Streaming};
use leno_proto::{Any, tonic};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use crate::ca::{self, Ca, Certified};
use crate::mesh::Proxy;
use crate::{Directory, TIMEOUT};

/// The control plane's SPIFFE ID.
const IDENTITY: &str = "spiffe://cluster.local/ns/leno-system/sa/leno";

/// A scripted control plane.
pub struct Ads {
    /// Its address.
    pub address: SocketAddr,
    streams: mpsc::UnboundedReceiver<ServerStream>,
    directory: Directory,
}

/// The server's end of a delta ADS stream.
pub struct ServerStream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    nonce: u64,
}

impl Ads {
    /// Starts one whose CA issues certificates with the lifetime `life`.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn start(life: Duration) -> Ads {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("bound");
        let authority = Arc::new(Ca::new());
        let directory = Directory::new();
        std::fs::write(directory.path().join("root.pem"), &authority.root_pem).expect("written");
        std::fs::write(directory.path().join("token"), "scripted").expect("written");
        let acceptor = TlsAcceptor::from(authority.server(IDENTITY));
        let (connections, incoming) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                if let Ok(tls) = acceptor.accept(tcp).await {
                    let _ = connections.send(Ok::<_, std::io::Error>(Tls(tls))).await;
                }
            }
        });
        let (opened, streams) = mpsc::unbounded_channel();
        let server = Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Service(opened)))
            .add_service(IstioCertificateServiceServer::new(Authority {
                authority,
                life,
            }))
            .serve_with_incoming(ReceiverStream::new(incoming));
        tokio::spawn(server);
        Ads {
            address,
            streams,
            directory,
        }
    }

    /// A proxy of service account `web`, configured with this control plane.
    pub fn proxy(&self, flags: &str) -> Proxy {
        let path = self.directory.path().display();
        Proxy::start(&format!(
            "--xds-address {} --service-account web --token-file {path}/token --ca-root {path}/root.pem {flags}",
            self.address
        ))
    }

    /// The next stream that a proxy opens.
    ///
    /// # Panics
    /// When none comes.
    pub async fn stream(&mut self) -> ServerStream {
        timeout(TIMEOUT, self.streams.recv())
            .await
            .expect("a stream")
            .expect("a stream")
    }
}

impl ServerStream {
    /// The next request.
    ///
    /// # Panics
    /// When none comes.
    pub async fn request(&mut self) -> DeltaDiscoveryRequest {
        let message = timeout(TIMEOUT, self.requests.message())
            .await
            .expect("a request");
        message.expect("no error").expect("no end")
    }

    /// The next request for which `fits` is true.
    pub async fn request_matching(
        &mut self,
        fits: impl Fn(&DeltaDiscoveryRequest) -> bool,
    ) -> DeltaDiscoveryRequest {
        loop {
            let request = self.request().await;
            if fits(&request) {
                return request;
            }
        }
    }

    /// Sends resources, each under its name and version, and returns the ACK or NACK.
    pub async fn send(
        &mut self,
        type_url: &str,
        resources: Vec<(&str, &str, Any)>,
    ) -> DeltaDiscoveryRequest {
        let resources = resources.into_iter().map(|(name, version, any)| Resource {
            name: name.to_owned(),
            version: version.to_owned(),
            resource: Some(any),
            ..Resource::default()
        });
        let response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            resources: resources.collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.send_raw(response).await
    }

    /// Reports a resource as missing, with the reason `why`.
    pub async fn send_missing(&mut self, type_url: &str, name: &str, why: &str) {
        let error = ResourceError {
            resource_name: Some(ResourceName {
                name: name.to_owned(),
                ..ResourceName::default()
            }),
            error_detail: Some(rpc::Status {
                code: 5,
                message: why.to_owned(),
                details: Vec::new(),
            }),
        };
        let response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            resource_errors: vec![error],
            ..DeltaDiscoveryResponse::default()
        };
        self.send_raw(response).await;
    }

    /// Sends a response under a nonce of its own, and returns the ACK or NACK.
    ///
    /// # Panics
    /// When the proxy has closed the stream.
    pub async fn send_raw(
        &mut self,
        mut response: DeltaDiscoveryResponse,
    ) -> DeltaDiscoveryRequest {
        self.nonce += 1;
        let nonce = format!("n{}", self.nonce);
        response.nonce.clone_from(&nonce);
        self.responses
            .send(Ok(response))
            .await
            .expect("the proxy reads");
        self.request_matching(|request| request.response_nonce == nonce)
            .await
    }
}

struct Service(mpsc::UnboundedSender<ServerStream>);

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Out<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Out<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, out) = mpsc::channel(64);
        let stream = ServerStream {
            requests: request.into_inner(),
            responses,
            nonce: 0,
        };
        let _ = self.0.send(stream);
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

struct Authority {
    authority: Arc<Ca>,
    life: Duration,
}

#[tonic::async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let name = "spiffe://cluster.local/ns/default/sa/web";
        let ends = SystemTime::now() + self.life;
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: self.authority.answer(&request.get_ref().csr, name, ends),
        }))
    }
}

/// A TLS connection that tonic serves.
struct Tls(tokio_rustls::server::TlsStream<TcpStream>);

impl Connected for Tls {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl tokio::io::AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        data: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A channel to a control plane, with or without a certificate.
///
/// # Errors
/// When the connection fails.
pub async fn channel(
    address: SocketAddr,
    certified: Option<Certified>,
) -> Result<Channel, tonic::transport::Error> {
    let certified = std::sync::Mutex::new(certified);
    let connect = tower::service_fn(move |_: Uri| {
        let own = certified.lock().ok().and_then(|mut held| held.take());
        async move { ca::connect(address, own, &[b"h2"]).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://control-plane")
        .connect_with_connector(connect)
        .await
}

/// Requests a certificate from a control plane, by token.
///
/// # Errors
/// The control plane's refusal.
///
/// # Panics
/// When the cryptography fails.
pub async fn certificate(address: SocketAddr, token: &str) -> Result<Certified, Status> {
    let key = KeyPair::generate().expect("a key");
    let request = CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    let mut request = Request::new(IstioCertificateRequest {
        csr: request.pem().expect("PEM"),
        ..IstioCertificateRequest::default()
    });
    let bearer = format!("Bearer {token}").parse().expect("ASCII");
    request.metadata_mut().insert("authorization", bearer);
    let channel = channel(address, None)
        .await
        .expect("the control plane answers");
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(request)
        .await?;
    let chain = answer.into_inner().cert_chain;
    let chain = chain
        .iter()
        .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM"));
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((chain.collect(), key))
}

/// The client's end of a delta ADS stream.
pub struct ClientStream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl ClientStream {
    /// Opens a stream as `certified`, with its first request.
    ///
    /// # Errors
    /// The control plane's refusal.
    pub async fn open(
        address: SocketAddr,
        certified: Option<Certified>,
        first: DeltaDiscoveryRequest,
    ) -> Result<ClientStream, Status> {
        let channel = channel(address, certified).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let (requests, out) = mpsc::channel(64);
        let _ = requests.try_send(first);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client
            .delta_aggregated_resources(ReceiverStream::new(out))
            .await?;
        Ok(ClientStream {
            requests,
            responses: responses.into_inner(),
        })
    }

    /// Sends a request.
    ///
    /// # Panics
    /// When the control plane has closed the stream.
    pub async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests
            .send(request)
            .await
            .expect("the control plane reads");
    }

    /// The next response.
    ///
    /// # Errors
    /// The status that ended the stream.
    ///
    /// # Panics
    /// When none comes.
    pub async fn response(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = timeout(TIMEOUT, self.responses.message())
            .await
            .expect("a response")?;
        message.ok_or_else(|| Status::cancelled("the stream ended"))
    }

    /// True when no response comes within `within`.
    pub async fn is_quiet(&mut self, within: Duration) -> bool {
        timeout(within, self.responses.message()).await.is_err()
    }
}

/// A subscription; the first request of a stream carries a node.
pub fn subscribe(type_url: &str, names: &[&str], node: Option<&str>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        node: node.map(|id| Node {
            id: id.to_owned(),
            user_agent_name: "leno-proxy".to_owned(),
            ..Node::default()
        }),
        ..DeltaDiscoveryRequest::default()
    }
}
