//! Field lines to blocks.
//!
//! A line goes into the table when it is seen for the second time: what never repeats, like ids, would only push out what
//! does. Names that the path knows go there at once, for the values that come after.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;

use super::{Case, LINES, OVERHEAD, TABLE};
use crate::head::{Known, Set};

/// Lines that are remembered, and how many of them share their places.
const SEEN: usize = 128;
const WAYS: usize = 4;
/// Longer ones are not worth a place in the table.
const LONGEST: usize = 1024;
/// Stretches of lines that are remembered.
const RUNS: usize = 16;

/// Fields that have another value in each message: there is no use in remembering them.
pub(crate) const VOLATILE: Set = Set::of(&[Known::RequestId, Known::Traceparent]);

/// A line that was seen.
#[derive(Debug, Default, Clone)]
struct Seen {
    /// The number of its entry, counted from the connection's beginning; 0 when it has none.
    entry: u64,
    /// The text of the line.
    text: Box<[u8]>,
    /// The number of its name, as in [`Line`].
    number: u8,
}

/// Lines that stood one after another in a head, each in the table: when they do again, they are looked up as one.
#[derive(Debug, Default, Clone)]
struct Run {
    text: Box<[u8]>,
    entries: Box<[u64]>,
    /// The first of these that will be gone.
    oldest: u64,
}

/// A line to be written.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    /// The static table's line with its name; its text is a value then. Otherwise 0, and the text is as HTTP/1 has it.
    number: u8,
    known: Known,
    text: &'a [u8],
    /// How long the name in the text is.
    name: usize,
}

impl<'a> Line<'a> {
    fn parts(self) -> (&'a [u8], &'a [u8]) {
        match usize::from(self.number) {
            0 => {
                let value = self.name + 2..self.text.len() - 2;
                (&self.text[..self.name], &self.text[value])
            }
            number => (LINES[number - 1].0.as_bytes(), self.text),
        }
    }
}

/// A hash of a text's ends, its middle, and how long it is. Nobody gains by a collision, which costs a line the place in the
/// table. A line's `number` tells a value from a whole line.
fn hash(text: &[u8], number: u8) -> u32 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let word = |at: usize| {
        let eight = text.get(at..).and_then(<[u8]>::first_chunk);
        eight.map(|eight| u64::from_le_bytes(*eight))
    };
    let words = match text.len() {
        8.. => (word(0), word(text.len() / 2 - 4), word(text.len() - 8)),
        _ => (None, None, None),
    };
    let (Some(start), Some(middle), Some(end)) = words else {
        let state = text.iter().fold(u64::from(number), |state, byte| {
            (state ^ u64::from(*byte)).wrapping_mul(ODD)
        });
        return (state >> 32) as u32 | 1;
    };
    let length = (text.len() as u64) << 8 | u64::from(number);
    let state = (start ^ middle.rotate_left(32) ^ length).wrapping_mul(ODD);
    let state = (state ^ state >> 29 ^ end).wrapping_mul(ODD);
    // The upper half; never 0, which is the hash of no line.
    (state >> 32) as u32 | 1
}

/// One direction's table, and the writer of its blocks.
#[derive(Debug)]
pub(crate) struct Encoder {
    case: Case,
    /// Sizes of the entries, the oldest first.
    sizes: VecDeque<usize>,
    size: usize,
    max: usize,
    /// The smallest size that the peer wanted of the table since the last block.
    least: Option<usize>,
    /// How many entries were ever made, and how many of them are gone.
    made: u64,
    gone: u64,
    /// Lines that were seen: their hashes, 0 where there is none, and what they were.
    hashes: Vec<u32>,
    seen: Vec<Seen>,
    /// Whose turn it is to be forgotten.
    turn: usize,
    /// Entries with the names that the path knows.
    names: [u64; 32],
    runs: Vec<Run>,
    /// Entries of the stretch that is being written, and whether there is one each of whose lines so far has one.
    trail: Vec<u64>,
    is_trail_whole: bool,
    /// For lines that stand nowhere.
    scratch: Vec<u8>,
}

