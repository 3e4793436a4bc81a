//! Sidecars in pods that are network namespaces: the kernel redirects connections, unknown to the apps.

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
