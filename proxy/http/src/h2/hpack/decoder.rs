//! Decoding of field blocks into field lines.

use std::collections::VecDeque;

use super::{Case, Entry, Kind, LINES, Line, STATIC, TABLE, huffman};
use crate::h1::{is_text, trimmed};
use crate::head::FieldName;

/// The decoder of one direction's field blocks, with its dynamic table.
#[derive(Debug)]
pub(crate) struct Decoder {
    case: Case,
    /// Newest first.
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
    /// The last entry that was larger than the table; its line borrows from here.
    too_large: Option<Entry>,
    name: Vec<u8>,
    value: Vec<u8>,
    /// Number of changes of the table.
    changes: u64,
}

/// The error of a block that can't be decoded: the tables of the two ends may differ from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CompressionError;

/// Reads an integer with a prefix of `bits` bits (section 5.1). Beyond 2^28 it is an error: no table or string is that
/// long.
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, CompressionError> {
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
    Err(CompressionError)
}

fn byte(block: &mut &[u8]) -> Result<u8, CompressionError> {
    let (first, rest) = block.split_first().ok_or(CompressionError)?;
    *block = rest;
    Ok(*first)
}

/// Reads a string literal (section 5.2), borrowed from the block or decoded into `scratch`.
fn string<'t, 'b: 't, 's: 't>(
    block: &mut &'b [u8],
    scratch: &'s mut Vec<u8>,
) -> Result<&'t [u8], CompressionError> {
    let is_coded = block.first().ok_or(CompressionError)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or(CompressionError)?;
    *block = rest;
    if !is_coded {
        return Ok(text);
    }
    scratch.clear();
    huffman::decode(text, scratch).ok_or(CompressionError)?;
    Ok(scratch)
}

impl Decoder {
    /// Creates a decoder of blocks with names in `case`.
    pub(crate) fn new(case: Case) -> Decoder {
        Decoder {
            case,
            entries: VecDeque::new(),
            size: 0,
            max: TABLE,
            too_large: None,
            name: Vec::new(),
            value: Vec::new(),
            changes: 0,
        }
    }

    /// Number of changes of the table: while it stays the same, so does the meaning of indices.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Begins a block, with its dynamic table size updates (section 4.2).
    ///
    /// # Errors
    /// [`CompressionError`] when the block can't be decoded.
    pub(crate) fn begin(&mut self, block: &mut &[u8]) -> Result<(), CompressionError> {
        while block.first().is_some_and(|first| first & 0xe0 == 0x20) {
            let max = integer(block, 5)?;
            if max > TABLE {
                return Err(CompressionError);
            }
            self.max = max;
            self.shrink(max);
        }
        Ok(())
    }

    /// The next line of a block that has begun; `None` at its end.
    ///
    /// # Errors
    /// [`CompressionError`] when the block can't be decoded; the lines before were returned.
    #[inline]
    pub(crate) fn line<'t, 'b: 't>(
        &'t mut self,
        block: &mut &'b [u8],
    ) -> Result<Option<Line<'t>>, CompressionError> {
        let Some((&first, rest)) = block.split_first() else {
            return Ok(None);
        };
        let entry = match first {
            0x80..0xff => {
                *block = rest;
                entry(&self.entries, usize::from(first & 0x7f))?
            }
            0xff => entry(&self.entries, integer(block, 7)?)?,
            _ => return self.literal(first, block).map(Some),
        };
        Ok(Some(entry.line()))
    }

    /// Decodes a block only for its effect on the table.
    ///
    /// # Errors
    /// [`CompressionError`] when the block can't be decoded.
    pub(crate) fn skip(&mut self, mut block: &[u8]) -> Result<(), CompressionError> {
        self.begin(&mut block)?;
        while self.line(&mut block)?.is_some() {}
        Ok(())
    }

    /// Reads a literal line (section 6.2), and adds it to the table if it has incremental indexing.
    fn literal<'t, 'b: 't>(
        &'t mut self,
        first: u8,
        block: &mut &'b [u8],
    ) -> Result<Line<'t>, CompressionError> {
        let bits = match first & 0xf0 {
            0x40.. => 6,
            // Dynamic table size updates come before the lines.
            0x20.. => return Err(CompressionError),
            _ => {
                let line = self.name_and_value(4, block)?;
                let value = &line.value[trimmed(line.value)];
                return Ok(Line { value, ..line });
            }
        };
        let entry = Entry::new(&self.name_and_value(bits, block)?);
        self.shrink(self.max.saturating_sub(entry.size));
        if entry.size > self.max {
            return Ok(self.too_large.insert(entry).line());
        }
        self.size += entry.size;
        self.changes += 1;
        self.entries.push_front(entry);
        Ok(self.entries[0].line())
    }

    /// Reads the name and the value of a literal line; the index of its name has a prefix of `bits` bits.
    fn name_and_value<'t, 'b: 't>(
        &'t mut self,
        bits: u32,
        block: &mut &'b [u8],
    ) -> Result<Line<'t>, CompressionError> {
        let of_name = match integer(block, bits)? {
            0 => None,
            number => Some(entry(&self.entries, number)?),
        };
        let name = match of_name {
            None => string(block, &mut self.name)?,
            Some(entry) => entry.name(),
        };
        let value = string(block, &mut self.value)?;
        let kind = match of_name.map(|entry| entry.kind) {
            Some(Kind::Field(FieldName::Te)) | None => Kind::of(name, value, self.case),
            Some(kind @ (Kind::Field(_) | Kind::Cookie)) if is_text(value) => kind,
            Some(_) => Kind::of(name, value, self.case),
        };
        Ok(Line {
            kind,
            name,
            value,
            whole: None,
        })
    }

    fn shrink(&mut self, to: usize) {
        while self.size > to {
            let Some(last) = self.entries.pop_back() else {
                return;
            };
            self.size -= last.size;
            self.changes += 1;
        }
    }
}

