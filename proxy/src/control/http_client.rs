//! One question by HTTP/1, on a connection of its own: to the app, or to a collector. Not the path, whose HTTP is our own.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::channel::words;

/// Asks on `io`; `take` makes of the answer what is wanted of it, and reads its body if that is.
///
/// # Errors
/// Why there is no answer, in words; or what `take` says.
pub async fn ask<T>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Bytes>,
    take: impl AsyncFnOnce(Response<Incoming>) -> Result<T, String>,
) -> Result<T, String> {
    let connected = http1::handshake(TokioIo::new(io)).await;
    let (mut sender, connection) = connected.map_err(|error| words(&error))?;
    let answer = async {
        let response = sender.send_request(request.map(Full::new)).await;
        take(response.map_err(|error| words(&error))?).await
    };
    let mut answer = std::pin::pin!(answer);
    // The connection ends with the answer, or when this is given up.
    let ended = tokio::select! {
        answered = &mut answer => return answered,
        ended = connection => ended,
    };
    // It may have brought the answer first; if not, why it broke says more than that there is none.
    match ended {
        Ok(()) => answer.await,
        Err(error) => answer.await.map_err(|_| words(&error)),
    }
}

/// The body of an answer, `at_most` bytes of it.
///
/// # Errors
/// When it breaks off, or is longer.
pub async fn body(answer: Response<Incoming>, at_most: usize) -> Result<Bytes, String> {
    let body = Limited::new(answer.into_body(), at_most).collect().await;
    Ok(body.map_err(|error| words(&*error))?.to_bytes())
}
