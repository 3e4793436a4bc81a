//! Traffic as users have it: HTTP/1 on connections that are kept, HTTP/1 on a connection each, and gRPC; each request
//! has an id of its own, and is counted at its sender and at its receiver.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use leno_tests::client::Client;
use leno_tests::h2::{App, connect, receive, request, round_trip, send};
use leno_tests::upstream::Upstream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Pause between two requests of one client.
const PACE: Duration = Duration::from_millis(60);

/// Bytes of memory that a sidecar may hold beyond its idle state.
const GROWTH: usize = 32 * 1024 * 1024;

/// Outcome of a request.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Time of its end.
    pub(crate) at: Instant,
    /// True when it may be repeated.
    pub(crate) is_get: bool,
    /// Reason of its failure, if it failed.
    pub(crate) failed: Option<String>,
    /// False when it failed without an explanation.
    pub(crate) is_explained: bool,
}

/// Receivers of the requests: an app for HTTP/1 and one for gRPC, behind each instance.
#[derive(Clone)]
pub(crate) struct Apps {
    h1: Upstream,
    h2: App,
    calls: Arc<Mutex<Vec<usize>>>,
}

impl Apps {
    /// Starts the two apps of an instance, at addresses of loopback.
    #[allow(dead_code)] // each of the suites that send traffic has its own way
    pub(crate) async fn start() -> Apps {
        let local = ([127, 0, 0, 1], 0).into();
        Apps::at([local, local]).await
    }

    /// Starts the two apps of an instance, for HTTP/1 and gRPC.
    pub(crate) async fn at([h1, h2]: [SocketAddr; 2]) -> Apps {
        let calls: Arc<Mutex<Vec<usize>>> = Arc::default();
        let seen = Arc::clone(&calls);
        let serve = move |request: http::Request<h2::RecvStream>,
                          mut respond: h2::server::SendResponse<Bytes>| {
            let seen = Arc::clone(&seen);
            async move {
                let (parts, body) = request.into_parts();
                let id: Option<usize> = parts
                    .headers
                    .get("x-id")
                    .and_then(|id| id.to_str().ok()?.parse().ok());
                let whole = receive(0, parts.headers, body).await?;
                held(&seen).extend(id);
                let response = http::Response::builder().header("content-type", "application/grpc");
                let stream =
                    respond.send_response(response.body(()).expect("a response"), false)?;
                let status = [("grpc-status", "0")].map(|(name, value)| {
                    (
                        http::HeaderName::from_static(name),
                        http::HeaderValue::from_static(value),
                    )
                });
                send(stream, &whole.body, Some(status.into_iter().collect())).await
            }
        };
        Apps {
            h1: Upstream::named_at(h1, "ok").await,
            h2: App::start_at(h2, serve).await,
            calls,
        }
    }

    /// Their listening addresses.
    #[allow(dead_code)]
    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        [self.h1.address, self.h2.address]
    }

    /// Ends both gracefully.
    #[allow(dead_code)]
    pub(crate) async fn end(&self) {
        tokio::join!(self.h1.end(), self.h2.end());
    }

    /// Number of requests that arrived.
    pub(crate) fn count(&self) -> usize {
        self.ids().len()
    }

    /// The ids that arrived.
    fn ids(&self) -> Vec<usize> {
        let seen = self.h1.requests();
        let mut ids: Vec<usize> = (seen.iter())
            .filter_map(|seen| seen.header("x-id")?.parse().ok())
            .collect();
        ids.extend(held(&self.calls).iter());
        ids
    }
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of times that each id arrived, at any instance.
pub(crate) fn arrived(apps: &[Apps]) -> HashMap<usize, usize> {
    let mut counts = HashMap::new();
    for id in apps.iter().flat_map(Apps::ids) {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

/// Traffic that is running.
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    number: AtomicUsize,
    is_over: AtomicBool,
    outcomes: Mutex<Vec<(usize, Outcome)>>,
}

/// A client's use of connections.
#[derive(Clone, Copy)]
enum Style {
    KeepAlive,
    PerRequest,
    Grpc,
}

impl Traffic {
    /// Starts twelve clients, about 200 requests a second, to a sidecar's outbound port, or to any address where the
    /// sidecar intercepts connections.
    pub(crate) fn start(address: SocketAddr) -> Traffic {
        let shared = Arc::new(Shared {
            address,
            number: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            outcomes: Mutex::default(),
        });
        let styles = [Style::KeepAlive, Style::PerRequest, Style::Grpc];
        let clients = (0..12).map(|i| tokio::spawn(client(Arc::clone(&shared), styles[i % 3])));
        Traffic {
            clients: clients.collect(),
            shared,
        }
    }

    /// Ends it; returns the outcome of each request, by id.
    pub(crate) async fn end(self) -> Vec<(usize, Outcome)> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("no panic");
        }
        std::mem::take(&mut *held(&self.shared.outcomes))
    }
}

