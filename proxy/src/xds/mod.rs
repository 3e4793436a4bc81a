//! Client of the ADS stream: connects, backs off, drives the session, applies each response and publishes it once.

pub mod session;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leno_proto::pb::envoy::config::core::v3::Node;
use leno_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use leno_proto::tonic::transport::{Channel, Endpoint};
use leno_proto::tonic::{Status, Streaming};
use leno_proto::type_url::{self, LISTENER, SECRET};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;

use crate::control::channel::{Dialer, error_text};
use crate::control::state_dir::StateDir;
use crate::directory::{ControlPlaneState, Directory};
use crate::drain::Watch;
use crate::observe::metrics::Metrics;
use crate::resources::{SavedResource, Store};
use crate::snapshot::{Builder, INBOUND};
use crate::status::Status as Shown;
use crate::tls::Credentials;
use leno_rules::config::secret;
use session::Session;

/// First backoff of a reconnection; it doubles, with full jitter.
const MIN_BACKOFF: Duration = Duration::from_millis(200);
/// Largest backoff.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Capacity of the queue of unsent requests; new names come far more slowly than that fills.
const REQUESTS: usize = 1024;

/// Configuration of the stream.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections to the control plane.
    pub dialer: Dialer,
    /// Its address, for the log.
    pub target: String,
    /// Node of this proxy.
    pub node: Node,
    /// Largest message that is accepted, in bytes.
    pub max_message: usize,
    /// Time after which an unused authority is unsubscribed.
    pub idle_names: Duration,
    /// State directory that keeps the last good configuration for a restart.
    pub state: Option<Arc<StateDir>>,
}

/// Name of its file in the state directory.
const FILE: &str = "configuration";
/// Delay from the first change until the file is written, so that several are written at once.
const SAVE_AFTER: Duration = Duration::from_millis(200);

/// The client's side of the stream, and the resources that it holds.
#[derive(Debug)]
pub struct Client {
    options: Options,
    session: Session,
    store: Store,
    builder: Builder,
    directory: Arc<Directory>,
    credentials: Arc<Credentials>,
    metrics: Arc<Metrics>,
    shown: Arc<Shown>,
    warming: Option<Instant>,
    /// Time of the next sweep for unused names, across reconnections.
    sweep: Instant,
    /// Subscribed resources that no accepted one referred to at the last sweep.
    unneeded: BTreeSet<(&'static str, String)>,
    /// Subscribed authorities without an answer, with the time at which a sweep first found them so.
    unanswered: HashMap<String, Instant>,
    /// Time at which the accepted resources are to be saved.
    save: Option<Instant>,
    /// True while restored resources run and no response has come yet.
    is_restored: bool,
}

impl Client {
    /// A client that is subscribed to the inbound Listener and the roots.
    pub fn new(
        options: Options,
        builder: Builder,
        directory: Arc<Directory>,
        credentials: Arc<Credentials>,
        metrics: Arc<Metrics>,
        shown: Arc<Shown>,
    ) -> Client {
        let mut session = Session::new(options.node.clone());
        let idle_names = options.idle_names;
        session.subscribe(LISTENER, [INBOUND.to_owned()]);
        session.subscribe(SECRET, [secret::ROOTS.to_owned()]);
        Client {
            options,
            session,
            store: Store::default(),
            builder,
            directory,
            credentials,
            metrics,
            shown,
            warming: None,
            sweep: Instant::now() + idle_names / 4,
            unneeded: BTreeSet::new(),
            unanswered: HashMap::new(),
            save: None,
            is_restored: false,
        }
    }

    /// Runs the configuration saved before a restart, until the control plane confirms or replaces it.
    fn restore(&mut self) {
        let Some(state) = &self.options.state else {
            return;
        };
        self.store.keep_bodies();
        let kept: Vec<SavedResource> = match state.load(FILE) {
            Ok(kept) => kept.unwrap_or_default(),
            Err(reason) => return tracing::warn!(reason, "the kept configuration is refused"),
        };
        if kept.is_empty() {
            return;
        }
        let count = kept.len();
        for response in SavedResource::responses(kept) {
            let applied = self.store.apply(&response);
            for refused in &applied.refused {
                tracing::warn!(name = refused.name, field = refused.field, "not restored");
            }
            let names = response.resources.iter().map(|r| r.name.clone());
            match type_url::ALL.into_iter().find(|t| *t == response.type_url) {
                // The stream isn't open yet: its first requests carry every subscription.
                Some(type_url) => drop(self.session.subscribe(type_url, names)),
                None => continue,
            }
        }
        self.take_roots();
        drop(self.subscribe_referenced());
        self.is_restored = true;
        self.publish(true);
        tracing::info!(resources = count, "restored, not confirmed yet");
    }

