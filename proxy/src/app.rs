//! Wiring: binds the sockets, starts the threads, reports the bound addresses.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::net::TcpListener;
use tokio::runtime::Builder as RuntimeBuilder;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{Instant, timeout};

use crate::admin::{Admin, Port};
use crate::bootstrap::Bootstrap;
use crate::control::drain_call::DrainCall;
use crate::control::state_dir::StateDir;
use crate::directory::Directory;
use crate::drain::{self, Phase, Side, Watch};
use crate::export::otlp::Exporter;
use crate::export::report::ReportClient;
use crate::export::{self, Exports};
use crate::identity::{self, Renewal};
use crate::observe::Observer;
use crate::observe::labels::{Labels, Party};
use crate::observe::metrics::Metrics;
use crate::serve::accept::{self, ConnectionLimit};
use crate::snapshot::Builder;
use crate::snapshot::apps::Apps;
use crate::sockets::{Listeners, Sockets, local_addresses};
use crate::tls::Credentials;
use crate::tls::server::Acceptor;
use crate::upstream::pool::Pool;
use crate::worker::{Shared, Worker};
use crate::{inbound, node, outbound, xds};
use leno_http::clock;
use leno_http::{buffers, head};
use leno_rules::config::endpoints::Workload;

/// Timeout for each thread to end after the drain.
const JOIN: Duration = Duration::from_secs(5);
/// Interval between sweeps of a worker's pool and buffers.
const SWEEP: Duration = Duration::from_secs(1);
/// Sweeps of the metric series in one `--metric-expiry`; a series idle for all of them is dropped.
const SWEEPS: u32 = 4;

/// A running proxy.
#[derive(Debug)]
pub struct Bound {
    /// Address for the app's own requests.
    pub outbound: SocketAddr,
    /// Addresses that peers connect to, in the order of the `--inbound` flags.
    pub inbound: Vec<SocketAddr>,
    /// Address of the admin port.
    pub admin: SocketAddr,
    /// Addresses that Prometheus scrapes: merged with the app's metrics, and the sidecar's own.
    pub stats: [SocketAddr; 2],
    lifecycle: DrainCall,
    signal: drain::Signal,
    watch: Watch,
    drain: Duration,
    threads: Vec<JoinHandle<()>>,
}

impl Bound {
    /// Waits until there is a certificate and an inbound plan.
    pub async fn ready(&self) {
        self.lifecycle.credentials.ready().await;
        self.lifecycle.directory.inbound().await;
    }

    /// A watch on the phases of the shutdown.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Shuts down: callers are sent elsewhere and open requests finish, within the drain timeout.
    pub async fn shutdown(self) {
        self.lifecycle.end(&self.signal, self.drain).await;
        for thread in self.threads {
            let joining = tokio::task::spawn_blocking(move || thread.join());
            match timeout(JOIN, joining).await {
                Ok(Ok(Ok(()))) => {}
                Ok(_) => tracing::error!("a thread ended by a panic"),
                Err(_) => tracing::error!("a thread doesn't end"),
            }
        }
    }
}

