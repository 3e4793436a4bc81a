//! Flags and environment, read once into a typed [`Bootstrap`]. `--help` is the reference.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::admin::{AppMetrics, AppProbers};
use crate::control::channel::ControlPlane;
use crate::directory;
use crate::export::Telemetry;
use crate::export::log::Sink;
use crate::export::otlp::{Address, Protocol};
use crate::intercept::InitArgs;
use crate::observe::access_log::{Format, TEXT};
use crate::observe::metrics::MAX_SERIES;
use leno_http::h1::{HeadLimits, Timeouts};
use leno_http::upgrade::Upgrades;
use leno_rules::spiffe::SpiffeId;

/// Leno's data plane.
#[derive(Debug, Parser)]
#[command(name = "leno-proxy", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the sidecar of one workload.
    Run(Box<RunArgs>),
    /// Take over the connections of this network namespace: writes the rules, once, for the sidecar that is to come.
    Init(Box<InitArgs>),
    /// Remove the rules that `init` wrote.
    Clean,
}

/// Istio's `interceptionMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InterceptionMode {
    /// The app and its callers are told where the sidecar is.
    #[value(name = "NONE")]
    None,
    /// Connections are redirected to the sidecar, which asks the kernel where they wanted to go.
    #[value(name = "REDIRECT")]
    Redirect,
}

/// Flags of `run`. Each may come from an environment variable, `LENO_…`, instead.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The control plane, as host:port.
    #[arg(long, env = "LENO_XDS_ADDRESS", default_value = "127.0.0.1:15012")]
    pub xds_address: String,
    /// SPIFFE ID that the control plane must prove; default: service account `leno` in `leno-system`.
    #[arg(long, env = "LENO_XDS_IDENTITY")]
    pub xds_identity: Option<String>,
    /// Trust domain of the mesh.
    #[arg(long, env = "LENO_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Namespace of the workload.
    #[arg(long, env = "LENO_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Service account of the workload.
    #[arg(long, env = "LENO_SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,
    /// Name of the workload, for metrics.
    #[arg(long, env = "LENO_WORKLOAD")]
    pub workload: Option<String>,
    /// File with the token for the first certificate: a join token, or a Kubernetes service account's.
    #[arg(long, env = "LENO_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Root certificates (PEM) that the control plane must chain to; by default the token pins them.
    #[arg(long, env = "LENO_CA_ROOT")]
    pub ca_root: Option<PathBuf>,
    /// Directory (mode 700) for the certificate and the last good configuration, so that a restarted proxy serves before the
    /// control plane is back; `none` does without.
    #[arg(long, env = "LENO_STATE_DIR", default_value = "none")]
    pub state_dir: PathBuf,
    /// Life of certificates to ask for, such as 24h or 30s; default: the CA's.
    #[arg(long, env = "LENO_CERTIFICATE_TTL", value_parser = duration, default_value = "0s")]
    pub certificate_ttl: Duration,
    /// Address of the workload, as the registry knows it; default: that of the first --inbound.
    #[arg(long, env = "LENO_IP")]
    pub ip: Option<IpAddr>,
    /// LISTEN=APP: accept for the workload on LISTEN, whose port is the workload port, and hand over to the app at APP.
    #[arg(long, env = "LENO_INBOUND", value_delimiter = ',')]
    pub inbound: Vec<Inbound>,
    /// Where the app's own requests come in, as an HTTP proxy; port 0 is any free one.
    #[arg(long, env = "LENO_OUTBOUND_ADDRESS")]
    pub outbound_address: Option<SocketAddr>,
    /// Whether the rules of `leno-proxy init` take the pod's connections over. REDIRECT: a start without them fails.
    #[arg(
        long,
        env = "LENO_INTERCEPTION_MODE",
        value_enum,
        ignore_case = true,
        default_value = "NONE"
    )]
    pub interception_mode: InterceptionMode,
    /// Where connections to the app come in that were taken over; default: every address, port 15006.
    #[arg(long, env = "LENO_INBOUND_CAPTURE_ADDRESS")]
    pub inbound_capture_address: Option<SocketAddr>,
    /// Where /ready, /config and /metrics are.
    #[arg(long, env = "LENO_ADMIN_ADDRESS")]
    pub admin_address: Option<SocketAddr>,
    /// Where Prometheus scrapes the sidecar and, with --app-metrics, the app; default: port 15020 of the workload's address.
    #[arg(long, env = "LENO_METRICS_ADDRESS")]
    pub metrics_address: Option<SocketAddr>,
    /// Where Prometheus scrapes the sidecar alone; default: port 15090 of the workload's address.
    #[arg(long, env = "LENO_PROMETHEUS_ADDRESS")]
    pub prometheus_address: Option<SocketAddr>,
    /// The app's own metrics, as IP:PORT/PATH, to be merged in on 15020.
    #[arg(long, env = "LENO_APP_METRICS")]
    pub app_metrics: Option<AppMetrics>,
    /// What is asked of the app in place of a probe, by path, as JSON; `leno inject` writes it.
    #[arg(long, env = "LENO_APP_PROBERS")]
    pub app_probers: Option<AppProbers>,
    /// Moves the fixed ports: 15000 becomes this, 15001 this plus 1, 15020 this plus 20.
    #[arg(long, env = "LENO_PORTS_FROM", default_value_t = 15000)]
    pub ports_from: u16,
    /// Protocols, beside websocket, that requests may switch to: what follows the switch is bytes that no rule sees.
    #[arg(
        long,
        env = "LENO_UPGRADES",
        default_value = "",
        value_name = "PROTOCOLS",
        hide_default_value = true
    )]
    pub upgrades: Upgrades,
    /// Worker threads; 1 serves most pods.
    #[arg(long, env = "LENO_WORKERS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// What is told of requests.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// Limits.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// The app, with its arguments: started when the mesh is ready, told of signals; its exit code is ours.
    #[arg(last = true, value_name = "APP")]
    pub app: Vec<String>,
}

