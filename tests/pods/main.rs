//! Sidecars in pods that are network namespaces: connections are taken over by the kernel, and nobody knows.

#[cfg(feature = "containers")]
mod containers;
#[cfg(feature = "programs")]
mod envoy;
mod events;
mod interception;
#[cfg(feature = "programs")]
mod programs;
mod speaking_first;
#[path = "../load/traffic.rs"]
mod traffic;
