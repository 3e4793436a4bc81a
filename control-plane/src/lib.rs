//! Leno's control plane.
#![allow(missing_docs)]
pub mod istio;
pub mod mesh;
pub mod source;
pub mod translate;
