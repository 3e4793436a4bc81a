//! What is seen of a request: one [`Outcome`] each, recorded once, on drop if need be.

mod exposition;
pub mod grpc;
pub mod labels;
pub mod metrics;
pub mod standard;

use std::sync::Arc;

use tokio::time::Instant;

use standard::{Cell, Key, Protocol, Series, Sizes};

/// What became of a request. Whoever holds it says what it learns; dropping it records.
#[derive(Debug)]
pub struct Outcome {
    series: Arc<Series>,
    begun: Instant,
    key: Key,
    /// How large request and response were.
    pub sizes: Sizes,
}

impl Outcome {
    /// A request that was begun at `at`. Dropped before an answer it counts as Envoy counts a caller that left: code 0,
    /// `DC`.
    pub fn begun(series: &Arc<Series>, at: Instant) -> Outcome {
        Outcome {
            series: Arc::clone(series),
            begun: at,
            key: Key {
                protocol: Protocol::Http,
                status: 0,
                flag: "DC",
                grpc: None,
            },
            sizes: Sizes::default(),
        }
    }

    /// The request is counted under another series: its destination is known by now.
    pub fn toward(&mut self, series: &Arc<Series>) {
        self.series = Arc::clone(series);
    }

    /// It is a gRPC call.
    pub fn is_call(&mut self) {
        self.key.protocol = Protocol::Grpc;
    }

    /// Where the messages of a gRPC call are counted, if it is one.
    pub fn call(&self) -> Option<&Arc<Series>> {
        (self.key.protocol == Protocol::Grpc).then_some(&self.series)
    }

    /// The gRPC status that it ended with.
    pub fn concluded(&mut self, status: Option<u8>) {
        self.key.grpc = status;
    }

    /// The request was answered.
    pub fn answered(&mut self, status: u16, flag: &'static str) {
        (self.key.status, self.key.flag) = (status, flag);
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.series
            .count(self.key, self.begun.elapsed(), self.sizes);
    }
}

/// A connection of bytes; dropping it counts it as closed.
#[derive(Debug)]
pub struct Carried(Arc<Cell>);

impl Carried {
    /// A connection between the peers of `series`, which was opened.
    pub fn opened(series: &Series) -> Carried {
        Carried::ended(series, "-")
    }

    /// A connection that came to nothing; why, as Envoy's flag.
    pub fn ended(series: &Series, flag: &'static str) -> Carried {
        let cell = series.cell(Key::tcp(flag));
        cell.count
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Carried(cell)
    }

    /// Where its bytes are counted.
    pub fn cell(&self) -> &Arc<Cell> {
        &self.0
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.0
            .closed
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}
