//! Harness of the mesh's tests: the mesh itself, in-process on addresses of its own, and its fake neighbours.

pub mod ads;
pub mod ca;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod dns;
pub mod envoy;
pub mod h2;
pub mod mesh;
pub mod pods;
pub mod probe;
pub mod process;
pub mod upstream;

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Longest time that anything may take before a test gives up.
pub const TIMEOUT: Duration = Duration::from_secs(15);

/// A loopback address that nothing else in this process uses: every workload has its own, as pods do.
pub fn fresh_ip() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static BASE: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    // Several test processes may run at once.
    let base = *BASE.get_or_init(|| fastrand::u32(16..240));
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let octet = |n: u32| u8::try_from(n % 250 + 1).unwrap_or(1);
    Ipv4Addr::new(
        127,
        u8::try_from(base).unwrap_or(16),
        octet(number / 250),
        octet(number),
    )
}

/// Polls `probe` every 10 ms until it gives a value.
///
/// # Panics
/// When it doesn't within [`TIMEOUT`].
pub async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A directory of a test's own, removed at its end.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// A new one.
    ///
    /// # Panics
    /// When it can't be made.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Directory {
        let path = std::env::temp_dir().join(format!("leno-test-{:016x}", fastrand::u64(..)));
        std::fs::create_dir_all(&path).expect("a temporary directory");
        Directory(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