/// Starts a proxy.
///
/// # Errors
/// When an address can't be bound, the access log or the state directory can't be opened, the interception rules are
/// missing, or a thread can't be started.
pub fn run(bootstrap: Bootstrap) -> Result<Bound> {
    let (signal, watch) = drain::channel();
    let sockets = Sockets::bind(&bootstrap)?;
    let metrics = Metrics::new(bootstrap.max_series)?;
    let credentials = Credentials::new(bootstrap.id.trust_domain());
    let (directory, asked) = Directory::new(bootstrap.directory);
    let (observer, exports) = open_exports(&bootstrap, &metrics)?;
    let me = party(&bootstrap);
    let unknown = Labels::new("source", &me, &Party::default(), "", "unknown");
    let shared = Arc::new(Shared {
        acceptor: Acceptor::new(&credentials, bootstrap.handshake)?,
        unknown: metrics.series(unknown),
        directory,
        metrics,
        observer,
        credentials,
        watch,
        limits: bootstrap.limits,
        timeouts: bootstrap.timeouts,
        upgrades: bootstrap.upgrades.clone(),
        detection: bootstrap.detection,
        me,
        own_addresses: sockets.addresses()?,
        intercepts: bootstrap.capture.is_some(),
        apps: Apps::default(),
    });
    let mut bound = Bound {
        outbound: sockets.outbound[0].local_addr()?,
        inbound: local_addresses(&sockets.inbound)?,
        admin: sockets.admin.local_addr()?,
        stats: sockets.stats_addresses()?,
        lifecycle: DrainCall {
            target: bootstrap.target.clone(),
            node: node::id(&bootstrap),
            instance: format!("{:032x}", fastrand::u128(..)),
            credentials: Arc::clone(&shared.credentials),
            directory: Arc::clone(&shared.directory),
        },
        signal,
        watch: shared.watch.clone(),
        drain: bootstrap.drain,
        threads: Vec::new(),
    };
    let limit = ConnectionLimit::new(bootstrap.max_connections, &shared.metrics);
    for number in 0..bootstrap.workers {
        let worker = start_worker(number, &shared, &sockets, &limit, bootstrap.upstream_idle)?;
        bound.threads.push(worker);
    }
    let ports = bound.inbound.iter().map(SocketAddr::port);
    let apps = ports
        .zip(bootstrap.inbound.iter().map(|inbound| inbound.app))
        .collect();
    let stream = xds_options(&bootstrap, &bound.lifecycle)?;
    let exports = start_exports(&bootstrap, &shared, exports, &mut bound.threads)?;
    let control = start_control(&bootstrap, stream, &shared, sockets, (asked, apps), exports)?;
    bound.threads.push(control);
    Ok(bound)
}

/// Starts the access log's thread, if there is one; returns the exporters that the control thread runs.
fn start_exports(
    bootstrap: &Bootstrap,
    shared: &Arc<Shared>,
    exports: Exports,
    threads: &mut Vec<JoinHandle<()>>,
) -> Result<(Option<Exporter>, ReportClient)> {
    if let Some((lines, sink)) = exports.log {
        let watch = shared.watch.clone();
        threads.push(spawn("log", move || export::log::run(lines, sink, watch))?);
    }
    let reporter = ReportClient {
        target: bootstrap.target.clone(),
        node: node::id(bootstrap),
        credentials: Arc::clone(&shared.credentials),
        metrics: Arc::clone(&shared.metrics),
        failures: exports.failures,
        status: Arc::default(),
    };
    Ok((exports.spans, reporter))
}

