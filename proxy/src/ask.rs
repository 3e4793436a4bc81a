//! One question by HTTP/1, on a connection of its own: to the app, or to a collector. Not the path, whose HTTP is our own.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::channel::words;

/// Asks on `io`, and reads the whole answer, `at_most` bytes of it.
///
/// # Errors
/// Why there is none, in words.
pub async fn ask(
    io: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Bytes>,
    at_most: usize,
) -> Result<Response<Bytes>, String> {
    let connected = http1::handshake(TokioIo::new(io)).await;
    let (mut sender, connection) = connected.map_err(|error| words(&error))?;
    let answer = async {
        let response = sender.send_request(request.map(Full::new)).await;
        let (head, body) = response.map_err(|error| words(&error))?.into_parts();
        let body = Limited::new(body, at_most).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        Ok(Response::from_parts(head, body))
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
