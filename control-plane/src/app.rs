//! Wiring: binds the ports, starts the source, the CA and the services, returns the bound addresses.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use leno_proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use leno_proto::leno::lifecycle_server::LifecycleServer;
use leno_proto::leno::reports_server::ReportsServer;
use leno_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use leno_proto::tonic::{self, transport::Server};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ca::Ca;
use crate::ca::service_account::ServiceAccounts;
use crate::compile::Settings;
use crate::istio::Limits;
use crate::map::TrafficGraph;
use crate::metrics::Metrics;
use crate::object::{Problem, Severity};
use crate::services::ads::Ads;
use crate::services::certificates::Certificates;
use crate::services::lifecycle::Lifecycle;
use crate::services::reports::Reports;
use crate::services::tls;
use crate::source::file::{Options, Source};
use crate::source::{State, dns};
use crate::web::{self, PageState};
use crate::xds::drains::Drains;
use crate::xds::hub::Hub;

/// Configuration of the control plane.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// The directory of YAML.
    pub config: PathBuf,
    /// The state directory: the CA and the last good forms.
    pub state: PathBuf,
    /// Listening address of xDS and certificates.
    pub xds: SocketAddr,
    /// Listening address of metrics and debug pages.
    pub monitoring: SocketAddr,
    /// Mesh-wide settings.
    pub settings: Settings,
    /// Longest lifetime of workload certificates.
    pub max_ttl: Duration,
    /// Key set and issuer of the cluster with the service accounts that get certificates for their tokens.
    pub service_accounts: Option<ServiceAccounts>,
    /// Bounds on YAML.
    pub limits: Limits,
    /// Largest message from a proxy, in bytes.
    pub max_xds_message: usize,
    /// DNS server used instead of the system's.
    pub dns_server: Option<SocketAddr>,
}

/// A running control plane.
#[derive(Debug)]
pub struct Bound {
    /// Listening address of xDS and certificates.
    pub xds: SocketAddr,
    /// Listening address of metrics and debug pages.
    pub monitoring: SocketAddr,
    /// The certificate authority.
    pub ca: Arc<Ca>,
    /// State of the configuration source.
    pub state: watch::Receiver<State>,
    ended: watch::Sender<bool>,
    tasks: JoinSet<Result<()>>,
}

impl Bound {
    /// Waits until a task ends, which none should.
    ///
    /// # Errors
    /// The task's error, or its panic.
    pub async fn failed(&mut self) -> Result<()> {
        match self.tasks.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(anyhow!("a task ended: {error}")),
            None => Ok(()),
        }
    }

    /// Stops every task at once: proxies go on with the resources that they hold.
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
    let ca = match bootstrap.service_accounts {
        Some(accounts) => ca.and_then(|ca| ca.with_service_accounts(accounts)),
        None => ca,
    };
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
    ca.set_listen_address(bound_xds.ip())
        .map_err(|error| anyhow!("CA: {error}"))?;
    let bound_monitoring = monitoring.local_addr()?;
    let source = Source::new(Options {
        paths: vec![bootstrap.config],
        last_good: Some(bootstrap.state.join("last-good.yaml")),
        settings: bootstrap.settings,
        limits: bootstrap.limits,
    });
    tasks.spawn(async move {
        let running = source.run(publish, addresses, draining);
        running.await.map_err(|e| anyhow!(e))
    });
    let incoming = tls::accept(xds, &ca, ending)?;
    let book = Arc::new(Mutex::new(TrafficGraph::default()));
    let services = services(&hub, &ca, (&metrics, &book), bootstrap.max_xds_message);
    tasks.spawn(async move {
        let serving = services.serve_with_incoming(incoming);
        serving.await.context("xDS service")
    });
    metrics.root_expiry.set(ca.root_ends());
    tasks.spawn(count_configuration(state.clone(), Arc::clone(&metrics)));
    tasks.spawn(serve_pages(monitoring, hub, metrics, book));
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

/// Updates the metrics of the configuration: changes, valid and rejected objects, services.
async fn count_configuration(
    mut state: watch::Receiver<State>,
    metrics: Arc<Metrics>,
) -> Result<()> {
    let mut before = State::default();
    while state.changed().await.is_ok() {
        let now = state.borrow_and_update().clone();
        let count =
            |kind: &str, event: &str| metrics.events.with_label_values(&[kind, event]).inc();
        let of = |state: &State| -> BTreeMap<_, _> {
            let objects = state.objects.iter();
            objects
                .map(|known| (known.key.clone(), Arc::clone(&known.text)))
                .collect()
        };
        let (old, new) = (of(&before), of(&now));
        for (key, text) in &new {
            match old.get(key) {
                None => count(&key.kind, "add"),
                Some(same) if same == text => continue,
                Some(_) => count(&key.kind, "update"),
            }
            metrics.passed.inc();
        }
        for key in old.keys().filter(|key| !new.contains_key(key)) {
            count(&key.kind, "delete");
        }
        let known: HashSet<&Problem> = before.problems.iter().collect();
        let is_new =
            |problem: &&Problem| problem.severity == Severity::Error && !known.contains(problem);
        let failed = now.problems.iter().filter(is_new).count();
        metrics.failed.inc_by(failed as u64);
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let rejected = now.rejected.iter();
        metrics.set_rejected(rejected.map(|one| (one.labels(), one.since)));
        metrics.services.set(number(now.mesh.services.len()));
        let routes = new.keys().filter(|key| key.kind == "VirtualService");
        metrics.virtual_services.set(number(routes.count()));
        before = now;
    }
    std::future::pending().await
}

async fn serve_pages(
    listener: TcpListener,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    book: Arc<Mutex<TrafficGraph>>,
) -> Result<()> {
    let shown = Arc::new(PageState {
        hub,
        metrics,
        book,
        viewers: AtomicUsize::new(0),
    });
    let serving = axum::serve(listener, web::pages(shown));
    serving.await.context("monitoring")
}

async fn bind(what: &str, address: SocketAddr) -> Result<TcpListener> {
    let words = format!("cannot listen on {address} for {what}");
    TcpListener::bind(address).await.context(words)
}

/// The gRPC services.
fn services(
    hub: &Arc<Hub>,
    ca: &Arc<Ca>,
    (metrics, book): (&Arc<Metrics>, &Arc<Mutex<TrafficGraph>>),
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
        .add_service(
            ReportsServer::new(Reports::new(Arc::clone(book)))
                .max_decoding_message_size(max_message),
        )
        .add_service(IstioCertificateServiceServer::new(certificates))
}
