//! The target `hpack` for libFuzzer, which only a build with its coverage has (`fuzz/run`).
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| leno_fuzz::hpack::run(bytes));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("built without coverage: see fuzz/run");
}
