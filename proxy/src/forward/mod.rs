//! Forwarding: requests to an upstream and back, over attempts, and local replies.

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

#[cfg(test)]
mod tests;