/// What is told of requests.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access log and traces")]
pub struct TelemetryArgs {
    /// Where the access log goes: stdout, or a file; default: nowhere.
    #[arg(long, env = "LENO_ACCESS_LOG")]
    pub access_log: Option<Sink>,
    /// How its lines look: json (Istio's fields), text (Istio's line).
    #[arg(
        long,
        env = "LENO_ACCESS_LOG_ENCODING",
        value_enum,
        default_value = "json"
    )]
    pub access_log_encoding: Encoding,
    /// Another line, by Envoy's command operators: %START_TIME% %REQ(:PATH)% %RESPONSE_CODE%.
    #[arg(long, env = "LENO_ACCESS_LOG_FORMAT")]
    pub access_log_format: Option<Format>,
    /// Share of the requests that went well, 0 to 1; failed ones are always written.
    #[arg(long, env = "LENO_ACCESS_LOG_SAMPLING", value_parser = share, default_value = "1")]
    pub access_log_sampling: f64,
    /// Write failed requests only: 5xx, and what has a response flag.
    #[arg(long, env = "LENO_ACCESS_LOG_ERRORS_ONLY")]
    pub access_log_errors_only: bool,
    /// Where spans go, as http://HOST:PORT; default: nowhere.
    #[arg(long, env = "LENO_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<Address>,
    /// How spans are handed over.
    #[arg(long, env = "LENO_OTLP_PROTOCOL", value_enum, default_value = "grpc")]
    pub otlp_protocol: Protocol,
    /// Share of the traces begun here that are recorded, 0 to 1; errors that Leno makes always are.
    #[arg(long, env = "LENO_TRACE_SAMPLING", value_parser = share, default_value = "0.01")]
    pub trace_sampling: f64,
}

/// How lines of the access log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    /// An object a line, with Istio's fields.
    Json,
    /// Istio's line.
    Text,
}

impl TelemetryArgs {
    fn into_telemetry(self) -> Result<Telemetry, String> {
        let format = match (self.access_log_format, self.access_log_encoding) {
            (Some(format), _) => format,
            (None, Encoding::Json) => Format::json(),
            (None, Encoding::Text) => TEXT.parse()?,
        };
        Ok(Telemetry {
            log: self.access_log.map(|sink| (sink, format)),
            log_share: self.access_log_sampling,
            log_errors_only: self.access_log_errors_only,
            otlp: self.otlp_endpoint.map(|at| (at, self.otlp_protocol)),
            trace_share: self.trace_sampling,
        })
    }
}

fn share(text: &str) -> Result<f64, String> {
    let form = || format!("{text:?} is not a share from 0 to 1");
    let share: f64 = text.parse().map_err(|_| form())?;
    (0.0..=1.0)
        .contains(&share)
        .then_some(share)
        .ok_or_else(form)
}

