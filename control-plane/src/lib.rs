//! Leno's control plane and the operator's command line.
//!
//! Configuration's way: `source` reads, `istio` is what the YAML says, `mesh` is what it means, `translate` makes
//! resources of it, `xds` streams them. Beside it stands `ca`: who may be whom.

pub mod app;
pub mod auth;
pub mod ca;
pub mod cli;
pub mod inject;
pub mod istio;
pub mod map;
pub mod mesh;
pub mod metrics;
pub mod source;
pub mod translate;
pub mod web;
pub mod xds;
