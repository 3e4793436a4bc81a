//! Serving downstream connections, the same for both directions: accepting them, detecting their protocol, proxying TCP.

pub mod accept;
pub mod sniff;
pub mod tcp;
