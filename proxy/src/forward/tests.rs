//! The retry loop: a request over scripted connections in memory, on a paused clock.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leno_http::Outgoing;
use leno_http::deadline::Deadline;
use leno_http::h1::{ClientHalf, Conn, Framing, HeadLimits, ServerHalf, Timeouts};
use leno_http::head::Head;
use leno_http::peers::{Down, Up};
use leno_http::stream::Stream;
use leno_http::upgrade::Upgrades;
use leno_rules::config;
use leno_rules::config::cluster::{Balance, CircuitBreakers, Connections, Discovery};
use leno_rules::config::route::{Retry, RetryOn};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::request::{Limit, UpstreamRequest};
use super::retry_state::RetryPolicy;
use crate::balance::{Cluster, Endpoint};
use crate::directory::{self, Directory};
use crate::drain;
use crate::error::{Error, Kind};
use crate::observe::labels::{Labels, Party};
use crate::observe::metrics::Metrics;
use crate::observe::{LogContext, Observer, Reporter, RequestStats};
use crate::snapshot::apps::Apps;
use crate::tls::Credentials;
use crate::tls::server::Acceptor;
use crate::upstream::connection::Upstream;
use crate::upstream::pool::Pool;
use crate::worker::{Shared, Worker};

/// Idle connections to each endpoint.
const CONNECTIONS: usize = 4;
/// Long for any test.
const LONG: Duration = Duration::from_secs(600);

/// An endpoint's answer to a request.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// A response with this status.
    Status(u16),
    /// The end of the connection.
    Close,
    /// A response whose body is cut short.
    Cut,
    /// Nothing, ever.
    Silence,
}

/// A request as an endpoint saw it.
#[derive(Debug)]
struct Seen {
    endpoint: u16,
    text: String,
    at: Instant,
}

/// The answers to come, whichever endpoint is asked, and the requests so far.
#[derive(Debug, Default)]
struct Script {
    answers: VecDeque<Answer>,
    seen: Vec<Seen>,
}

/// Reads a message: its head, and a body of the length that it names.
async fn read(io: &mut DuplexStream) -> String {
    let mut text = Vec::new();
    loop {
        let message = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = message.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length = head.split("content-length: ").nth(1);
            let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return message;
            }
        }
        if io.read_buf(&mut text).await.unwrap_or(0) == 0 {
            return message;
        }
    }
}

/// Serves a connection: answers its first request, which makes it one that was used, and the next one by the script.
async fn serve(mut io: DuplexStream, endpoint: u16, script: Arc<Mutex<Script>>) {
    let whole = |status: u16| format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n");
    read(&mut io).await;
    let _ = io.write_all(whole(200).as_bytes()).await;
    let text = read(&mut io).await;
    if text.is_empty() {
        return;
    }
    let answer = {
        let mut script = script.lock().expect("no panic");
        let at = Instant::now();
        script.seen.push(Seen { endpoint, text, at });
        script.answers.pop_front().expect("no more was expected")
    };
    match answer {
        Answer::Status(status) => drop(io.write_all(whole(status).as_bytes()).await),
        Answer::Cut => drop(
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
                .await,
        ),
        Answer::Close => {}
        Answer::Silence => std::future::pending().await,
    }
}

fn worker() -> Worker {
    let metrics = Metrics::new(1000).expect("metrics");
    let credentials = Credentials::new("cluster.local");
    let limits = directory::Limits {
        names: 10,
        waiting: 10,
        wait: LONG,
    };
    let labels = Labels::new("source", &Party::default(), &Party::default(), "", "");
    let shared = Shared {
        directory: Directory::new(limits).0,
        unknown: metrics.series(labels),
        metrics,
        observer: Observer::default(),
        acceptor: Acceptor::new(&credentials, LONG).expect("TLS"),
        credentials,
        watch: drain::channel().1,
        limits: HeadLimits::default(),
        timeouts: Timeouts {
            idle: LONG,
            head: LONG,
            flush: LONG,
        },
        upgrades: Upgrades::default(),
        detection: LONG,
        me: Party::default(),
        own_addresses: Vec::new(),
        intercepts: false,
        apps: Apps::default(),
    };
    Worker::new(Arc::new(shared), Pool::new(LONG))
}

