//! Whatever reads bytes from a peer or an operator, as functions of any bytes that panic on what must not be: `fuzz/run` has
//! libFuzzer search them by coverage, and the tests here run a fixed number of mutated seeds.

pub mod hpack;
pub mod http1;
pub mod http2;
pub mod xds;
pub mod yaml;

#[cfg(test)]
mod tests;
