//! Bodies without IO: a [`Decoder`] that separates data from framing, and an [`Encoder`] that frames data again.
//!
//! Chunked bodies are decoded and framed anew, so neither chunk sizes nor extensions of one peer reach the other.

use super::{Framing, HeadLimits, InvalidHead, parse_trailers};
use crate::head::Head;

/// Longest chunk extension in bytes; extensions are skipped, since none has a use that a proxy should carry.
const MAX_EXTENSION: usize = 256;

/// Decodes a body's framing.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    limits: HeadLimits,
    trailers: Option<Box<Head>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Done,
    Fixed(u64),
    UntilClose,
    Size { digits: u8, size: u64 },
    Extension { size: u64, length: usize },
    SizeLineFeed { size: u64 },
    Data(u64),
    DataReturn,
    DataLineFeed,
    Trailers,
}

impl Decoder {
    /// A decoder for a body of `length`.
    pub fn new(length: Framing, limits: HeadLimits) -> Decoder {
        let state = match length {
            Framing::Empty | Framing::Fixed(0) => State::Done,
            Framing::Fixed(length) => State::Fixed(length),
            Framing::Chunked => State::Size { digits: 0, size: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Decoder {
            state,
            limits,
            trailers: None,
        }
    }

    /// True when the body has ended.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Number of bytes at the front of `input` that are data.
    pub fn available(&self, input: &[u8]) -> usize {
        match self.state {
            State::Fixed(left) | State::Data(left) => {
                usize::try_from(left).unwrap_or(usize::MAX).min(input.len())
            }
            State::UntilClose => input.len(),
            _ => 0,
        }
    }

    /// Records that `count` bytes of data were consumed.
    pub fn consume(&mut self, count: usize) {
        let count = count as u64;
        self.state = match self.state {
            State::Fixed(left) if left <= count => State::Done,
            State::Fixed(left) => State::Fixed(left - count),
            State::Data(left) if left <= count => State::DataReturn,
            State::Data(left) => State::Data(left - count),
            other => other,
        };
    }

    /// Consumes framing at the front of `input` until data, the body's end, or the input's; returns the number of
    /// bytes.
    ///
    /// # Errors
    /// [`InvalidHead`] when the chunked coding is broken.
    pub fn advance(&mut self, input: &[u8]) -> Result<usize, InvalidHead> {
        let mut at = 0;
        while at < input.len() {
            match self.state {
                State::Done | State::Fixed(_) | State::UntilClose | State::Data(_) => break,
                State::Trailers => {
                    at += self.take_trailer_bytes(&input[at..])?;
                }
                state => {
                    self.state = step(state, input[at])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    /// Records that the connection has ended.
    ///
    /// # Errors
    /// When the body is incomplete.
    pub fn end_of_input(&mut self) -> Result<(), InvalidHead> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(InvalidHead::Syntax("the body was cut short")),
        }
    }

    /// The trailer section, if there was one.
    pub fn trailers(&self) -> Option<&Head> {
        self.trailers.as_deref()
    }

    /// Collects a trailer section; without fields it is just the empty line.
    fn take_trailer_bytes(&mut self, input: &[u8]) -> Result<usize, InvalidHead> {
        let head = self.trailers.get_or_insert_default();
        let mut taken = 0;
        for &byte in input {
            head.buffer().push(byte);
            taken += 1;
            if head.buffer().len() > self.limits.head_bytes {
                return Err(InvalidHead::TooLarge(self.limits.head_bytes));
            }
            if byte == b'\n' && ends_section(head.buffer()) {
                self.finish_trailers()?;
                break;
            }
        }
        Ok(taken)
    }

    fn finish_trailers(&mut self) -> Result<(), InvalidHead> {
        self.state = State::Done;
        let Some(mut head) = self.trailers.take() else {
            return Ok(());
        };
        if parse_trailers(&mut head, &self.limits)? != Some(head.buffer().len()) {
            return Err(InvalidHead::Syntax("a line must end with CR LF"));
        }
        head.sanitise_trailers();
        if !head.is_empty() {
            self.trailers = Some(head);
        }
        Ok(())
    }
}

/// True at the section's end: an empty line, at the front or after another line.
fn ends_section(bytes: &[u8]) -> bool {
    bytes == b"\r\n" || bytes == b"\n" || bytes.ends_with(b"\n\r\n") || bytes.ends_with(b"\n\n")
}

/// Takes one byte of the chunked coding's framing; returns the next state.
fn step(state: State, byte: u8) -> Result<State, InvalidHead> {
    let error = |text| Err(InvalidHead::Syntax(text));
    match (state, byte) {
        (State::Size { digits, size }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
            if digits == 16 || size >> 60 != 0 {
                return error("chunk size too large");
            }
            let digit = char::from(byte).to_digit(16).unwrap_or(0);
            Ok(State::Size {
                digits: digits + 1,
                size: size << 4 | u64::from(digit),
            })
        }
        (State::Size { digits: 0, .. }, _) => error("invalid chunk size"),
        (State::Size { size, .. } | State::Extension { size, .. }, b'\r') => {
            Ok(State::SizeLineFeed { size })
        }
        (State::Size { size, .. }, b';') => Ok(State::Extension { size, length: 0 }),
        (State::Size { .. }, _) => error("invalid chunk size"),
        (State::Extension { .. }, 0..=8 | 10..=31 | 127) => error("invalid chunk extension"),
        (State::Extension { length, .. }, _) if length >= MAX_EXTENSION => {
            error("chunk extension too long")
        }
        (State::Extension { size, length }, _) => Ok(State::Extension {
            size,
            length: length + 1,
        }),
        (State::SizeLineFeed { size: 0 }, b'\n') => Ok(State::Trailers),
        (State::SizeLineFeed { size }, b'\n') => Ok(State::Data(size)),
        (State::DataReturn, b'\r') => Ok(State::DataLineFeed),
        (State::DataLineFeed, b'\n') => Ok(State::Size { digits: 0, size: 0 }),
        _ => error("a chunk must end with CR LF"),
    }
}

/// Frames a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoder {
    length: Framing,
    finished: bool,
}

impl Encoder {
    /// An encoder for a body of `length`.
    pub fn new(length: Framing) -> Encoder {
        Encoder {
            length,
            finished: false,
        }
    }

    /// True once [`Encoder::finish`] was called: the message is complete.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Frames `data` into `out`.
    pub fn write(&mut self, data: &[u8], out: &mut Vec<u8>) {
        if data.is_empty() {
            return;
        }
        if self.length != Framing::Chunked {
            out.extend_from_slice(data);
            return;
        }
        let mut digits = [0; 16];
        out.extend_from_slice(hexadecimal(data.len(), &mut digits));
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }

    /// Ends the body. Trailers are sent only with the chunked coding.
    pub fn finish(&mut self, trailers: Option<&Head>, out: &mut Vec<u8>) {
        if self.length == Framing::Chunked {
            out.extend_from_slice(b"0\r\n");
            if let Some(trailers) = trailers {
                trailers.write_fields(out);
            }
            out.extend_from_slice(b"\r\n");
        }
        self.finished = true;
    }
}

fn hexadecimal(mut number: usize, digits: &mut [u8; 16]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[number % 16];
        number /= 16;
        if number == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` in pieces of `piece` bytes; returns the data and what was left over.
    fn decode(
        input: &[u8],
        length: Framing,
        piece: usize,
    ) -> Result<(Vec<u8>, usize, String), InvalidHead> {
        let mut decoder = Decoder::new(length, HeadLimits::default());
        let (mut data, mut at, mut end) = (Vec::new(), 0, 0);
        while !decoder.is_done() && end < input.len() {
            end = (end + piece).min(input.len());
            while at < end && !decoder.is_done() {
                at += decoder.advance(&input[at..end])?;
                let available = decoder.available(&input[at..end]);
                data.extend_from_slice(&input[at..at + available]);
                decoder.consume(available);
                at += available;
            }
        }
        if !decoder.is_done() {
            decoder.end_of_input()?;
        }
        let mut trailers = Vec::new();
        if let Some(head) = decoder.trailers() {
            head.write_fields(&mut trailers);
        }
        let trailers = String::from_utf8_lossy(&trailers).into_owned();
        Ok((data, input.len() - at, trailers))
    }

    #[test]
    fn chunks_are_read_however_the_reads_were_cut() {
        let input = b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\nGET /";
        for piece in 1..input.len() {
            let (data, left, trailers) = decode(input, Framing::Chunked, piece).expect("valid");
            assert_eq!((data.as_slice(), left), (&b"hello world"[..], 5), "{piece}");
            assert_eq!(trailers, "X-Sum: 1\r\n");
        }
    }

    #[test]
    fn broken_chunks_are_refused() {
        for input in [
            "x\r\n",
            "-1\r\n",
            " 1\r\na\r\n0\r\n\r\n",
            "1 \r\na\r\n0\r\n\r\n",
            "0x1\r\na\r\n0\r\n\r\n",
            "\r\n",
            "1\na\r\n0\r\n\r\n",
            "1\r\nab\r\n0\r\n\r\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\na\r0\r\n\r\n",
            "10000000000000000\r\n",
            "00000000000000001\r\na\r\n0\r\n\r\n",
            "1;a\nb\r\na\r\n0\r\n\r\n",
            "0\r\n\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nbad header: 1\r\n\r\n",
            "5\r\nhel",
            "0\r\n",
        ] {
            assert!(
                decode(input.as_bytes(), Framing::Chunked, 3).is_err(),
                "{input:?}"
            );
        }
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "e".repeat(MAX_EXTENSION + 1));
        assert!(decode(long.as_bytes(), Framing::Chunked, 7).is_err());
    }

    #[test]
    fn a_trailer_section_is_bounded() {
        let with = |bytes: usize| {
            let limits = HeadLimits {
                head_bytes: 64,
                headers: 2,
            };
            let mut decoder = Decoder::new(Framing::Chunked, limits);
            let input = format!("0\r\nA: {}\r\n\r\n", "b".repeat(bytes));
            decoder.advance(input.as_bytes()).map(|_| decoder.is_done())
        };
        assert_eq!(with(57), Ok(true));
        assert_eq!(with(58), Err(InvalidHead::TooLarge(64)));
    }

    #[test]
    fn a_fixed_body_ends_where_it_says() {
        let (data, left, _) = decode(b"helloGET", Framing::Fixed(5), 3).expect("valid");
        assert_eq!((data.as_slice(), left), (&b"hello"[..], 3));
        assert!(decode(b"hel", Framing::Fixed(5), 3).is_err());
        assert!(decode(b"hel", Framing::UntilClose, 3).is_ok());
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(Framing::Chunked);
        let large = vec![b'x'; 70_000];
        encoder.write(b"abc", &mut out);
        encoder.write(b"", &mut out);
        encoder.write(&large, &mut out);
        encoder.finish(None, &mut out);
        let (data, left, _) = decode(&out, Framing::Chunked, 4096).expect("valid");
        assert_eq!(data.len(), 70_003);
        assert_eq!(left, 0);
    }
}
