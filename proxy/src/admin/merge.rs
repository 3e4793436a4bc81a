//! The app's own metrics, fetched when the sidecar's are scraped: one scrape returns both, and the app needs no
//! certificate for it.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use http::{Request, header};
use hyper::body::Bytes;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::control::http_client::{body, send_request};

/// Timeout of the fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest response, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Address and path of the app's metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppMetrics {
    address: SocketAddr,
    path: String,
}

impl FromStr for AppMetrics {
    type Err = String;

    fn from_str(text: &str) -> Result<AppMetrics, String> {
        let at = text.find('/').unwrap_or(text.len());
        let (address, path) = text.split_at(at);
        let form = || format!("{text:?} is not IP:PORT/PATH, such as 127.0.0.1:8080/metrics");
        let is_path = path.bytes().all(|b| b.is_ascii_graphic());
        Ok(AppMetrics {
            address: address.parse().ok().filter(|_| is_path).ok_or_else(form)?,
            path: if path.is_empty() { "/metrics" } else { path }.to_owned(),
        })
    }
}

impl AppMetrics {
    /// Fetches the app's metrics, in Prometheus' text format.
    ///
    /// # Errors
    /// The reason why they are missing, as text.
    pub(super) async fn fetch(&self) -> Result<String, String> {
        let fetched = timeout(FETCH_TIMEOUT, self.ask()).await;
        fetched.unwrap_or_else(|_| Err(format!("no answer within {FETCH_TIMEOUT:?}")))
    }

    async fn ask(&self) -> Result<String, String> {
        let request = Request::get(&self.path)
            .header(header::HOST, self.address.to_string())
            .header(header::ACCEPT, "text/plain; version=0.0.4")
            .body(Bytes::new());
        let request = request.map_err(|error| error.to_string())?;
        let tcp = TcpStream::connect(self.address).await;
        let tcp = tcp.map_err(|error| error.to_string())?;
        let text = send_request(tcp, request, async |answer| {
            let status = answer.status();
            if !status.is_success() {
                return Err(format!("the app answered {status}"));
            }
            body(answer, MAX_ANSWER).await
        });
        String::from_utf8(text.await?.to_vec()).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_app_is_is_said_in_one_form() {
        let with = |text: &str| AppMetrics::from_str(text).map(|app| app.path);
        assert_eq!(with("127.0.0.1:80/stats?x"), Ok("/stats?x".to_owned()));
        assert_eq!(with("[::1]:80"), Ok("/metrics".to_owned()));
        assert!(with("localhost:80/metrics").is_err());
        assert!(with("127.0.0.1:80/a b").is_err());
    }
}
