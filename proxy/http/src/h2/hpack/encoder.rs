//! Encoding of field lines into field blocks.
//!
//! A line is added to the dynamic table when it is seen for the second time: lines that never repeat, like ids, would
//! only evict those that do. Volatile fields are added at once, since later values refer to the name.
//!
//! Bound: 16 cached runs of at most 1 KiB a connection.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;

use super::{Case, LINES, OVERHEAD, TABLE};
use crate::head::{FieldName, FieldSet};

/// Entries of the set-associative cache of seen lines, and its ways.
const SEEN: usize = 128;
const WAYS: usize = 4;
/// Size above which a line isn't worth a place in the table, nor a run one in the cache.
const LONGEST: usize = 1024;
/// Runs of lines that are cached.
const RUNS: usize = 16;

/// Volatile fields, with another value in each message: there is no use in caching their lines.
pub(crate) const VOLATILE: FieldSet = FieldSet::of(&[FieldName::RequestId, FieldName::Traceparent]);

/// A line seen before.
#[derive(Debug, Default, Clone)]
struct Seen {
    /// Serial number of its table entry, counted from the connection's beginning; 0 if it has none.
    entry: u64,
    /// The text of the line; empty if it has no entry.
    text: Box<[u8]>,
    /// Static table index of its name, as in [`Line`].
    number: u8,
}

/// Consecutive lines of a head, each in the table: when they repeat, they are looked up as one.
#[derive(Debug, Default, Clone)]
struct CachedRun {
    text: Box<[u8]>,
    entries: Box<[u64]>,
    /// The entry that is evicted first.
    oldest: u64,
}

/// A line to be written.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    /// Static table index of its name; the text is the value then. Otherwise 0, and the text is the line in HTTP/1
    /// form.
    number: u8,
    known: FieldName,
    text: &'a [u8],
    /// Length of the name in the text.
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

/// Hashes a text: if it is long, only its ends, its middle and its length. There is nothing to gain by a collision,
/// which costs a line its place in the table. A line's `number` tells a value from a whole line.
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
    // The upper half; never 0, which marks an empty place.
    (state >> 32) as u32 | 1
}

/// The encoder of one direction's field blocks, with its dynamic table.
#[derive(Debug)]
pub(crate) struct Encoder {
    case: Case,
    /// Sizes of the entries, the oldest first.
    sizes: VecDeque<usize>,
    size: usize,
    max: usize,
    /// Smallest table size in the peer's SETTINGS since the last block.
    least: Option<usize>,
    /// Number of entries ever added, and of those evicted.
    made: u64,
    gone: u64,
    /// The cache of seen lines: their hashes, 0 in an empty place, and the lines.
    hashes: Vec<u32>,
    seen: Vec<Seen>,
    /// Way at which the last search for a replacement began.
    turn: usize,
    /// Serial numbers of entries with the known names.
    names: [u64; 32],
    runs: Vec<CachedRun>,
    /// Entries of the run being written, and a flag that is set while each of its lines so far has one.
    run_entries: Vec<u64>,
    is_trail_whole: bool,
    /// Buffer for lines that no head holds in HTTP/1 form.
    scratch: Vec<u8>,
}

/// The places of the cache that a line with this hash may have.
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

/// Returns `true` for a line that is never indexed, here or by later proxies (section 7.1.3).
fn is_secret(name: &[u8]) -> bool {
    let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
    match name.len() {
        6 => is(b"cookie"),
        10 => is(b"set-cookie"),
        13 => is(b"authorization"),
        _ => false,
    }
}

/// Returns `true` if `known` stands for one name only.
fn is_one(known: FieldName) -> bool {
    !matches!(
        known,
        FieldName::Other | FieldName::Removed | FieldName::Envoy | FieldName::B3Multiple
    )
}

