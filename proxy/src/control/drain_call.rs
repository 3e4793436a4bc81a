//! Drain without losing a request: callers are sent elsewhere, then requests to the app finish, then the app's own.
//!
//! State: one open call, from `Draining` to the end of the process.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use leno_proto::leno::DrainRequest;
use leno_proto::leno::lifecycle_client::LifecycleClient;
use leno_proto::tonic::transport::Endpoint;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::channel::{ControlPlane, error_text};
use crate::directory::Directory;
use crate::drain::{IN_FLIGHT_GRACE, Phase, Side, Signal};
use crate::tls::Credentials;

/// Timeout for the control plane to confirm that every subscriber took the drain; it gives them five seconds itself.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(6);
/// Delay before the drain call is made again.
const AGAIN: Duration = Duration::from_millis(500);
/// Whole seconds without an outbound request after which an app without a connection counts as gone.
const QUIET: u64 = 2;

/// The drain of this proxy: announces it to the control plane and runs its phases.
#[derive(Debug, Clone)]
pub struct DrainCall {
    /// Address and SPIFFE ID of the control plane.
    pub target: ControlPlane,
    /// Node id, as on the ADS stream.
    pub node: String,
    /// Id of this process of the workload's proxy, as on the ADS stream.
    pub instance: String,
    /// Client certificate of the call.
    pub credentials: Arc<Credentials>,
    /// Knows when the app last used a destination.
    pub directory: Arc<Directory>,
}

impl DrainCall {
    /// Runs the phases of the drain, within `at_most`.
    pub async fn end(&self, signal: &Signal, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        let left = || deadline.saturating_duration_since(Instant::now());
        signal.set_phase(Phase::Draining);
        let (known, mut knows) = oneshot::channel();
        let telling = self.keep_call_open(known);
        let ending = async {
            if timeout(CONFIRM_TIMEOUT.min(left()), &mut knows)
                .await
                .is_err()
            {
                tracing::warn!("the control plane didn't say in time that callers know");
            }
            sleep(IN_FLIGHT_GRACE.min(left())).await;
            signal.set_phase(Phase::Closing);
            if !signal.wait_idle(Side::Inbound, left()).await {
                tracing::warn!("requests to the app are cut short: the drain time is over");
            }
            while !left().is_zero() && !self.is_app_gone(signal).await {
                sleep(IN_FLIGHT_GRACE.min(left())).await;
            }
            signal.end(left()).await;
        };
        tokio::select! {
            () = ending => {}
            never = telling => match never {},
        }
    }

    /// True when the app has no connection open and has sent no request for `QUIET` seconds.
    async fn is_app_gone(&self, signal: &Signal) -> bool {
        let is_quiet = self
            .directory
            .idle_seconds()
            .is_none_or(|quiet| quiet >= QUIET);
        is_quiet && signal.wait_idle(Side::Outbound, Duration::ZERO).await
    }

    /// Announces the drain to the control plane, again each time the call ends. `known` is sent with the first answer,
    /// or when the call ends without one.
    async fn keep_call_open(&self, known: oneshot::Sender<()>) -> Infallible {
        let mut known = Some(known);
        loop {
            if let Err(reason) = self.call_drain(&mut known).await {
                tracing::warn!(
                    reason,
                    "the control plane doesn't know that this proxy ends"
                );
            }
            // A control plane that can't be reached can't inform the callers: waiting gains nothing.
            known.take().map(|known| known.send(()));
            sleep(AGAIN).await;
        }
    }

    /// Makes one drain call, which stays open until the control plane ends it.
    async fn call_drain(&self, known: &mut Option<oneshot::Sender<()>>) -> Result<(), String> {
        let connector = self.target.mtls_dialer(&self.credentials)?;
        let endpoint = Endpoint::from_static("http://control-plane");
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| error_text(&error))?;
        let request = DrainRequest {
            node: self.node.clone(),
            instance: self.instance.clone(),
        };
        let call = LifecycleClient::new(channel).drain(request).await;
        let mut call = call.map_err(|status| error_text(&status))?.into_inner();
        while let Some(answer) = call.message().await.map_err(|status| error_text(&status))? {
            if !answer.waiting.is_empty() {
                tracing::warn!(waiting = ?answer.waiting, "callers that may not know yet");
            }
            known.take().map(|known| known.send(()));
        }
        Ok(())
    }
}
