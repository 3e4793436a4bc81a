//! A fixed number of executions of each target, from its seeds: the same ones in each run.

use std::panic::catch_unwind;
use std::path::Path;

use fastrand::Rng;

/// Longest mutated input.
const LONGEST: usize = 4096;
/// Bytes at the bounds of what lengths, types and texts may be.
const AT_BOUNDS: &[u8] = b"\0\x01\x7f\x80\xff\r\n\t :;,\"'{}[]-&*#0";

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target);
    let entries = std::fs::read_dir(directory).expect("seeds");
    let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    let read = paths.iter().map(|p| std::fs::read(p).expect("a seed"));
    read.collect()
}

/// Changes a range of `input`: other bits, a byte at a bound, fewer bytes, the same bytes twice, or another seed's bytes.
fn mutate(input: &mut Vec<u8>, rng: &mut Rng, other: &[u8]) {
    let at = rng.usize(..=input.len());
    let end = (at + rng.usize(..=8)).min(input.len());
    match rng.u8(..6) {
        0 if at < end => input[at] ^= 1 << rng.u32(..8),
        1 if at < end => input[at] = AT_BOUNDS[rng.usize(..AT_BOUNDS.len())],
        2 => drop(input.drain(at..end)),
        3 => {
            let end = (at + rng.usize(..=64)).min(input.len());
            let again = input[at..end].to_vec();
            input.splice(at..at, again);
        }
        4 => {
            let from = rng.usize(..=other.len());
            let to = (from + rng.usize(..=64)).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
        _ => input.insert(at, rng.u8(..)),
    }
    input.truncate(LONGEST);
}

/// Runs `target` on each seed, and on `executions` inputs that one to eight mutations have made of them.
fn execute(name: &str, target: fn(&[u8]), executions: usize) {
    let seeds = seeds(name);
    let run = |input: &[u8]| {
        let held = catch_unwind(|| target(input));
        assert!(
            held.is_ok(),
            "{name} fails on b\"{}\"",
            input.escape_ascii()
        );
    };
    seeds.iter().for_each(|seed| run(seed));
    let mut rng = Rng::with_seed(18);
    for _ in 0..executions {
        let mut input = seeds[rng.usize(..seeds.len())].clone();
        for _ in 0..rng.usize(1..=8) {
            let other = &seeds[rng.usize(..seeds.len())];
            mutate(&mut input, &mut rng, other);
        }
        run(&input);
    }
}

#[test]
fn any_bytes_are_http1_or_refused_whole_and_in_pieces() {
    execute("http1", crate::http1::run, 100_000);
}

#[test]
fn any_frames_are_http2_or_refused_whole_and_in_pieces() {
    execute("http2", crate::http2::run, 100_000);
}

#[test]
fn any_block_is_hpack_as_another_implementation_has_it() {
    execute("hpack", crate::hpack::run, 100_000);
}

#[test]
fn any_message_is_configuration_or_refused() {
    execute("xds", crate::xds::run, 100_000);
}

#[test]
fn any_text_is_a_mesh_or_explained() {
    execute("yaml", crate::yaml::run, 10_000);
}
