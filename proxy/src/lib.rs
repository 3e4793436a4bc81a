//! Leno's data plane.
#![allow(missing_docs)]
pub mod error;
pub mod http;
pub mod stream;
