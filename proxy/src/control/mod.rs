//! The connection to the control plane, and the files that outlive one: all that the stream, certificates and reports share.

pub mod channel;
pub mod drain_call;
pub mod http_client;
pub mod state_dir;