/// A cluster of two endpoints that answer by a script, each with idle connections.
struct Fixture {
    worker: Worker,
    cluster: Arc<Cluster>,
    script: Arc<Mutex<Script>>,
}

impl Fixture {
    async fn new(answers: &[Answer], limits: CircuitBreakers) -> Fixture {
        let cluster = config::cluster::Cluster {
            name: "c".to_owned(),
            rule: "o".to_owned(),
            discovery: Discovery::Eds("c".to_owned()),
            balance: Balance::LeastRequest,
            connect_timeout: LONG,
            tls: None,
            limits,
            outlier: None,
            connections: Connections::default(),
        };
        let cluster = Arc::new(Cluster::new(&cluster, None));
        let endpoint = |port| Arc::new(Endpoint::plain(([127, 0, 0, 1], port).into(), 1));
        let endpoints = vec![endpoint(1), endpoint(2)];
        cluster.set_endpoints(endpoints.clone());
        let fixture = Fixture {
            worker: worker(),
            cluster,
            script: Arc::default(),
        };
        fixture.script.lock().expect("no panic").answers = answers.iter().copied().collect();
        for endpoint in &endpoints {
            for _ in 0..CONNECTIONS {
                fixture.stock(endpoint).await;
            }
        }
        fixture
    }

    /// Adds an idle connection to `endpoint`.
    async fn stock(&self, endpoint: &Arc<Endpoint>) {
        let (own, theirs) = duplex(1 << 16);
        let port = endpoint.address.port();
        tokio::spawn(serve(theirs, port, Arc::clone(&self.script)));
        let io = Stream::Tunnel(Box::new(own));
        let mut half = ClientHalf::new(Conn::new(io, Vec::new(), HeadLimits::default()));
        let (mut request, mut response) = (Head::request("GET", "/"), Head::default());
        half.request(&mut request, Framing::Empty);
        half.conn().finish(None);
        let answered = std::future::poll_fn(|cx| {
            let _ = half.conn().poll_flush(cx);
            half.poll_head(cx, &mut response)
        });
        answered.await.expect("answered");
        half.receive(&response, false).expect("well-formed");
        assert!(half.is_reusable());
        let uses = Connections::default();
        let upstream = Upstream::new(Up::H1(half), (None, None), endpoint, uses);
        self.worker.pool.give_back(upstream);
    }

    /// Sends a request, with `within` for all of it; returns the response's status, or the error.
    async fn send(
        &self,
        request: &str,
        policy: RetryPolicy<'_>,
        within: Option<Duration>,
    ) -> Result<u16, Error> {
        let (own, mut client) = duplex(1 << 16);
        client.write_all(request.as_bytes()).await.expect("read");
        let io = Stream::Tunnel(Box::new(own));
        let mut half = ServerHalf::new(Conn::new(io, Vec::new(), HeadLimits::default()));
        let (mut head, mut response) = (Head::default(), Head::default());
        let mut deadline = Deadline::default();
        let until = Instant::now() + LONG;
        let read = half.read_request(&mut head, &mut deadline, until, LONG);
        read.await.expect("well-formed");
        let now = Instant::now();
        let mut stats = RequestStats::new(&self.worker.shared.unknown, now);
        let mut upstream = UpstreamRequest {
            worker: &self.worker,
            down: Down::H1(&mut half),
            request: &mut head,
            response: &mut response,
            stats: &mut stats,
            log_context: LogContext {
                reporter: Reporter::Source,
                peer: ([127, 0, 0, 1], 9).into(),
                local: None,
                server_name: None,
            },
        };
        let limit = Limit {
            deadline: &mut deadline,
            since: now,
            at_most: within,
        };
        let edit = |_: &Head, _: &mut Head, _: Instant| {};
        let ran = upstream.run(&self.cluster, limit, policy, edit).await;
        ran.map(|()| response.status())
    }

