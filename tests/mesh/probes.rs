//! The app's probes, which the kubelet sends to the sidecar instead.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use leno_proto::health::health_check_response::ServingStatus;
use leno_proto::health::health_server::{Health, HealthServer};
use leno_proto::health::{HealthCheckRequest, HealthCheckResponse};
use leno_proto::tonic::transport::Server;
use leno_proto::tonic::{Request, Response, Status, async_trait};
use leno_tests::ca::Ca;
use leno_tests::client::get;
use leno_tests::mesh::Mesh;
use leno_tests::upstream::Upstream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::TcpListenerStream;

/// A gRPC health service that knows one service, `orders`.
struct App(Arc<AtomicI32>);

#[async_trait]
impl Health for App {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match request.get_ref().service.as_str() {
            "orders" => Ok(Response::new(HealthCheckResponse {
                status: self.0.load(Ordering::Relaxed),
            })),
            other => Err(Status::not_found(format!("no service {other}"))),
        }
    }
}

async fn serving(health: &Arc<AtomicI32>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("bound");
    let server = Server::builder().add_service(HealthServer::new(App(Arc::clone(health))));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// An app with a TLS certificate of an unknown CA; answers each request with 204.
async fn encrypted() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("bound");
    let acceptor = TlsAcceptor::from(Ca::new().server("spiffe://elsewhere/ns/a/sa/b"));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut tls) = acceptor.accept(tcp).await else {
                continue;
            };
            let mut head = [0; 1024];
            let read = tls.read(&mut head).await.unwrap_or_default();
            assert!(head[..read].starts_with(b"GET /live HTTP/1.1\r\n"));
            let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
            tls.write_all(answer).await.expect("the sidecar listens");
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_asks_the_app_by_http_and_grpc_and_whether_a_port_is_open() {
    let health = Arc::new(AtomicI32::new(ServingStatus::Serving.into()));
    let grpc = serving(&health).await.port();
    let app = Upstream::start(|seen| {
        let status = if seen.target() == "/live" {
            "200 OK"
        } else {
            "503 Busy"
        };
        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes()
    })
    .await;
    let http = app.address.port();
    let https = encrypted().await.port();
    // Only root may listen on port 1, and nothing does.
    let closed = 1;
    let probers = format!(
        r#"{{"/app-health/a/livez":{{"httpGet":{{"path":"/live","port":{http}}}}},"/app-health/a/readyz":{{"httpGet":{{"path":"/ready","port":{http}}}}},"/app-health/a/startupz":{{"httpGet":{{"path":"/live","port":{https},"scheme":"HTTPS"}}}},"/app-health/d/livez":{{"httpGet":{{"port":{http},"scheme":"HTTPS"}}}},"/app-health/b/livez":{{"tcpSocket":{{"port":{http}}}}},"/app-health/b/readyz":{{"tcpSocket":{{"port":{closed}}}}},"/app-health/c/livez":{{"grpc":{{"port":{grpc},"service":"orders"}}}},"/app-health/c/readyz":{{"grpc":{{"port":{grpc}}}}},"/app-health/c/startupz":{{"grpc":{{"port":{closed}}}}}}}"#
    );
    let mesh = Mesh::start("").await;
    let sidecar = mesh
        .proxy("web", &format!("--ip 127.0.0.1 --app-probers {probers}"))
        .await;
    let probe = async |path: &str| {
        let answer = get(sidecar.stats[0], "kubelet", path).await;
        (answer.status, answer.text())
    };
    for (path, status, words) in [
        ("/app-health/a/livez", 200, "200 OK"),
        ("/app-health/a/readyz", 503, "503"),
        ("/app-health/a/startupz", 204, ""),
        ("/app-health/d/livez", 500, "no answer"),
        ("/app-health/b/livez", 200, "is open"),
        ("/app-health/b/readyz", 500, "refused"),
        ("/app-health/c/livez", 200, "SERVING"),
        ("/app-health/c/readyz", 500, "no service"),
        ("/app-health/c/startupz", 500, "refused"),
        ("/app-health/e/livez", 404, ""),
    ] {
        let (found, said) = probe(path).await;
        assert!(
            found == status && said.contains(words),
            "{path}: {found} {said}"
        );
    }
    health.store(ServingStatus::NotServing.into(), Ordering::Relaxed);
    let (status, said) = probe("/app-health/c/livez").await;
    assert!(
        status == 503 && said.contains("NOT_SERVING"),
        "{status} {said}"
    );
}
