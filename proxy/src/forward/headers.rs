//! Fields that a sidecar adds: request id, trace context, where the request came from.

use std::net::IpAddr;

use crate::http::head::{Head, Known};

/// Makes sure that there is an `x-request-id`; returns it.
pub fn request_id(request: &mut Head, rng: &mut fastrand::Rng) -> Vec<u8> {
    if let Some(id) = request.get(Known::RequestId)
        && !id.is_empty()
        && id.len() <= 128
    {
        return id.to_vec();
    }
    let id = uuid(rng);
    request.set("x-request-id", Known::RequestId, &id);
    id.to_vec()
}

/// A random UUID (RFC 9562, version 4).
fn uuid(rng: &mut fastrand::Rng) -> [u8; 36] {
    let mut bytes = rng.u128(..).to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut out = [b'-'; 36];
    let mut at = 0;
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            at += 1;
        }
        [out[at], out[at + 1]] = hexadecimal(*byte);
        at += 2;
    }
    out
}

fn hexadecimal(byte: u8) -> [u8; 2] {
    let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
    [digit(byte >> 4), digit(byte & 0xf)]
}

/// Makes sure that there is a valid `traceparent` (W3C Trace Context). One that is there is passed on as it is: Leno
/// records no span of its own yet, and must not put an unrecorded parent into somebody's trace.
pub fn traceparent(request: &mut Head, rng: &mut fastrand::Rng) {
    if request.get(Known::Traceparent).is_some_and(is_traceparent) {
        return;
    }
    let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let trace = (rng.u128(..) | 1).to_be_bytes();
    let span = (rng.u64(..) | 1).to_be_bytes();
    for (i, byte) in trace.iter().enumerate() {
        value[3 + 2 * i..5 + 2 * i].copy_from_slice(&hexadecimal(*byte));
    }
    for (i, byte) in span.iter().enumerate() {
        value[36 + 2 * i..38 + 2 * i].copy_from_slice(&hexadecimal(*byte));
    }
    request.set("traceparent", Known::Traceparent, &value);
}

fn is_traceparent(value: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &[u8]| part.iter().all(|&b| b == b'0');
    let parts: Vec<&[u8]> = value.split(|&b| b == b'-').collect();
    match parts.as_slice() {
        [version, trace, span, flags, rest @ ..] => {
            version.len() == 2
                && *version != b"ff"
                && (rest.is_empty() || *version != b"00")
                && (trace.len(), span.len(), flags.len()) == (32, 16, 2)
                && [version, trace, span, flags].iter().all(|part| hex(part))
                && !zero(trace)
                && !zero(span)
        }
        _ => false,
    }
}

/// Says by which scheme the request came, unless somebody before us did.
pub fn forwarded_proto(request: &mut Head, scheme: &str) {
    if request.get(Known::ForwardedProto).is_none() {
        request.add("x-forwarded-proto", scheme.as_bytes());
    }
}

/// Appends the peer to `x-forwarded-for`.
pub fn forwarded_for(request: &mut Head, peer: IpAddr) {
    let mut value = Vec::new();
    for before in request.get_all(Known::ForwardedFor) {
        value.extend_from_slice(before);
        value.extend_from_slice(b", ");
    }
    value.extend_from_slice(peer.to_string().as_bytes());
    request.set("x-forwarded-for", Known::ForwardedFor, &value);
}

/// Appends who called to `x-forwarded-client-cert`, as Istio's sidecar does (`APPEND_FORWARD`).
pub fn client_cert(request: &mut Head, by: &str, hash: &str, uri: &str) {
    let mut value = Vec::new();
    for before in request.get_all(Known::ClientCert) {
        value.extend_from_slice(before);
        value.push(b',');
    }
    let element = format!("By={by};Hash={hash};Subject=\"\";URI={uri}");
    value.extend_from_slice(element.as_bytes());
    request.set("x-forwarded-client-cert", Known::ClientCert, &value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_when_there_is_none_and_kept_when_there_is() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut head = Head::request("GET", "/");
        let id = request_id(&mut head, &mut rng);
        assert_eq!(id.len(), 36);
        assert_eq!(id[14], b'4');
        assert_eq!(request_id(&mut head, &mut rng), id);
        let mut head = Head::request("GET", "/");
        head.add("X-Request-Id", b"mine");
        assert_eq!(request_id(&mut head, &mut rng), b"mine");
    }

    #[test]
    fn a_trace_context_is_passed_on_or_made() {
        let valid: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for (value, kept) in [
            (valid, true),
            (
                b"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
                true,
            ),
            (
                b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
                false,
            ),
            (
                b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                false,
            ),
            (
                b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
                false,
            ),
            (
                b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
                false,
            ),
            (
                b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
                false,
            ),
            (b"rubbish", false),
        ] {
            let mut head = Head::request("GET", "/");
            head.add("traceparent", value);
            traceparent(&mut head, &mut fastrand::Rng::with_seed(1));
            let after = head.get(Known::Traceparent).expect("set");
            assert_eq!(after == value, kept, "{}", String::from_utf8_lossy(value));
            assert!(is_traceparent(after));
            assert_eq!(head.len(), 1);
        }
    }

    #[test]
    fn callers_are_appended_not_replaced() {
        let mut head = Head::request("GET", "/");
        head.add("X-Forwarded-For", b"1.1.1.1");
        head.add("X-Forwarded-For", b"2.2.2.2");
        forwarded_for(&mut head, IpAddr::from([3, 3, 3, 3]));
        assert_eq!(
            head.get(Known::ForwardedFor),
            Some(&b"1.1.1.1, 2.2.2.2, 3.3.3.3"[..])
        );
        assert_eq!(head.get_all(Known::ForwardedFor).count(), 1);
    }
}
