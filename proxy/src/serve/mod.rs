//! Serving downstream connections, the same for both directions: accepting them, detecting their protocol, proxying TCP.

pub mod accept;
pub mod http;
pub mod sniff;
pub mod tcp;

use std::borrow::Cow;

use leno_http::head::Head;
use leno_http::path;

use crate::error::{Error, Kind};

/// Normalises the target, so that the path that is matched is the one that is forwarded.
///
/// # Errors
/// When its percent-encoding is malformed or encodes NUL.
pub fn normalise(request: &mut Head) -> Result<(), Error> {
    if request.target() == b"*" {
        return Ok(());
    }
    let normal = path::normalise(request.target());
    let normal = normal.map_err(|error| Error::down(Kind::BadRequest, error.to_string()))?;
    if let Cow::Owned(normal) = normal {
        request.set_target(&normal);
    }
    Ok(())
}
