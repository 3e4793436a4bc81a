//! Going without losing a request: callers are sent elsewhere first, then the app's requests end, then ours.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use leno_proto::leno::DrainRequest;
use leno_proto::leno::lifecycle_client::LifecycleClient;
use leno_proto::tonic::transport::Endpoint;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::channel::{Target, words};
use crate::directory::Directory;
use crate::drain::{ON_THE_WAY, Phase, Side, Signal};
use crate::tls::Credentials;

/// How long the control plane is given to say that the others know: it gives them five seconds itself.
const FAREWELL: Duration = Duration::from_secs(6);
/// Between two tries to tell it.
const AGAIN: Duration = Duration::from_millis(500);
/// Whole seconds without a request of the app's, and without a connection, after which it is gone.
const QUIET: u64 = 2;

/// What is needed to go.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// Where the control plane is.
    pub target: Target,
    /// Who we are, and which life of it.
    pub node: String,
    /// Tells this life from others, as on the stream.
    pub instance: String,
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
        let (known, mut knows) = oneshot::channel();
        let telling = self.keep_telling(known);
        let ending = async {
            if timeout(FAREWELL.min(left()), &mut knows).await.is_err() {
                tracing::warn!("the control plane didn't say in time that callers know");
            }
            sleep(ON_THE_WAY.min(left())).await;
            signal.reach(Phase::Closing);
            if !signal.idle(Side::Inbound, left()).await {
                tracing::warn!("requests to the app are cut short: the drain time is over");
            }
            while !left().is_zero() && !self.is_app_gone(signal).await {
                sleep(ON_THE_WAY.min(left())).await;
            }
            signal.end(left()).await;
        };
        tokio::select! {
            () = ending => {}
            never = telling => match never {},
        }
    }

    /// Whether the app asks for nothing any more. One with a connection to us lives.
    async fn is_app_gone(&self, signal: &Signal) -> bool {
        let is_quiet = self.directory.quiet().is_none_or(|quiet| quiet >= QUIET);
        is_quiet && signal.idle(Side::Outbound, Duration::ZERO).await
    }

    /// Tells the control plane, again when it forgets. `known` is used once every subscriber has learned it, or when
    /// there is nobody to tell.
    async fn keep_telling(&self, known: oneshot::Sender<()>) -> Infallible {
        let mut known = Some(known);
        loop {
            if let Err(reason) = self.tell(&mut known).await {
                tracing::warn!(
                    reason,
                    "the control plane doesn't know that this proxy ends"
                );
            }
            // Whoever can't be told can't tell anybody.
            known.take().map(|known| known.send(()));
            sleep(AGAIN).await;
        }
    }

    /// One call: it stays open for as long as the control plane lives.
    async fn tell(&self, known: &mut Option<oneshot::Sender<()>>) -> Result<(), String> {
        let connector = self.target.connector(&self.credentials)?;
        let endpoint = Endpoint::from_static("http://control-plane");
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| words(&error))?;
        let request = DrainRequest {
            node: self.node.clone(),
            instance: self.instance.clone(),
        };
        let call = LifecycleClient::new(channel).drain(request).await;
        let mut call = call.map_err(|status| words(&status))?.into_inner();
        while let Some(answer) = call.message().await.map_err(|status| words(&status))? {
            if !answer.waiting.is_empty() {
                tracing::warn!(waiting = ?answer.waiting, "callers that may not know yet");
            }
            known.take().map(|known| known.send(()));
        }
        Ok(())
    }
}