async fn client(shared: Arc<Shared>, style: Style) {
    let mut tick = interval(PACE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut kept, mut calls): (Option<Client>, Option<SendRequest<Bytes>>) = (None, None);
    while !shared.is_over.load(Ordering::Relaxed) {
        tick.tick().await;
        let id = shared.number.fetch_add(1, Ordering::Relaxed);
        let is_get = id % 10 >= 3;
        let asked = match style {
            Style::KeepAlive => {
                let asked = send_http1(&mut kept, shared.address, id, is_get).await;
                if asked.is_err() {
                    kept = None;
                }
                asked
            }
            Style::PerRequest => send_http1(&mut None, shared.address, id, is_get).await,
            Style::Grpc => call(&mut calls, shared.address, id).await,
        };
        let outcome = Outcome {
            at: Instant::now(),
            is_get: is_get && !matches!(style, Style::Grpc),
            is_explained: !matches!(&asked, Err((_, false))),
            failed: asked.err().map(|(words, _)| words),
        };
        held(&shared.outcomes).push((id, outcome));
    }
}

/// Reason of a failure, and true when the response gave it.
type Failure = (String, bool);

async fn send_http1(
    kept: &mut Option<Client>,
    address: SocketAddr,
    id: usize,
    is_get: bool,
) -> Result<(), Failure> {
    if kept.is_none() {
        *kept = Some(Client::connect(address).await);
    }
    let client = kept.as_mut().expect("set");
    let request = match is_get {
        true => format!("GET /users/{id} HTTP/1.1\r\nHost: users\r\nX-Id: {id}\r\n\r\n"),
        false => format!(
            "POST /users HTTP/1.1\r\nHost: users\r\nX-Id: {id}\r\nContent-Length: 5\r\n\r\nhello"
        ),
    };
    client.send(request).await;
    match client.response().await {
        None => Err(("the connection ended".to_owned(), false)),
        Some(response) if response.status >= 500 => {
            let why = response.proxy_status().to_owned();
            Err((
                format!("{} {why}", response.status),
                why.contains("details="),
            ))
        }
        Some(_) => Ok(()),
    }
}

async fn call(
    kept: &mut Option<SendRequest<Bytes>>,
    address: SocketAddr,
    id: usize,
) -> Result<(), Failure> {
    if kept.is_none() {
        *kept = Some(connect(address).await);
    }
    let sender = kept.as_ref().expect("set");
    let id = id.to_string();
    let fields = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("x-id", &*id),
    ];
    let call = request("POST", "http://calls/a.B/C", &fields);
    match round_trip(sender, call, b"\0\0\0\0\x01x", None).await {
        Err(error) => Err((error.to_string(), false)),
        Ok(answer) if answer.trailer("grpc-status") == "0" => Ok(()),
        Ok(answer) => {
            // In the headers of a trailers-only response, else in the trailers.
            let told = |name| [answer.header(name), answer.trailer(name)].concat();
            let why = told("grpc-message");
            Err((
                format!("grpc {} {why}", told("grpc-status")),
                !why.is_empty(),
            ))
        }
    }
}

/// Checks outcomes against arrivals: no request arrived twice unless it may be repeated, and none was answered without
/// arriving.
pub(crate) fn check_delivery(outcomes: Vec<(usize, Outcome)>, apps: &[Apps]) -> Vec<Outcome> {
    let arrived = arrived(apps);
    for (id, outcome) in &outcomes {
        let count = arrived.get(id).copied().unwrap_or_default();
        assert!(
            outcome.is_get || count <= 1,
            "request {id} arrived {count} times: {outcome:?}"
        );
        assert!(
            count >= 1 || outcome.failed.is_some(),
            "request {id} was answered and never arrived"
        );
    }
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Failed requests.
pub(crate) fn failures(outcomes: &[Outcome]) -> Vec<&Outcome> {
    let failed = outcomes.iter();
    failed.filter(|outcome| outcome.failed.is_some()).collect()
}

/// Asserts that a fault between `began` and `healed` failed no GET, and others only with a reason and until 10 s after
/// it.
pub(crate) fn assert_fault_bounds(
    what: &str,
    outcomes: &[Outcome],
    began: Instant,
    healed: Instant,
) {
    let failed = failures(outcomes);
    let gets = failed.iter().filter(|outcome| outcome.is_get).count();
    println!(
        "{what}: {} requests, {} failed, {gets} of them GETs",
        outcomes.len(),
        failed.len()
    );
    assert_eq!(gets, 0, "{what}: {failed:#?}");
    for outcome in &failed {
        assert!(outcome.is_explained, "{what}: {outcome:?}");
        assert!(outcome.at >= began, "{what}: before it began: {outcome:?}");
        assert!(
            outcome.at <= healed + Duration::from_secs(10),
            "{what}: long after it: {outcome:?}"
        );
    }
    assert!(outcomes.len() > 800, "{what}: the load was not there");
}

/// Asserts that no sidecar holds more memory than `GROWTH` above an idle one, in bytes.
pub(crate) fn hold_memory(sidecars: impl IntoIterator<Item = usize>, idle: usize) {
    for memory in sidecars {
        assert!(memory <= idle + GROWTH, "{memory} bytes, {idle} idle");
    }
}