/// Limits on what is read and kept.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Bytes of a request's or response's head.
    #[arg(long, env = "LENO_MAX_HEAD_BYTES", default_value_t = 60 * 1024)]
    pub max_head_bytes: usize,
    /// Header fields of a request or response.
    #[arg(long, env = "LENO_MAX_HEADERS", default_value_t = 100)]
    pub max_headers: usize,
    /// Time from the first byte of a request's head to its last.
    #[arg(long, env = "LENO_HEAD_TIMEOUT", value_parser = duration, default_value = "10s")]
    pub head_timeout: Duration,
    /// Time that a connection may be idle between requests.
    #[arg(long, env = "LENO_IDLE_TIMEOUT", value_parser = duration, default_value = "1h")]
    pub idle_timeout: Duration,
    /// Time that a peer may take nothing of what is sent to it.
    #[arg(long, env = "LENO_STREAM_FLUSH_TIMEOUT", value_parser = duration, default_value = "5m")]
    pub stream_flush_timeout: Duration,
    /// Time that an upstream connection is kept idle.
    #[arg(long, env = "LENO_UPSTREAM_IDLE_TIMEOUT", value_parser = duration, default_value = "60s")]
    pub upstream_idle_timeout: Duration,
    /// Time that a connection may keep its protocol to itself before it is taken for opaque TCP.
    #[arg(long, env = "LENO_PROTOCOL_DETECTION_TIMEOUT", value_parser = duration, default_value = "5s")]
    pub protocol_detection_timeout: Duration,
    /// Time that a TLS handshake may take.
    #[arg(long, env = "LENO_HANDSHAKE_TIMEOUT", value_parser = duration, default_value = "5s")]
    pub handshake_timeout: Duration,
    /// Connections open at once, from the app and from peers.
    #[arg(long, env = "LENO_MAX_CONNECTIONS", default_value_t = 20_000)]
    pub max_connections: usize,
    /// Requests that wait for the control plane at once.
    #[arg(long, env = "LENO_MAX_WAITING_REQUESTS", default_value_t = 1024)]
    pub max_waiting_requests: usize,
    /// Time that a request waits for the control plane; a little longer than a plan waits for its endpoints (5 s).
    #[arg(long, env = "LENO_CONFIG_WAIT", value_parser = duration, default_value = "6s")]
    pub config_wait: Duration,
    /// Destinations in use at once.
    #[arg(long, env = "LENO_MAX_NAMES", default_value_t = 4096)]
    pub max_names: usize,
    /// Time after which a destination that isn't used is given back.
    #[arg(long, env = "LENO_IDLE_NAMES", value_parser = duration, default_value = "10m")]
    pub idle_names: Duration,
    /// Bytes of a message from the control plane.
    #[arg(long, env = "LENO_MAX_XDS_MESSAGE", default_value_t = 16 * 1024 * 1024)]
    pub max_xds_message: usize,
    /// Metric series at once; what would be more is counted as `other`.
    #[arg(long, env = "LENO_MAX_METRIC_SERIES", default_value_t = MAX_SERIES)]
    pub max_metric_series: usize,
    /// Time after which a metric series in which nothing happens is forgotten.
    #[arg(long, env = "LENO_METRIC_EXPIRY", value_parser = duration, default_value = "1h")]
    pub metric_expiry: Duration,
    /// Time that the proxy takes to end at most: callers learn it, open requests are finished.
    #[arg(long, env = "LENO_DRAIN_TIMEOUT", value_parser = duration, default_value = "25s")]
    pub drain_timeout: Duration,
}

/// One `--inbound`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbound {
    /// Address that peers connect to; its port is the workload port.
    pub listen: SocketAddr,
    /// Address of the app.
    pub app: SocketAddr,
}

impl FromStr for Inbound {
    type Err = String;

    fn from_str(text: &str) -> Result<Inbound, String> {
        let form = || format!("{text:?} is not LISTEN=APP, such as 127.0.0.2:3001=127.0.0.1:8080");
        let (listen, app) = text.split_once('=').ok_or_else(form)?;
        let parse = |part: &str| part.trim().parse().map_err(|_| form());
        Ok(Inbound {
            listen: parse(listen)?,
            app: parse(app)?,
        })
    }
}

