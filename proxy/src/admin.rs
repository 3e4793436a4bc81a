//! The admin port, on loopback: `/ready`, `/config`, `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::directory::Directory;
use crate::drain::Watch;
use crate::observe::metrics::Metrics;
use crate::status::Status;
use crate::tls::Credentials;

/// What the admin port shows.
#[derive(Debug)]
pub struct Admin {
    /// Who we are.
    pub node: String,
    /// What runs.
    pub directory: Arc<Directory>,
    /// What we prove ourselves with.
    pub credentials: Arc<Credentials>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// What `/config` shows.
    pub status: Arc<Status>,
}

impl Admin {
    /// Serves until the end.
    pub async fn serve(self, listener: TcpListener, watch: Watch) {
        let admin = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = watch.ended() => return,
            };
            let Ok((tcp, _)) = accepted else {
                continue;
            };
            let admin = Arc::clone(&admin);
            tokio::task::spawn_local(async move {
                let answer = |request| {
                    let response = admin.answer(&request);
                    async { Ok::<_, Infallible>(response) }
                };
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(tcp), service_fn(answer));
                // Whoever asks may leave at any time.
                let _ = connection.await;
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n");
        }
        match request.uri().path() {
            "/ready" => self.ready(),
            "/config" => {
                let value = self
                    .status
                    .render(&self.node, &self.directory, &self.credentials);
                respond(StatusCode::OK, "application/json", format!("{value:#}\n"))
            }
            "/metrics" => {
                let kind = "text/plain; version=0.0.4";
                respond(StatusCode::OK, kind, self.metrics.render())
            }
            _ => {
                let text = "there is /ready, /config and /metrics\n";
                respond(StatusCode::NOT_FOUND, "text/plain", text)
            }
        }
    }

    /// Ready is a valid certificate and an accepted inbound Listener with what it names.
    fn ready(&self) -> Response<Full<Bytes>> {
        let identity = self.credentials.identity();
        let valid = identity.is_some_and(|i| std::time::SystemTime::now() < i.not_after);
        let missing = match (valid, self.directory.has_inbound()) {
            (true, true) => return respond(StatusCode::OK, "text/plain", "ready\n"),
            (false, _) => "no valid certificate",
            (true, false) => "no inbound configuration",
        };
        let text = format!("not ready: {missing}; {}\n", self.directory.link().words);
        respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", text)
    }
}

fn respond(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
