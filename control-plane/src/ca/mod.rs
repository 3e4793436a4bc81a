//! The certificate authority: workload identities, and the certificates that prove them.
//!
//! Invariant: a certificate's name is decided here, from the identity that the caller proved; a request only brings a
//! key. Every signed certificate is checked again before it leaves.

mod authority;
mod identity;
pub mod issue;
pub mod labels;
mod ledger;
pub mod root;
pub mod service_account;
pub mod token;

pub use authority::{Ca, DEFAULT_TTL};
pub use identity::{Bearer, Identity};
pub use root::provider;

#[cfg(test)]
mod tests;
