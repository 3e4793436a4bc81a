//! Forwarding: one request to one upstream and back, opaque TCP connections, and local replies.

pub mod answer;
mod attempt;
mod checkout;
pub mod exchange;
pub mod headers;
pub mod propagate;
pub mod replay;
mod report;
pub mod request;
pub mod retry;
pub mod retry_state;
