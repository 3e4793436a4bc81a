//! Steady traffic, counted at the client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinHandle;
use tokio::time::interval;

use crate::http;

/// Traffic that goes on until it is stopped.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicUsize,
    failed: AtomicUsize,
}

impl Load {
    /// Starts 50 requests a second to order-service, which calls user-service through the mesh.
    pub(crate) fn start(order_app: SocketAddr) -> Load {
        let (stop, counts) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Counts::default()),
        );
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&counts));
        let task = tokio::spawn(async move {
            let mut tick = interval(Duration::from_millis(20));
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                let answer = http::get(order_app, "order-service", "/orders/1").await;
                counted.sent.fetch_add(1, Ordering::Relaxed);
                if !answer.is_ok_and(|answer| answer.status == 200) {
                    counted.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Load { stop, counts, task }
    }

    /// Stops it; returns the numbers of sent and of failed requests.
    pub(crate) async fn stop(self) -> Result<(usize, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?;
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        Ok((load(&self.counts.sent), load(&self.counts.failed)))
    }
}
