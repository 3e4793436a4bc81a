//! One request to one upstream and back, the bytes of an opaque connection, and the answers that Leno gives itself.

pub mod answer;
pub mod attempt;
pub mod headers;
pub mod http;
pub mod replay;
pub mod retry;
pub mod tcp;
