//! Leno's data plane: the sidecar.
//!
//! Path of a request, in the order of the modules:
//!
//! ```text
//! serve → tls → policy | route → balance → upstream → forward → observe
//! inbound and outbound decide in these stages; a connection stays on the worker that accepted it
//! ```
//!
//! Path of configuration: `xds` receives resources, leno-rules validates them, `snapshot` builds plans from them, one
//! swap in `directory` publishes those, and the request path reads them.

pub mod drain;
pub mod error;
pub mod inbound;
pub mod intercept;
pub mod outbound;
pub mod serve;
pub mod tls;

pub mod balance;
pub mod forward;
pub mod observe;
pub mod upstream;
pub mod worker;

pub mod directory;
pub mod resources;
pub mod snapshot;
pub mod xds;

pub mod control;
pub mod export;
pub mod identity;

pub mod admin;
pub mod app;
pub mod bootstrap;
mod node;
mod sockets;
pub mod status;
pub mod wrapper;
