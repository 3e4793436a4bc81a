//! Exchange of peer metadata between two sidecars, before the bytes of a TCP connection: Envoy's metadata exchange,
//! negotiated by ALPN `istio-peer-exchange`.

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::tls::alpn;
use leno_http::stream::Stream;
use leno_rules::config::endpoints::Workload;
use leno_rules::config::peer::{PREFACE, frame_length, read_frame};

/// Sends `own`, a frame, and reads the peer's, if that was negotiated; `None` when the peer names no workload.
///
/// # Errors
/// When the connection breaks, or the peer sends anything but a frame, or nothing `within` the time.
pub async fn exchange_metadata(
    stream: &mut Stream,
    own: &[u8],
    within: Duration,
) -> Result<Option<Workload>> {
    if stream.alpn() != Some(alpn::EXCHANGE) {
        return Ok(None);
    }
    let exchange = async {
        // Both write first: a frame fits into any socket's buffer.
        stream.write_all(own).await?;
        stream.flush().await?;
        let mut preface = [0; PREFACE];
        stream.read_exact(&mut preface).await?;
        let rubbish = || Error::new(ErrorKind::InvalidData, "not a frame of peer metadata");
        let mut body = vec![0; frame_length(preface).ok_or_else(rubbish)?];
        stream.read_exact(&mut body).await?;
        Ok(read_frame(&body))
    };
    match timeout(within, exchange).await {
        Ok(exchanged) => exchanged,
        Err(_) => Err(Error::new(
            ErrorKind::TimedOut,
            format!("no peer metadata after {within:?}"),
        )),
    }
}
