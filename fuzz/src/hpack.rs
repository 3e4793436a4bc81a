//! HPACK: any block is decoded as another implementation decodes it, and what our encoder writes is read by that as well.

use leno_http::h2::fuzz::{decode, encode};

type Lines = Vec<(Vec<u8>, Vec<u8>)>;

/// Decodes blocks of one connection by the other implementation.
fn theirs(blocks: &[&[u8]]) -> Option<Vec<Lines>> {
    let mut other = fluke_hpack::Decoder::new();
    blocks
        .iter()
        .map(|block| other.decode(block).ok())
        .collect()
}

/// Runs one execution.
pub fn run(bytes: &[u8]) {
    // Two blocks, so that the second is decoded by the table that the first has left.
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    let (one, two) = bytes.split_at(usize::from(*first).min(bytes.len()));
    let blocks = [one, two];
    let Some(ours) = decode(&blocks) else {
        return;
    };
    let Some(other) = theirs(&blocks) else {
        return;
    };
    // Ours cuts whitespace around values off, as HTTP/1 does, and so keeps other entries.
    let is_trimmed = |(_, value): &(Vec<u8>, Vec<u8>)| value.trim_ascii().len() == value.len();
    if other.iter().flatten().all(is_trimmed) {
        assert_eq!(other, ours);
    }
    let written = encode(&ours);
    let written: Vec<&[u8]> = written.iter().map(Vec::as_slice).collect();
    assert_eq!(theirs(&written), decode(&written), "what ours writes");
}
