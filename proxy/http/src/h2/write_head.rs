//! Writing heads as field blocks: the pseudo-header fields of an HTTP/1 head, then its fields.

use super::header_block::{CONNECTION, HTTP1};
use super::hpack::{Case, Encoder, VOLATILE, number};
use crate::head::{self, FieldName, Head, Version};

/// Encodes a request as a field block. `upgrades` makes it an extended CONNECT.
pub(super) fn write_request(encoder: &mut Encoder, out: &mut Vec<u8>, head: &Head, upgrades: bool) {
    encoder.begin(out);
    match head.method() {
        _ if upgrades => encoder.value(out, number::METHOD, b"CONNECT"),
        b"GET" => Encoder::line(out, number::GET),
        b"POST" => Encoder::line(out, number::POST),
        method => encoder.value(out, number::METHOD, method),
    }
    if upgrades {
        let protocol = head.get(FieldName::Upgrade).unwrap_or_default();
        encoder.field(out, FieldName::Other, b":protocol", protocol);
    }
    Encoder::line(out, number::HTTP);
    let is_carried = is_carried(encoder, head);
    if !is_carried && let Some(host) = head.get(FieldName::Host).filter(|host| !host.is_empty()) {
        encoder.value(out, number::AUTHORITY, host);
    }
    encoder.value(out, number::PATH, head.target());
    if is_carried {
        encoder.flag(out, FieldName::Http1, HTTP1);
    }
    write_fields(encoder, out, head, upgrades);
}

/// Encodes a response as a field block.
pub(super) fn write_response(encoder: &mut Encoder, out: &mut Vec<u8>, head: &Head) {
    encoder.begin(out);
    let status = head.status();
    match number::STATUSES.iter().position(|other| *other == status) {
        Some(at) => Encoder::line(out, number::STATUS + u8::try_from(at).unwrap_or(0)),
        None => encoder.value(
            out,
            number::STATUS,
            itoa::Buffer::new().format(status).as_bytes(),
        ),
    }
    if is_carried(encoder, head)
        && let Some(reason) = head.unusual_reason()
    {
        encoder.field(out, FieldName::Http1, HTTP1, reason);
    }
    write_fields(encoder, out, head, false);
}

/// Encodes a trailer section as a field block.
pub(super) fn write_trailers(encoder: &mut Encoder, out: &mut Vec<u8>, head: &Head) {
    encoder.begin(out);
    write_fields(encoder, out, head, false);
}

/// Returns `true` if an HTTP/1 message goes to a sidecar of ours, unchanged.
fn is_carried(encoder: &Encoder, head: &Head) -> bool {
    encoder.case() == Case::Kept && head.version() != Version::Http2
}

/// Writes the fields except connection-specific ones and `Host`, which only carried messages keep. Fields with another
/// value in each message come last: the lines before them mostly repeat those of the last message.
fn write_fields(encoder: &mut Encoder, out: &mut Vec<u8>, head: &Head, upgrades: bool) {
    let without = match is_carried(encoder, head) {
        true => CONNECTION,
        false => CONNECTION.with(FieldName::Host),
    };
    for stretch in head.field_runs(without.union(VOLATILE)) {
        let text = stretch.text().filter(|_| !upgrades);
        if text.is_some_and(|text| encoder.write_cached(out, text)) {
            continue;
        }
        for line in stretch.lines() {
            write_line(encoder, out, &line, upgrades);
        }
        if let Some(text) = text {
            encoder.cache_run(text);
        }
    }
    for line in head.lines(VOLATILE) {
        write_line(encoder, out, &line, false);
    }
}

#[inline]
fn write_line(encoder: &mut Encoder, out: &mut Vec<u8>, line: &head::Line<'_>, upgrades: bool) {
    let (known, name) = (line.known(), line.name());
    if upgrades && name.eq_ignore_ascii_case(b"sec-websocket-key") {
        return;
    }
    let is_indexable = !(line.is_mixed_case() && encoder.case() == Case::Kept);
    let known = if is_indexable {
        known
    } else {
        FieldName::Other
    };
    match line.plain() {
        Some(text) => encoder.write_verbatim(out, known, text, name.len()),
        None => encoder.field(out, known, name, line.value()),
    }
}
