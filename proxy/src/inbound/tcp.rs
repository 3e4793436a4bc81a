//! Opaque TCP connections to the app.

use std::future::pending;
use std::sync::Arc;

use super::connection::Connection;
use crate::balance::Cluster;
use crate::error::{Error, Kind};
use crate::serve::tcp;
use crate::snapshot::InboundChain;
use crate::upstream::peer_metadata::exchange;
use crate::worker::Worker;
use leno_http::stream::Stream;
use leno_rules::policy::rbac::{Verdict, verdict_tcp};

/// Proxies `stream` to the app, until it ends.
pub(super) async fn carry(worker: &Worker, connection: Connection, mut stream: Stream) {
    let shared = &worker.shared;
    let plan = shared.directory.inbound().await;
    let Some(chain) = connection.chain(&plan) else {
        return;
    };
    match exchange(&mut stream, &plan.peer_frame, shared.timeouts.head).await {
        Ok(Some(said)) => connection.believe(said),
        Ok(None) => {}
        Err(error) => {
            return tracing::info!(address = %connection.address, %error, "connection not carried");
        }
    }
    let series = connection.series(worker, chain);
    let mut passage = tcp::Passage::new(&series);
    let app = connection.app(worker, &plan, chain);
    let carrying = carry_bytes(worker, &connection, chain, app, &mut passage, stream);
    // Boxed: opaque connections must not enlarge every connection's task.
    let carried = Box::pin(carrying).await;
    if let Err(error) = &carried {
        tracing::info!(address = %connection.address, %error, "connection not carried");
    }
    passage.over(worker, connection.teller(), carried.err());
}

/// Connection to the app, once the app has sent bytes before the client did. Never ready where plaintext isn't taken as
/// opaque TCP or the client isn't allowed.
pub(super) async fn spoken_first(worker: &Worker, connection: &Connection) -> tcp::Opened {
    let plan = worker.shared.directory.inbound().await;
    let chain = connection
        .chain(&plan)
        .filter(|chain| !chain.tls && !chain.http);
    let allowed = chain.filter(|chain| {
        matches!(
            verdict_tcp(&chain.policies, connection.caller()),
            Verdict::Allowed
        )
    });
    let Some(chain) = allowed else {
        return pending().await;
    };
    let Ok(cluster) = connection.app(worker, &plan, chain) else {
        return pending().await;
    };
    match tcp::spoken_first(worker, &cluster, &chain.speaks_first).await {
        Ok(up) => up,
        // `carry` dials again and reports the error.
        Err(_) => pending().await,
    }
}

/// Proxies a connection on which the app spoke first.
pub(super) async fn carry_spoken(
    worker: &Worker,
    connection: &Connection,
    mut down: Stream,
    up: tcp::Opened,
) {
    let plan = worker.shared.directory.inbound().await;
    let Some(chain) = connection.chain(&plan) else {
        return;
    };
    let mut passage = tcp::Passage::new(&connection.series(worker, chain));
    let carried = match connection.app(worker, &plan, chain) {
        Ok(cluster) => tcp::carry(&mut passage, &cluster, up, &[], &mut down).await,
        Err(error) => Err(error),
    };
    passage.over(worker, connection.teller(), carried.err());
}

/// Proxies opaque TCP to the app, if the policies allow it.
async fn carry_bytes(
    worker: &Worker,
    connection: &Connection,
    chain: &InboundChain,
    app: Result<Arc<Cluster>, Error>,
    passage: &mut tcp::Passage,
    mut down: Stream,
) -> Result<(), Error> {
    match verdict_tcp(&chain.policies, connection.caller()) {
        Verdict::Allowed => {}
        Verdict::DeniedBy(policy) | Verdict::NotAllowed(Some(policy)) => {
            let error = Error::own(Kind::Denied, "the connection is not allowed");
            return Err(error.behind(&policy.into()));
        }
        Verdict::NotAllowed(None) => {
            return Err(Error::own(Kind::Denied, "nothing is allowed here"));
        }
    }
    let app = app?;
    let up = tcp::open(worker, &app).await?;
    tcp::carry(passage, &app, up, &[], &mut down).await
}
