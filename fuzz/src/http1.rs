//! The HTTP/1 parser and body reader: any bytes, read as requests and as responses, whole and in pieces.

use leno_http::h1::{
    Decoder, Framing, HeadLimits, LastHead, parse_request, parse_response, request_framing,
    response_framing,
};
use leno_http::head::Head;

/// A message as it was read: its head as it would be sent on, and its body.
type Message = (Vec<u8>, Vec<u8>);

/// Reads messages until one is refused or incomplete. The body reader gets its bytes `step` at a time.
fn read(mut bytes: &[u8], is_request: bool, step: usize) -> Vec<Message> {
    let (mut all, mut last) = (Vec::new(), LastHead::default());
    while all.len() < 8 {
        let mut head = Head::default();
        head.buffer().extend_from_slice(bytes);
        let limits = HeadLimits::default();
        let parsed = match is_request {
            true => parse_request(&mut head, &limits, &mut last),
            false => parse_response(&mut head, &limits, &mut last),
        };
        let Ok(Some(end)) = parsed else { break };
        let framing = match is_request {
            true => request_framing(&head),
            false => response_framing(&head, false),
        };
        let Ok(framing) = framing else { break };
        let mut line = Vec::new();
        match is_request {
            true => head.write_request(&mut line),
            false => head.write_response(&mut line),
        }
        let mut decoder = Decoder::new(framing, limits);
        let (mut at, mut given, mut body) = (end, end, Vec::new());
        while !decoder.is_done() {
            let Ok(taken) = decoder.advance(&bytes[at..given]) else {
                return all;
            };
            at += taken;
            let data = decoder.available(&bytes[at..given]);
            body.extend_from_slice(&bytes[at..at + data]);
            decoder.consume(data);
            at += data;
            if taken + data > 0 {
                continue;
            }
            if given == bytes.len() {
                break;
            }
            given = (given + step).min(bytes.len());
        }
        if !decoder.is_done() && framing != Framing::UntilClose {
            break;
        }
        all.push((line, body));
        bytes = &bytes[at..];
    }
    all
}

/// Runs one execution.
pub fn run(bytes: &[u8]) {
    for is_request in [true, false] {
        let whole = read(bytes, is_request, usize::MAX / 2);
        for step in [1, 7] {
            assert_eq!(read(bytes, is_request, step), whole, "in pieces of {step}");
        }
        // What would be sent on is read as the same.
        for (head, _) in &whole {
            let text = [&head[..], b"\r\n"].concat();
            let again = read(&text, is_request, usize::MAX / 2);
            if let Some((read, _)) = again.first() {
                assert_eq!(read, head);
            }
        }
    }
}