impl Encoder {
    /// Creates an encoder that writes names in `case`.
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
            runs: vec![CachedRun::default(); RUNS],
            run_entries: Vec::new(),
            is_trail_whole: false,
            scratch: Vec::new(),
        }
    }

    /// Case of the names written.
    pub(crate) fn case(&self) -> Case {
        self.case
    }

    /// Applies the peer's SETTINGS_HEADER_TABLE_SIZE, up to `TABLE`.
    pub(crate) fn resize(&mut self, wanted: u32) {
        self.max = usize::try_from(wanted).map_or(TABLE, |wanted| wanted.min(TABLE));
        self.least = Some(self.least.map_or(self.max, |least| least.min(self.max)));
        self.shrink(self.max);
    }

    /// Begins a block, with pending dynamic table size updates.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(least) = self.least.take() {
            write_integer(out, 0x20, 5, least);
            if least < self.max {
                write_integer(out, 0x20, 5, self.max);
            }
        }
    }

    /// Writes an indexed line of the static table.
    pub(crate) fn line(out: &mut Vec<u8>, number: u8) {
        out.push(0x80 | number);
    }

    /// Writes a line with the name of the static table's entry `number`.
    pub(crate) fn value(&mut self, out: &mut Vec<u8>, number: u8, value: &[u8]) {
        let line = Line {
            number,
            known: FieldName::Other,
            text: value,
            name: 0,
        };
        self.any(out, line);
    }

    /// Writes a field that is a mere marker: the only line of its name, without a value.
    pub(crate) fn flag(&mut self, out: &mut Vec<u8>, known: FieldName, name: &[u8]) {
        match self.names[known as usize % 32] {
            entry if entry > self.gone => write_integer(out, 0x80, 7, self.number(entry)),
            _ => self.field(out, known, name, b""),
        }
    }

    /// Writes a cached run of lines if each of them is still in the table, and returns `true`. Otherwise the caller
    /// writes them one by one, and then calls [`Encoder::cache_run`].
    #[inline]
    pub(crate) fn write_cached(&mut self, out: &mut Vec<u8>, text: &[u8]) -> bool {
        let run = &self.runs[hash(text, 0) as usize / 2 % RUNS];
        if run.oldest <= self.gone || *run.text != *text {
            self.run_entries.clear();
            self.is_trail_whole = true;
            return false;
        }
        for entry in &run.entries {
            write_integer(out, 0x80, 7, self.number(*entry));
        }
        true
    }

    /// Caches the run that was written just now, if each of its lines is in the table.
    #[cold]
    pub(crate) fn cache_run(&mut self, text: &[u8]) {
        let is_whole = mem::take(&mut self.is_trail_whole) && text.len() <= LONGEST;
        if let Some(oldest) = self.run_entries.iter().min().copied().filter(|_| is_whole) {
            self.runs[hash(text, 0) as usize / 2 % RUNS] = CachedRun {
                text: text.into(),
                entries: self.run_entries.as_slice().into(),
                oldest,
            };
        }
    }

    /// Writes a line. Its name becomes lower-case, unless the case is kept; then a name with upper-case letters must be
    /// [`FieldName::Other`].
    pub(crate) fn field(&mut self, out: &mut Vec<u8>, known: FieldName, name: &[u8], value: &[u8]) {
        let mut text = mem::take(&mut self.scratch);
        text.clear();
        for part in [name, b": ", value, b"\r\n"] {
            text.extend_from_slice(part);
        }
        self.write_verbatim(out, known, &text, name.len());
        self.scratch = text;
    }

    /// Writes a line given in HTTP/1 form, with a name of `name` bytes; otherwise as [`Encoder::field`].
    #[inline]
    pub(crate) fn write_verbatim(
        &mut self,
        out: &mut Vec<u8>,
        known: FieldName,
        text: &[u8],
        name: usize,
    ) {
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
                    self.run_entries.push(seen.entry);
                }
                return write_integer(out, 0x80, 7, self.number(seen.entry));
            }
        }
        self.is_trail_whole = false;
        self.literal(out, hash, line);
    }

    /// Chooses the place of a line in the cache: the one where it was seen before, else an empty one, else in turns one
    /// of a line that isn't in the table, else that of the line with the oldest entry.
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

    /// Writes a line that isn't in the table, and adds it if it was seen before or is volatile, unless it is secret or
    /// too long.
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

    /// Current table index of an entry.
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

    type Lines<'a> = &'a [(FieldName, &'a str, &'a str)];

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
                (FieldName::Other, "User-Agent", "curl/8"),
                (FieldName::RequestId, "x-request-id", id),
                (FieldName::Other, "x-number", id),
                (FieldName::Other, "Authorization", "Basic YTpi"),
            ];
            let block = encode(&mut encoder, &lines);
            let read = decode(&mut decoder, &block);
            for ((_, name, value), read) in lines.iter().zip(read) {
                assert_eq!(read, (name.to_ascii_lowercase(), (*value).to_owned()));
            }
            sizes.push(block.len());
        }
        // The agent's line is one byte from the third on, the id's name from the second; the other lines stay as long.
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
            .map(|name| (FieldName::Other, name.as_str(), "a value"))
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
            let lines: Vec<(FieldName, String, String)> = (0..rng.usize(0..12))
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
                    (FieldName::of(name.as_bytes()), name, value)
                })
                .collect();
            let lines: Vec<(FieldName, &str, &str)> =
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
