//! Istio's standard metrics, and the handles that the path holds.
//!
//! A [`Series`] is one pair of peers; it is built when an endpoint or a connection is. A request then finds its
//! [`SeriesCell`] by its result, without a lock, and adds to existing counters. Exposition is the library's: cells become
//! metric families at each scrape.
//!
//! Bounds: cells live until idle for `--metric-expiry`; at most `--max-metric-series` series, then `other`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::labels::{Labels, OTHER};

/// Upper bounds of every histogram, in milliseconds or bytes, in thousandths so that they are whole.
pub const BUCKETS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// Labels that vary among the requests and connections of one pair of peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResultLabels {
    /// Application protocol.
    pub protocol: RequestProtocol,
    /// HTTP status; 0 without a response.
    pub status: u16,
    /// Envoy's response flag, `-` for none.
    pub flag: &'static str,
    /// gRPC status, if there was one.
    pub grpc: Option<u8>,
}

/// Application protocol, as in `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    /// HTTP of any version.
    Http,
    /// gRPC.
    Grpc,
    /// Opaque TCP.
    Tcp,
}

impl RequestProtocol {
    /// The value of `request_protocol`.
    pub fn as_str(self) -> &'static str {
        match self {
            RequestProtocol::Http => "http",
            RequestProtocol::Grpc => "grpc",
            RequestProtocol::Tcp => "tcp",
        }
    }
}

impl ResultLabels {
    /// A TCP connection.
    pub fn tcp(flag: &'static str) -> ResultLabels {
        ResultLabels {
            protocol: RequestProtocol::Tcp,
            status: 0,
            flag,
            grpc: None,
        }
    }

    /// The key that counts all keys beyond the limit.
    fn other(self) -> ResultLabels {
        ResultLabels {
            status: u16::MAX,
            flag: OTHER,
            grpc: None,
            ..self
        }
    }

    /// True for a 5xx, no response although the client stayed, a gRPC status that stands for a 5xx; for TCP, any flag.
    pub fn is_failure(&self) -> bool {
        let by_status = self.status >= 500 && self.status != u16::MAX;
        let by_call = matches!(self.grpc, Some(2 | 4 | 12..=15));
        match self.protocol {
            RequestProtocol::Tcp => self.flag != "-",
            _ => by_status || by_call || (self.status == 0 && self.flag != "DC"),
        }
    }

    /// The value of `response_code`.
    pub fn code(&self) -> String {
        match self.status {
            u16::MAX => OTHER.to_owned(),
            status => status.to_string(),
        }
    }
}

/// A histogram with Istio's buckets. Sums are in thousandths.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum: AtomicU64,
}

/// First bucket that can hold a number, by its length in bits.
const FIRST: [u8; 65] = {
    let (mut first, mut bits) = ([0; 65], 1);
    while bits <= 64 {
        let mut at = first[bits - 1];
        while (at as usize) < BUCKETS.len() && BUCKETS[at as usize] < 1 << (bits - 1) {
            at += 1;
        }
        first[bits] = at;
        bits += 1;
    }
    first
};

/// Index of the bucket of a number.
fn bucket(thousandths: u64) -> usize {
    let bits = u64::BITS - thousandths.leading_zeros();
    let first = usize::from(FIRST[bits as usize]);
    let above = BUCKETS[first..]
        .iter()
        .take_while(|bound| **bound < thousandths);
    first + above.count()
}

impl Histogram {
    fn observe(&self, thousandths: u64) {
        let at = bucket(thousandths);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(thousandths, Ordering::Relaxed);
    }

    /// Number of values in each bucket; the last has no bound.
    pub fn counts(&self) -> [u64; BUCKETS.len() + 1] {
        std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed))
    }

    /// The sum, in milliseconds or bytes.
    #[allow(clippy::cast_precision_loss)] // a sum that long has no use for its last digits
    pub fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64 / 1000.0
    }
}

/// Counters of the requests, or connections, of one series that share a [`ResultLabels`].
#[derive(Debug)]
pub struct SeriesCell {
    /// The labels that they share.
    pub key: ResultLabels,
    /// Requests that ended; for TCP, connections that were opened.
    pub count: AtomicU64,
    /// Durations of requests.
    pub duration: Histogram,
    /// Heads and bodies of requests.
    pub request_bytes: Histogram,
    /// Heads and bodies of responses.
    pub response_bytes: Histogram,
    /// Connections that were closed.
    pub closed: AtomicU64,
    /// Bytes received from the client.
    pub received: AtomicU64,
    /// Bytes sent to the client.
    pub sent: AtomicU64,
    /// Activity at the last sweep, and the number of sweeps since it changed.
    swept: (AtomicU64, AtomicU32),
}

/// Sizes of a request and its response.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sizes {
    /// Bytes of the request, head and body.
    pub request: u64,
    /// Bytes of the response, head and body.
    pub response: u64,
}