    /// Endpoints that saw the request, with the number of the attempt that it named.
    fn attempts(&self) -> Vec<(u16, String)> {
        let script = self.script.lock().expect("no panic");
        let count = |seen: &Seen| {
            let after = seen.text.split("x-envoy-attempt-count: ").nth(1);
            after.map_or_else(String::new, |rest| rest.chars().take(1).collect())
        };
        let attempts = script.seen.iter();
        attempts.map(|seen| (seen.endpoint, count(seen))).collect()
    }

    fn counts(&self) -> Vec<String> {
        let attempts = self.attempts().into_iter();
        attempts.map(|(_, count)| count).collect()
    }

    /// Pauses between the attempts.
    fn pauses(&self) -> Vec<Duration> {
        let script = self.script.lock().expect("no panic");
        let pairs = script.seen.windows(2);
        pairs.map(|pair| pair[1].at - pair[0].at).collect()
    }

    /// Retries that were withheld for `reason`.
    fn withheld(&self, reason: &str) -> bool {
        let text = self.worker.shared.metrics.render();
        text.contains(&format!(
            "leno_retries_withheld_total{{reason=\"{reason}\"}} 1"
        ))
    }
}

/// Istio's default policy without its conditions, or an explicit one.
fn retry(attempts: u32, on: &[RetryOn]) -> Retry {
    Retry {
        attempts,
        per_try: None,
        is_explicit: !on.is_empty(),
        on: on.to_vec(),
        backoff: (Duration::from_millis(25), Duration::from_millis(250)),
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";

#[tokio::test(start_paused = true)]
async fn a_request_that_was_lost_is_tried_at_another_endpoint() {
    let answers = [Answer::Close, Answer::Status(200)];
    let fixture = Fixture::new(&answers, CircuitBreakers::default()).await;
    let retry = retry(2, &[]);
    let status = fixture.send(GET, RetryPolicy::Route(Some(&retry)), None);
    assert_eq!(status.await.expect("answered"), 200);
    assert_eq!(fixture.counts(), ["1", "2"]);
    let attempts = fixture.attempts();
    assert_ne!(attempts[0].0, attempts[1].0);
    // Full jitter over 25 ms before the second attempt; the clock has steps of a millisecond.
    assert!(fixture.pauses()[0] <= Duration::from_millis(26));
    assert_eq!(fixture.worker.shared.metrics.retries.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_policy_there_is_one_attempt() {
    let fixture = Fixture::new(&[Answer::Close], CircuitBreakers::default()).await;
    let sent = fixture.send(GET, RetryPolicy::Route(None), None).await;
    assert_eq!(sent.expect_err("lost").kind, Kind::Reset);
    assert_eq!(fixture.counts(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_sent_post_is_repeated_only_where_the_policy_says_so() {
    let fixture = Fixture::new(&[Answer::Close], CircuitBreakers::default()).await;
    let default = retry(2, &[]);
    let sent = fixture.send(POST, RetryPolicy::Route(Some(&default)), None);
    assert_eq!(sent.await.expect_err("lost").kind, Kind::Reset);
    assert_eq!(fixture.counts(), ["1"]);
    assert!(fixture.withheld("not idempotent"));

    let answers = [Answer::Close, Answer::Status(201)];
    let fixture = Fixture::new(&answers, CircuitBreakers::default()).await;
    let explicit = retry(2, &[RetryOn::Reset]);
    let sent = fixture.send(POST, RetryPolicy::Route(Some(&explicit)), None);
    assert_eq!(sent.await.expect("answered"), 201);
    let script = fixture.script.lock().expect("no panic");
    assert!(script.seen.iter().all(|seen| seen.text.ends_with("body")));
}

#[tokio::test(start_paused = true)]
async fn the_last_response_is_passed_on_when_the_attempts_are_used_up() {
    let fixture = Fixture::new(&[Answer::Status(503); 3], CircuitBreakers::default()).await;
    let retry = retry(2, &[RetryOn::Status(503)]);
    let sent = fixture.send(GET, RetryPolicy::Route(Some(&retry)), None);
    assert_eq!(sent.await.expect("answered"), 503);
    assert_eq!(fixture.counts(), ["1", "2", "3"]);
    assert!(fixture.withheld("attempts used up"));
    let [first, second] = fixture.pauses()[..] else {
        panic!("three attempts");
    };
    assert!(first <= Duration::from_millis(26) && second <= Duration::from_millis(76));
}

#[tokio::test(start_paused = true)]
async fn the_last_error_tells_how_often_it_was_tried() {
    let fixture = Fixture::new(&[Answer::Close; 3], CircuitBreakers::default()).await;
    let retry = retry(2, &[]);
    let sent = fixture.send(GET, RetryPolicy::Route(Some(&retry)), None);
    let error = sent.await.expect_err("lost");
    assert!(
        error.detail.ends_with("(after 3 tries)"),
        "{}",
        error.detail
    );
    assert_eq!(error.object.as_deref(), Some("o"));
}

#[tokio::test(start_paused = true)]
async fn a_try_that_is_late_makes_room_for_the_next_within_the_whole() {
    let answers = [Answer::Silence, Answer::Status(200)];
    let fixture = Fixture::new(&answers, CircuitBreakers::default()).await;
    let mut policy = retry(2, &[RetryOn::FiveXx]);
    policy.per_try = Some(Duration::from_secs(1));
    let sent = fixture.send(GET, RetryPolicy::Route(Some(&policy)), None);
    assert_eq!(sent.await.expect("answered"), 200);
    let pause = fixture.pauses()[0];
    assert!(pause >= Duration::from_secs(1) && pause <= Duration::from_millis(1027));

    let fixture = Fixture::new(&[Answer::Silence; 3], CircuitBreakers::default()).await;
    let began = Instant::now();
    let within = Duration::from_millis(1500);
    let sent = fixture.send(GET, RetryPolicy::Route(Some(&policy)), Some(within));
    let error = sent.await.expect_err("late");
    assert_eq!(error.kind, Kind::Timeout);
    assert!(error.detail.contains("1.5s"), "{}", error.detail);
    assert_eq!(began.elapsed(), within);
    assert_eq!(fixture.counts(), ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_has_begun_is_never_repeated() {
    let fixture = Fixture::new(&[Answer::Cut], CircuitBreakers::default()).await;
    let retry = retry(2, &[RetryOn::FiveXx, RetryOn::Reset]);
    let sent = fixture.send(GET, RetryPolicy::Route(Some(&retry)), None);
    sent.await.expect_err("cut");
    assert_eq!(fixture.counts(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn retries_stop_at_their_limit() {
    let limits = CircuitBreakers {
        retries: Some(0),
        ..CircuitBreakers::default()
    };
    let fixture = Fixture::new(&[Answer::Close], limits).await;
    let retry = retry(2, &[]);
    let sent = fixture.send(GET, RetryPolicy::Route(Some(&retry)), None);
    sent.await.expect_err("lost");
    assert_eq!(fixture.counts(), ["1"]);
    assert!(fixture.withheld("budget used up"));
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_over_leaves_its_place_in_the_limit() {
    let limits = CircuitBreakers {
        retries: Some(1),
        ..CircuitBreakers::default()
    };
    let answers = [Answer::Close, Answer::Close, Answer::Status(200)];
    let fixture = Fixture::new(&answers, limits).await;
    let retry = retry(2, &[]);
    let sent = fixture.send(GET, RetryPolicy::Route(Some(&retry)), None);
    assert_eq!(sent.await.expect("answered"), 200);
    assert_eq!(fixture.counts(), ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn an_app_is_asked_again_where_an_idle_connection_was_closed_and_for_nothing_else() {
    let answers = [Answer::Close, Answer::Status(200)];
    let fixture = Fixture::new(&answers, CircuitBreakers::default()).await;
    let sent = fixture.send(GET, RetryPolicy::Stale, None).await;
    assert_eq!(sent.expect("answered"), 200);
    let fixture = Fixture::new(&[Answer::Close], CircuitBreakers::default()).await;
    let sent = fixture.send(POST, RetryPolicy::Stale, None).await;
    sent.expect_err("lost");
    // An app's own failures are its clients' business.
    let fixture = Fixture::new(&[Answer::Status(503)], CircuitBreakers::default()).await;
    let sent = fixture.send(GET, RetryPolicy::Stale, None).await;
    assert_eq!(sent.expect("answered"), 503);
}
