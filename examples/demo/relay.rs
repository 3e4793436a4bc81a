//! A relay between two sidecars that records every byte: the view of an eavesdropper on the wire.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The recorded bytes, of both directions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recording(Arc<Mutex<Vec<u8>>>);

impl Recording {
    /// Number of bytes recorded.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().map_or(0, |bytes| bytes.len())
    }

    /// True when `text` passed in the clear.
    pub(crate) fn contains(&self, text: &str) -> bool {
        let bytes = self.0.lock().map(|bytes| bytes.clone()).unwrap_or_default();
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    }
}

/// Relays connections from `listen` to `to`, and records their bytes.
pub(crate) async fn start(listen: SocketAddr, to: SocketAddr) -> Result<Recording> {
    let listener = TcpListener::bind(listen).await?;
    let recording = Recording::default();
    let kept = recording.clone();
    tokio::spawn(async move {
        while let Ok((down, _)) = listener.accept().await {
            let kept = kept.clone();
            tokio::spawn(async move {
                if let Ok(up) = TcpStream::connect(to).await {
                    let (down_read, down_write) = down.into_split();
                    let (up_read, up_write) = up.into_split();
                    let there = copy(down_read, up_write, kept.clone());
                    tokio::join!(there, copy(up_read, down_write, kept));
                }
            });
        }
    });
    Ok(recording)
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, kept: Recording) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
        if let Ok(mut bytes) = kept.0.lock() {
            bytes.extend_from_slice(&buffer[..count]);
        }
    }
    let _ = to.shutdown().await;
}
