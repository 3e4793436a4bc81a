//! Opaque bytes both ways, until both directions have ended.

use tokio::io::copy_bidirectional;

use crate::error::{Error, Kind};
use crate::stream::Stream;

/// Copies between two peers; a direction that one ends is ended towards the other, while the opposite one goes on.
///
/// # Errors
/// When a connection breaks.
pub async fn copy(down: &mut Stream, up: &mut Stream) -> Result<(u64, u64), Error> {
    copy_bidirectional(down, up)
        .await
        .map_err(|error| Error::up(Kind::Reset, error.to_string()))
}
