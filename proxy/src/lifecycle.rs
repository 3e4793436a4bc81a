//! Going without losing a request: callers are sent elsewhere first, then the app's requests end, then ours.

use std::sync::Arc;
use std::time::Duration;

use leno_proto::leno::lifecycle_client::LifecycleClient;
use leno_proto::leno::{DrainRequest, DrainResponse};
use leno_proto::tonic::Streaming;
use leno_proto::tonic::transport::Endpoint;
use tokio::time::{Instant, sleep, timeout_at};

use crate::channel::{Target, words};
use crate::directory::Directory;
use crate::drain::{Phase, Side, Signal};
use crate::tls::Credentials;

/// How long the others are given to learn that we go. The control plane bounds it by the same.
const FAREWELL: Duration = Duration::from_secs(5);
/// Requests that were on their way to us when the last of them learned it have arrived after this.
const ON_THE_WAY: Duration = Duration::from_millis(200);
/// Seconds without a request of the app's after which it counts as gone: whole ones passed between two ticks.
const QUIET: u64 = 2;

/// What is needed to go.
#[derive(Debug)]
pub struct Lifecycle {
    /// Where the control plane is.
    pub target: Target,
    /// Who we are.
    pub node: String,
    /// What we prove it with.
    pub credentials: Arc<Credentials>,
    /// Knows what the app asks for.
    pub directory: Arc<Directory>,
}

impl Lifecycle {
    /// Ends in good order, within `at_most`.
    pub async fn end(&self, signal: &Signal, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        let left = || deadline.saturating_duration_since(Instant::now());
        signal.reach(Phase::Draining);
        // The call stays open as long as we do: a new stream of this workload's is a new life of it.
        let told = timeout_at(deadline.min(Instant::now() + FAREWELL), self.tell()).await;
        let _call = match told {
            Ok(Ok(call)) => Some(call),
            Ok(Err(reason)) => {
                tracing::warn!(
                    reason,
                    "the control plane doesn't know that this proxy ends"
                );
                None
            }
            Err(_) => {
                tracing::warn!("the control plane didn't say in time that callers know");
                None
            }
        };
        sleep(ON_THE_WAY.min(left())).await;
        signal.reach(Phase::Closing);
        if !signal.idle(Side::Inbound, left()).await {
            tracing::warn!("requests to the app are cut short: the drain time is over");
        }
        while !left().is_zero() && self.directory.quiet().is_some_and(|quiet| quiet < QUIET) {
            if signal.idle(Side::Outbound, Duration::ZERO).await {
                break;
            }
            sleep(ON_THE_WAY).await;
        }
        signal.end(left()).await;
    }

    /// Tells the control plane; returns once every subscriber has learned it.
    async fn tell(&self) -> Result<Streaming<DrainResponse>, String> {
        let connector = self.target.connector(&self.credentials)?;
        let endpoint = Endpoint::from_static("http://control-plane");
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| words(&error))?;
        let request = DrainRequest {
            node: self.node.clone(),
        };
        let call = LifecycleClient::new(channel).drain(request).await;
        let mut call = call.map_err(|status| words(&status))?.into_inner();
        match call.message().await.map_err(|status| words(&status))? {
            Some(DrainResponse { waiting }) if waiting.is_empty() => {}
            Some(DrainResponse { waiting }) => {
                tracing::warn!(?waiting, "callers that may not know yet");
            }
            None => return Err("the call ended without an answer".to_owned()),
        }
        Ok(call)
    }
}
