//! The Huffman code of string literals (RFC 7541, appendix B). It is canonical, so the lengths of its codes determine
//! all of it. We only decode it: between neighbours the bytes saved aren't worth the encoding.

/// Bits of each symbol's code; the last is EOS.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const MAX_BITS: usize = 30;
/// EOS, of which only the first bits, all ones, may appear: as padding.
const END: u16 = 256;

/// The symbols in the order of their codes, and the number of codes of each length.
struct Code {
    symbols: [u16; 257],
    counts: [u32; MAX_BITS + 1],
}

const CODE: Code = {
    let (mut symbols, mut counts) = ([0; 257], [0; MAX_BITS + 1]);
    let (mut bits, mut at) = (0, 0);
    while bits <= MAX_BITS {
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == bits {
                symbols[at] = symbol as u16;
                counts[bits] += 1;
                at += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    Code { symbols, counts }
};
static SYMBOLS: [u16; 257] = CODE.symbols;
static COUNTS: [u32; MAX_BITS + 1] = CODE.counts;

/// Decodes `coded` and appends it to `out`; `None` if it isn't a valid code.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    // `code` holds the bits read of a symbol; `first` is the first code of that length, and `index` the place of its
    // symbol.
    let (mut bits, mut code, mut first, mut index) = (0, 0_u32, 0_u32, 0_u32);
    for byte in coded {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            first <<= 1;
            bits += 1;
            let count = *COUNTS.get(bits)?;
            if code - first < count {
                let symbol = SYMBOLS[(index + code - first) as usize];
                out.push(u8::try_from(symbol).ok().filter(|_| symbol != END)?);
                (bits, code, first, index) = (0, 0, 0, 0);
            } else {
                first += count;
                index += count;
            }
        }
    }
    let is_padding = bits < 8 && code == (1 << bits) - 1;
    is_padding.then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, appendix C.4 and C.6.
    #[test]
    fn the_examples_of_the_specification_are_read() {
        for (coded, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            ("aec3771a4b", "private"),
            (
                "d07abe941054d444a8200595040b8166e082a62d1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (
                "9d29ad171863c78f0b97c8e9ae82ae43d3",
                "https://www.example.com",
            ),
        ] {
            let bytes: Vec<u8> = (0..coded.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&coded[at..at + 2], 16).expect("hexadecimal"))
                .collect();
            let mut out = Vec::new();
            assert_eq!(decode(&bytes, &mut out), Some(()), "{text}");
            assert_eq!(String::from_utf8_lossy(&out), text);
        }
    }

    #[test]
    fn what_is_no_code_is_refused() {
        for coded in [
            // Padding that isn't ones; a whole byte of it; EOS as a symbol.
            &[0b0000_0000][..],
            &[0b0000_0111, 0xff],
            &[0xff, 0xff, 0xff, 0xff],
        ] {
            assert_eq!(decode(coded, &mut Vec::new()), None, "{coded:?}");
        }
    }
}
