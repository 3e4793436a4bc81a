//! An HTTP/2 client and app, by the `h2` crate.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::{Connection, SendResponse};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::TIMEOUT;
use crate::upstream::accept;

/// A message, received whole.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its status; 0 for requests.
    pub status: u16,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// Its trailer section.
    pub trailers: HeaderMap,
}

impl Message {
    /// A field's value.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap_or_default())
    }

    /// A trailer's value.
    pub fn trailer(&self, name: &str) -> &str {
        let value = self.trailers.get(name);
        value.map_or("", |value| value.to_str().unwrap_or_default())
    }
}

/// Opens a connection with prior knowledge.
///
/// # Panics
/// When it can't.
pub async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(address).await.expect("connect");
    tcp.set_nodelay(true).expect("nodelay");
    // The least that RFC 9113 6.5.2 recommends: streams sent before the server's SETTINGS arrive may exceed its limit.
    let (sender, connection) = h2::client::Builder::new()
        .initial_max_send_streams(100)
        .handshake::<_, Bytes>(tcp)
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    sender.ready().await.expect("settings")
}

/// A request without a body.
///
/// # Panics
/// When the arguments make no valid request.
pub fn request(method: &str, uri: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

/// Sends a request with its body and trailers, and reads the response.
///
/// # Errors
/// When the stream breaks first.
///
/// # Panics
/// When nothing comes.
pub async fn round_trip(
    sender: &SendRequest<Bytes>,
    request: Request<()>,
    body: &[u8],
    trailers: Option<HeaderMap>,
) -> Result<Message, h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let is_ended = body.is_empty() && trailers.is_none();
    let (response, stream) = sender.send_request(request, is_ended)?;
    let sending = async {
        if !is_ended {
            send(stream, body, trailers).await?;
        }
        std::future::pending::<Result<Message, h2::Error>>().await
    };
    let receiving = async {
        let (parts, body) = response.await?.into_parts();
        receive(parts.status.as_u16(), parts.headers, body).await
    };
    let both = async {
        tokio::select! {
            Err(error) = sending => Err(error),
            received = receiving => received,
        }
    };
    timeout(TIMEOUT, both).await.expect("a response")
}

/// Sends a body within the peer's window, and trailers.
///
/// # Errors
/// When the stream breaks.
pub async fn send(
    mut stream: SendStream<Bytes>,
    body: &[u8],
    trailers: Option<HeaderMap>,
) -> Result<(), h2::Error> {
    let mut left = Bytes::copy_from_slice(body);
    while !left.is_empty() {
        stream.reserve_capacity(left.len());
        let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let Some(granted) = granted.transpose()? else {
            return Ok(());
        };
        let part = left.split_to(granted.min(left.len()));
        let is_last = left.is_empty() && trailers.is_none();
        stream.send_data(part, is_last)?;
    }
    match trailers {
        Some(trailers) => stream.send_trailers(trailers),
        None if body.is_empty() => stream.send_data(Bytes::new(), true),
        None => Ok(()),
    }
}

/// Reads a body and its trailers.
///
/// # Errors
/// When the stream breaks.
pub async fn receive(
    status: u16,
    headers: HeaderMap,
    mut body: RecvStream,
) -> Result<Message, h2::Error> {
    let mut data = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        let _ = body.flow_control().release_capacity(chunk.len());
        data.extend_from_slice(&chunk);
    }
    Ok(Message {
        status,
        headers,
        body: data,
        trailers: body.trailers().await?.unwrap_or_default(),
    })
}

/// An app that serves each stream by `serve`.
#[derive(Debug, Clone)]
pub struct App {
    /// Its listening address.
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    ending: watch::Sender<bool>,
}

impl App {
    /// Starts an app on a free port.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn start<F>(
        serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static,
    ) -> App
    where
        F: Future<Output = Result<(), h2::Error>> + Send + 'static,
    {
        App::start_at(([127, 0, 0, 1], 0).into(), serve).await
    }

    /// Starts an app at `address`.
    pub async fn start_at<F>(
        address: SocketAddr,
        serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static,
    ) -> App
    where
        F: Future<Output = Result<(), h2::Error>> + Send + 'static,
    {
        App::at(address, move |mut connection, mut ending| {
            let serve = serve.clone();
            async move {
                let mut is_over = false;
                loop {
                    let accepted = tokio::select! {
                        accepted = connection.accept() => accepted,
                        Ok(_) = ending.wait_for(|ends| *ends), if !is_over => {
                            is_over = true;
                            connection.graceful_shutdown();
                            continue;
                        }
                    };
                    let Some(Ok((request, respond))) = accepted else {
                        return;
                    };
                    tokio::spawn(serve(request, respond));
                }
            }
        })
        .await
    }

    /// Starts an app that hands each connection to `serve`.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn with<F>(
        serve: impl Fn(Connection<TcpStream, Bytes>) -> F + Clone + Send + 'static,
    ) -> App
    where
        F: Future<Output = ()> + Send + 'static,
    {
        App::at(([127, 0, 0, 1], 0).into(), move |connection, _| {
            serve(connection)
        })
        .await
    }

    async fn at<F>(
        address: SocketAddr,
        serve: impl Fn(Connection<TcpStream, Bytes>, watch::Receiver<bool>) -> F
        + Clone
        + Send
        + 'static,
    ) -> App
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.expect("listen");
        let app = App {
            address: listener.local_addr().expect("bound"),
            connections: Arc::default(),
            ending: watch::Sender::new(false),
        };
        let mut ending = app.ending.subscribe();
        let connections = Arc::clone(&app.connections);
        tokio::spawn(async move {
            while let Some(tcp) = accept(&listener, &mut ending).await {
                connections.fetch_add(1, Ordering::Relaxed);
                let (serve, ending) = (serve.clone(), ending.clone());
                tokio::spawn(async move {
                    let mut builder = h2::server::Builder::new();
                    builder.enable_connect_protocol();
                    if let Ok(connection) = builder.handshake(tcp).await {
                        serve(connection, ending).await;
                    }
                });
            }
        });
        app
    }

    /// An app that echoes the body and trailers, and reports the request's fields in the response's.
    pub async fn echo() -> App {
        App::start(|request, mut respond| async move {
            let (parts, body) = request.into_parts();
            let mut response = Response::builder()
                .header("x-method", parts.method.as_str())
                .header(
                    "x-authority",
                    parts.uri.authority().map_or("", |a| a.as_str()),
                )
                .header("x-path", parts.uri.path());
            for (name, value) in &parts.headers {
                response = response.header(format!("x-seen-{name}"), value);
            }
            let whole = receive(0, parts.headers, body).await?;
            let response = response.body(()).expect("a response");
            let stream = respond.send_response(response, false)?;
            let trailers = (!whole.trailers.is_empty()).then_some(whole.trailers);
            send(stream, &whole.body, trailers).await
        })
        .await
    }

    /// Ends gracefully: takes no new connection or stream, and waits until the open ones are over.
    pub async fn end(&self) {
        self.ending.send_replace(true);
        self.ending.closed().await;
    }

    /// Number of connections that were made to it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}
