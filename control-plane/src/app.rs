//! Wiring: bind, start the source, the CA and the services, say where they listen.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::Router;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::routing::get;
use leno_proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use leno_proto::leno::lifecycle_server::LifecycleServer;
use leno_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use leno_proto::tonic::{self, transport::Server};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::auth;
use crate::ca::Ca;
use crate::ca::server::Certificates;
use crate::istio::Limits;
use crate::metrics::Metrics;
use crate::source::compile::Settings;
use crate::source::file::{Options, Source};
use crate::source::{State, dns};
use crate::xds::hub::Hub;
use crate::xds::lifecycle::{Drains, Lifecycle};
use crate::xds::server::Ads;

/// What the control plane is configured with.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// The directory of YAML.
    pub config: PathBuf,
    /// Where the CA and the last good forms are kept.
    pub state: PathBuf,
    /// Where proxies connect.
    pub xds: SocketAddr,
    /// Where metrics and debug pages are.
    pub monitoring: SocketAddr,
    /// What holds for the whole mesh.
    pub settings: Settings,
    /// The longest life of workload certificates.
    pub max_ttl: Duration,
    /// Bounds on YAML.
    pub limits: Limits,
    /// Bytes of a message from a proxy.
    pub max_xds_message: usize,
    /// The DNS server to ask, instead of the system's.
    pub dns_server: Option<SocketAddr>,
}

/// A control plane that runs.
#[derive(Debug)]
pub struct Bound {
    /// Where proxies connect.
    pub xds: SocketAddr,
    /// Where metrics and debug pages are.
    pub monitoring: SocketAddr,
    /// The certificate authority.
    pub ca: Arc<Ca>,
    /// What the source says.
    pub state: watch::Receiver<State>,
    ended: watch::Sender<bool>,
    tasks: JoinSet<Result<()>>,
}

impl Bound {
    /// Waits until something ends that shouldn't.
    ///
    /// # Errors
    /// What it was.
    pub async fn failed(&mut self) -> Result<()> {
        match self.tasks.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(anyhow!("a task ended: {error}")),
            None => Ok(()),
        }
    }

    /// Ends at once: proxies go on with what they have.
    pub async fn shutdown(mut self) {
        let _ = self.ended.send(true);
        self.tasks.shutdown().await;
    }
}

/// Starts a control plane.
///
/// # Errors
/// When an address can't be bound, or the CA or the directory can't be used.
pub async fn run(bootstrap: Bootstrap) -> Result<Bound> {
    let ca = Ca::open(
        &bootstrap.state,
        &bootstrap.settings.trust_domain,
        bootstrap.max_ttl,
    );
    let ca = Arc::new(ca.map_err(|error| anyhow!("CA: {error}"))?);
    let metrics = Arc::new(Metrics::new()?);
    let (demand, addresses) = dns::start(bootstrap.dns_server).map_err(|e| anyhow!("DNS: {e}"))?;
    let xds = bind("xDS and certificates", bootstrap.xds).await?;
    let monitoring = bind("monitoring", bootstrap.monitoring).await?;
    let (publish, state) = watch::channel(State::default());
    let (ended, ending) = watch::channel(false);
    let drains = Drains::default();
    let draining = drains.watch();
    let roots = ca.root_pem().to_owned();
    let hub = Arc::new(Hub::new(state.clone(), roots, demand, drains));
    let mut tasks = JoinSet::new();
    let bound_xds = xds.local_addr()?;
    ca.listens_at(bound_xds.ip())
        .map_err(|error| anyhow!("CA: {error}"))?;
    let bound_monitoring = monitoring.local_addr()?;
    let source = Source::new(Options {
        directory: bootstrap.config,
        last_good: Some(bootstrap.state.join("last-good.yaml")),
        settings: bootstrap.settings,
        limits: bootstrap.limits,
    });
    tasks.spawn(async move {
        let running = source.run(publish, addresses, draining);
        running.await.map_err(|e| anyhow!(e))
    });
    let incoming = auth::accept(xds, &ca, ending)?;
    let services = services(&hub, &ca, &metrics, bootstrap.max_xds_message);
    tasks.spawn(async move {
        let serving = services.serve_with_incoming(incoming);
        serving.await.context("xDS service")
    });
    let shown = Arc::new(Shown { hub, metrics });
    tasks.spawn(async move {
        axum::serve(monitoring, pages(shown))
            .await
            .context("monitoring")
    });
    let keeper = Arc::clone(&ca);
    tasks.spawn(async move {
        keeper.keep_own().await;
        Ok(())
    });
    Ok(Bound {
        xds: bound_xds,
        monitoring: bound_monitoring,
        ca,
        state,
        ended,
        tasks,
    })
}

async fn bind(what: &str, address: SocketAddr) -> Result<TcpListener> {
    let words = format!("cannot listen on {address} for {what}");
    TcpListener::bind(address).await.context(words)
}

/// The gRPC services.
fn services(
    hub: &Arc<Hub>,
    ca: &Arc<Ca>,
    metrics: &Arc<Metrics>,
    max_message: usize,
) -> tonic::transport::server::Router {
    let ads = Ads::new(Arc::clone(hub), Arc::clone(metrics));
    let ads = AggregatedDiscoveryServiceServer::new(ads).max_decoding_message_size(max_message);
    let certificates = Certificates::new(Arc::clone(ca), Arc::clone(metrics));
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_service(ads)
        .add_service(LifecycleServer::new(Lifecycle::new(Arc::clone(hub))))
        .add_service(IstioCertificateServiceServer::new(certificates))
}

/// What the monitoring port shows.
struct Shown {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
}

fn pages(shown: Arc<Shown>) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route(
            "/metrics",
            get(async |Extract(s): Extract<Arc<Shown>>| s.metrics.render()),
        )
        .route("/debug/status", get(status))
        .with_state(shown)
}

async fn ready(Extract(shown): Extract<Arc<Shown>>) -> (StatusCode, &'static str) {
    match shown.hub.state().borrow().complete {
        true => (StatusCode::OK, "ready\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the configuration has not been read yet\n",
        ),
    }
}

async fn status(Extract(shown): Extract<Arc<Shown>>) -> axum::Json<Value> {
    let problems: Vec<String> = {
        let state = shown.hub.state();
        let state = state.borrow();
        state.problems.iter().map(ToString::to_string).collect()
    };
    axum::Json(json!({"proxies": shown.hub.proxies(), "problems": problems}))
}
