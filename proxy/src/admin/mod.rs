//! Admin endpoints: the admin port on loopback (`/ready`, `/config`, `/metrics`), and the two ports that Prometheus
//! scrapes (`/stats/prometheus`, `/metrics`; 15020 with the app's own merged in, `/healthz/ready`, and the app's probes
//! under `/app-health/`).

mod merge;
mod probe;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

pub use merge::AppMetrics;
pub use probe::AppProbers;

use crate::directory::Directory;
use crate::drain::Watch;
use crate::observe::metrics::Metrics;
use crate::status::Status;
use crate::tls::Credentials;

/// State that the admin endpoints read.
#[derive(Debug)]
pub struct Admin {
    /// Node id.
    pub node: String,
    /// Running configuration, and the state of the xDS stream.
    pub directory: Arc<Directory>,
    /// The workload's certificate.
    pub credentials: Arc<Credentials>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Contents of `/config`.
    pub status: Arc<Status>,
    /// The app's own metrics, if they are to be merged in.
    pub app: Option<AppMetrics>,
    /// The app's probes, made in the kubelet's place, and the workload's address.
    pub probers: Option<(AppProbers, IpAddr)>,
}

/// A port of the admin endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// 15000, for operators on the machine.
    Admin,
    /// 15020, for Prometheus and the kubelet: metrics merged with the app's, readiness, the app's probes.
    Merged,
    /// 15090, for Prometheus: the sidecar's own.
    Own,
}

impl Admin {
    /// Serves `port` until the proxy ends.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, port: Port, watch: Watch) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = watch.ended() => return,
            };
            let Ok((tcp, _)) = accepted else {
                continue;
            };
            let admin = Arc::clone(&self);
            tokio::task::spawn_local(async move {
                let answer =
                    async |request| Ok::<_, Infallible>(admin.answer(port, &request).await);
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(tcp), service_fn(answer));
                // The client may disconnect at any time.
                let _ = connection.await;
            });
        }
    }

    async fn answer(&self, port: Port, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n");
        }
        match (port, request.uri().path()) {
            (Port::Admin, "/ready") | (Port::Merged, "/healthz/ready" | "/ready") => self.ready(),
            (Port::Merged, "/metrics" | "/stats/prometheus") => self.merged().await,
            (Port::Merged, path) if path.starts_with("/app-health/") => self.probe(path).await,
            (_, "/metrics" | "/stats/prometheus") => exposition(self.metrics.render()),
            (Port::Admin, "/config") => {
                let value = self
                    .status
                    .render(&self.node, &self.directory, &self.credentials);
                respond(StatusCode::OK, "application/json", format!("{value:#}\n"))
            }
            _ => {
                let text = match port {
                    Port::Admin => "there is /ready, /config and /metrics\n",
                    Port::Merged => "there is /stats/prometheus, /metrics and /healthz/ready\n",
                    Port::Own => "there is /stats/prometheus and /metrics\n",
                };
                respond(StatusCode::NOT_FOUND, "text/plain", text)
            }
        }
    }

    /// The app's answer to a probe.
    async fn probe(&self, path: &str) -> Response<Full<Bytes>> {
        let answer = match &self.probers {
            Some((probers, ip)) => probers.probe(path, *ip).await,
            None => None,
        };
        let none = || (StatusCode::NOT_FOUND, format!("there is no probe {path}\n"));
        let (status, text) = answer.unwrap_or_else(none);
        respond(status, "text/plain", text)
    }

    /// The sidecar's metrics, followed by the app's if there are any.
    async fn merged(&self) -> Response<Full<Bytes>> {
        let Some(app) = &self.app else {
            return exposition(self.metrics.render());
        };
        let fetched = app.fetch().await;
        if let Err(error) = &fetched {
            self.metrics.app_failures.inc();
            tracing::warn!(error, "the app's metrics are missing from this scrape");
        }
        let mut all = self.metrics.render();
        // OpenMetrics ends with `# EOF`, which would end the whole exposition.
        let theirs = fetched.unwrap_or_default().replace("# EOF", "#");
        all.push_str(&theirs);
        exposition(all)
    }

    /// Readiness: a valid certificate, and an accepted inbound Listener with the resources that it names.
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

fn exposition(text: String) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "text/plain; version=0.0.4", text)
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
