//! nginx and HAProxy as oracles of the HTTP/1 reader. The relation: the requests that ours accepts, they either refuse
//! (for a reason in `may_be_refused`) or read the same way: as many requests, with the same methods, targets and
//! bodies.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use leno_tests::{Directory, until};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::net::TcpListener;

use crate::reader::{ours, piece, request};
use crate::{Program, free};

/// Cases of each kind.
const CASES: u32 = 1500;

/// The last request, which shows where the ones before it ended.
const LAST: &str = "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// The parts of a request that must be the same: method, target, body in hexadecimal.
type Same = (String, String, String);

/// A backend that answers each request with its method, target and body.
async fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let (parts, body) = request.into_parts();
                let body = body
                    .collect()
                    .await
                    .map(http_body_util::Collected::to_bytes);
                let body = hexadecimal(&body.unwrap_or_default());
                let said = format!("{} {} {body}", parts.method, parts.uri);
                let response = Response::builder().header("x-understood", said);
                let response = response.body(Full::new(Bytes::new()));
                Ok::<_, Infallible>(response.expect("a response"))
            });
            let mut serving = hyper::server::conn::http1::Builder::new();
            serving.max_buf_size(1 << 20);
            tokio::spawn(serving.serve_connection(TokioIo::new(tcp), service));
        }
    });
    address
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sends `bytes` to the oracle: the requests that reached the backend, and the first refusal.
fn read_by(oracle: SocketAddr, bytes: &[u8]) -> (Vec<Same>, Option<String>) {
    let mut tcp = TcpStream::connect(oracle).expect("it listens");
    tcp.set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    let _ = tcp.write_all(bytes);
    let mut answer = Vec::new();
    let _ = tcp.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let mut understood = Vec::new();
    let mut refused = None;
    for line in answer.lines() {
        if let Some(said) = line.strip_prefix("x-understood: ") {
            let mut words = said.splitn(3, ' ').map(str::to_owned);
            let mut next = || words.next().unwrap_or_default();
            understood.push((next(), next(), next()));
        } else if line.starts_with("HTTP/1.") && !line.contains(" 200 ") {
            refused.get_or_insert_with(|| line.to_owned());
        }
    }
    (understood, refused)
}

/// True where the oracles may refuse a request that ours accepts: by a stricter rule of theirs, which leaves nothing to
/// be smuggled.
fn may_be_refused(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    // They aren't configured for tunnels.
    text.contains("CONNECT ")
        // nginx doesn't know `OPTIONS *`, and neither sends TRACE to a server.
        || text.contains("OPTIONS * ")
        || text.contains("TRACE ")
        // nginx takes only a few methods that it knows to have bodies or lengths as it likes them, and names of A to Z, - and _.
        || text.contains("HTTP/1.0")
        // A malformed escape or an escaped NUL, and a path that climbs above its root.
        || text.contains('%')
        || text.contains("..")
        // Obsolete text (RFC 9110 5.5) in a value.
        || bytes.iter().any(|byte| *byte >= 0x80)
}

/// Normalises targets that the oracle or the backend writes in another way without reading them in another way.
fn canonical(target: &str) -> String {
    let path = target.strip_prefix("http://a").unwrap_or(target);
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// Checks the relation for one input.
fn hold(oracle: SocketAddr, bytes: &[u8]) -> Result<(), TestCaseError> {
    let (accepted, is_whole) = ours(bytes);
    // Input that ours refuses in the end is never forwarded: there is nothing to compare.
    if !is_whole || accepted.is_empty() {
        return Ok(());
    }
    let ours: Vec<Same> = (accepted.iter())
        .map(|request| {
            let method = String::from_utf8_lossy(&request.method).into_owned();
            (
                method,
                canonical(&request.target),
                hexadecimal(&request.body),
            )
        })
        .chain([("GET".to_owned(), "/last".to_owned(), String::new())])
        .collect();
    let (theirs, refused) = read_by(oracle, &[bytes, LAST.as_bytes()].concat());
    let theirs: Vec<Same> = (theirs.into_iter())
        .map(|(method, target, body)| (method, canonical(&target), body))
        .collect();
    let shown = String::from_utf8_lossy(bytes);
    // They agree on every request that both have read.
    for (a, b) in ours.iter().zip(&theirs) {
        prop_assert_eq!(a, b, "{:?}", shown);
    }
    prop_assert!(theirs.len() <= ours.len(), "more was read: {:?}", shown);
    let is_same = theirs.len() == ours.len() || (refused.is_some() && may_be_refused(bytes));
    prop_assert!(
        is_same,
        "read {} of {}, {refused:?}: {:?}",
        theirs.len(),
        ours.len(),
        shown
    );
    Ok(())
}

/// Checks the relation for many inputs: valid, nearly valid, and with one byte changed.
fn hold_for_many(oracle: SocketAddr) {
    let config = ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let check = |bytes: Vec<u8>| hold(oracle, &bytes);
    let good = proptest::collection::vec(request(), 1..4).prop_map(|all| all.concat());
    let pieces = proptest::collection::vec(piece(), 1..8).prop_map(|all| all.concat());
    let byte = (request(), any::<proptest::sample::Index>(), any::<u8>());
    let changed = byte.prop_map(|(mut bytes, at, byte)| {
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes
    });
    let mut runner = TestRunner::new(config);
    runner.run(&good, check).expect("good requests");
    runner.run(&pieces, check).expect("nearly right requests");
    runner.run(&changed, check).expect("one byte changed");
}

/// Waits until `oracle` accepts connections, then checks the relation.
async fn compare(oracle: SocketAddr) {
    until("it listens", || async {
        tokio::net::TcpStream::connect(oracle).await.ok()
    })
    .await;
    let held = tokio::task::spawn_blocking(move || hold_for_many(oracle));
    held.await.expect("the relation holds");
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_reads_what_ours_accepts_in_the_same_way() {
    let (directory, oracle, backend) = (Directory::new(), free(), backend().await);
    let config = format!(
        "daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log stderr;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n  access_log off; client_body_temp_path body; proxy_temp_path proxy;\n  \
         fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s; keepalive_requests 1000;\n  \
         upstream app {{ server {backend}; keepalive 8; }}\n  \
         server {{\n    listen {oracle}; merge_slashes off;\n    location / {{\n      \
         proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\";\n      \
         proxy_request_buffering off; proxy_pass_header x-understood;\n    }}\n  }}\n}}\n"
    );
    let file = directory.path().join("nginx.conf");
    std::fs::write(&file, config).expect("written");
    let prefix = directory.path().display().to_string();
    let arguments = ["-p", &prefix, "-c", "nginx.conf"];
    let _nginx = Program::start("nginx", &arguments, directory.path());
    compare(oracle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_reads_what_ours_accepts_in_the_same_way() {
    let (directory, oracle, backend) = (Directory::new(), free(), backend().await);
    let config = format!(
        "global\n  nbthread 1\ndefaults\n  mode http\n  timeout client 10s\n  timeout server 10s\n  \
         timeout connect 5s\nfrontend f\n  bind {oracle}\n  default_backend b\n\
         backend b\n  server s {backend}\n"
    );
    let file = directory.path().join("haproxy.cfg");
    std::fs::write(&file, config).expect("written");
    let _haproxy = Program::start("haproxy", &["-f", "haproxy.cfg"], directory.path());
    compare(oracle).await;
}
