//! Probes of the app, made in the kubelet's place: its own would come in plaintext to ports that require mutual TLS.
//! `leno inject` configures them, in the format of Istio's `ISTIO_KUBE_APP_PROBERS`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use leno_proto::health::HealthCheckRequest;
use leno_proto::health::health_check_response::ServingStatus;
use leno_proto::health::health_client::HealthClient;
use leno_proto::tonic::transport::Endpoint;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::control::channel::{Dialer, error_text};
use crate::control::http_client::send_request;
use crate::intercept::passthrough_source;
use crate::tls::client::unverified;
use leno_http::stream::connect_from;

/// The app's probes, by path.
#[derive(Debug, Clone, PartialEq)]
pub struct AppProbers(HashMap<String, Prober>);

#[derive(Debug, Clone, PartialEq)]
struct Prober {
    port: u16,
    timeout: Duration,
    asks: ProbeKind,
}

/// Kind of a probe.
#[derive(Debug, Clone, PartialEq)]
enum ProbeKind {
    /// TCP: the port accepts a connection.
    Open,
    Http(HttpGet),
    /// gRPC health checking of this service; of the whole app if it is empty.
    Grpc(String),
}

#[derive(Debug, Clone, PartialEq)]
struct HttpGet {
    /// True for HTTPS. Any certificate is accepted: a probe names none to verify it by.
    is_encrypted: bool,
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
        let probers = all.iter().map(|(path, config)| {
            let prober = Prober::read(config).map_err(|error| format!("{path}: {error}"))?;
            Ok((path.clone(), prober))
        });
        probers.collect::<Result<_, String>>().map(AppProbers)
    }
}

impl Prober {
    fn read(config: &Value) -> Result<Prober, String> {
        let (http, grpc) = (config.get("httpGet"), config.get("grpc"));
        let target = http.or(grpc).or(config.get("tcpSocket"));
        let target = target.ok_or("httpGet, tcpSocket or grpc is expected")?;
        let port = target["port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        let seconds = config
            .get("timeoutSeconds")
            .and_then(Value::as_u64)
            .unwrap_or(1);
        let asks = match (http, grpc) {
            (Some(http), _) => ProbeKind::Http(HttpGet::read(http)?),
            (None, Some(grpc)) => {
                let service = grpc["service"].as_str();
                ProbeKind::Grpc(service.unwrap_or_default().to_owned())
            }
            (None, None) => ProbeKind::Open,
        };
        Ok(Prober {
            port: port.ok_or("a port's number is expected")?,
            timeout: Duration::from_secs(seconds.clamp(1, 3600)),
            asks,
        })
    }

    async fn probe(&self, ip: IpAddr) -> Result<(StatusCode, String), String> {
        let address = SocketAddr::new(ip, self.port);
        // From the source address of the sidecar's connections to the app: the rules don't redirect those.
        let tcp = connect_from(Some(passthrough_source(ip)), address).await;
        let tcp = tcp.map_err(|error| format!("{address}: {error}"))?;
        match &self.asks {
            ProbeKind::Open => Ok((StatusCode::OK, format!("{address} is open"))),
            ProbeKind::Http(http) => {
                let status = http.ask(tcp, address).await?;
                Ok((status, format!("the app answered {status}")))
            }
            ProbeKind::Grpc(service) => {
                let health = check_health(tcp, address, service).await?;
                let status = match health {
                    ServingStatus::Serving => StatusCode::OK,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                };
                let health = health.as_str_name();
                Ok((status, format!("the app answered {health}")))
            }
        }
    }
}

/// Checks the health of `service` on `tcp`: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>
async fn check_health(
    tcp: TcpStream,
    address: SocketAddr,
    service: &str,
) -> Result<ServingStatus, String> {
    let tcp = Mutex::new(Some(tcp));
    let once = Dialer::new(move || {
        let tcp = tcp.lock().ok().and_then(|mut tcp| tcp.take());
        let none = || io::Error::from(io::ErrorKind::ConnectionReset);
        std::future::ready(tcp.ok_or_else(none))
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| error_text(&error))?;
    let channel = endpoint.connect_with_connector(once).await;
    let mut client = HealthClient::new(channel.map_err(|error| error_text(&error))?);
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = client.check(request).await;
    Ok(answer
        .map_err(|status| error_text(&status))?
        .into_inner()
        .status())
}

impl HttpGet {
    async fn ask(&self, tcp: TcpStream, address: SocketAddr) -> Result<StatusCode, String> {
        let mut request = Request::get(&self.path)
            .header(header::USER_AGENT, "kube-probe/leno")
            .body(Bytes::new())
            .map_err(|error| error.to_string())?;
        let host = HeaderValue::from_str(&address.to_string());
        request
            .headers_mut()
            .extend(host.ok().map(|host| (header::HOST, host)));
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        // A probe ignores the body, however long it is.
        let status = async |answer: Response<Incoming>| Ok(answer.status());
        if !self.is_encrypted {
            return send_request(tcp, request, status).await;
        }
        let connector = TlsConnector::from(unverified()?);
        let tls = connector.connect(address.ip().into(), tcp).await;
        let tls = tls.map_err(|error| format!("{address}: {error}"))?;
        send_request(tls, request, status).await
    }

    fn read(config: &Value) -> Result<HttpGet, String> {
        let path = config.get("path").and_then(Value::as_str).unwrap_or("/");
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        let pairs = config.get("httpHeaders").and_then(Value::as_array);
        let headers = pairs.into_iter().flatten().map(|pair| {
            let text = |name: &str| pair[name].as_str().unwrap_or_default();
            let name = HeaderName::from_str(text("name")).map_err(|error| error.to_string())?;
            let value = HeaderValue::from_str(text("value")).map_err(|error| error.to_string())?;
            Ok((name, value))
        });
        Ok(HttpGet {
            is_encrypted: config["scheme"] == "HTTPS",
            path,
            headers: headers.collect::<Result<_, String>>()?,
        })
    }
}

impl AppProbers {
    /// Makes the probe under `path` at `ip` and returns the response's status and text; `None` without such a probe.
    pub(super) async fn probe(&self, path: &str, ip: IpAddr) -> Option<(StatusCode, String)> {
        let prober = self.0.get(path)?;
        let probed = timeout(prober.timeout, prober.probe(ip)).await;
        let late = || Err(format!("no answer within {:?}", prober.timeout));
        Some(match probed.unwrap_or_else(|_| late()) {
            Ok((status, text)) => (status, text + "\n"),
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
                "/b": {"tcpSocket": {"port": 81}}, "/c": {"httpGet": {"port": 443, "scheme": "HTTPS"}},
                "/d": {"grpc": {"port": 82, "service": "orders"}}, "/e": {"grpc": {"port": 82}}}"#,
        );
        let AppProbers(all) = good.expect("probes");
        let ProbeKind::Http(http) = &all["/a"].asks else {
            panic!("HTTP");
        };
        assert_eq!((http.path.as_str(), http.headers.len()), ("/live", 1));
        assert!(!http.is_encrypted);
        assert!(
            matches!(&all["/c"].asks, ProbeKind::Http(http) if http.is_encrypted && http.path == "/")
        );
        assert_eq!(all["/a"].timeout, Duration::from_secs(4));
        assert_eq!(
            ["/b", "/d", "/e"].map(|path| all[path].asks.clone()),
            [
                ProbeKind::Open,
                ProbeKind::Grpc("orders".to_owned()),
                ProbeKind::Grpc(String::new())
            ]
        );
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