/// Validated configuration of the proxy.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// Address and SPIFFE ID of the control plane.
    pub target: ControlPlane,
    /// SPIFFE ID of the workload.
    pub id: SpiffeId,
    /// Name of the workload.
    pub workload: String,
    /// Address of the workload.
    pub ip: IpAddr,
    /// File with the token for the first certificate.
    pub token_file: Option<PathBuf>,
    /// File with the roots that the control plane must chain to at first contact; by default the token pins them.
    pub ca_root: Option<PathBuf>,
    /// Directory for the certificate and the last good configuration, to restart from.
    pub state: Option<PathBuf>,
    /// Lifetime of certificates to request; 0 is the CA's default.
    pub certificate_ttl: Duration,
    /// Inbound listeners, each with the app's address.
    pub inbound: Vec<Inbound>,
    /// Address for the app's own requests.
    pub outbound: SocketAddr,
    /// Address for inbound connections that the rules of `init` redirect, with interception mode REDIRECT.
    pub capture: Option<SocketAddr>,
    /// Address of the admin port.
    pub admin: SocketAddr,
    /// Addresses that Prometheus scrapes: merged with the app's metrics, and the sidecar's own.
    pub stats: [SocketAddr; 2],
    /// Address and path of the app's own metrics.
    pub app_metrics: Option<AppMetrics>,
    /// The app's probes, made in the kubelet's place.
    pub app_probers: Option<AppProbers>,
    /// Access log and traces.
    pub telemetry: Telemetry,
    /// Worker threads.
    pub workers: u16,
    /// Limits on the head of a message.
    pub limits: HeadLimits,
    /// Timeouts on peers.
    pub timeouts: Timeouts,
    /// Idle timeout of upstream connections.
    pub upstream_idle: Duration,
    /// The protocols that requests may switch to.
    pub upgrades: Upgrades,
    /// Timeout of protocol detection; after it a connection counts as opaque TCP.
    pub detection: Duration,
    /// Timeout of a TLS handshake.
    pub handshake: Duration,
    /// Connections open at once.
    pub max_connections: usize,
    /// Limits on destinations in use and on requests that wait for the control plane.
    pub directory: directory::Limits,
    /// Time after which an unused destination is unsubscribed.
    pub idle_names: Duration,
    /// Largest message from the control plane, in bytes.
    pub max_xds_message: usize,
    /// Metric series at once.
    pub max_series: usize,
    /// Time after which an idle metric series is dropped.
    pub metric_expiry: Duration,
    /// Time limit of the drain.
    pub drain: Duration,
}

impl RunArgs {
    fn target(&self) -> Result<ControlPlane, String> {
        let identity = match &self.xds_identity {
            Some(text) => SpiffeId::parse(text).map_err(|e| format!("--xds-identity: {e}"))?,
            None => SpiffeId::of(&self.trust_domain, "leno-system", "leno")?,
        };
        Ok(ControlPlane {
            address: self.xds_address.clone(),
            identity,
        })
    }

    /// Listening addresses besides `--inbound`: outbound, admin, merged metrics, own metrics, redirected inbound.
    fn addresses(&self, ip: IpAddr) -> Result<[SocketAddr; 5], String> {
        let local = IpAddr::from(Ipv4Addr::LOCALHOST);
        let or = |given: Option<SocketAddr>, ip, offset| {
            let port = self.ports_from.checked_add(offset);
            let port = port.ok_or_else(|| format!("--ports-from {}: too high", self.ports_from))?;
            Ok::<_, String>(given.unwrap_or(SocketAddr::new(ip, port)))
        };
        Ok([
            or(self.outbound_address, local, 1)?,
            or(self.admin_address, local, 0)?,
            or(self.metrics_address, ip, 20)?,
            or(self.prometheus_address, ip, 90)?,
            or(
                self.inbound_capture_address,
                Ipv6Addr::UNSPECIFIED.into(),
                6,
            )?,
        ])
    }

    /// True with interception mode REDIRECT; an error when another flag contradicts it.
    fn redirects(&self) -> Result<bool, String> {
        if self.interception_mode == InterceptionMode::None {
            return Ok(false);
        }
        if !self.app.is_empty() {
            // The rules would spare its connections as they do the sidecar's: silent plaintext.
            return Err("an app after -- runs as the sidecar's user, which --interception-mode REDIRECT leaves alone".to_owned());
        }
        if !self.inbound.is_empty() {
            return Err("--inbound is for --interception-mode NONE: what REDIRECT takes over says itself where it goes".to_owned());
        }
        Ok(true)
    }

