//! State that all streams share: the current mesh, the roots, and the connected proxies.
//!
//! State: one entry a stream while it is open: its part of the status page, and the revision that its client has taken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leno_proto::pb::envoy::config::core::v3::Node as NodeMessage;
use leno_proto::pb::google::protobuf::value::Kind;
use leno_proto::type_url::LISTENER;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::drains::Drains;
use super::guard::{Guard, Guards};
use super::workloads::{StreamRegistration, Workloads};
use super::{ResourceSource, XdsStream};
use crate::mesh::workload::WorkloadDescription;
use crate::mesh::{Client, Mesh, MeshChange, Node};
use crate::source::State;
use crate::source::dns::Demand;
use crate::translate::{
    INBOUND, Inbound, LookupResult, TranslationContext, chain, everything, host_of, resource,
};

/// State that all streams share.
#[derive(Debug)]
pub struct Hub {
    state: watch::Receiver<State>,
    roots: String,
    dns: Demand,
    proxies: Mutex<BTreeMap<u64, Stream>>,
    /// The revision of the draining workloads that each stream's client has taken, and its node id.
    taken: watch::Sender<BTreeMap<u64, (u64, String)>>,
    pub(crate) drains: Drains,
    pub(crate) workloads: Workloads,
    pub(crate) guards: Guards,
}

/// A stream that is open.
#[derive(Debug)]
struct Stream {
    shown: Value,
    /// Type, name and version of the resources that its client holds.
    held: Vec<(&'static str, String, String)>,
}

impl Hub {
    /// A hub over a source.
    pub fn new(state: watch::Receiver<State>, roots: String, dns: Demand, drains: Drains) -> Hub {
        Hub {
            state,
            roots,
            dns,
            proxies: Mutex::default(),
            taken: watch::Sender::default(),
            drains,
            workloads: Workloads::default(),
            guards: Guards::default(),
        }
    }

    /// Receiver of the configuration source's current state, and of its changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// The connected proxies, and the resources that they refuse.
    pub fn proxies(&self) -> Vec<Value> {
        let proxies = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        proxies
            .values()
            .map(|stream| stream.shown.clone())
            .collect()
    }

    /// The resources of the proxy `node`, as they were sent; `None` when it isn't connected.
    pub fn resources(&self, node: &str) -> Option<Vec<Value>> {
        let proxies = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = proxies.values().find(|s| s.shown["node"] == node)?;
        let mut held = stream.held.clone();
        held.sort_unstable();
        let one = |(type_url, name, version): (&str, String, String)| {
            let kind = leno_proto::type_url::short(type_url);
            json!({"type": kind, "name": name, "version": version})
        };
        Some(held.into_iter().map(one).collect())
    }

    pub(crate) fn show(&self, stream: u64, proxy: &Proxy<'_>, connection: &impl XdsStream) {
        let refused = connection.refused().into_iter().map(|refused| {
            json!({
                "type": leno_proto::type_url::short(&refused.r#type),
                "name": refused.name, "version": refused.version,
                "field": refused.field, "reason": refused.reason,
            })
        });
        let refused: Vec<Value> = refused.collect();
        let shown = json!({
            "node": proxy.name, "client": format!("{:?}", proxy.node.client), "names": connection.names(),
            "refused": refused, "held_closed": proxy.held.as_ref().map(HeldClosed::json),
            "inbound_closed": proxy.guard.closed(),
        });
        let held = connection.versions();
        self.proxies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(stream, Stream { shown, held });
    }

    /// Records that the client of `stream` has taken everything up to `revision`.
    pub(crate) fn acked(&self, stream: u64, node: &str, revision: u64) {
        self.taken.send_if_modified(|taken| {
            let (before, _) = taken.entry(stream).or_insert_with(|| (0, node.to_owned()));
            std::mem::replace(before, revision) != revision
        });
    }

    /// Waits until every client has taken `revision`, for `at_most`; returns the nodes that haven't by then.
    pub(crate) async fn wait_acked(&self, revision: u64, at_most: Duration) -> Vec<String> {
        let mut taken = self.taken.subscribe();
        let everyone = taken.wait_for(|taken| taken.values().all(|(r, _)| *r >= revision));
        let _ = timeout(at_most, everyone).await;
        let taken = self.taken.borrow();
        let late = taken.values().filter(|(r, _)| *r < revision);
        late.map(|(_, node)| node.clone()).collect()
    }

    /// Forgets a stream that ended.
    pub(crate) fn forget(&self, stream: u64) {
        self.taken.send_modify(|taken| drop(taken.remove(&stream)));
        self.proxies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&stream);
    }

    /// One proxy's view of a mesh, of which `touched` has changed; all of it when `None`.
    pub(crate) fn view<'a>(
        &'a self,
        mesh: &'a Mesh,
        proxy: &'a Proxy<'_>,
        touched: Option<&'a MeshChange>,
    ) -> View<'a> {
        View {
            hub: self,
            mesh,
            node: &proxy.node,
            workload: &proxy.workload,
            guard: &proxy.guard,
            touched,
        }
    }
}

