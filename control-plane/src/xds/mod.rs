//! xDS towards the proxies: a connection without IO, and the service that pumps between it and a stream.

pub mod connection;
pub mod hub;
pub mod server;
