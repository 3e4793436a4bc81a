//! What is seen of a request: one [`Outcome`] each, recorded once, on drop if need be.

pub mod metrics;

use std::sync::Arc;

use metrics::Series;

/// What became of a request. Whoever holds it says what it learns; dropping it records.
#[derive(Debug)]
pub struct Outcome {
    series: Arc<Series>,
    status: u16,
    flag: &'static str,
}

impl Outcome {
    /// A request that was begun. Dropped before an answer it counts as Envoy counts a caller that left: code 0, `DC`.
    pub fn begun(series: &Arc<Series>) -> Outcome {
        Outcome {
            series: Arc::clone(series),
            status: 0,
            flag: "DC",
        }
    }

    /// The request is counted under another series: its destination is known by now.
    pub fn toward(&mut self, series: &Arc<Series>) {
        self.series = Arc::clone(series);
    }

    /// The request was answered.
    pub fn answered(&mut self, status: u16, flag: &'static str) {
        (self.status, self.flag) = (status, flag);
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.series.count(self.status, self.flag);
    }
}
