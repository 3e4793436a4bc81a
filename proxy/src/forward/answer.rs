//! Local replies: Envoy's status and text, and `proxy-status` (RFC 9209) with the cause in words.

use super::headers;
use crate::error::{Error, Progress};
use crate::observe::RequestStats;
use leno_http::Outgoing;
use leno_http::clock;
use leno_http::h1::{Framing, ServerHalf};
use leno_http::head::Head;
use leno_http::peers::Down;

/// Longest explanation in a field, in bytes.
const MAX_DETAILS: usize = 1024;

/// Audience of a local reply, for its level of detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The local app, or an authenticated mesh peer: the whole cause.
    Trusted,
    /// Any other client: only the type of the error and the request's id.
    Anyone,
}

/// Counts a failed request, and buffers its local reply. A request body that wasn't received whole makes the connection
/// close after it. gRPC clients get a gRPC status, in a response without a body.
pub fn send_local_reply(
    down: &mut Down<'_>,
    stats: &mut RequestStats,
    error: &Error,
    request: &Head,
    audience: Audience,
) {
    clock::invalidate();
    // A client that left stays counted as one (`DC`).
    if !error.is_client_disconnect() {
        stats.set_response(error.answer().status, error.answer().flag);
        if stats.grpc_series().is_some() {
            stats.set_response(200, error.answer().flag);
            stats.set_grpc_status(Some(call_status(error)));
        }
    }
    if !down.has_received() {
        down.close_after();
    }
    let answer = error.answer();
    let is_grpc = is_grpc(request);
    let text = if is_grpc { "" } else { answer.text };
    let mut head = match is_grpc {
        true => grpc(error, audience),
        false => {
            let mut head = Head::response(answer.status);
            head.add("content-type", b"text/plain");
            head
        }
    };
    let mut digits = itoa::Buffer::new();
    head.add("content-length", digits.format(text.len()).as_bytes());
    head.add("server", b"leno");
    head.add("proxy-status", proxy_status(error, audience).as_bytes());
    headers::echo_id(request, &mut head);
    if answer.flag == "UO" {
        head.add("x-envoy-overloaded", b"true");
    }
    let is_head = down.is_head();
    let length = if is_head { 0 } else { text.len() as u64 };
    down.respond(&mut head, Framing::Fixed(length));
    if !is_head {
        down.write(text.as_bytes());
    }
    down.finish(None);
}

/// True when the client of `request` expects a gRPC status.
pub fn is_grpc(request: &Head) -> bool {
    request.values("content-type").any(|value| {
        let rest = value.strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// A gRPC response without messages: the status mapped from the HTTP status (gRPC's `http-grpc-status-mapping`), and
/// the cause, percent-encoded.
fn grpc(error: &Error, audience: Audience) -> Head {
    let mut head = Head::response(200);
    head.add("content-type", b"application/grpc");
    grpc_status(error, audience, &mut head);
    head
}

/// Ends a truncated gRPC response with a status and the cause; `false` when it isn't gRPC over HTTP/2.
pub fn conclude_call(
    down: &mut Down<'_>,
    stats: &mut RequestStats,
    error: &Error,
    request: &Head,
    audience: Audience,
) -> bool {
    if !down.is_h2() || !is_grpc(request) {
        return false;
    }
    let mut trailers = Head::default();
    grpc_status(error, audience, &mut trailers);
    stats.set_grpc_status(Some(call_status(error)));
    down.finish(Some(&trailers));
    true
}

fn grpc_status(error: &Error, audience: Audience, head: &mut Head) {
    let mut digits = itoa::Buffer::new();
    let status = digits.format(call_status(error)).as_bytes();
    let words = match audience {
        Audience::Trusted => quoted(&error.to_string()).replace('%', "%25"),
        Audience::Anyone => error.answer().error.to_owned(),
    };
    head.add("grpc-status", status);
    head.add("grpc-message", words.as_bytes());
}

/// Buffers a response without a body.
pub fn plain(down: &mut ServerHalf, status: u16) {
    down.respond(&mut Head::response(status), Framing::Empty);
    down.conn().finish(None);
}

/// True when a sidecar's `proxy-status` reports that it never connected to its app.
pub fn says_never_reached(proxy_status: &[u8]) -> bool {
    let kinds: [&[u8]; 2] = [b"connection_refused", b"connection_timeout"];
    let kind = proxy_status.strip_prefix(b"leno; error=");
    kind.is_some_and(|rest| kinds.iter().any(|kind| rest.starts_with(kind)))
}

fn proxy_status(error: &Error, audience: Audience) -> String {
    let kind = error.answer().error;
    if audience == Audience::Anyone {
        return format!("leno; error={kind}");
    }
    let mut words = error.to_string();
    if error.progress > Progress::Nothing {
        words.push_str("; the request had been sent");
    }
    format!("leno; error={kind}; details=\"{}\"", quoted(&words))
}

/// The text as content of an RFC 9651 string: printable ASCII, with quotes and backslashes escaped.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if out.len() >= MAX_DETAILS {
            break;
        }
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '→' => out.push_str("->"),
            ' '..='~' => out.push(character),
            _ => out.push('?'),
        }
    }
    out
}

/// gRPC status that stands for the HTTP status of a local reply.
fn call_status(error: &Error) -> u8 {
    match error.answer().status {
        400 | 431 => 13,
        403 => 7,
        404 => 12,
        408 | 429 | 502..=504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn the_cause_is_told_to_those_who_may_know_it() {
        let error = Error::own(Kind::NoEndpoint, "say \"no\"\r\n").behind(&"a → b".into());
        assert_eq!(
            proxy_status(&error, Audience::Trusted),
            r#"leno; error=destination_unavailable; details="say \"no\"?? (a -> b)""#
        );
        let told = proxy_status(&error, Audience::Anyone);
        assert_eq!(told, "leno; error=destination_unavailable");
    }

    #[test]
    fn an_explanation_is_bounded() {
        let error = Error::own(Kind::NoRoute, "x".repeat(10 * MAX_DETAILS));
        assert!(proxy_status(&error, Audience::Trusted).len() < MAX_DETAILS + 100);
    }
}
