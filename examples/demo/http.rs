//! A small HTTP/1.1 client: a request a connection, read to its end.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    /// Its head, as received.
    pub(crate) head: String,
    /// Its body.
    pub(crate) body: String,
}

impl Answer {
    /// The value of a field.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(n, _)| n.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.trim())
    }
}

/// Sends a request to `address`, for `host`.
pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    host: &str,
    path: &str,
    agent: &str,
) -> Result<Answer> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: {agent}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    let exchange = async {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        tcp.read_to_end(&mut bytes).await?;
        anyhow::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = timeout(Duration::from_secs(10), exchange)
        .await
        .context("no answer in 10 s")??;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("closed without an answer");
    };
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.context("no status line")?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// A GET.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    send(address, "GET", host, path, "demo").await
}
