//! The rules of the mesh as values: resources that were received, validated once; matching of routes; policy; identities.
//!
//! Nothing here does IO or keeps state, so that the path and whatever explains it decide by the same code.

pub mod config;
pub mod policy;
pub mod route;
pub mod spiffe;
