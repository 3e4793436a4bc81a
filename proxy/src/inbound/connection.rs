//! A connection to the app: its peer, protocol and destination.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::balance::Cluster;
use crate::error::{Error, Kind};
use crate::forward::answer::Audience;
use crate::forward::headers;
use crate::observe::labels::Party;
use crate::observe::standard::Series;
use crate::observe::{LogContext, Reporter};
use crate::serve::sniff::DetectedProtocol;
use crate::snapshot::{InboundChain, InboundPlan};
use crate::tls::Peer;
use crate::worker::Worker;
use leno_http::head::{FieldName, Head};
use leno_rules::config::endpoints::Workload;
use leno_rules::config::peer;
use leno_rules::policy::rbac::PeerIdentity;

/// A connection to the app, with the facts known so far.
#[derive(Debug)]
pub(super) struct Connection {
    /// The workload port that it is for.
    port: u16,
    /// Original destination, if the connection was intercepted.
    dialled: Option<SocketAddr>,
    /// True when it begins with a TLS handshake.
    tls: bool,
    /// ALPN protocols that its client offers; for plaintext, the protocol that was detected.
    offers: Vec<Vec<u8>>,
    /// The authenticated peer, once TLS was terminated.
    pub(super) peer: Option<Authenticated>,
    /// The peer's IP address, for `x-forwarded-for`.
    pub(super) ip: String,
    pub(super) address: SocketAddr,
    /// Address that the peer connected to.
    local: Option<SocketAddr>,
    /// Server name (SNI) of its TLS handshake.
    server_name: Option<String>,
    /// Workload that the peer's sidecar reported.
    source: OnceCell<Workload>,
}

/// Peer of a mutual TLS connection, with the values that each of its requests needs.
#[derive(Debug)]
pub(super) struct Authenticated {
    pub(super) peer: Peer,
    /// Expiry of its certificate.
    expires: Instant,
    /// Its element of `x-forwarded-client-cert`.
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
    /// A connection from `address` to workload port `port`, of unknown protocol yet.
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

    /// Sets the protocol that was detected from the first bytes, or their absence.
    pub(super) fn set_protocol(&mut self, protocol: DetectedProtocol) {
        self.tls = matches!(protocol, DetectedProtocol::Tls(_));
        self.offers = match protocol {
            DetectedProtocol::Tls(hello) => {
                self.server_name = hello.server_name;
                hello.alpn
            }
            DetectedProtocol::Http1 => vec![b"http/1.1".to_vec()],
            DetectedProtocol::Http2 => vec![b"h2c".to_vec()],
            DetectedProtocol::Opaque => Vec::new(),
        };
    }

    /// Cluster of the app that it is for.
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

    /// Filter chain that matches it.
    pub(super) fn chain<'a>(&self, plan: &'a InboundPlan) -> Option<&'a Arc<InboundChain>> {
        plan.find(self.port, self.tls, &self.offers)
    }

    pub(super) fn peer_identity(&self) -> PeerIdentity<'_> {
        PeerIdentity {
            principal: self.peer.as_ref().map(|caller| caller.peer.id.as_str()),
        }
    }

    /// Expiry of the peer's certificate.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.peer.as_ref().map(|caller| caller.expires)
    }

    /// Reporter and connection, for the records of its requests.
    pub(super) fn log_context(&self) -> LogContext<'_> {
        LogContext {
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

    /// True once the peer's sidecar has reported its workload.
    pub(super) fn knows_source(&self) -> bool {
        self.source.get().is_some()
    }

    /// Takes the workload of the peer from `request`, where its sidecar reports it.
    pub(super) fn read_peer_workload(&self, request: &Head) {
        if self.source.get().is_none()
            && let Some(value) = request.get(FieldName::PeerMetadata)
            && let Some(workload) = peer::decode(value)
        {
            self.set_peer_workload(workload);
        }
    }

    /// Accepts the workload that the peer's sidecar reported, as far as the certificate supports it: the namespace must
    /// be the certificate's, the name isn't verified.
    pub(super) fn set_peer_workload(&self, workload: Workload) {
        if (self.peer.as_ref())
            .is_some_and(|caller| workload.namespace == caller.peer.id.namespace())
        {
            // The first report stays.
            let _ = self.source.set(workload);
        }
    }

    /// Metric series of requests on this connection.
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
