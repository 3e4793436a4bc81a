//! The call by which a proxy says that it ends, and the wait until every client has taken that.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use leno_proto::leno::lifecycle_server::Lifecycle as Service;
use leno_proto::leno::{DrainRequest, DrainResponse};
use leno_proto::tonic::{Request, Response, Status};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use super::tls::Peer;
use crate::ca::Identity;
use crate::mesh::{Client, Mesh, Node};
use crate::xds::hub::Hub;

/// Longest wait for the clients to take the change.
const BARRIER: Duration = Duration::from_secs(5);
/// Longest name of a proxy's instance, in bytes.
pub(super) const MAX_INSTANCE: usize = 128;
/// Longest node id, in bytes.
const MAX_NODE_ID: usize = 512;

/// The service.
#[derive(Debug)]
pub struct Lifecycle {
    hub: Arc<Hub>,
}

impl Lifecycle {
    /// The service over `hub`.
    pub fn new(hub: Arc<Hub>) -> Lifecycle {
        Lifecycle { hub }
    }
}

#[leno_proto::tonic::async_trait]
impl Service for Lifecycle {
    type DrainStream = Pin<Box<dyn Stream<Item = Result<DrainResponse, Status>> + Send>>;

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<Self::DrainStream>, Status> {
        let peer = request.extensions().get::<Peer>();
        let identity = peer.and_then(|peer| peer.identity.clone()).ok_or_else(|| {
            Status::unauthenticated("the call needs a client certificate of this mesh")
        })?;
        let DrainRequest {
            node: name,
            instance,
        } = request.into_inner();
        if instance.len() > MAX_INSTANCE {
            return Err(Status::invalid_argument("instance is too long"));
        }
        let node = identify(&identity, &name, "")?;
        let (out, responses) = mpsc::channel(1);
        let hub = Arc::clone(&self.hub);
        tokio::spawn(async move {
            let mut state = hub.state();
            let read = state.wait_for(|state| state.complete).await;
            let mesh = read.map(|state| Arc::clone(&state.mesh));
            // A workload that isn't in the registry as this account's has no clients that must know. An endpoint
            // without an account doesn't prove that it is this workload's.
            let is_known = |mesh: &Mesh| {
                let mut own = mesh.endpoints_of(&node);
                own.any(|(_, endpoint)| endpoint.account.is_some())
            };
            if !mesh.is_ok_and(|mesh| is_known(&mesh)) {
                let _ = out.send(Ok(DrainResponse::default())).await;
                return out.closed().await;
            }
            tracing::info!(node = name, "draining");
            let key = node.workload();
            let revision = hub.drains.start_drain(&key, &instance);
            let waiting = hub.wait_acked(revision, BARRIER).await;
            if !waiting.is_empty() {
                tracing::warn!(node = name, ?waiting, "not every proxy knows in time");
            }
            let _ = out.send(Ok(DrainResponse { waiting })).await;
            // When the control plane ends so does the call: the proxy repeats it at the next one.
            let ending = async { while state.changed().await.is_ok() {} };
            tokio::select! {
                () = out.closed() => hub.drains.end(&key, &instance).await,
                () = ending => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

/// Identifies a proxy: by its certificate, and by its node id where the certificate says nothing.
pub(super) fn identify(peer: &Identity, id: &str, user_agent: &str) -> Result<Node, Status> {
    let form = || {
        let text = "node.id must be sidecar~IP~workload.namespace~domain";
        Status::invalid_argument(format!("{text}; it is {id:?}"))
    };
    if id.len() > MAX_NODE_ID {
        return Err(Status::invalid_argument("node.id is too long"));
    }
    let parts: Vec<&str> = id.split('~').collect();
    let ["sidecar", ip, workload, _domain] = parts.as_slice() else {
        return Err(form());
    };
    let ip: IpAddr = ip.parse().map_err(|_| form())?;
    let (_, namespace) = workload.rsplit_once('.').ok_or_else(form)?;
    if namespace != peer.namespace {
        let text = format!(
            "the node is of namespace {namespace}, the certificate {}",
            peer.id
        );
        return Err(Status::permission_denied(text));
    }
    Ok(Node {
        ip,
        namespace: peer.namespace.clone(),
        account: peer.account.clone(),
        client: Client::of(user_agent),
        labels: peer.labels.clone(),
    })
}
