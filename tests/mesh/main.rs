//! The whole mesh in-process, a test a behaviour.
#![allow(clippy::too_many_lines)]

mod draining;
mod generated;
mod hostile;
mod http2;
mod identity;
mod layout;
mod limits;
mod mtls;
mod observe;
mod policy;
mod probes;
mod protocol;
mod resilience;
mod restart;
mod routing;
mod surface;
mod wrapper;
mod xds_client;
mod xds_reload;
mod xds_server;