impl SeriesCell {
    /// Counts a finished request.
    fn over(&self, took: Duration, sizes: Sizes) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let micros = took.as_secs().saturating_mul(1_000_000);
        let rest = took.subsec_micros().into();
        self.duration.observe(micros.saturating_add(rest));
        let bytes = |count: u64| count.saturating_mul(1000);
        self.request_bytes.observe(bytes(sizes.request));
        self.response_bytes.observe(bytes(sizes.response));
    }

    fn new(key: ResultLabels) -> SeriesCell {
        SeriesCell {
            key,
            count: AtomicU64::new(0),
            duration: Histogram::default(),
            request_bytes: Histogram::default(),
            response_bytes: Histogram::default(),
            closed: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            swept: Default::default(),
        }
    }

    /// Sum of all counters that only grow: it changes with any activity.
    fn activity(&self) -> u64 {
        let all = [&self.count, &self.closed, &self.received, &self.sent];
        all.iter().map(|a| a.load(Ordering::Relaxed)).sum()
    }

    /// Counts a sweep; true after `sweeps` without activity. An open connection is never idle: it may be silent for
    /// long.
    fn note_sweep(&self, sweeps: u32) -> bool {
        let activity = self.activity();
        if self.swept.0.swap(activity, Ordering::Relaxed) != activity {
            self.swept.1.store(0, Ordering::Relaxed);
            return false;
        }
        let is_open = self.key.protocol == RequestProtocol::Tcp
            && self.count.load(Ordering::Relaxed) > self.closed.load(Ordering::Relaxed);
        self.swept.1.fetch_add(1, Ordering::Relaxed) + 1 >= sweeps && !is_open
    }
}

/// Requests and connections between the same two peers.
#[derive(Debug)]
pub struct Series {
    labels: Labels,
    cells: ArcSwap<Vec<Arc<SeriesCell>>>,
    /// Messages of gRPC requests, and of their responses.
    messages: [AtomicU64; 2],
    room: Arc<Room>,
}

/// Limit on the cells of all series.
#[derive(Debug)]
struct Room {
    cells: AtomicUsize,
    overflow: AtomicU64,
    at_most: usize,
}

impl Room {
    fn take(&self) -> bool {
        let taken = self.cells.fetch_add(1, Ordering::Relaxed) < self.at_most;
        if !taken {
            self.overflow.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }
}

/// Direction of the messages of a gRPC call.
#[derive(Debug, Clone, Copy)]
pub enum MessageDirection {
    /// From the client.
    Request,
    /// To the client.
    Response,
}

impl Series {
    /// Counts a request.
    pub fn count(&self, key: ResultLabels, took: Duration, sizes: Sizes) {
        let cells = self.cells.load();
        match cells.iter().find(|cell| cell.key == key) {
            Some(cell) => cell.over(took, sizes),
            None => self.cell(key).over(took, sizes),
        }
    }

    /// Counts messages of a gRPC call.
    pub fn messages(&self, way: MessageDirection, count: u64) {
        self.messages[way as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// The cell of `key`, made on first use; beyond the limit, the one that counts all others.
    pub fn cell(&self, key: ResultLabels) -> Arc<SeriesCell> {
        if let Some(cell) = self.cells.load().iter().find(|cell| cell.key == key) {
            return Arc::clone(cell);
        }
        let is_new = key.flag != OTHER;
        if is_new && !self.room.take() {
            self.room.cells.fetch_sub(1, Ordering::Relaxed);
            return self.cell(key.other());
        }
        let new = Arc::new(SeriesCell::new(key));
        let mut added = true;
        self.cells.rcu(|cells| {
            added = !cells.iter().any(|cell| cell.key == key);
            let more = added.then(|| Arc::clone(&new));
            cells.iter().cloned().chain(more).collect::<Vec<_>>()
        });
        if !added && is_new {
            self.room.cells.fetch_sub(1, Ordering::Relaxed);
        }
        // It is there now, added here or by another thread.
        let cells = self.cells.load();
        let found = cells.iter().find(|cell| cell.key == key);
        found.map_or(new, Arc::clone)
    }

    /// Labels of both peers.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Cells of requests and connections.
    pub fn cells(&self) -> Arc<Vec<Arc<SeriesCell>>> {
        self.cells.load_full()
    }

    /// Number of gRPC messages in the direction `way`.
    pub fn messages_of(&self, way: MessageDirection) -> u64 {
        self.messages[way as usize].load(Ordering::Relaxed)
    }

    /// Drops cells without activity in the last `sweeps` sweeps.
    fn sweep(&self, sweeps: u32) {
        let cells = self.cells.load();
        let idle: Vec<ResultLabels> = cells
            .iter()
            .filter(|cell| cell.note_sweep(sweeps))
            .map(|cell| cell.key)
            .collect();
        if idle.is_empty() {
            return;
        }
        let counted = idle.iter().filter(|key| key.flag != OTHER).count();
        self.room.cells.fetch_sub(counted, Ordering::Relaxed);
        self.cells.rcu(|cells| {
            let kept = cells.iter().filter(|cell| !idle.contains(&cell.key));
            kept.cloned().collect::<Vec<_>>()
        });
    }
}

/// All series of the process.
#[derive(Debug)]
pub struct Standard {
    all: Mutex<HashMap<Labels, Arc<Series>>>,
    room: Arc<Room>,
}

impl Standard {
    /// No series yet; up to `at_most` of them, and as many cells.
    pub fn new(at_most: usize) -> Standard {
        Standard {
            all: Mutex::default(),
            room: Arc::new(Room {
                cells: AtomicUsize::new(0),
                overflow: AtomicU64::new(0),
                at_most,
            }),
        }
    }

    /// The series with these labels, made on first use.
    pub fn series(&self, labels: Labels) -> Arc<Series> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = match all.len() < self.room.at_most || all.contains_key(&labels) {
            true => labels,
            false => {
                self.room.overflow.fetch_add(1, Ordering::Relaxed);
                Labels::other()
            }
        };
        let new = || {
            Arc::new(Series {
                labels: labels.clone(),
                cells: ArcSwap::default(),
                messages: Default::default(),
                room: Arc::clone(&self.room),
            })
        };
        Arc::clone(all.entry(labels.clone()).or_insert_with(new))
    }

    /// All current series.
    pub fn all(&self) -> Vec<Arc<Series>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }

