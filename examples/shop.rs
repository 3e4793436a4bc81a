//! The shop's services, small: user-service serves users, order-service requests them through its sidecar.
//!
//! Each request is a line of JSON in the app's own log, as the app saw it: no other program writes there.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, client, server};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

/// One service of the shop.
#[derive(Debug, Parser)]
struct Args {
    /// user-service or order-service.
    #[arg(long)]
    service: String,
    /// Its version, which it says in every answer.
    #[arg(long, default_value = "v1")]
    version: String,
    /// Where it listens; the address is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where its sidecar takes its own requests.
    #[arg(long)]
    sidecar: Option<SocketAddr>,
    /// Its request log.
    #[arg(long)]
    log: PathBuf,
}

struct App {
    args: Args,
    log: Mutex<File>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let log = OpenOptions::new().create(true).append(true).open(&args.log);
    let log = log.with_context(|| args.log.display().to_string())?;
    let listener = TcpListener::bind(args.listen).await?;
    println!("{}", listener.local_addr()?);
    let app = Arc::new(App {
        args,
        log: Mutex::new(log),
    });
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            let answer = |request: Request<Incoming>| {
                let app = Arc::clone(&app);
                async move {
                    let (head, body) = request.into_parts();
                    // Reads the body, as apps do, and drops it.
                    let _ = Limited::new(body, 1024 * 1024).collect().await;
                    let request = Request::from_parts(head, ());
                    Ok::<_, Infallible>(app.answer(request).await)
                }
            };
            let http = server::conn::http1::Builder::new();
            let _ = http
                .serve_connection(TokioIo::new(tcp), service_fn(answer))
                .await;
        });
    }
}

impl App {
    async fn answer(&self, request: Request<()>) -> Response<Full<Bytes>> {
        let header = |name: &str| {
            let value = request.headers().get(name);
            value
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let line = json!({
            "service": self.args.service,
            "version": self.args.version,
            "method": request.method().as_str(),
            "path": request.uri().path(),
            "x-request-id": header("x-request-id"),
            "x-forwarded-client-cert": header("x-forwarded-client-cert"),
            "traceparent": header("traceparent"),
            "x-envoy-attempt-count": header("x-envoy-attempt-count"),
        });
        if let Ok(mut log) = self.log.lock() {
            // One write: lines of concurrent requests never mix.
            let _ = log.write_all(format!("{line}\n").as_bytes());
        }
        // Slow while this file exists.
        if self.args.log.with_extension("slow").exists() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        // Broken while this file exists.
        if self.args.log.with_extension("broken").exists() {
            return respond(
                StatusCode::INTERNAL_SERVER_ERROR,
                json!({"error": "broken"}),
            );
        }
        let path = request.uri().path().to_owned();
        match path.trim_start_matches('/').split_once('/') {
            Some(("users", id)) => self.user(request.method(), id),
            Some(("orders", id)) => self.order(id, &header("user-agent")).await,
            _ => respond(StatusCode::NOT_FOUND, json!({"error": "no such thing"})),
        }
    }

    fn user(&self, method: &Method, id: &str) -> Response<Full<Bytes>> {
        let user =
            json!({"id": id, "name": "Ada", "secret": "MARKER-7f3a", "version": self.args.version});
        match *method {
            Method::GET | Method::POST => respond(StatusCode::OK, user),
            _ => respond(
                StatusCode::METHOD_NOT_ALLOWED,
                json!({"error": "GET or POST"}),
            ),
        }
    }

    /// Answers with an order and its user, fetched through the mesh.
    async fn order(&self, id: &str, agent: &str) -> Response<Full<Bytes>> {
        match self.fetch_user(id, agent).await {
            Ok((status, user)) => {
                let order = json!({"order": id, "user": user});
                respond(status, order)
            }
            Err(error) => {
                let words = json!({"error": format!("{error:#}")});
                respond(StatusCode::BAD_GATEWAY, words)
            }
        }
    }

    async fn fetch_user(&self, id: &str, agent: &str) -> Result<(StatusCode, serde_json::Value)> {
        let sidecar = self.args.sidecar.context("order-service needs --sidecar")?;
        let tcp = TcpStream::connect(sidecar).await?;
        tcp.set_nodelay(true)?;
        let (mut sender, connection) =
            client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(tcp)).await?;
        tokio::spawn(connection);
        let request = Request::get(format!("/users/{id}"))
            .header("host", "user-service")
            .header("user-agent", agent)
            .body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        Ok((status, serde_json::from_slice(&body).unwrap_or(json!(text))))
    }
}

fn respond(status: StatusCode, body: serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response
}
