//! The aggregated discovery service: carries messages between a gRPC stream and its [`XdsStream`], and checks the peer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use leno_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use leno_proto::tonic::{Request, Response, Status, Streaming};
use leno_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use super::lifecycle::{MAX_INSTANCE, identify};
use super::tls::Peer;
use crate::ca::Identity;
use crate::mesh::{Mesh, MeshChange};
use crate::metrics::Metrics;
use crate::source::State;
use crate::xds::XdsStream;
use crate::xds::connection::DeltaStream;
use crate::xds::hub::{Hub, Proxy, instance, usable};
use crate::xds::sotw::StateOfTheWorld;

/// Responses that are buffered for one stream; a proxy that doesn't read holds no other one up.
const RESPONSES: usize = 64;
/// Timeout of the first request, which carries the node.
const FIRST: Duration = Duration::from_secs(10);

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The aggregated discovery service.
#[derive(Debug)]
pub struct Ads {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    streams: AtomicU64,
}

impl Ads {
    /// The service over `hub`.
    pub fn new(hub: Arc<Hub>, metrics: Arc<Metrics>) -> Ads {
        Ads {
            hub,
            metrics,
            streams: AtomicU64::new(0),
        }
    }
}

#[leno_proto::tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Out<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Out<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.open::<StateOfTheWorld>(request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.open::<DeltaStream>(request)
    }
}

