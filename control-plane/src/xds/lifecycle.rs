//! Workloads that come and go: those that drain, and the wait until every client has taken that.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use crate::mesh::{Client, Draining, Mesh, Node, WorkloadKey};

/// Longest wait for the clients to take the change.
const BARRIER: Duration = Duration::from_secs(5);
/// Time after which a drained workload that didn't come back is forgotten: its address may be another's by then.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Longest name of a proxy's instance, in bytes.
pub(super) const MAX_INSTANCE: usize = 128;
/// Longest node id, in bytes.
const MAX_NODE_ID: usize = 512;

/// The workloads that drain.
#[derive(Debug, Clone, Default)]
pub struct Drains {
    said: watch::Sender<Arc<Draining>>,
    lives: Arc<Mutex<BTreeMap<WorkloadKey, Life>>>,
}

/// The instance of a workload's proxy that drains, or has ended.
#[derive(Debug)]
struct Life {
    /// Its name, as the proxy sends it.
    instance: String,
    /// Open `Drain` calls of it.
    calls: usize,
    /// The revision that began its drain: only this drain is forgotten later, and no other.
    revision: u64,
}

impl Drains {
    /// The workloads that drain, now and as they change.
    pub fn watch(&self) -> watch::Receiver<Arc<Draining>> {
        self.said.subscribe()
    }

    fn lives(&self) -> MutexGuard<'_, BTreeMap<WorkloadKey, Life>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a workload's drain; returns the revision that every client must take.
    fn begin(&self, key: &WorkloadKey, instance: &str) -> u64 {
        let mut lives = self.lives();
        let revision = self.said.borrow().revision + 1;
        let life = lives.entry(key.clone()).or_insert_with(|| Life {
            instance: String::new(),
            calls: 0,
            revision,
        });
        instance.clone_into(&mut life.instance);
        life.calls += 1;
        self.say(&lives)
    }

    /// Ends a `Drain` call. The workload drains until it comes back, or is forgotten.
    async fn end(&self, key: &WorkloadKey, instance: &str) {
        let revision = {
            let mut lives = self.lives();
            let Some(life) = lives.get_mut(key).filter(|life| life.instance == instance) else {
                return;
            };
            life.calls = life.calls.saturating_sub(1);
            life.revision
        };
        sleep(FORGOTTEN).await;
        let mut lives = self.lives();
        let is_over = |life: &Life| life.revision == revision && life.calls == 0;
        if lives.get(key).is_some_and(is_over) {
            lives.remove(key);
            self.say(&lives);
        }
    }

    /// Ends a workload's drain when another instance of its proxy than the draining one opens a stream.
    pub(super) fn begins(&self, node: &Node, instance: &str) {
        let (key, mut lives) = (node.workload(), self.lives());
        if lives
            .get(&key)
            .is_some_and(|life| life.instance != instance)
        {
            lives.remove(&key);
            self.say(&lives);
        }
    }

    fn say(&self, lives: &BTreeMap<WorkloadKey, Life>) -> u64 {
        let mut revision = 0;
        self.said.send_modify(|said| {
            revision = said.revision + 1;
            *said = Arc::new(Draining {
                revision,
                workloads: lives.keys().cloned().collect(),
            });
        });
        revision
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
            let revision = hub.drains.begin(&key, &instance);
            let waiting = hub.all_took(revision, BARRIER).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ip: &str) -> Node {
        Node::sidecar(ip, "users")
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_drains_until_it_comes_back_or_is_forgotten() {
        let drains = Drains::default();
        let said = drains.watch();
        let draining = || said.borrow().workloads.len();
        let (one, other) = (node("10.0.0.1"), node("10.0.0.2"));
        let ended = |key: WorkloadKey| {
            let drains = drains.clone();
            async move { drains.end(&key, "a").await }
        };
        assert_eq!((drains.begin(&one.workload(), "a"), draining()), (1, 1));
        drains.begins(&one, "a");
        assert_eq!(draining(), 1, "its own stream came back while it drains");
        drains.begins(&other, "b");
        assert_eq!(draining(), 1, "somebody else's stream");
        drains.begins(&one, "b");
        assert_eq!(
            draining(),
            0,
            "a new life, although the old one's call is open"
        );
        ended(one.workload()).await;
        assert_eq!(draining(), 0);

        // It ends, comes back, and ends again just before the first end would be forgotten.
        drains.begin(&other.workload(), "a");
        let first = tokio::spawn(ended(other.workload()));
        tokio::time::sleep(FORGOTTEN / 2).await;
        drains.begins(&other, "b");
        drains.begin(&other.workload(), "a");
        first.await.expect("no panic");
        assert_eq!(draining(), 1, "the second end is not the first");
        ended(other.workload()).await;
        assert_eq!(draining(), 0, "nobody came back");
    }
}
