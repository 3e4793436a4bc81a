//! Leno's data plane: the sidecar.
//!
//! A request's way, in the order of the modules:
//!
//! ```text
//! accept → identify → tls → http → policy | route → balance → connect → forward → observe
//!          inbound and outbound tell the story; a connection stays on the worker that accepted it
//! ```
//!
//! Configuration's way: `xds` receives messages, `config` makes valid values of them, `snapshot` makes plans of those,
//! one swap in `directory` publishes them, and the path reads.

pub mod accept;
pub mod drain;
pub mod error;
pub mod identify;
pub mod inbound;
pub mod intercept;
pub mod outbound;
pub mod tls;

pub mod balance;
pub mod connect;
pub mod forward;
pub mod observe;
pub mod worker;

pub mod directory;
pub mod snapshot;
pub mod xds;

pub mod control;
pub mod export;
pub mod identity;

pub mod admin;
pub mod app;
pub mod bootstrap;
pub mod status;
pub mod wrapper;
