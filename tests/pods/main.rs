//! Sidecars in pods that are network namespaces: connections are taken over by the kernel, and nobody knows.

#[cfg(feature = "containers")]
mod containers;
mod interception;
mod speaking_first;
