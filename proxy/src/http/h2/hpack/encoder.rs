//! Field lines to blocks.
//!
//! A line goes into the table when it is seen for the second time: what never repeats, like ids, would only push out what
//! does. Names that the path knows go there at once, for the values that come after.

use std::collections::VecDeque;

use super::{LINES, OVERHEAD, TABLE};
use crate::http::head::Known;

/// Lines that are remembered.
const SEEN: usize = 64;
/// Longer ones are not worth a place in the table.
const LONGEST: usize = 1024;

/// A line that was seen.
#[derive(Debug, Default, Clone)]
struct Seen {
    hash: u32,
    /// The number of its entry, counted from the connection's beginning; 0 when it has none.
    entry: u64,
    /// Name and value, as they were written.
    name: Box<[u8]>,
    value: Box<[u8]>,
}

/// One direction's table, and the writer of its blocks.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// Sizes of the entries, the oldest first.
    sizes: VecDeque<usize>,
    size: usize,
    max: usize,
    /// The smallest size that the peer wanted of the table since the last block.
    least: Option<usize>,
    /// How many entries were ever made, and how many of them are gone.
    made: u64,
    gone: u64,
    seen: Vec<Seen>,
    /// Entries with the names that the path knows.
    names: [u64; 32],
    /// For what is put together before it is written.
    pub(crate) scratch: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder {
            sizes: VecDeque::new(),
            size: 0,
            max: TABLE,
            least: None,
            made: 0,
            gone: 0,
            seen: vec![Seen::default(); SEEN],
            names: [0; 32],
            scratch: Vec::new(),
        }
    }
}

/// The ends of both and how long they are, since that mostly tells them from others. Nobody gains by a collision, which
/// costs its line the place in the table.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let end = |text: &[u8]| match text.last_chunk() {
        Some(last) => u64::from_le_bytes(*last),
        None => text.iter().fold(0, |end, byte| end << 8 | u64::from(*byte)),
    };
    let start = value
        .first_chunk()
        .map_or(0, |first| u32::from_le_bytes(*first));
    let mut state = (name.len() as u64) << 32 | value.len() as u64;
    for part in [end(name), end(value), start.into()] {
        state = (state ^ part).wrapping_mul(ODD);
        state ^= state >> 29;
    }
    // The upper half; never 0, which is the hash of no line.
    (state >> 32) as u32 | 1
}

#[inline]
fn write_integer(out: &mut Vec<u8>, flags: u8, bits: u32, number: usize) {
    let mask = (1_usize << bits) - 1;
    match u8::try_from(number) {
        Ok(small) if number < mask => out.push(flags | small),
        _ => write_long(out, flags, mask, number),
    }
}

