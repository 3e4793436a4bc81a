//! Blocks of field lines to field lines.

use std::collections::VecDeque;

use super::{Entry, Kind, LINES, STATIC, TABLE, huffman, trimmed};
use crate::http::h1::is_text;
use crate::http::head::Known;

/// What a field line says.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) kind: Kind,
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    /// The whole line as HTTP/1 has it, if it stands somewhere.
    pub(crate) plain: Option<&'a [u8]>,
}

/// One direction's table, and the reader of its blocks.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The freshest first.
    entries: VecDeque<Entry>,
    size: usize,
    max: Option<usize>,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// A block isn't one: the tables of the two ends may differ from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Garbled;

/// An integer with a prefix of `bits` bits (section 5.1); a table or a string longer than 2^28 can't be meant.
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, Garbled> {
    let mask = (1_usize << bits) - 1;
    let mut number = usize::from(byte(block)?) & mask;
    if number < mask {
        return Ok(number);
    }
    for shift in [0, 7, 14, 21] {
        let next = byte(block)?;
        number += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Garbled)
}

fn byte(block: &mut &[u8]) -> Result<u8, Garbled> {
    let (first, rest) = block.split_first().ok_or(Garbled)?;
    *block = rest;
    Ok(*first)
}

/// A string (section 5.2), where it stands or in `scratch`.
fn string<'t, 'b: 't, 's: 't>(
    block: &mut &'b [u8],
    scratch: &'s mut Vec<u8>,
) -> Result<&'t [u8], Garbled> {
    let is_coded = block.first().ok_or(Garbled)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Garbled)?;
    *block = rest;
    if !is_coded {
        return Ok(text);
    }
    scratch.clear();
    huffman::decode(text, scratch).ok_or(Garbled)?;
    Ok(scratch)
}

