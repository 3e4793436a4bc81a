//! Opaque TCP connections to the app.

use std::future::pending;
use std::sync::Arc;

use super::connection::Connection;
use crate::balance::Cluster;
use crate::error::{Error, Kind};
use crate::serve::tcp;
use crate::snapshot::InboundChain;
use crate::upstream::peer_metadata::exchange_metadata;
use crate::worker::Worker;
use leno_http::stream::Stream;
use leno_rules::policy::rbac::{Decision, authorize_tcp};

/// Proxies `stream` to the app, until it ends.
pub(super) async fn proxy_tcp(worker: &Worker, connection: Connection, mut stream: Stream) {
    let shared = &worker.shared;
    let plan = shared.directory.inbound().await;
    let Some(chain) = connection.chain(&plan) else {
        return;
    };
    match exchange_metadata(&mut stream, &plan.peer_frame, shared.timeouts.head).await {
        Ok(Some(workload)) => connection.set_peer_workload(workload),
        Ok(None) => {}
        Err(error) => {
            return tracing::info!(address = %connection.address, %error, "connection not carried");
        }
    }
    let series = connection.series(worker, chain);
    let mut session = tcp::TcpSession::new(&series);
    let app = connection.app(worker, &plan, chain);
    let carrying = connect_and_proxy(worker, &connection, chain, app, &mut session, stream);
    // Boxed: opaque connections must not enlarge every connection's task.
    let carried = Box::pin(carrying).await;
    if let Err(error) = &carried {
        tracing::info!(address = %connection.address, %error, "connection not carried");
    }
    session.over(worker, connection.log_context(), carried.err());
}

/// Connection to the app, once the app has sent bytes before the client did. Never ready where plaintext isn't taken as
/// opaque TCP or the client isn't allowed.
pub(super) async fn connect_server_first(
    worker: &Worker,
    connection: &Connection,
) -> tcp::TcpUpstream {
    let plan = worker.shared.directory.inbound().await;
    let chain = connection
        .chain(&plan)
        .filter(|chain| !chain.tls && !chain.http);
    let allowed = chain.filter(|chain| {
        matches!(
            authorize_tcp(&chain.policies, connection.peer_identity()),
            Decision::Allowed
        )
    });
    let Some(chain) = allowed else {
        return pending().await;
    };
    let Ok(cluster) = connection.app(worker, &plan, chain) else {
        return pending().await;
    };
    match tcp::connect_server_first(worker, &cluster, &chain.is_server_first).await {
        Ok(up) => up,
        // `proxy_tcp` dials again and reports the error.
        Err(_) => pending().await,
    }
}

/// Proxies a connection on which the app spoke first.
pub(super) async fn proxy_server_first(
    worker: &Worker,
    connection: &Connection,
    mut down: Stream,
    up: tcp::TcpUpstream,
) {
    let plan = worker.shared.directory.inbound().await;
    let Some(chain) = connection.chain(&plan) else {
        return;
    };
    let mut session = tcp::TcpSession::new(&connection.series(worker, chain));
    let carried = match connection.app(worker, &plan, chain) {
        Ok(cluster) => tcp::proxy_tcp(&mut session, &cluster, up, &[], &mut down).await,
        Err(error) => Err(error),
    };
    session.over(worker, connection.log_context(), carried.err());
}

/// Proxies opaque TCP to the app, if the policies allow it.
async fn connect_and_proxy(
    worker: &Worker,
    connection: &Connection,
    chain: &InboundChain,
    app: Result<Arc<Cluster>, Error>,
    session: &mut tcp::TcpSession,
    mut down: Stream,
) -> Result<(), Error> {
    match authorize_tcp(&chain.policies, connection.peer_identity()) {
        Decision::Allowed => {}
        Decision::DeniedBy(policy) | Decision::NotAllowed(Some(policy)) => {
            let error = Error::own(Kind::Denied, "the connection is not allowed");
            return Err(error.behind(&policy.into()));
        }
        Decision::NotAllowed(None) => {
            return Err(Error::own(Kind::Denied, "nothing is allowed here"));
        }
    }
    let app = app?;
    let up = tcp::open(worker, &app).await?;
    tcp::proxy_tcp(session, &app, up, &[], &mut down).await
}
