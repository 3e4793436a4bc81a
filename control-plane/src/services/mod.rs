//! The services of port 15012: xDS, certificates, drains and reports, over TLS.

pub mod ads;
pub mod certificates;
pub mod lifecycle;
pub mod reports;
pub mod tls;
