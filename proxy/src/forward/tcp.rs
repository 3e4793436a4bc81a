//! Opaque bytes: to one endpoint, both ways, until both directions have ended.

use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::time::Instant;

use crate::balance::limits::Leave;
use crate::balance::outlier::Verdict;
use crate::balance::{Ask, Cluster, Lease};
use crate::connect::{Carries, dial};
use crate::error::{Error, Kind, Side};
use crate::stream::Stream;
use crate::worker::Worker;

/// Endpoints that are tried before the connection is given up: nothing was sent to any of them.
const TRIES: usize = 3;

/// Opens a connection for bytes to one of the cluster's endpoints. What comes with it is held while it is open.
///
/// # Errors
/// When none of a few endpoints can be reached, or the cluster takes no more connections.
pub async fn open(
    worker: &Worker,
    cluster: &Arc<Cluster>,
) -> Result<(Stream, Leave, Lease), Error> {
    let leave = cluster.load.open().map_err(|e| e.behind(&cluster.object))?;
    let mut tried = Vec::new();
    loop {
        let now = Instant::now();
        let ask = Ask {
            tried: &tried,
            is_replayable: true,
            now,
        };
        let mut lease = cluster.pick(ask, || worker.dice())?;
        let endpoint = Arc::clone(lease.endpoint());
        let error = match dial(cluster, &endpoint, Carries::Tcp).await {
            Ok((stream, _)) => {
                cluster.report(&mut lease, Verdict::Status(200), now);
                return Ok((stream, leave, lease));
            }
            Err(error) => error,
        };
        if error.side == Side::Up {
            cluster.report(&mut lease, Verdict::Failed, now);
        }
        tried.push(endpoint.id);
        if tried.len() == TRIES || cluster.endpoints().endpoints().len() <= tried.len() {
            return Err(error.behind(&cluster.object));
        }
    }
}

/// Copies between two peers; a direction that one ends is ended towards the other, while the opposite one goes on.
///
/// # Errors
/// When a connection breaks.
pub async fn copy(down: &mut Stream, up: &mut Stream) -> Result<(u64, u64), Error> {
    copy_bidirectional(down, up)
        .await
        .map_err(|error| Error::up(Kind::Reset, error.to_string()))
}
