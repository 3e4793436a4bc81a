//! Leno's control plane and the operator's command line.
//!
//! Configuration's way: `source` reads YAML, `istio` parses it to objects, `compile` makes the model `mesh` of them, `translate`
//! makes xDS resources of the model, `xds` streams them, and `services` answers port 15012. Beside it stand `ca`: workload
//! identities and their certificates, and `map`: reports of the sidecars.

pub mod app;
pub mod ca;
pub mod cli;
pub mod compile;
pub mod inject;
pub mod istio;
pub mod map;
pub mod mesh;
pub mod metrics;
pub mod object;
pub mod services;
pub mod source;
pub mod translate;
pub mod web;
pub mod xds;