/// Starts the control thread: the xDS stream, certificate renewal, reports, spans, the admin and metrics ports.
fn start_control(
    bootstrap: &Bootstrap,
    mut stream: xds::Options,
    shared: &Arc<Shared>,
    sockets: Sockets,
    (asked, apps): (mpsc::UnboundedReceiver<String>, HashMap<u16, SocketAddr>),
    (spans, reporter): (Option<Exporter>, ReportClient),
) -> Result<JoinHandle<()>> {
    let status = Arc::clone(&reporter.status);
    let state = open_state(bootstrap)?;
    stream.state.clone_from(&state);
    let credentials = Arc::clone(&shared.credentials);
    let metrics = Arc::clone(&shared.metrics);
    let builder = Builder::new(
        Arc::clone(&credentials),
        Arc::clone(&metrics),
        shared.me.clone(),
        apps,
    );
    let client = xds::Client::new(
        stream,
        builder,
        Arc::clone(&shared.directory),
        Arc::clone(&credentials),
        Arc::clone(&metrics),
        Arc::clone(&status),
    );
    let renewal = Renewal {
        options: identity_options(bootstrap, state),
        credentials: Arc::clone(&credentials),
        metrics: Arc::clone(&metrics),
    };
    let admin = Arc::new(Admin {
        node: node::id(bootstrap),
        directory: Arc::clone(&shared.directory),
        credentials: Arc::clone(&credentials),
        metrics: Arc::clone(&metrics),
        status,
        app: bootstrap.app_metrics.clone(),
        probers: bootstrap
            .app_probers
            .clone()
            .map(|probers| (probers, bootstrap.ip)),
    });
    let expiry = bootstrap.metric_expiry;
    let watch = shared.watch.clone();
    spawn("control", move || async move {
        if let Err(error) = serve_pages(&admin, sockets, &watch) {
            return tracing::error!(%error, "a socket can't be registered");
        }
        tokio::task::spawn_local(forget_idle(metrics, expiry));
        tokio::task::spawn_local(reporter.run(watch.clone()));
        // Spans of the last requests are exported before the thread ends.
        let exporting = spans.map(|spans| tokio::task::spawn_local(spans.run(watch.clone())));
        let stream = async {
            // The stream needs a client certificate: it opens when there is one.
            if first_identity(&credentials, &watch).await {
                client.run(asked, watch.clone()).await;
            }
        };
        tokio::join!(renewal.run(watch.clone()), stream);
        watch.ended().await;
        if let Some(exporting) = exporting {
            let _ = exporting.await;
        }
    })
}

/// Serves the admin port, and the two that Prometheus scrapes.
fn serve_pages(admin: &Arc<Admin>, sockets: Sockets, watch: &Watch) -> io::Result<()> {
    let [merged, own] = sockets.stats;
    let pages = [
        (Port::Admin, sockets.admin),
        (Port::Merged, merged),
        (Port::Own, own),
    ];
    for (port, listener) in pages {
        let listener = TcpListener::from_std(listener)?;
        tokio::task::spawn_local(Arc::clone(admin).serve(listener, port, watch.clone()));
    }
    Ok(())
}

fn open_exports(bootstrap: &Bootstrap, metrics: &Metrics) -> Result<(Observer, Exports)> {
    let service = format!("{}.{}", bootstrap.workload, bootstrap.id.namespace());
    let node = node::id(bootstrap);
    export::start(&bootstrap.telemetry, metrics, service, &node).context("--access-log")
}

/// Drops metric series that have been idle for `expiry`.
async fn forget_idle(metrics: Arc<Metrics>, expiry: Duration) {
    let mut sweep = tokio::time::interval(expiry / SWEEPS);
    loop {
        sweep.tick().await;
        metrics.standard().sweep(SWEEPS);
    }
}

/// Opens the state directory, if `--state-dir` names one.
fn open_state(bootstrap: &Bootstrap) -> Result<Option<Arc<StateDir>>> {
    let Some(directory) = &bootstrap.state else {
        tracing::info!(
            "no --state-dir: after a restart nothing is served until the control plane is reached"
        );
        return Ok(None);
    };
    let state = StateDir::open(directory, &bootstrap.id);
    Ok(Some(Arc::new(
        state.map_err(|reason| anyhow!("--state-dir {reason}"))?,
    )))
}

/// This workload, as metrics label it.
fn party(bootstrap: &Bootstrap) -> Party {
    Party {
        workload: Workload {
            name: bootstrap.workload.clone(),
            namespace: bootstrap.id.namespace().to_owned(),
            ..Workload::default()
        },
        principal: Some(bootstrap.id.to_string()),
    }
}

/// Waits for the first certificate; false when the proxy ends before.
async fn first_identity(credentials: &Credentials, watch: &Watch) -> bool {
    tokio::select! {
        () = credentials.ready() => true,
        () = watch.ended() => false,
    }
}

