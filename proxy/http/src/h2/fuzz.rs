//! Entry points of the fuzz targets (`fuzz/`) to what is private otherwise; only there with the feature `fuzzing`.
#![allow(missing_docs)]

use std::rc::Rc;

use tokio::time::Instant;

use super::core::{Core, Role, Slot};
use super::header_block::Peer;
use super::hpack::{Case, Decoder, Encoder};
use super::write_head::{write_request, write_trailers};
use crate::h1::HeadLimits;
use crate::head::Head;

/// Lines of a field block.
pub type Lines = Vec<(Vec<u8>, Vec<u8>)>;

/// Feeds `bytes` to a connection, `step` at a time, behind what a peer begins with; our client opens streams first. Returns the
/// frames that it sends, and the heads that arrived.
pub fn http2(is_server: bool, opened: usize, bytes: &[u8], step: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let now = Instant::now();
    let role = if is_server {
        Role::Server
    } else {
        Role::Client
    };
    let mut core = Core::new(role, Peer::Foreign, HeadLimits::default(), now);
    let mut slots: Vec<Rc<Slot>> = Vec::new();
    for _ in 0..if is_server { 0 } else { opened } {
        let mut head = Head::request("GET", "/");
        head.add("host", b"a");
        slots.extend(core.open(true, now, |encoder, out| {
            write_request(encoder, out, &head, false);
        }));
    }
    let start: &[u8] = match is_server {
        true => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        false => b"\0\0\0\x04\0\0\0\0\0",
    };
    let (all, mut unread) = ([start, bytes].concat(), Vec::new());
    for part in all.chunks(step.max(1)) {
        unread.extend_from_slice(part);
        let taken = core.receive(&unread, now);
        assert!(taken <= unread.len());
        unread.drain(..taken);
        slots.extend(core.arrived.drain(..));
        if core.end.is_some() {
            break;
        }
    }
    let heads = slots.iter().map(|slot| {
        let state = slot.state.borrow();
        let mut text = Vec::new();
        if let Some(head) = &state.head {
            head.write_request(&mut text);
        }
        text.extend_from_slice(&state.data);
        text
    });
    // A connection that ends by an error loses what had just arrived, which depends on the pieces.
    let heads = if core.end.is_some() {
        Vec::new()
    } else {
        heads.collect()
    };
    (core.take_out(Vec::new()), heads)
}

/// Decodes blocks of one connection; `None` when one of them is refused.
pub fn decode(blocks: &[&[u8]]) -> Option<Vec<Lines>> {
    let mut decoder = Decoder::new(Case::Lower);
    let mut all = Vec::new();
    for mut block in blocks.iter().copied() {
        let mut lines = Lines::new();
        decoder.begin(&mut block).ok()?;
        while let Some(line) = decoder.line(&mut block).ok()? {
            lines.push((line.name.to_vec(), line.value.to_vec()));
        }
        all.push(lines);
    }
    Some(all)
}

/// Encodes the lines of messages, as far as a message may hold them, each message twice; returns the blocks.
pub fn encode(messages: &[Lines]) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new(Case::Lower);
    let mut all = Vec::new();
    for lines in messages.iter().chain(messages) {
        let mut head = Head::response(200);
        for (name, value) in lines {
            let is_name = crate::h1::is_token(name) && !name.iter().any(u8::is_ascii_uppercase);
            if let (true, true, Ok(name)) = (
                is_name,
                crate::h1::is_text(value),
                std::str::from_utf8(name),
            ) {
                head.add(name, value);
            }
        }
        let mut out = Vec::new();
        write_trailers(&mut encoder, &mut out, &head);
        all.push(out);
    }
    all
}
