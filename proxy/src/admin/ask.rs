//! One question to the app by HTTP/1, on a connection of its own.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest answer that is taken.
const MAX: usize = 16 * 1024 * 1024;

/// Asks on `tcp`, and reads the whole answer.
///
/// # Errors
/// Why there is none, in words.
pub(super) async fn ask(
    tcp: TcpStream,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Bytes>, String> {
    let connected = http1::handshake(TokioIo::new(tcp)).await;
    let (mut sender, connection) = connected.map_err(|error| error.to_string())?;
    // It ends with the answer, or when this is given up.
    let answer = async {
        let response = sender.send_request(request).await;
        let (head, body) = response.map_err(|error| error.to_string())?.into_parts();
        let body = Limited::new(body, MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answered = &mut answer => answered,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        }
    }
}
