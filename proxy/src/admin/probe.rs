//! Probes of the app, asked in its place: the node's would come in plaintext to ports where mutual TLS is demanded. What is asked
//! comes from `leno inject`, as Istio's `ISTIO_KUBE_APP_PROBERS` has it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::Empty;
use serde_json::Value;
use tokio::time::timeout;

use super::ask::ask;
use crate::connect::connect_from;
use crate::intercept::passing_to;

/// What each path asks of the app.
#[derive(Debug, Clone, PartialEq)]
pub struct AppProbers(HashMap<String, Prober>);

#[derive(Debug, Clone, PartialEq)]
struct Prober {
    port: u16,
    timeout: Duration,
    /// What is asked; nothing when it is enough that the port is open.
    http: Option<HttpGet>,
}

#[derive(Debug, Clone, PartialEq)]
struct HttpGet {
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl FromStr for AppProbers {
    type Err = String;

    fn from_str(text: &str) -> Result<AppProbers, String> {
        let all: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let all = all
            .as_object()
            .ok_or("an object of probes by path is expected")?;
        let probers = all.iter().map(|(path, said)| {
            let prober = Prober::read(said).map_err(|error| format!("{path}: {error}"))?;
            Ok((path.clone(), prober))
        });
        probers.collect::<Result<_, String>>().map(AppProbers)
    }
}

impl Prober {
    fn read(said: &Value) -> Result<Prober, String> {
        let (http, open) = (said.get("httpGet"), said.get("tcpSocket"));
        let target = http.or(open).ok_or("httpGet or tcpSocket is expected")?;
        let port = target["port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        let seconds = said
            .get("timeoutSeconds")
            .and_then(Value::as_u64)
            .unwrap_or(1);
        // What is encrypted is as healthy as its port: nobody says by which certificate it is to be judged.
        let plain = http.filter(|http| http["scheme"] != "HTTPS");
        Ok(Prober {
            port: port.ok_or("a port's number is expected")?,
            timeout: Duration::from_secs(seconds.clamp(1, 3600)),
            http: plain.map(HttpGet::read).transpose()?,
        })
    }

    async fn probe(&self, ip: IpAddr) -> Result<StatusCode, String> {
        let address = SocketAddr::new(ip, self.port);
        // As the sidecar's own connection to the app.
        let tcp = connect_from(Some(passing_to(ip)), address).await;
        let tcp = tcp.map_err(|error| format!("{address}: {error}"))?;
        let Some(http) = &self.http else {
            return Ok(StatusCode::OK);
        };
        let mut request = Request::get(&http.path)
            .header(header::USER_AGENT, "kube-probe/leno")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let host = HeaderValue::from_str(&address.to_string());
        request
            .headers_mut()
            .extend(host.ok().map(|host| (header::HOST, host)));
        for (name, value) in &http.headers {
            request.headers_mut().insert(name, value.clone());
        }
        let answer = ask(tcp, request).await?;
        Ok(answer.status())
    }
}

impl HttpGet {
    fn read(said: &Value) -> Result<HttpGet, String> {
        let path = said.get("path").and_then(Value::as_str).unwrap_or("/");
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        let pairs = said.get("httpHeaders").and_then(Value::as_array);
        let headers = pairs.into_iter().flatten().map(|pair| {
            let text = |name: &str| pair[name].as_str().unwrap_or_default();
            let name = HeaderName::from_str(text("name")).map_err(|error| error.to_string())?;
            let value = HeaderValue::from_str(text("value")).map_err(|error| error.to_string())?;
            Ok((name, value))
        });
        Ok(HttpGet {
            path,
            headers: headers.collect::<Result<_, String>>()?,
        })
    }
}

impl AppProbers {
    /// The app's answer to the probe under `path`, at `ip`; nothing when there is no such probe.
    pub(super) async fn probe(&self, path: &str, ip: IpAddr) -> Option<(StatusCode, String)> {
        let prober = self.0.get(path)?;
        let probed = timeout(prober.timeout, prober.probe(ip)).await;
        let late = || Err(format!("no answer within {:?}", prober.timeout));
        Some(match probed.unwrap_or_else(|_| late()) {
            Ok(status) => (status, format!("the app answered {status}\n")),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_read_or_refused_by_their_path() {
        let read = |text: &str| AppProbers::from_str(text);
        let good = read(
            r#"{"/a": {"httpGet": {"path": "live", "port": 80, "httpHeaders": [{"name": "X", "value": "1"}]}, "timeoutSeconds": 4},
                "/b": {"tcpSocket": {"port": 81}}, "/c": {"httpGet": {"port": 443, "scheme": "HTTPS"}}}"#,
        );
        let AppProbers(all) = good.expect("probes");
        let http = all["/a"].http.as_ref().expect("HTTP");
        assert_eq!((http.path.as_str(), http.headers.len()), ("/live", 1));
        assert_eq!(all["/a"].timeout, Duration::from_secs(4));
        assert!(all["/b"].http.is_none() && all["/c"].http.is_none());
        for wrong in [
            "[]",
            "{",
            r#"{"/a": {}}"#,
            r#"{"/a": {"tcpSocket": {"port": "x"}}}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let error = read(r#"{"/a": {"tcpSocket": {"port": 99999}}}"#).expect_err("no port");
        assert!(error.starts_with("/a"), "{error}");
    }
}
