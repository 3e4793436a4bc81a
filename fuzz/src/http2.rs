//! The HTTP/2 core at both ends: sequences of frames, whole and in pieces.

use leno_http::h2::fuzz::http2;

/// Runs one execution.
pub fn run(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    // The first byte: server or client, and how many streams our client opens.
    let (is_server, opened) = (first & 1 == 0, usize::from(first >> 1) % 8);
    let whole = http2(is_server, opened, bytes, usize::MAX);
    for step in [1, 13] {
        assert_eq!(
            http2(is_server, opened, bytes, step),
            whole,
            "in pieces of {step}"
        );
    }
}
