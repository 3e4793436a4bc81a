//! Workloads that come and go: who drains, and when everybody knows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use leno_proto::leno::lifecycle_server::Lifecycle as Service;
use leno_proto::leno::{DrainRequest, DrainResponse};
use leno_proto::tonic::{Request, Response, Status};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use super::hub::Hub;
use crate::auth::Peer;
use crate::ca::Identity;
use crate::mesh::{Client, Draining, Node, WorkloadKey};

/// How long the subscribers are given to take the change.
const BARRIER: Duration = Duration::from_secs(5);
/// A workload that went and never came back is forgotten after this: whatever is at its address then is another.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Who drains.
#[derive(Debug, Clone, Default)]
pub struct Drains {
    said: watch::Sender<Arc<Draining>>,
    /// Calls that are open, by workload; a workload that drained stays here without one.
    calls: watch::Sender<BTreeMap<WorkloadKey, usize>>,
}

impl Drains {
    /// Who drains, now and as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Draining>> {
        self.said.subscribe()
    }

    /// A workload drains from now on; the revision of which everybody must know.
    fn begin(&self, key: &WorkloadKey) -> u64 {
        self.calls
            .send_modify(|calls| *calls.entry(key.clone()).or_default() += 1);
        self.say()
    }

    /// The call is over. The workload drains until it comes back, or for so long that it won't.
    async fn end(&self, key: &WorkloadKey) {
        self.calls.send_modify(|calls| {
            if let Some(count) = calls.get_mut(key) {
                *count = count.saturating_sub(1);
            }
        });
        sleep(FORGOTTEN).await;
        self.forget(key);
    }

    /// A workload's proxy says hello: unless it is the one that drains, it is a new one that takes work.
    pub(super) fn begins(&self, node: &Node) {
        self.forget(&node.workload());
    }

    fn forget(&self, key: &WorkloadKey) {
        let is_gone = self.calls.send_if_modified(|calls| {
            let is_over = calls.get(key) == Some(&0);
            is_over && calls.remove(key).is_some()
        });
        if is_gone {
            self.say();
        }
    }

    fn say(&self) -> u64 {
        self.said.send_modify(|said| {
            *said = Arc::new(Draining {
                revision: said.revision + 1,
                workloads: self.calls.borrow().keys().cloned().collect(),
            });
        });
        self.said.borrow().revision
    }
}

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
        let node = identify(&identity, &request.get_ref().node, "")?;
        let name = request.into_inner().node;
        let (out, responses) = mpsc::channel(1);
        let hub = Arc::clone(&self.hub);
        tokio::spawn(async move {
            tracing::info!(node = name, "draining");
            let key = node.workload();
            let revision = hub.drains.begin(&key);
            let waiting = hub.all_took(revision, BARRIER).await;
            if !waiting.is_empty() {
                tracing::warn!(node = name, ?waiting, "not every proxy knows in time");
            }
            let _ = out.send(Ok(DrainResponse { waiting })).await;
            out.closed().await;
            hub.drains.end(&key).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

/// Who a proxy is: as its certificate says, and as its node id says where the certificate doesn't.
pub(super) fn identify(peer: &Identity, id: &str, user_agent: &str) -> Result<Node, Status> {
    let form = || {
        let text = "node.id must be sidecar~IP~workload.namespace~domain";
        Status::invalid_argument(format!("{text}; it is {id:?}"))
    };
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ip: &str) -> Node {
        Node {
            ip: ip.parse().expect("an address"),
            namespace: "default".to_owned(),
            account: "users".to_owned(),
            client: Client::Leno,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_drains_until_it_comes_back_or_is_forgotten() {
        let drains = Drains::default();
        let said = drains.watch();
        let draining = || said.borrow().workloads.len();
        let (one, other) = (node("10.0.0.1"), node("10.0.0.2"));
        let ended = |key: WorkloadKey| {
            let drains = drains.clone();
            async move { drains.end(&key).await }
        };
        assert_eq!((drains.begin(&one.workload()), draining()), (1, 1));
        drains.begins(&one);
        assert_eq!(draining(), 1, "its stream came back while it drains");
        tokio::spawn(ended(one.workload()));
        tokio::task::yield_now().await;
        drains.begins(&other);
        assert_eq!(draining(), 1, "somebody else's stream");
        drains.begins(&one);
        assert_eq!(draining(), 0, "a new one of the same workload");

        assert_eq!(drains.begin(&other.workload()), 3);
        ended(other.workload()).await;
        assert_eq!(draining(), 0);
    }
}
