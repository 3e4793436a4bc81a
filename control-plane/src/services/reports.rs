//! Reports of the sidecars, each second, for the live map.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leno_proto::leno::reports_server::Reports as Service;
use leno_proto::leno::{ReportRequest, ReportResponse};
use leno_proto::tonic::{Request, Response, Status, Streaming};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use super::lifecycle::identify;
use super::tls::Peer;
use crate::ca::Identity;
use crate::map::TrafficGraph;

/// Shortest interval between two reports of one sidecar.
const EACH: Duration = Duration::from_millis(200);
/// Longest wait for a report; then the call ends.
const SILENCE: Duration = Duration::from_secs(30);

/// The service.
#[derive(Debug)]
pub struct Reports {
    book: Arc<Mutex<TrafficGraph>>,
}

impl Reports {
    /// The service over `book`.
    pub fn new(book: Arc<Mutex<TrafficGraph>>) -> Reports {
        Reports { book }
    }
}

#[leno_proto::tonic::async_trait]
impl Service for Reports {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<ReportResponse, Status>> + Send>>;

    async fn report(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let peer = request.extensions().get::<Peer>();
        let identity = peer.and_then(|peer| peer.identity.clone()).ok_or_else(|| {
            Status::unauthenticated("the call needs a client certificate of this mesh")
        })?;
        let (out, answers) = mpsc::channel(1);
        let book = Arc::clone(&self.book);
        tokio::spawn(async move {
            let life = identity.not_after.duration_since(SystemTime::now());
            let taking = take(&book, &identity, request.into_inner(), &out);
            // As with the ADS stream: the client must present a newer certificate when this one expires.
            if let Ok(Err(status)) = timeout(life.unwrap_or_default(), taking).await {
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

async fn take(
    book: &Mutex<TrafficGraph>,
    identity: &Identity,
    mut reports: Streaming<ReportRequest>,
    out: &mpsc::Sender<Result<ReportResponse, Status>>,
) -> Result<(), Status> {
    let late = |_| Status::deadline_exceeded("no report came");
    while let Some(report) = timeout(SILENCE, reports.message()).await.map_err(late)?? {
        let now = Instant::now();
        let node = identify(identity, &report.node, "")?;
        book.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(&node, report, now);
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let answer = ReportResponse {
            unix_millis: i64::try_from(unix.as_millis()).unwrap_or_default(),
        };
        if out.send(Ok(answer)).await.is_err() {
            return Ok(());
        }
        sleep_until(now + EACH).await;
    }
    Ok(())
}