    /// Saves the accepted resources for a restart.
    fn save(&mut self) {
        self.save = None;
        if let Some(state) = &self.options.state
            && let Err(error) = state.save(FILE, &self.store.kept())
        {
            tracing::warn!(%error, "the configuration can't be kept for a restart");
        }
    }

    /// Keeps the stream up until the proxy ends. `asked` yields the authorities that requests need.
    pub async fn run(mut self, mut asked: mpsc::UnboundedReceiver<String>, watch: Watch) {
        let mut backoff = MIN_BACKOFF;
        self.restore();
        loop {
            let began = Instant::now();
            let ended = tokio::select! {
                ended = self.stream(&mut asked) => ended,
                () = watch.ended() => return,
            };
            if self.metrics.connected.get() == 1 {
                self.metrics.health.set_confirmed(Some(SystemTime::now()));
            }
            self.metrics.connected.set(0);
            let mut words = format!("control plane unreachable since {}: {ended}", Shown::now());
            if self.is_restored {
                words.push_str("; what runs is from before a restart");
            }
            if self.directory.link().up || self.directory.link().words.is_empty() {
                tracing::warn!(target = %self.options.target, "{words}");
                self.directory
                    .set_link(ControlPlaneState { up: false, words });
            }
            if began.elapsed() > MAX_BACKOFF {
                backoff = MIN_BACKOFF;
            }
            let until = Instant::now() + backoff.mul_f64(fastrand::f64());
            backoff = (backoff * 2).min(MAX_BACKOFF);
            if !self.wait(until, &mut asked, &watch).await {
                return;
            }
        }
    }

    /// Waits before the next attempt, which subscribes to authorities requested meanwhile. False when the proxy ends.
    async fn wait(
        &mut self,
        until: Instant,
        asked: &mut mpsc::UnboundedReceiver<String>,
        watch: &Watch,
    ) -> bool {
        loop {
            tokio::select! {
                () = sleep_until(until) => return true,
                () = watch.ended() => return false,
                () = at(self.warming) => self.publish(true),
                () = at(self.save) => self.save(),
                name = asked.recv() => match name {
                    Some(name) => drop(self.session.subscribe(LISTENER, [name])),
                    None => return false,
                },
            }
        }
    }

    /// Runs one stream until it ends; returns the reason.
    async fn stream(&mut self, asked: &mut mpsc::UnboundedReceiver<String>) -> String {
        let (requests, mut responses) = match self.open().await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        loop {
            let outgoing = tokio::select! {
                message = responses.message() => match message {
                    Ok(Some(response)) => self.receive(&response),
                    Ok(None) => return "the stream was closed".to_owned(),
                    Err(status) => return words(&status),
                },
                name = asked.recv() => match name {
                    Some(name) => self.session.subscribe(LISTENER, [name]).into_iter().collect(),
                    None => return "the proxy ends".to_owned(),
                },
                () = at(self.warming) => {
                    self.publish(true);
                    Vec::new()
                }
                () = at(self.save) => {
                    self.save();
                    Vec::new()
                }
                () = sleep_until(self.sweep) => {
                    self.sweep = Instant::now() + self.options.idle_names / 4;
                    self.unsubscribe_idle()
                }
            };
            for request in outgoing {
                if requests.send(request).await.is_err() {
                    return "the stream was closed".to_owned();
                }
            }
        }
    }

    async fn open(
        &mut self,
    ) -> Result<
        (
            mpsc::Sender<DeltaDiscoveryRequest>,
            Streaming<DeltaDiscoveryResponse>,
        ),
        String,
    > {
        let channel: Channel = Endpoint::from_static("http://control-plane")
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_while_idle(true)
            .connect_with_connector(self.options.dialer.clone())
            .await
            .map_err(|error| error_text(&error))?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(self.options.max_message);
        let (requests, receiver) = mpsc::channel(REQUESTS);
        for request in self
            .session
            .initial_requests(|t, name| self.store.version(t, name))
        {
            // The channel is empty and has room for one request a type.
            let _ = requests.try_send(request);
        }
        let stream = client
            .delta_aggregated_resources(ReceiverStream::new(receiver))
            .await;
        let stream = stream.map_err(|status| words(&status))?;
        self.metrics.connected.set(1);
        self.metrics.health.set_confirmed(None);
        let words = format!("connected since {}", Shown::now());
        self.directory
            .set_link(ControlPlaneState { up: true, words });
        Ok((requests, stream.into_inner()))
    }