impl Decoder {
    /// Reads `block`, and gives `each` its lines.
    ///
    /// # Errors
    /// When it isn't a block. The lines before were given.
    pub(crate) fn decode(
        &mut self,
        mut block: &[u8],
        mut each: impl FnMut(Line<'_>),
    ) -> Result<(), Garbled> {
        let mut has_lines = false;
        while let Some(&first) = block.first() {
            if first & 0xe0 == 0x20 {
                let max = integer(&mut block, 5)?;
                // A change comes before the lines (section 4.2).
                if has_lines || max > TABLE {
                    return Err(Garbled);
                }
                self.max = Some(max);
                self.shrink(max);
                continue;
            }
            has_lines = true;
            if first & 0x80 != 0 {
                let entry = entry(&self.entries, integer(&mut block, 7)?)?;
                each(Line {
                    kind: entry.kind,
                    name: entry.name(),
                    value: entry.value(),
                    plain: Some(&entry.line),
                });
                continue;
            }
            let is_kept = first & 0x40 != 0;
            let number = integer(&mut block, if is_kept { 6 } else { 4 })?;
            let of_name = match number {
                0 => None,
                number => Some(entry(&self.entries, number)?),
            };
            let name = match of_name {
                None => string(&mut block, &mut self.name)?,
                Some(entry) => entry.name(),
            };
            let value = string(&mut block, &mut self.value)?;
            let kind = match of_name {
                Some(entry) => again(entry.kind, name, value),
                None => Kind::of(name, value),
            };
            each(Line {
                kind,
                name,
                value: trimmed(value),
                plain: None,
            });
            if is_kept {
                let entry = Entry::new(kind, name, value);
                self.insert(entry);
            }
        }
        Ok(())
    }

    fn insert(&mut self, entry: Entry) {
        let (size, max) = (entry.size, self.max.unwrap_or(TABLE));
        self.shrink(max.saturating_sub(size));
        if size <= max {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    fn shrink(&mut self, to: usize) {
        while self.size > to {
            let Some(last) = self.entries.pop_back() else {
                return;
            };
            self.size -= last.size;
        }
    }
}

/// What a line is whose name is that of another, which is known already.
fn again(kind: Kind, name: &[u8], value: &[u8]) -> Kind {
    match kind {
        Kind::Malformed(_) | Kind::Field(Known::Te) => Kind::of(name, value),
        kind if is_text(value) => kind,
        _ => Kind::of(name, value),
    }
}

fn entry(entries: &VecDeque<Entry>, number: usize) -> Result<&Entry, Garbled> {
    let found = match number.checked_sub(LINES.len() + 1) {
        Some(at) => entries.get(at),
        None => STATIC.get(number.wrapping_sub(1)),
    };
    found.ok_or(Garbled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, Garbled> {
        let mut lines = Vec::new();
        decoder.decode(block, |line| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            lines.push(format!("{}: {}", text(line.name), text(line.value)));
        })?;
        Ok(lines)
    }

    fn bytes(hexadecimal: &str) -> Vec<u8> {
        let digits: String = hexadecimal.split_whitespace().collect();
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
        (0..digits.len()).step_by(2).map(byte).collect()
    }

    /// RFC 7541, appendix C.4: three requests on one connection.
    #[test]
    fn the_examples_of_the_specification_are_read() {
        let mut decoder = Decoder::default();
        for (block, lines, size) in [
            (
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                &[
                    ":method: GET",
                    ":scheme: http",
                    ":path: /",
                    ":authority: www.example.com",
                ][..],
                57,
            ),
            (
                "8286 84be 5886 a8eb 1064 9cbf",
                &[
                    ":method: GET",
                    ":scheme: http",
                    ":path: /",
                    ":authority: www.example.com",
                    "cache-control: no-cache",
                ],
                110,
            ),
            (
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
                &[
                    ":method: GET",
                    ":scheme: https",
                    ":path: /index.html",
                    ":authority: www.example.com",
                    "custom-key: custom-value",
                ],
                164,
            ),
        ] {
            let read = decode(&mut decoder, &bytes(block)).expect("a block");
            assert_eq!(read, lines);
            assert_eq!(decoder.size, size);
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for block in [
            // The number 0; one that no entry has; an integer that doesn't end; one that is too large; a string that is
            // cut off; a table larger than was allowed; a change of its size after a line.
            "80",
            "be",
            "ff",
            "ffffffffffff7f",
            "0001610562",
            "3fe21f",
            "8220",
        ] {
            let read = decode(&mut Decoder::default(), &bytes(block));
            assert_eq!(read, Err(Garbled), "{block}");
        }
    }

    #[test]
    fn an_entry_that_the_table_has_no_room_for_empties_it() {
        let mut decoder = Decoder::default();
        decode(&mut decoder, b"\x40\x01a\x01b").expect("a block");
        assert_eq!(decode(&mut decoder, b"\xbe").expect("a block"), ["a: b"]);
        let mut block = b"\x40\x01a\x7f\xe1\x1e".to_vec();
        block.extend([b'x'; 4096 - 32]);
        assert!(decode(&mut decoder, &block).is_ok());
        assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
        assert!(decode(&mut decoder, b"\xbe").is_err());
    }

    #[test]
    fn spaces_around_a_value_count_and_mean_nothing() {
        let mut decoder = Decoder::default();
        let line = decode(&mut decoder, b"\x40\x01a\x04 b\t ");
        assert_eq!(line.expect("a block"), ["a: b"]);
        assert_eq!(decoder.size, 1 + 4 + 32);
        assert_eq!(decode(&mut decoder, b"\xbe").expect("a block"), ["a: b"]);
    }

    #[test]
    fn a_line_that_a_message_must_not_have_is_one_however_it_is_told() {
        let kinds = |decoder: &mut Decoder, block: &[u8]| {
            let mut kinds = Vec::new();
            decoder
                .decode(block, |line| kinds.push(line.kind))
                .expect("a block");
            kinds
        };
        let mut decoder = Decoder::default();
        for block in [
            &b"\x40\x02Ab\x01c"[..],
            b"\x40\x01a\x03b\nc",
            b"\x40\x01a\x02b\r",
            b"\x40\x02te\x01x",
            b"\x40\x07upgrade\x01x",
        ] {
            for block in [block, b"\xbe"] {
                let kinds = kinds(&mut decoder, block);
                assert!(matches!(kinds[..], [Kind::Malformed(_)]), "{block:?}");
            }
        }
        // The name is fine, and a value that comes with it later is not.
        kinds(&mut decoder, b"\x40\x01a\x01b");
        let kinds = kinds(&mut decoder, b"\x7e\x01\0");
        assert!(matches!(kinds[..], [Kind::Malformed(_)]));
    }
}