/// The proxy at the other end of a stream.
#[derive(Debug)]
pub(crate) struct Proxy<'a> {
    /// Its node id.
    pub(crate) name: &'a str,
    pub(crate) node: Node,
    /// True when it takes connections for its app.
    has_inbound: bool,
    seat: StreamRegistration<'a>,
    workload: Arc<WorkloadDescription>,
    /// The objects that may be for it and hold it closed.
    pub(crate) held: Option<HeldClosed>,
    /// Its inbound Listener.
    pub(crate) guard: Guard,
}

/// The objects that may be for a workload and hold it closed, and why its labels don't decide it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldClosed {
    pub(crate) by: BTreeSet<String>,
    pub(crate) why: String,
}

impl HeldClosed {
    fn json(&self) -> Value {
        json!({"by": self.by, "why": self.why})
    }
}

impl<'a> Proxy<'a> {
    /// The proxy `node`, with the metadata of its first message.
    pub(crate) fn new(hub: &'a Hub, node: Node, message: &'a NodeMessage) -> Proxy<'a> {
        Proxy {
            name: &message.id,
            // gRPC's library dials only.
            has_inbound: node.client != Client::Grpc && has_inbound(message),
            seat: hub.workloads.join(&node, instance(message)),
            node,
            workload: Arc::default(),
            held: None,
            guard: Guard::default(),
        }
    }

    /// Looks up its workload in `mesh`. True when other objects hold it closed than before.
    pub(crate) fn look_up(&mut self, mesh: &Mesh) -> bool {
        self.workload = self.seat.describe(mesh, &self.node);
        let by = mesh.closing_objects(&self.node, &self.workload);
        let held = (self.has_inbound && !by.is_empty()).then(|| HeldClosed {
            by,
            why: mesh.explain_uncertain_fit(&self.node, &self.workload),
        });
        let changed = held != self.held;
        self.held = held;
        changed
    }
}

/// A string in a node's metadata.
fn metadata<'a>(node: &'a NodeMessage, name: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// The name of this instance of its workload's proxy; empty without one.
pub(crate) fn instance(node: &NodeMessage) -> &str {
    metadata(node, "INSTANCE").unwrap_or_default()
}

/// True when connections for its app come to it: intercepted, or on ports of its own. The default without metadata.
fn has_inbound(node: &NodeMessage) -> bool {
    metadata(node, "INTERCEPTION_MODE") != Some("NONE") || metadata(node, "POD_PORTS") != Some("[]")
}

/// One proxy's view of the mesh.
#[derive(Debug)]
pub(crate) struct View<'a> {
    hub: &'a Hub,
    mesh: &'a Mesh,
    node: &'a Node,
    workload: &'a WorkloadDescription,
    guard: &'a Guard,
    touched: Option<&'a MeshChange>,
}

impl View<'_> {
    fn world(&self) -> TranslationContext<'_> {
        TranslationContext {
            mesh: self.mesh,
            workload: self.workload,
            roots: &self.hub.roots,
        }
    }
}

impl View<'_> {
    fn inbound(&self) -> LookupResult {
        let inbound = Inbound::new(self.world(), self.node);
        match (&inbound.meant, &inbound.guard) {
            (LookupResult::Present(_, version), LookupResult::Present(_, guard))
                if self.guard.set_intended(&self.hub.guards, version, guard) =>
            {
                let closed = inbound.closed();
                if let LookupResult::Present(_, version) = &closed {
                    self.guard.set_closed_version(version);
                }
                closed
            }
            _ => inbound.meant,
        }
    }
}

impl ResourceSource for View<'_> {
    fn client(&self) -> Client {
        self.node.client
    }

    fn wildcard_names(&self, type_url: &str) -> BTreeSet<String> {
        everything(self.world(), self.node, type_url)
    }

    fn resource(&self, type_url: &str, name: &str) -> LookupResult {
        if (type_url, name) == (LISTENER, INBOUND) {
            return self.inbound();
        }
        let answer = resource(self.world(), self.node, type_url, name);
        if let LookupResult::Pending(names) = &answer {
            for name in names.iter().collect::<BTreeSet<_>>() {
                self.hub.dns.want(name);
            }
        }
        answer
    }

    fn dependencies(&self, listener: &str) -> Vec<(&'static str, String)> {
        chain(self.world(), self.node, listener)
    }

    fn touches(&self, type_url: &str, name: &str) -> bool {
        let Some(touched) = self.touched else {
            return true;
        };
        // A name without a host is the inbound Listener's, or one that resolves to nothing yet.
        let host = host_of(self.mesh, self.node, type_url, name);
        touched.all || host.is_none_or(|host| touched.hosts.contains(host))
    }
}

/// The mesh of a state, if the source has been read whole: only such a mesh is sent to proxies.
pub(crate) fn usable(state: &State) -> Option<Arc<Mesh>> {
    state.complete.then(|| Arc::clone(&state.mesh))
}
