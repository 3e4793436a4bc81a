//! A connection to the app, and what is known of it.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::balance::Cluster;
use crate::error::{Error, Kind};
use crate::forward::answer::Audience;
use crate::forward::headers;
use crate::identify::Protocol;
use crate::observe::labels::Party;
use crate::observe::standard::Series;
use crate::observe::{Reporter, Teller};
use crate::snapshot::{InboundChain, InboundPlan};
use crate::tls::Peer;
use crate::worker::Worker;
use leno_http::head::{Head, Known};
use leno_rules::config::endpoints::Workload;
use leno_rules::config::peer;
use leno_rules::policy::rbac::Caller;

/// A connection to the app, as far as it is known.
#[derive(Debug)]
pub(super) struct Connection {
    /// The workload port that it is for.
    port: u16,
    /// Where it wanted to go, if it was taken over.
    dialled: Option<SocketAddr>,
    /// Whether it begins with a TLS handshake.
    tls: bool,
    /// The ALPN protocols that its client offers; for plaintext, what it was told to be.
    offers: Vec<Vec<u8>>,
    /// Who is at the other end, once TLS was terminated.
    pub(super) peer: Option<Authenticated>,
    /// Its address, as `x-forwarded-for` carries it.
    pub(super) ip: String,
    pub(super) address: SocketAddr,
    /// What it connected to.
    local: Option<SocketAddr>,
    /// The server name that its TLS asks for.
    server_name: Option<String>,
    /// What the sidecar at the other end says of its workload.
    source: OnceCell<Workload>,
}

/// Who is at the other end of mutual TLS, with what each of its requests needs of that.
#[derive(Debug)]
pub(super) struct Authenticated {
    pub(super) peer: Peer,
    /// When its certificate ends.
    expires: Instant,
    /// It as an element of `x-forwarded-client-cert`.
    pub(super) element: String,
}

impl Authenticated {
    pub(super) fn new(worker: &Worker, peer: Peer) -> Authenticated {
        let me = worker.shared.me.principal.as_deref().unwrap_or_default();
        Authenticated {
            expires: peer.expires(),
            element: headers::client_cert_element(me, &peer.hash, peer.id.as_str()),
            peer,
        }
    }
}

impl Connection {
    /// A connection from `address` for workload port `port`, of which nothing is known yet.
    pub(super) fn new(
        address: SocketAddr,
        local: Option<SocketAddr>,
        port: u16,
        dialled: Option<SocketAddr>,
    ) -> Connection {
        Connection {
            port,
            dialled,
            tls: false,
            offers: Vec::new(),
            peer: None,
            ip: address.ip().to_string(),
            address,
            local,
            server_name: None,
            source: OnceCell::new(),
        }
    }

    /// Its first bytes, or their absence, have told what it carries.
    pub(super) fn is_told(&mut self, protocol: Protocol) {
        self.tls = matches!(protocol, Protocol::Tls(_));
        self.offers = match protocol {
            Protocol::Tls(hello) => {
                self.server_name = hello.server_name;
                hello.alpn
            }
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 => vec![b"h2c".to_vec()],
            Protocol::Opaque => Vec::new(),
        };
    }

    /// The app that it is for.
    pub(super) fn app(
        &self,
        worker: &Worker,
        plan: &InboundPlan,
        chain: &InboundChain,
    ) -> Result<Arc<Cluster>, Error> {
        if let Some(dialled) = self.dialled {
            return Ok(worker.shared.apps.at(plan, dialled));
        }
        let port = self.port;
        let missing = || Error::own(Kind::NoCluster, format!("no app is behind port {port}"));
        let target = chain.app(port).ok_or_else(missing)?;
        let cluster = target.cluster.as_ref();
        let cluster = cluster.map_err(|reason| Error::own(Kind::NoCluster, reason.to_string()))?;
        Ok(Arc::clone(cluster))
    }

    /// True when it begins with a TLS handshake.
    pub(super) fn is_tls(&self) -> bool {
        self.tls
    }

    /// The chain that takes it.
    pub(super) fn chain<'a>(&self, plan: &'a InboundPlan) -> Option<&'a Arc<InboundChain>> {
        plan.find(self.port, self.tls, &self.offers)
    }

    pub(super) fn caller(&self) -> Caller<'_> {
        Caller {
            principal: self.peer.as_ref().map(|caller| caller.peer.id.as_str()),
        }
    }

    /// When its peer's certificate ends.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.peer.as_ref().map(|caller| caller.expires)
    }

    /// Who tells of its requests.
    pub(super) fn teller(&self) -> Teller<'_> {
        Teller {
            reporter: Reporter::Destination,
            peer: self.address,
            local: self.local,
            server_name: self.server_name.as_deref(),
        }
    }

    pub(super) fn audience(&self) -> Audience {
        match self.peer {
            Some(_) => Audience::Trusted,
            None => Audience::Anyone,
        }
    }

    /// Whether the caller's sidecar has said whose workload it is.
    pub(super) fn knows_source(&self) -> bool {
        self.source.get().is_some()
    }

    /// Takes from `request` what the caller's sidecar says of its workload.
    pub(super) fn learn(&self, request: &Head) {
        if self.source.get().is_none()
            && let Some(value) = request.get(Known::PeerMetadata)
            && let Some(said) = peer::decode(value)
        {
            self.believe(said);
        }
    }

    /// Believes what the caller's sidecar says of its workload as far as its certificate goes: its name is its own
    /// affair; whose it is, the certificate says.
    pub(super) fn believe(&self, said: Workload) {
        if (self.peer.as_ref()).is_some_and(|caller| said.namespace == caller.peer.id.namespace()) {
            // What was said first stays.
            let _ = self.source.set(said);
        }
    }

    /// Where requests on this connection are counted.
    pub(super) fn series(&self, worker: &Worker, chain: &InboundChain) -> Arc<Series> {
        let source = Party {
            principal: self.peer.as_ref().map(|caller| caller.peer.id.to_string()),
            workload: self.source.get().cloned().unwrap_or_default(),
        };
        let security = match self.peer {
            Some(_) => "mutual_tls",
            None => "none",
        };
        let me = worker.shared.me.principal.clone();
        let labels = chain.labels(&source, me, security);
        worker.shared.metrics.series(labels)
    }
}
