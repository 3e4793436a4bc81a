//! Forwarding: one request to one upstream and back, opaque TCP connections, and local replies.

pub mod answer;
pub mod attempt;
mod checkout;
pub mod exchange;
pub mod headers;
pub mod propagate;
pub mod replay;
pub mod retry;
pub mod retry_state;