    /// Number of cells, and how often a series or cell was counted as `other` because the limit was reached.
    pub fn room(&self) -> (usize, u64) {
        let overflow = self.room.overflow.load(Ordering::Relaxed);
        (self.room.cells.load(Ordering::Relaxed), overflow)
    }

    /// Drops cells without activity in the last `sweeps` sweeps, then empty series without a handle.
    pub fn sweep(&self, sweeps: u32) {
        for series in self.all() {
            series.sweep(sweeps);
        }
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        // A handle is only given out under this lock: none is taken of a series that is dropped here.
        all.retain(|_, series| Arc::strong_count(series) > 1 || !series.cells.load().is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::labels::Party;

    fn labels(service: &str) -> Labels {
        let none = Party::default();
        Labels::new("source", &none, &none, service, "unknown")
    }

    fn key(status: u16) -> ResultLabels {
        ResultLabels {
            protocol: RequestProtocol::Http,
            status,
            flag: "-",
            grpc: None,
        }
    }

    #[test]
    fn values_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let histogram = Histogram::default();
        for (thousandths, bucket) in [
            (0, 0),
            (500, 0),
            (501, 1),
            (1_000, 1),
            (4_999, 2),
            (3_600_000_000, 18),
            (3_600_000_001, 19),
        ] {
            let before = histogram.counts()[bucket];
            histogram.observe(thousandths);
            assert_eq!(histogram.counts()[bucket], before + 1, "{thousandths}");
        }
        assert!((histogram.sum() - 7_200_007.001).abs() < 1e-6);
        let edges = BUCKETS
            .iter()
            .flat_map(|bound| [bound - 1, *bound, bound + 1]);
        for number in edges.chain((0..64).map(|bit| 1 << bit)).chain([u64::MAX]) {
            let expected = BUCKETS.partition_point(|bound| *bound < number);
            assert_eq!(bucket(number), expected, "{number}");
        }
    }

    #[test]
    fn what_is_too_much_is_counted_as_other() {
        let standard = Standard::new(3);
        let took = Duration::from_millis(1);
        for i in 0..10 {
            let series = standard.series(labels(&format!("h{i}")));
            series.count(key(200), took, Sizes::default());
            series.count(key(404), took, Sizes::default());
        }
        let total: u64 = standard
            .all()
            .iter()
            .flat_map(|series| series.cells().to_vec())
            .map(|cell| cell.count.load(Ordering::Relaxed))
            .sum();
        assert_eq!(total, 20, "nothing is lost");
        assert_eq!(standard.all().len(), 4, "three, and the other one");
        let cells: usize = standard.all().iter().map(|s| s.cells().len()).sum();
        assert!(cells <= 3 + 4, "{cells}");
        assert!(standard.room().1 > 0);
    }

    #[test]
    fn what_is_idle_is_forgotten_and_counted_anew() {
        let standard = Standard::new(10);
        let series = standard.series(labels("a"));
        series.count(key(200), Duration::ZERO, Sizes::default());
        series.count(key(404), Duration::ZERO, Sizes::default());
        standard.sweep(2);
        series.count(key(200), Duration::ZERO, Sizes::default());
        standard.sweep(2);
        assert_eq!(series.cells().len(), 2);
        series.count(key(200), Duration::ZERO, Sizes::default());
        standard.sweep(2);
        assert_eq!(series.cells().len(), 1, "404 has been idle for two sweeps");
        assert_eq!(standard.room().0, 1);
        series
            .cell(ResultLabels::tcp("-"))
            .count
            .store(1, Ordering::Relaxed);
        for _ in 0..5 {
            standard.sweep(2);
        }
        assert_eq!(series.cells().len(), 1, "an open connection is not idle");
        series
            .cell(ResultLabels::tcp("-"))
            .closed
            .store(1, Ordering::Relaxed);
        for _ in 0..3 {
            standard.sweep(2);
        }
        assert!(series.cells().is_empty());
        assert_eq!(standard.all().len(), 1, "somebody holds it");
        drop(series);
        standard.sweep(2);
        assert!(standard.all().is_empty());
    }
}