fn start_worker(
    number: u16,
    shared: &Arc<Shared>,
    sockets: &Sockets,
    limit: &Arc<ConnectionLimit>,
    upstream_idle: Duration,
) -> Result<JoinHandle<()>> {
    let listening = sockets.listening()?;
    let (shared, limit) = (Arc::clone(shared), Arc::clone(limit));
    spawn(&format!("worker-{number}"), move || async move {
        let worker = Rc::new(Worker::new(shared, Pool::new(upstream_idle)));
        if let Err(error) = work(worker, listening, limit).await {
            tracing::error!(%error, "a socket can't be registered");
        }
    })
}

async fn work(
    worker: Rc<Worker>,
    listening: Listeners,
    limit: Arc<ConnectionLimit>,
) -> io::Result<()> {
    let watch = worker.shared.watch.clone();
    let mut accepting = Vec::new();
    for listener in listening.inbound {
        let port = listener.local_addr()?.port();
        let worker = Rc::clone(&worker);
        let serve = move |tcp, peer| inbound::serve(Rc::clone(&worker), tcp, peer, port);
        let listener = TcpListener::from_std(listener)?;
        let side = (watch.clone(), Side::Inbound);
        let loops = accept::accept(listener, Arc::clone(&limit), side, serve);
        accepting.push(tokio::task::spawn_local(loops));
    }
    for listener in listening.capture {
        let worker = Rc::clone(&worker);
        let serve = move |tcp, peer| inbound::serve_intercepted(Rc::clone(&worker), tcp, peer);
        let listener = TcpListener::from_std(listener)?;
        let side = (watch.clone(), Side::Inbound);
        let loops = accept::accept(listener, Arc::clone(&limit), side, serve);
        accepting.push(tokio::task::spawn_local(loops));
    }
    for listener in listening.outbound {
        let worker = Rc::clone(&worker);
        let serve = move |tcp, peer| outbound::serve(Rc::clone(&worker), tcp, peer);
        let listener = TcpListener::from_std(listener)?;
        let side = (watch.clone(), Side::Outbound);
        let loops = accept::accept(listener, Arc::clone(&limit), side, serve);
        accepting.push(tokio::task::spawn_local(loops));
    }
    let mut sweep = tokio::time::interval(SWEEP);
    while !watch.has_reached(Phase::Ending) {
        tokio::select! {
            _ = sweep.tick() => {
                worker.pool.sweep(Instant::now());
                buffers::trim();
                head::trim();
            }
            () = watch.ended() => {}
        }
    }
    // The accept loops empty the kernel's queues before they end.
    for accepting in accepting {
        let _ = accepting.await;
    }
    watch.wait_idle().await;
    Ok(())
}

/// Runs the future that `task` makes on a new thread with its own runtime; the future never leaves that thread.
fn spawn<F: Future<Output = ()>>(
    name: &str,
    task: impl FnOnce() -> F + Send + 'static,
) -> Result<JoinHandle<()>> {
    let runtime = RuntimeBuilder::new_current_thread()
        .enable_all()
        .event_interval(127)
        .build()?;
    let thread = thread::Builder::new().name(name.to_owned());
    Ok(thread.spawn(move || LocalSet::new().block_on(&runtime, clock::with_turns(task())))?)
}

/// Options of the xDS stream, whose node tells this process from the workload's earlier and later ones.
fn xds_options(bootstrap: &Bootstrap, process: &DrainCall) -> Result<xds::Options> {
    let dialer = bootstrap.target.mtls_dialer(&process.credentials);
    Ok(xds::Options {
        dialer: dialer.map_err(|error| anyhow!(error))?,
        target: bootstrap.target.to_string(),
        node: node::node(bootstrap, &process.instance),
        max_message: bootstrap.max_xds_message,
        idle_names: bootstrap.idle_names,
        state: None,
    })
}

fn identity_options(bootstrap: &Bootstrap, state: Option<Arc<StateDir>>) -> identity::Options {
    identity::Options {
        target: bootstrap.target.clone(),
        id: bootstrap.id.clone(),
        token_file: bootstrap.token_file.clone(),
        ca_root: bootstrap.ca_root.clone(),
        ttl: bootstrap.certificate_ttl,
        state,
    }
}