/// The places where a line may be remembered.
fn places(hash: u32) -> Range<usize> {
    let at = hash as usize / 2 % (SEEN / WAYS) * WAYS;
    at..at + WAYS
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // each is below 128
fn write_integer(out: &mut Vec<u8>, flags: u8, bits: u32, number: usize) {
    let mask = (1_usize << bits) - 1;
    if number < mask {
        out.push(flags | number as u8);
    } else if number < mask + 0x80 {
        out.extend_from_slice(&[flags | mask as u8, (number - mask) as u8]);
    } else {
        write_long(out, flags, mask, number);
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

impl Encoder {
    /// A writer of blocks whose names are written so.
    pub(crate) fn new(case: Case) -> Encoder {
        Encoder {
            case,
            sizes: VecDeque::new(),
            size: 0,
            max: TABLE,
            least: None,
            made: 0,
            gone: 0,
            hashes: vec![0; SEEN],
            seen: vec![Seen::default(); SEEN],
            turn: 0,
            names: [0; 32],
            runs: vec![Run::default(); RUNS],
            trail: Vec::new(),
            is_trail_whole: false,
            scratch: Vec::new(),
        }
    }

    /// How names are written.
    pub(crate) fn case(&self) -> Case {
        self.case
    }

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
        let line = Line {
            number,
            known: Known::Other,
            text: value,
            name: 0,
        };
        self.any(out, line);
    }

    /// Writes a line that says something by being there: the only one of its name, without a value.
    pub(crate) fn flag(&mut self, out: &mut Vec<u8>, known: Known, name: &[u8]) {
        match self.names[known as usize % 32] {
            entry if entry > self.gone => write_integer(out, 0x80, 7, self.number(entry)),
            _ => self.field(out, known, name, b""),
        }
    }

    /// Writes a stretch of lines if it was written before, and each of them is still in the table. Otherwise they are written
    /// one by one, and then [`Encoder::learn`]ed.
    #[inline]
    pub(crate) fn again(&mut self, out: &mut Vec<u8>, text: &[u8]) -> bool {
        let run = &self.runs[hash(text, 0) as usize / 2 % RUNS];
        if run.oldest <= self.gone || *run.text != *text {
            self.trail.clear();
            self.is_trail_whole = true;
            return false;
        }
        for entry in &run.entries {
            write_integer(out, 0x80, 7, self.number(*entry));
        }
        true
    }

    /// Remembers a stretch that was written just now.
    #[cold]
    pub(crate) fn learn(&mut self, text: &[u8]) {
        let is_whole = mem::take(&mut self.is_trail_whole) && text.len() <= LONGEST;
        if let Some(oldest) = self.trail.iter().min().copied().filter(|_| is_whole) {
            self.runs[hash(text, 0) as usize / 2 % RUNS] = Run {
                text: text.into(),
                entries: self.trail.as_slice().into(),
                oldest,
            };
        }
    }

    /// Writes a line. Its name becomes lower-case, unless the case is kept; then only one in lower case is a known one.
    pub(crate) fn field(&mut self, out: &mut Vec<u8>, known: Known, name: &[u8], value: &[u8]) {
        let mut text = mem::take(&mut self.scratch);
        text.clear();
        for part in [name, b": ", value, b"\r\n"] {
            text.extend_from_slice(part);
        }
        self.plain(out, known, &text, name.len());
        self.scratch = text;
    }

    /// Writes a line that stands somewhere as HTTP/1 has it, whose name has `name` bytes; otherwise as [`Encoder::field`].
    #[inline]
    pub(crate) fn plain(&mut self, out: &mut Vec<u8>, known: Known, text: &[u8], name: usize) {
        let of_name = self.names[known as usize % 32];
        if VOLATILE.has(known) && of_name > self.gone {
            write_integer(out, 0, 4, self.number(of_name));
            return write_string(out, &text[name + 2..text.len() - 2]);
        }
        let line = Line {
            number: 0,
            known,
            text,
            name,
        };
        self.any(out, line);
    }

    fn any(&mut self, out: &mut Vec<u8>, line: Line<'_>) {
        let hash = hash(line.text, line.number);
        let places = places(hash);
        for (at, other) in places.clone().zip(&self.hashes[places]) {
            if *other != hash {
                continue;
            }
            let seen = &self.seen[at];
            let is_alive = seen.entry > self.gone && seen.number == line.number;
            if is_alive && *seen.text == *line.text {
                if self.is_trail_whole {
                    self.trail.push(seen.entry);
                }
                return write_integer(out, 0x80, 7, self.number(seen.entry));
            }
        }
        self.is_trail_whole = false;
        self.literal(out, hash, line);
    }

    /// Where a line is remembered: where it was seen before, else where none was, else in turns in the place of one that isn't in
    /// the table, else in that of the one that has been there for longest.
    fn place(&mut self, hash: u32) -> usize {
        let places = places(hash);
        let with = |wanted| places.clone().find(|at| self.hashes[*at] == wanted);
        if let Some(at) = with(hash).or_else(|| with(0)) {
            return at;
        }
        self.turn = (self.turn + 1) % WAYS;
        let in_turn = (0..WAYS).map(|way| places.start + (self.turn + way) % WAYS);
        let is_out = |at: &usize| self.seen[*at].entry <= self.gone;
        let longest = || places.clone().min_by_key(|at| self.seen[*at].entry);
        let found = in_turn.clone().find(is_out).or_else(longest);
        found.unwrap_or(places.start)
    }

    /// Writes a line that isn't in the table. It comes there if it was seen before.
    #[cold]
    fn literal(&mut self, out: &mut Vec<u8>, hash: u32, line: Line<'_>) {
        let (at, known) = (self.place(hash), line.known);
        let (name, value) = line.parts();
        let of_name = self.names[known as usize % 32];
        let number = match is_one(known) && of_name > self.gone {
            true => self.number(of_name),
            false => usize::from(line.number),
        };
        let is_secret = is_secret(name);
        let size = name.len() + value.len() + OVERHEAD;
        let is_again = self.hashes[at] == hash || VOLATILE.has(known);
        let is_kept = is_again && !is_secret && size <= LONGEST.min(self.max);
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
            if self.case == Case::Lower {
                out[start..].make_ascii_lowercase();
            }
        }
        write_string(out, value);
        let entry = if is_kept { self.insert(size) } else { 0 };
        if entry > 0 && is_one(known) {
            self.names[known as usize % 32] = entry;
        }
        let text = if is_kept {
            line.text.into()
        } else {
            Box::default()
        };
        self.hashes[at] = hash;
        self.seen[at] = Seen {
            entry,
            text,
            number: line.number,
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
        let mut rest = block;
        decoder.begin(&mut rest).expect("a block");
        while let Some(line) = decoder.line(&mut rest).expect("a block") {
            lines.push((text(line.name), text(line.value)));
        }
        lines
    }

    #[test]
    fn what_repeats_is_a_byte_and_what_does_not_has_no_place_in_the_table() {
        let (mut encoder, mut decoder) = (Encoder::new(Case::Lower), Decoder::new(Case::Lower));
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
    fn lines_that_share_their_places_all_get_into_the_table() {
        // So many that some sets have two and three of them.
        let names: Vec<String> = (0..24).map(|number| format!("x-name-{number}")).collect();
        let lines: Vec<_> = names
            .iter()
            .map(|name| (Known::Other, name.as_str(), "a value"))
            .collect();
        let mut encoder = Encoder::new(Case::Kept);
        let sizes: Vec<usize> = (0..3).map(|_| encode(&mut encoder, &lines).len()).collect();
        assert_eq!((encoder.made, sizes[2]), (24, 24), "{sizes:?}");
    }

    #[test]
    fn both_ends_agree_on_the_table_however_it_changes() {
        let (mut encoder, mut decoder) = (Encoder::new(Case::Lower), Decoder::new(Case::Lower));
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
