//! A fake app: keeps every byte it receives, and answers each whole request as the test says.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// A request as the app saw it.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    /// The head, without the empty line.
    pub head: String,
    /// The body, with its framing.
    pub body: Vec<u8>,
}

impl ReceivedRequest {
    /// The first value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(n, _)| n.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.trim())
    }

    /// The target.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

/// Time for which an ending app still takes a request on an open connection.
const ENDING_GRACE: Duration = Duration::from_millis(50);

type Answer = dyn Fn(&ReceivedRequest) -> Vec<u8> + Send + Sync;

#[derive(Default)]
struct Record {
    requests: Vec<ReceivedRequest>,
    bytes: Vec<u8>,
    connections: usize,
}

/// A fake app.
#[derive(Clone)]
pub struct Upstream {
    /// Its listening address.
    pub address: SocketAddr,
    record: Arc<Mutex<Record>>,
    ending: watch::Sender<bool>,
}

impl Upstream {
    /// An app that answers every request with 200 and its name.
    pub async fn named(name: &str) -> Upstream {
        Upstream::named_at(([127, 0, 0, 1], 0).into(), name).await
    }

    /// The same at `address`.
    pub async fn named_at(address: SocketAddr, name: &str) -> Upstream {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}",
            name.len()
        );
        Upstream::at(address, Duration::ZERO, move |_| {
            answer.clone().into_bytes()
        })
        .await
    }

    /// An app with responses of `answer`; one without a length ends the connection.
    pub async fn start(
        answer: impl Fn(&ReceivedRequest) -> Vec<u8> + Send + Sync + 'static,
    ) -> Upstream {
        Upstream::with_delay(Duration::ZERO, answer).await
    }

    /// An app that delays each response.
    pub async fn with_delay(
        delay: Duration,
        answer: impl Fn(&ReceivedRequest) -> Vec<u8> + Send + Sync + 'static,
    ) -> Upstream {
        Upstream::at(([127, 0, 0, 1], 0).into(), delay, answer).await
    }

    /// An app at `address` that delays each response.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn at(
        address: SocketAddr,
        delay: Duration,
        answer: impl Fn(&ReceivedRequest) -> Vec<u8> + Send + Sync + 'static,
    ) -> Upstream {
        let listener = TcpListener::bind(address).await.expect("listen");
        let upstream = Upstream {
            address: listener.local_addr().expect("bound"),
            record: Arc::default(),
            ending: watch::Sender::new(false),
        };
        let mut ending = upstream.ending.subscribe();
        let (record, answer): (_, Arc<Answer>) = (Arc::clone(&upstream.record), Arc::new(answer));
        tokio::spawn(async move {
            while let Some(tcp) = accept(&listener, &mut ending).await {
                held(&record).connections += 1;
                let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
                tokio::spawn(serve(tcp, record, answer, delay, ending.clone()));
            }
        });
        upstream
    }

    /// Ends gracefully: takes no new connection, answers requests that it has begun to read, closes the other
    /// connections. Waits until all that is done.
    pub async fn end(&self) {
        self.ending.send_replace(true);
        self.ending.closed().await;
    }

    /// Every request that it received whole.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        held(&self.record).requests.clone()
    }

    /// Every byte that it received.
    pub fn bytes(&self) -> Vec<u8> {
        held(&self.record).bytes.clone()
    }

    /// Number of connections that were made to it.
    pub fn connections(&self) -> usize {
        held(&self.record).connections
    }
}

fn held(record: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next connection of an app, until it is to end. An app without a handle left goes on.
pub(crate) async fn accept(
    listener: &TcpListener,
    ending: &mut watch::Receiver<bool>,
) -> Option<TcpStream> {
    let accepted = tokio::select! {
        // Connections that the kernel has accepted already are served.
        biased;
        accepted = listener.accept() => accepted,
        Ok(_) = ending.wait_for(|ends| *ends) => return None,
    };
    let (tcp, _) = accepted.ok()?;
    let _ = tcp.set_nodelay(true);
    Some(tcp)
}

async fn serve(
    mut tcp: TcpStream,
    record: Arc<Mutex<Record>>,
    answer: Arc<Answer>,
    delay: Duration,
    mut ending: watch::Receiver<bool>,
) {
    let mut read = Vec::new();
    loop {
        while let Some((seen, length)) = parse_request(&read) {
            read.drain(..length);
            sleep(delay).await;
            let response = answer(&seen);
            held(&record).requests.push(seen);
            if tcp.write_all(&response).await.is_err() {
                return;
            }
            // A response that only the connection's end delimits closes it.
            let text = String::from_utf8_lossy(&response).to_lowercase();
            if !text.contains("content-length")
                && !text.contains("transfer-encoding")
                && !text.contains(" 204 ")
                && !text.contains(" 304 ")
            {
                return;
            }
        }
        let before = read.len();
        let over = async {
            let ends = ending.wait_for(|ends| *ends).await.map(drop);
            match ends {
                // A request may be in transit.
                Ok(()) => sleep(ENDING_GRACE).await,
                Err(_) => pending().await,
            }
        };
        let more = tokio::select! {
            biased;
            more = tcp.read_buf(&mut read) => more,
            () = over, if before == 0 => return,
        };
        match more {
            Ok(count) if count > 0 => held(&record).bytes.extend_from_slice(&read[before..]),
            _ => return,
        }
    }
}

/// The first request in `bytes`, if it is whole, and its length.
fn parse_request(bytes: &[u8]) -> Option<(ReceivedRequest, usize)> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end - 4]).into_owned();
    let mut seen = ReceivedRequest {
        head,
        body: Vec::new(),
    };
    let length = if seen.header("transfer-encoding").is_some() {
        let rest = &bytes[end..];
        let last = rest
            .windows(5)
            .position(|w| w == b"0\r\n\r\n")
            .map(|at| at + 5);
        let with_trailers = || {
            let zero = rest.windows(3).position(|w| w == b"0\r\n")?;
            let tail = rest[zero..].windows(4).position(|w| w == b"\r\n\r\n")?;
            Some(zero + tail + 4)
        };
        last.or_else(with_trailers)?
    } else {
        seen.header("content-length")
            .map_or(Some(0), |length| length.parse().ok())?
    };
    seen.body = bytes.get(end..end + length)?.to_vec();
    Some((seen, end + length))
}