impl Ads {
    fn open<D: XdsStream<Request: 'static, Response: 'static> + 'static>(
        &self,
        request: Request<Streaming<D::Request>>,
    ) -> Result<Response<Out<D::Response>>, Status> {
        let identity = request
            .extensions()
            .get::<Peer>()
            .and_then(|peer| peer.identity.clone());
        let peer = identity.ok_or_else(|| {
            Status::unauthenticated("the stream needs a client certificate of this mesh")
        })?;
        let (out, responses) = mpsc::channel(RESPONSES);
        let pump = Pump::<D> {
            hub: Arc::clone(&self.hub),
            metrics: Arc::clone(&self.metrics),
            number: self.streams.fetch_add(1, Ordering::Relaxed),
            peer,
            out,
        };
        tokio::spawn(pump.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

/// One stream.
struct Pump<D: XdsStream> {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    number: u64,
    peer: Identity,
    out: mpsc::Sender<Result<D::Response, Status>>,
}

impl<D: XdsStream> Pump<D> {
    async fn run(self, mut requests: Streaming<D::Request>) {
        let connected = self.metrics.connected.with_label_values(&["unknown"]);
        connected.inc();
        let life = self
            .peer
            .not_after
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        // The client must present a newer certificate when this one expires.
        let served = tokio::time::timeout(life, self.serve(&mut requests)).await;
        if let Ok(Err(status)) = served {
            tracing::info!(peer = self.peer.id, %status, "stream ended");
            let _ = self.out.send(Err(status)).await;
        }
        self.hub.forget(self.number);
        self.metrics.set_held(self.number, None);
        self.metrics.set_closed(self.number, None);
        connected.dec();
    }

    async fn serve(&self, requests: &mut Streaming<D::Request>) -> Result<(), Status> {
        let first = tokio::time::timeout(FIRST, requests.message()).await;
        let late = || Status::deadline_exceeded("no request came");
        let Some(first) = first.map_err(|_| late())?? else {
            return Ok(());
        };
        let mut proxy = self.welcome(&first)?;
        let mut state = self.hub.state();
        let mut connection = D::default();
        let mut mesh = read_whole(&mut state).await?;
        self.look_up(&mut proxy, &mesh);
        let view = self.hub.view(&mesh, &proxy, None);
        let responses = connection.request(&first, &view);
        self.send(responses, &connection, &proxy).await?;
        let mut changed_at: Option<Instant> = None;
        loop {
            if connection.is_settled() {
                self.hub
                    .acked(self.number, proxy.name, mesh.draining.revision);
                if let Some(at) = changed_at.take() {
                    self.metrics.convergence.observe(at.elapsed().as_secs_f64());
                }
            }
            let responses = tokio::select! {
                request = requests.message() => match request? {
                    None => return Ok(()),
                    Some(request) => {
                        self.count(&request, proxy.name);
                        let mut responses = connection.request(&request, &self.hub.view(&mesh, &proxy, None));
                        responses.extend(self.judge(&mut connection, &proxy, &mesh));
                        responses
                    }
                },
                changed = state.changed() => {
                    changed.map_err(|_| Status::unavailable("the control plane ends"))?;
                    let Some(next) = usable(&state.borrow_and_update()) else { continue };
                    let at = Instant::now();
                    self.look_up(&mut proxy, &next);
                    let responses = self.push(&mut connection, &proxy, &mesh, &next);
                    mesh = next;
                    if !responses.is_empty() {
                        changed_at.get_or_insert(at);
                    }
                    responses
                }
            };
            self.send(responses, &connection, &proxy).await?;
        }
    }

    /// Identifies the proxy by its stream's first request.
    fn welcome<'a>(&'a self, first: &'a D::Request) -> Result<Proxy<'a>, Status> {
        let no_node = || Status::invalid_argument("the first request must carry the node");
        let node_message = D::node(first).ok_or_else(no_node)?;
        let node = identify(&self.peer, &node_message.id, &node_message.user_agent_name)?;
        if instance(node_message).len() > MAX_INSTANCE {
            let text = "node.metadata.INSTANCE is too long";
            return Err(Status::invalid_argument(text));
        }
        self.hub.drains.new_instance(&node, instance(node_message));
        self.hub.acked(self.number, &node_message.id, 0);
        tracing::info!(node = node_message.id, "connected");
        Ok(Proxy::new(&self.hub, node, node_message))
    }

    /// Looks up the proxy's workload, and reports the objects that hold it closed.
    fn look_up(&self, proxy: &mut Proxy<'_>, mesh: &Mesh) {
        if !proxy.look_up(mesh) {
            return;
        }
        let node = proxy.name;
        let count = proxy.held.as_ref().map(|held| (node, held.by.len()));
        self.metrics.set_held(self.number, count);
        match &proxy.held {
            Some(held) => {
                let by: Vec<&str> = held.by.iter().map(String::as_str).collect();
                let (by, why) = (by.join(", "), &held.why);
                tracing::warn!(
                    node,
                    by,
                    why,
                    "held closed by objects that may be for it: its labels are not known"
                );
            }
            None => tracing::info!(node, "not held closed for want of labels any more"),
        }
    }

    /// Closes the client's inbound where it refuses a change of inbound access.
    fn judge(&self, connection: &mut D, proxy: &Proxy<'_>, mesh: &Mesh) -> Vec<D::Response> {
        let (refused, took) = (connection.refused(), connection.inbound());
        let is_new = proxy.guard.check_nacks(&self.hub.guards, &refused, took);
        let closed = proxy.guard.closed();
        self.metrics
            .set_closed(self.number, closed.as_ref().map(|_| proxy.name));
        if !is_new {
            return Vec::new();
        }
        let reason = closed.unwrap_or_default();
        let node = proxy.name;
        tracing::error!(
            node,
            reason,
            "refuses a change of who gets in: its inbound is closed until that changes"
        );
        // Only resources without a host of their own, such as the inbound Listener.
        let touched = MeshChange::default();
        connection.changed(&self.hub.view(mesh, proxy, Some(&touched)))
    }

    fn push(
        &self,
        connection: &mut D,
        proxy: &Proxy<'_>,
        before: &Mesh,
        next: &Mesh,
    ) -> Vec<D::Response> {
        let touched: MeshChange = before.diff(next);
        if touched.is_empty() {
            return Vec::new();
        }
        let began = Instant::now();
        let responses = connection.changed(&self.hub.view(next, proxy, Some(&touched)));
        for response in &responses {
            let time = self
                .metrics
                .push_time
                .with_label_values(&[short(D::response_type(response))]);
            time.observe(began.elapsed().as_secs_f64());
        }
        responses
    }

    fn count(&self, request: &D::Request, node: &str) {
        if let Some(status) = D::error(request) {
            self.metrics.rejected(short(D::request_type(request)));
            tracing::warn!(node, reason = status.message, "a resource was refused");
        }
    }

    async fn send(
        &self,
        responses: Vec<D::Response>,
        connection: &D,
        proxy: &Proxy<'_>,
    ) -> Result<(), Status> {
        self.hub.show(self.number, proxy, connection);
        if connection.is_overrun() {
            return Err(Status::resource_exhausted(
                "too many responses were left unanswered",
            ));
        }
        for response in responses {
            let kind = short(D::response_type(&response));
            self.metrics.pushes.with_label_values(&[kind]).inc();
            let sent = self.out.send(Ok(response)).await;
            sent.map_err(|_| Status::cancelled("the proxy left"))?;
        }
        Ok(())
    }
}

/// Waits until the source has been read whole: until then nothing is sent, so that nothing is reported as removed.
async fn read_whole(state: &mut watch::Receiver<State>) -> Result<Arc<Mesh>, Status> {
    let whole = state.wait_for(|state| usable(state).is_some()).await;
    let whole = whole.ok().and_then(|state| usable(&state));
    whole.ok_or_else(|| Status::unavailable("the control plane ends"))
}

/// The name of a type in Istio's metrics.
fn short(type_url: &str) -> &'static str {
    match type_url {
        LISTENER => "lds",
        ROUTE => "rds",
        CLUSTER => "cds",
        ENDPOINTS => "eds",
        SECRET => "sds",
        _ => "other",
    }
}
