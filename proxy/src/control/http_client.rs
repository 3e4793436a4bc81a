//! HTTP/1 client (hyper) for one request on a connection of its own: to the app, or to a collector. The request path
//! doesn't use it: that has Leno's own HTTP.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::channel::error_text;

/// Sends `request` on `io`; `take` turns the response into the result, and reads the body if it needs it.
///
/// # Errors
/// The reason why there is no response, as text; or the error of `take`.
pub async fn send_request<T>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Bytes>,
    take: impl AsyncFnOnce(Response<Incoming>) -> Result<T, String>,
) -> Result<T, String> {
    let connected = http1::handshake(TokioIo::new(io)).await;
    let (mut sender, connection) = connected.map_err(|error| error_text(&error))?;
    let answer = async {
        let response = sender.send_request(request.map(Full::new)).await;
        take(response.map_err(|error| error_text(&error))?).await
    };
    let mut answer = std::pin::pin!(answer);
    // The connection is closed after the response, or when this future is dropped.
    let ended = tokio::select! {
        answered = &mut answer => return answered,
        ended = connection => ended,
    };
    // The response may have arrived first; if not, the connection's error says more than the request's.
    match ended {
        Ok(()) => answer.await,
        Err(error) => answer.await.map_err(|_| error_text(&error)),
    }
}

/// Reads the body of a response, at most `at_most` bytes.
///
/// # Errors
/// When it breaks off, or is longer.
pub async fn body(answer: Response<Incoming>, at_most: usize) -> Result<Bytes, String> {
    let body = Limited::new(answer.into_body(), at_most).collect().await;
    Ok(body.map_err(|error| error_text(&*error))?.to_bytes())
}
