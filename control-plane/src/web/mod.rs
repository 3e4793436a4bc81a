//! Pages of the monitoring port: the live map, the same as JSON, metrics, readiness. Read-only.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State as Extract};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, interval};
use tokio_stream::wrappers::IntervalStream;
use tokio_stream::{Stream, StreamExt};

use crate::map::{TrafficGraph, view};
use crate::metrics::Metrics;
use crate::xds::hub::Hub;

/// Most pages with the live map that are served at once.
const MAX_VIEWERS: usize = 32;
/// Interval of the map's events.
const EACH: Duration = Duration::from_secs(1);
/// Content-Security-Policy of the page: its own inline content, and requests to this server only.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// State behind the monitoring port.
#[derive(Debug)]
pub struct PageState {
    /// Open streams, and the configuration.
    pub hub: Arc<Hub>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Traffic, as the sidecars report it.
    pub book: Arc<Mutex<TrafficGraph>>,
    /// Open event streams with the map.
    pub viewers: AtomicUsize,
}

impl PageState {
    fn mesh(&self) -> Value {
        let (state, now) = (self.hub.state(), Instant::now());
        let state = state.borrow().clone();
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.forget(now);
        view::render(&book, &state, &self.hub.proxies(), now)
    }
}

/// The pages.
pub fn pages(shown: Arc<PageState>) -> Router {
    Router::new()
        .route("/", get(map))
        .route("/ready", get(ready))
        .route("/version", get(async || env!("CARGO_PKG_VERSION")))
        .route(
            "/metrics",
            get(async |Extract(s): Extract<Arc<PageState>>| s.metrics.render()),
        )
        .route("/debug/status", get(status))
        .route(
            "/debug/mesh",
            get(async |Extract(s): Extract<Arc<PageState>>| axum::Json(s.mesh())),
        )
        .route("/debug/mesh/events", get(events))
        .route("/debug/proxy", get(proxy))
        .route("/debug/syncz", get(syncz))
        .with_state(shown)
}

async fn map() -> Response {
    let mut response = Html(include_str!("map.html")).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(POLICY),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn ready(Extract(shown): Extract<Arc<PageState>>) -> (StatusCode, &'static str) {
    match shown.hub.state().borrow().complete {
        true => (StatusCode::OK, "ready\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the configuration has not been read yet\n",
        ),
    }
}

/// The answer to `leno status`: proxies, and the state of the configuration.
async fn status(Extract(shown): Extract<Arc<PageState>>) -> axum::Json<Value> {
    let mesh = shown.mesh();
    let state = shown.hub.state().borrow().clone();
    axum::Json(view::status(&mesh, &state))
}

/// A viewer of the map, counted until dropped.
struct Viewer(Arc<PageState>);

impl Drop for Viewer {
    fn drop(&mut self) {
        self.0.viewers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Server-sent events: the map, each second.
async fn events(
    Extract(shown): Extract<Arc<PageState>>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, (StatusCode, &'static str)> {
    let viewer = Viewer(Arc::clone(&shown));
    if shown.viewers.fetch_add(1, Ordering::Relaxed) >= MAX_VIEWERS {
        return Err((
            StatusCode::SERVICE_UNAVAILABLE,
            "too many look at the map already\n",
        ));
    }
    let ticks = IntervalStream::new(interval(EACH));
    let stream = ticks.map(move |_| Ok(Event::default().data(viewer.0.mesh().to_string())));
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

#[derive(Debug, Deserialize)]
struct Node {
    node: String,
}

/// Resources of one sidecar.
async fn proxy(
    Extract(shown): Extract<Arc<PageState>>,
    Query(asked): Query<Node>,
) -> Result<axum::Json<Value>, (StatusCode, &'static str)> {
    let resources = shown.hub.resources(&asked.node);
    let resources = resources.ok_or((StatusCode::NOT_FOUND, "no such sidecar is connected\n"))?;
    Ok(axum::Json(
        json!({"node": asked.node, "resources": resources}),
    ))
}

/// Istio's page of connected proxies, for Kiali.
async fn syncz(Extract(shown): Extract<Arc<PageState>>) -> axum::Json<Value> {
    let proxies = shown.hub.proxies();
    let one = |proxy: &Value| json!({"proxy": proxy["node"], "proxy_type": "sidecar", "istio_version": env!("CARGO_PKG_VERSION")});
    axum::Json(proxies.iter().map(one).collect())
}