    /// Checks the flags.
    ///
    /// # Errors
    /// The invalid flag, and the reason.
    pub fn into_bootstrap(self) -> Result<Bootstrap, String> {
        let limits = &self.limits;
        if limits.max_headers == 0 || limits.max_headers > 10_000 {
            return Err("--max-headers must be 1 to 10000".to_owned());
        }
        let redirects = self.redirects()?;
        let domain = &self.trust_domain;
        let id = SpiffeId::of(domain, &self.namespace, &self.service_account);
        let id = id.map_err(|e| format!("--trust-domain, --namespace, --service-account: {e}"))?;
        let target = self.target()?;
        let ip = self
            .ip
            .or(self.inbound.first().map(|inbound| inbound.listen.ip()));
        let ip = ip.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let [outbound, admin, merged, own, capture] = self.addresses(ip)?;
        Ok(Bootstrap {
            target,
            workload: self
                .workload
                .unwrap_or_else(|| self.service_account.clone()),
            id,
            ip,
            outbound,
            capture: redirects.then_some(capture),
            admin,
            stats: [merged, own],
            app_metrics: self.app_metrics,
            app_probers: self.app_probers,
            token_file: self.token_file,
            ca_root: self.ca_root,
            state: Some(self.state_dir).filter(|path| path.as_os_str() != "none"),
            certificate_ttl: self.certificate_ttl,
            inbound: self.inbound,
            telemetry: self.telemetry.into_telemetry()?,
            workers: self.workers,
            upgrades: self.upgrades,
            limits: HeadLimits {
                head_bytes: limits.max_head_bytes,
                headers: limits.max_headers,
            },
            timeouts: Timeouts {
                idle: limits.idle_timeout,
                head: limits.head_timeout,
                flush: limits.stream_flush_timeout,
            },
            upstream_idle: limits.upstream_idle_timeout,
            detection: limits.protocol_detection_timeout,
            handshake: limits.handshake_timeout,
            max_connections: limits.max_connections,
            directory: directory::Limits {
                names: limits.max_names,
                waiting: limits.max_waiting_requests,
                wait: limits.config_wait,
            },
            idle_names: limits.idle_names.max(Duration::from_millis(100)),
            max_xds_message: limits.max_xds_message,
            max_series: limits.max_metric_series,
            metric_expiry: limits.metric_expiry.max(Duration::from_millis(100)),
            drain: limits.drain_timeout,
        })
    }
}

/// A duration as Istio writes it: `1h`, `10m`, `5s`, `250ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let form = || format!("{text:?} is not a duration such as 1h, 10m, 5s or 250ms");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(form)?;
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| form())?;
    let milliseconds = match unit {
        "h" => 3_600_000,
        "m" => 60_000,
        "s" => 1000,
        "ms" => 1,
        _ => return Err(form()),
    };
    let total = number.checked_mul(milliseconds).ok_or_else(form)?;
    Ok(Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bootstrap(flags: &str) -> Result<Bootstrap, String> {
        let flags = ["leno-proxy", "run"]
            .into_iter()
            .chain(flags.split_whitespace());
        let cli = Cli::try_parse_from(flags).map_err(|error| error.to_string())?;
        match cli.command {
            Command::Run(run) => run.into_bootstrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_workload_is_where_it_listens_and_ports_move_together() {
        let flags =
            "--inbound 127.0.0.2:3001=127.0.0.1:8080 --ports-from 25000 --head-timeout 250ms";
        let bootstrap = bootstrap(flags).expect("valid");
        assert_eq!(bootstrap.ip.to_string(), "127.0.0.2");
        assert_eq!(bootstrap.outbound.port(), 25001);
        assert_eq!(bootstrap.admin.port(), 25000);
        assert_eq!(bootstrap.timeouts.head, Duration::from_millis(250));
        assert_eq!(
            bootstrap.id.as_str(),
            "spiffe://cluster.local/ns/default/sa/default"
        );
    }

    #[test]
    fn a_wrong_flag_says_which_and_why() {
        for (flags, words) in [
            ("--inbound 3001", "LISTEN=APP"),
            ("--head-timeout 5", "not a duration"),
            ("--namespace a/b", "--namespace"),
            ("--max-headers 0", "--max-headers"),
            ("--ports-from 65535", "--ports-from"),
            ("--workers 0", "--workers"),
            ("--interception-mode REDIRECT -- app", "user"),
            (
                "--interception-mode REDIRECT --inbound 127.0.0.2:1=127.0.0.1:1",
                "--inbound",
            ),
        ] {
            let error = bootstrap(flags).expect_err(flags);
            assert!(error.contains(words), "{flags}: {error}");
        }
    }
}