    /// Applies a response; returns the requests to send: its ACK or NACK, and new subscriptions.
    fn receive(&mut self, response: &DeltaDiscoveryResponse) -> Vec<DeltaDiscoveryRequest> {
        self.is_restored = false;
        if self.options.state.is_some() {
            self.save.get_or_insert_with(|| Instant::now() + SAVE_AFTER);
        }
        let applied = self.store.apply(response);
        for resource in &response.resources {
            if response.type_url != LISTENER {
                // Resources pushed along with a Listener are adopted.
                self.session.adopt(&response.type_url, &resource.name);
            }
        }
        for refused in &applied.refused {
            self.metrics.refused_resources.inc();
            tracing::warn!(
                resource = type_url::short(&refused.r#type),
                name = refused.name,
                field = refused.field,
                reason = refused.reason,
                "refused"
            );
        }
        let answer =
            self.session
                .ack_or_nack(&response.type_url, &response.nonce, &applied.refused);
        let mut outgoing = vec![answer];
        if response.type_url == LISTENER {
            // Listeners aren't pushed: one that isn't subscribed was unsubscribed while it was in flight, and is
            // subscribed anew, so that both sides agree.
            let names = response
                .resources
                .iter()
                .map(|resource| resource.name.clone());
            outgoing.extend(self.session.subscribe(LISTENER, names));
        }
        if response.type_url == SECRET {
            self.take_roots();
        }
        outgoing.extend(self.subscribe_referenced());
        self.publish(Store::shapes_plans(&response.type_url));
        outgoing
    }

    fn take_roots(&mut self) {
        if let Some(roots) = &self.store.roots
            && let Err(error) = self.credentials.set_roots(&roots.certificates)
        {
            tracing::warn!(error, "roots not usable, the last ones stay");
        }
    }

    /// Subscribes to the resources that the accepted ones refer to.
    fn subscribe_referenced(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let needed = self.store.referenced_names().into_iter();
        needed
            .filter_map(|(type_url, names)| self.session.subscribe(type_url, names))
            .collect()
    }

    /// Unsubscribes from resources that no accepted one refers to, now or at the last sweep: the clusters of a new
    /// route arrive before the route that names them.
    fn unsubscribe_unreferenced(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        let mut unneeded = BTreeSet::new();
        for (type_url, needed) in self.store.referenced_names() {
            let subscribed = self.session.subscribed(type_url);
            let unused = subscribed
                .difference(&needed)
                .map(|name| (type_url, name.clone()));
            unneeded.extend(unused);
        }
        for (type_url, name) in unneeded.intersection(&self.unneeded) {
            self.store.forget(type_url, name);
            requests.extend(self.session.unsubscribe(type_url, [name.clone()]));
        }
        self.unneeded = unneeded;
        requests
    }

    /// Unsubscribes from authorities unused for `idle_names`, and from resources that no accepted one refers to.
    fn unsubscribe_idle(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = self.unsubscribe_unreferenced();
        let idle = self.options.idle_names.as_secs();
        let now = self.directory.clock();
        let snapshot = self.directory.snapshot();
        let unused = snapshot
            .uses()
            .filter(|(_, used)| now.saturating_sub(*used) > idle);
        let mut unused: BTreeSet<String> = unused.map(|(name, _)| name.to_owned()).collect();
        // A name without an answer has no time of last use: it is unsubscribed when it has had none for as long.
        let subscribed = self.session.subscribed(LISTENER).iter();
        let silent = subscribed.filter(|name| *name != INBOUND && !snapshot.knows(name));
        let silent: BTreeSet<String> = silent.cloned().collect();
        self.unanswered.retain(|name, _| silent.contains(name));
        for name in silent {
            let since = *self
                .unanswered
                .entry(name.clone())
                .or_insert_with(Instant::now);
            if since.elapsed() > self.options.idle_names {
                unused.insert(name);
            }
        }
        if !unused.is_empty() {
            for name in &unused {
                self.store.forget(LISTENER, name);
            }
            requests.extend(self.session.unsubscribe(LISTENER, unused));
            self.publish(true);
        }
        requests
    }

    /// Puts the accepted resources into effect: as new plans, or as endpoints of the running clusters.
    fn publish(&mut self, shapes_plans: bool) {
        if !shapes_plans && self.warming.is_none() {
            self.builder.refresh(&self.store.resources);
        } else {
            let before = self.directory.snapshot();
            let now = Instant::now();
            let (snapshot, warming) = self.builder.build(&self.store.resources, &before, now);
            self.warming = warming;
            let names = self.session.subscribed(LISTENER).len();
            self.directory.publish(snapshot, names);
        }
        self.metrics
            .health
            .set_refused(self.store.refused().count());
        self.shown
            .set_resources(&self.store, self.builder.clusters());
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn words(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

#[cfg(test)]
mod tests;