/// Number of one-byte indexed lines at the front of a block: those with an index up to 126.
pub(crate) fn indexed(block: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    // Eight at a time: when all high bits are set, adding one carries into the high bit of a byte of 0xff only.
    let is_one = |eight: &&[u8; 8]| {
        let word = u64::from_le_bytes(**eight);
        word & HIGH == HIGH && ((word & !HIGH) + ONES) & HIGH == 0
    };
    let eights = 8 * block.as_chunks().0.iter().take_while(is_one).count();
    let rest = block[eights..].iter();
    eights + rest.take_while(|byte| matches!(byte, 0x80..=0xfe)).count()
}

fn entry(entries: &VecDeque<Entry>, number: usize) -> Result<&Entry, CompressionError> {
    let found = match number.checked_sub(LINES.len() + 1) {
        Some(at) => entries.get(at),
        None => STATIC.get(number.wrapping_sub(1)),
    };
    found.ok_or(CompressionError)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, CompressionError> {
        let mut lines = Vec::new();
        let (mut block, text) = (block, |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).into_owned()
        });
        decoder.begin(&mut block)?;
        while let Some(line) = decoder.line(&mut block)? {
            lines.push(format!("{}: {}", text(line.name), text(line.value)));
        }
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
        let mut decoder = Decoder::new(Case::Lower);
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
            // Index 0; an index without an entry; an integer that doesn't end; one that is too large; a string that is
            // cut off; a table size above the limit; a size update after a line.
            "80",
            "be",
            "ff",
            "ffffffffffff7f",
            "0001610562",
            "3fe21f",
            "8220",
        ] {
            let read = decode(&mut Decoder::new(Case::Lower), &bytes(block));
            assert_eq!(read, Err(CompressionError), "{block}");
        }
    }

    #[test]
    fn an_entry_that_the_table_has_no_room_for_empties_it() {
        let mut decoder = Decoder::new(Case::Lower);
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
        let mut decoder = Decoder::new(Case::Lower);
        let line = decode(&mut decoder, b"\x40\x01a\x04 b\t ");
        assert_eq!(line.expect("a block"), ["a: b"]);
        assert_eq!(decoder.size, 1 + 4 + 32);
        assert_eq!(decode(&mut decoder, b"\xbe").expect("a block"), ["a: b"]);
    }

    #[test]
    fn a_line_that_a_message_must_not_have_is_one_however_it_is_told() {
        let kinds = |decoder: &mut Decoder, block: &[u8]| -> Vec<Kind> {
            let (mut kinds, mut block) = (Vec::new(), block);
            while let Some(line) = decoder.line(&mut block).expect("a block") {
                kinds.push(line.kind);
            }
            kinds
        };
        let mut decoder = Decoder::new(Case::Lower);
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

    #[test]
    fn lines_of_one_byte_are_counted_to_the_first_other() {
        for length in 0..20 {
            for at in 0..=length {
                for other in [0, 0x0f, 0x40, 0x7f, 0xff] {
                    let mut block: Vec<u8> = (0..length).map(|n| 0x80 | (n * 13 % 0x7f)).collect();
                    if let Some(byte) = block.get_mut(usize::from(at)) {
                        *byte = other;
                    }
                    assert_eq!(indexed(&block), usize::from(at), "{block:?}");
                }
            }
        }
        assert_eq!(indexed(&[0xfe; 17]), 17);
    }
}