#[cold]
fn write_long(out: &mut Vec<u8>, flags: u8, mask: usize, number: usize) {
    let low = |number: usize| u8::try_from(number & 0xff).unwrap_or(0);
    out.push(flags | low(mask));
    let mut rest = number - mask;
    while rest >= 0x80 {
        out.push(low(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(low(rest));
}

fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    write_integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// Whether a line is kept out of all tables, also of those of proxies behind (section 7.1.3).
fn is_secret(name: &[u8]) -> bool {
    let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
    match name.len() {
        6 => is(b"cookie"),
        10 => is(b"set-cookie"),
        13 => is(b"authorization"),
        _ => false,
    }
}

/// Whether it is the name of one field only.
fn is_one(known: Known) -> bool {
    !matches!(
        known,
        Known::Other | Known::Removed | Known::Envoy | Known::B3Multiple
    )
}

/// Whether each message has another value: there is no use in remembering it.
fn is_volatile(known: Known) -> bool {
    matches!(known, Known::RequestId | Known::Traceparent)
}

impl Encoder {
    /// The peer's table holds so much.
    pub(crate) fn resize(&mut self, wanted: u32) {
        self.max = usize::try_from(wanted).map_or(TABLE, |wanted| wanted.min(TABLE));
        self.least = Some(self.least.map_or(self.max, |least| least.min(self.max)));
        self.shrink(self.max);
    }

    /// Begins a block.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(least) = self.least.take() {
            write_integer(out, 0x20, 5, least);
            if least < self.max {
                write_integer(out, 0x20, 5, self.max);
            }
        }
    }

    /// Writes a line of the static table.
    pub(crate) fn line(out: &mut Vec<u8>, number: u8) {
        out.push(0x80 | number);
    }

    /// Writes a line whose name is that of the static table's line `number`.
    pub(crate) fn value(&mut self, out: &mut Vec<u8>, number: u8, value: &[u8]) {
        let name = LINES[usize::from(number) - 1].0.as_bytes();
        self.any(out, usize::from(number), Known::Other, name, value);
    }

    /// Writes a line. Its name becomes lower-case.
    pub(crate) fn field(&mut self, out: &mut Vec<u8>, known: Known, name: &[u8], value: &[u8]) {
        let of_name = self.names[known as usize % 32];
        let number = match is_one(known) && of_name > self.gone {
            true => self.number(of_name),
            false => 0,
        };
        if is_volatile(known) && number > 0 {
            write_integer(out, 0, 4, number);
            return write_string(out, value);
        }
        self.any(out, number, known, name, value);
    }

    fn any(&mut self, out: &mut Vec<u8>, number: usize, known: Known, name: &[u8], value: &[u8]) {
        let hash = hash(name, value);
        let at = hash as usize / 2 % SEEN;
        let seen = &self.seen[at];
        let is_same = seen.hash == hash;
        if is_same && seen.entry > self.gone && *seen.name == *name && *seen.value == *value {
            return write_integer(out, 0x80, 7, self.number(seen.entry));
        }
        let is_secret = is_secret(name);
        let size = name.len() + value.len() + OVERHEAD;
        let is_kept =
            (is_same || is_volatile(known)) && !is_secret && size <= LONGEST.min(self.max);
        let (flags, bits) = match (is_kept, is_secret) {
            (true, _) => (0x40, 6),
            (false, true) => (0x10, 4),
            (false, false) => (0, 4),
        };
        write_integer(out, flags, bits, number);
        if number == 0 {
            write_integer(out, 0, 7, name.len());
            let start = out.len();
            out.extend_from_slice(name);
            out[start..].make_ascii_lowercase();
        }
        write_string(out, value);
        let entry = if is_kept { self.insert(size) } else { 0 };
        if entry > 0 && is_one(known) {
            self.names[known as usize % 32] = entry;
        }
        let (name, value) = match is_kept {
            true => (name.into(), value.into()),
            false => Default::default(),
        };
        self.seen[at] = Seen {
            hash,
            entry,
            name,
            value,
        };
    }

    /// The number of an entry of the table, as it is now.
    fn number(&self, entry: u64) -> usize {
        LINES.len() + 1 + usize::try_from(self.made - entry).unwrap_or(0)
    }

    fn insert(&mut self, size: usize) -> u64 {
        self.shrink(self.max - size);
        self.size += size;
        self.sizes.push_back(size);
        self.made += 1;
        self.made
    }

    fn shrink(&mut self, to: usize) {
        while self.size > to {
            self.size -= self.sizes.pop_front().unwrap_or(self.size);
            self.gone += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Decoder;
    use super::*;

    type Lines<'a> = &'a [(Known, &'a str, &'a str)];

    fn encode(encoder: &mut Encoder, lines: Lines<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        encoder.begin(&mut out);
        for (known, name, value) in lines {
            encoder.field(&mut out, *known, name.as_bytes(), value.as_bytes());
        }
        out
    }

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let read = decoder.decode(block, |line| {
            lines.push((text(line.name), text(line.value)))
        });
        assert_eq!(read, Ok(()), "{block:?}");
        lines
    }

    #[test]
    fn what_repeats_is_a_byte_and_what_does_not_has_no_place_in_the_table() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let mut sizes = Vec::new();
        for id in ["1", "2", "3", "4"] {
            let lines = [
                (Known::Other, "User-Agent", "curl/8"),
                (Known::RequestId, "x-request-id", id),
                (Known::Other, "x-number", id),
                (Known::Other, "Authorization", "Basic YTpi"),
            ];
            let block = encode(&mut encoder, &lines);
            let read = decode(&mut decoder, &block);
            for ((_, name, value), read) in lines.iter().zip(read) {
                assert_eq!(read, (name.to_ascii_lowercase(), (*value).to_owned()));
            }
            sizes.push(block.len());
        }
        // The agent's line is a byte from the third on, the id's name from the second; the rest is as long as ever.
        assert_eq!(sizes[0] - sizes[1], 12);
        assert_eq!(sizes[1] - sizes[2], 18);
        assert_eq!(sizes[2], sizes[3]);
        assert_eq!(encoder.made, 2);
    }

    #[test]
    fn both_ends_agree_on_the_table_however_it_changes() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let mut rng = fastrand::Rng::with_seed(7);
        for round in 0..5_000 {
            if round % 97 == 0 {
                for _ in 0..rng.usize(1..3) {
                    encoder.resize(rng.u32(0..6_000));
                }
            }
            let lines: Vec<(Known, String, String)> = (0..rng.usize(0..12))
                .map(|_| {
                    let value = "v".repeat(rng.usize(0..80) * rng.usize(1..4));
                    let name = format!("Name-{}", rng.u32(0..6));
                    let name = match rng.u32(0..12) {
                        0 => "x-request-id".into(),
                        1 => "server".into(),
                        2 => "x-envoy-upstream-service-time".into(),
                        3 => "x-envoy-decorator-operation".into(),
                        4 => "x-b3-traceid".into(),
                        5 => "x-b3-spanid".into(),
                        6 => "traceparent".into(),
                        _ => name,
                    };
                    (Known::of(name.as_bytes()), name, value)
                })
                .collect();
            let lines: Vec<(Known, &str, &str)> =
                lines.iter().map(|(k, n, v)| (*k, &**n, &**v)).collect();
            let block = encode(&mut encoder, &lines);
            let read = decode(&mut decoder, &block);
            let same = lines
                .iter()
                .map(|(_, n, v)| (n.to_ascii_lowercase(), (*v).to_owned()));
            assert!(read.into_iter().eq(same), "round {round}");
        }
        assert!(encoder.gone > 100, "{}", encoder.gone);
    }
}
