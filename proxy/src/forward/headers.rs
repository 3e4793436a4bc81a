//! Fields that a sidecar adds: request id, origin of the request, and WebSocket's key and proof.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use leno_http::head::{FieldName, Head, Version};

/// Longest request id that is accepted from a client, in bytes.
const MAX_ID: usize = 128;

/// Sets `x-request-id`, unless the client sent an acceptable one.
pub fn request_id(request: &mut Head, rng: &mut fastrand::Rng) {
    let given = request.get(FieldName::RequestId);
    if !given.is_some_and(|id| !id.is_empty() && id.len() <= MAX_ID) {
        request.set("x-request-id", FieldName::RequestId, &uuid(rng));
    }
}

/// Adds the request's id to the response, unless it has one.
pub fn echo_id(request: &Head, response: &mut Head) {
    if response.get(FieldName::RequestId).is_none()
        && let Some(id) = request.get(FieldName::RequestId)
    {
        response.set("x-request-id", FieldName::RequestId, id);
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid(rng: &mut fastrand::Rng) -> [u8; 36] {
    let version = rng.u32(..) & 0xffff_0fff | 0x4000;
    let variant = rng.u32(..) & 0x3fff_ffff | 0x8000_0000;
    let [first, last] = [rng.u32(..), rng.u32(..)].map(hexadecimal);
    let [second, third] = [version, variant].map(hexadecimal);
    let mut out = [b'-'; 36];
    out[..8].copy_from_slice(&first);
    out[9..13].copy_from_slice(&second[..4]);
    out[14..18].copy_from_slice(&second[4..]);
    out[19..23].copy_from_slice(&third[..4]);
    out[24..28].copy_from_slice(&third[4..]);
    out[28..].copy_from_slice(&last);
    out
}

/// A number in hexadecimal, all digits at once: each gets a byte, and those above nine the distance from `9` to `a`.
pub(super) fn hexadecimal(number: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let spread = u64::from(number);
    let spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    let spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    let digits = (spread | spread << 4) & (0x0f * ONES);
    let letters = (digits + 6 * ONES) >> 4 & ONES;
    let above_nine = u64::from(b'a' - b'9' - 1);
    (digits + u64::from(b'0') * ONES + letters * above_nine).to_be_bytes()
}

/// Sets `x-forwarded-proto` to the scheme of the request, unless an earlier hop did.
pub fn forwarded_proto(request: &mut Head, scheme: &str) {
    if request.get(FieldName::ForwardedProto).is_none() {
        request.add_known(
            b"x-forwarded-proto",
            FieldName::ForwardedProto,
            scheme.as_bytes(),
        );
    }
}

/// Appends the peer's address to `x-forwarded-for`.
pub fn forwarded_for(request: &mut Head, peer: &str) {
    append(
        request,
        "x-forwarded-for",
        FieldName::ForwardedFor,
        ", ",
        peer,
    );
}

/// Element of `x-forwarded-client-cert`: `by` is our identity, `hash` and `uri` are the client's.
pub fn client_cert_element(by: &str, hash: &str, uri: &str) -> String {
    format!("By={by};Hash={hash};Subject=\"\";URI={uri}")
}

/// Appends the client's `element` to `x-forwarded-client-cert`, as Istio's sidecar does (`APPEND_FORWARD`).
pub fn client_cert(request: &mut Head, element: &str) {
    let name = "x-forwarded-client-cert";
    append(request, name, FieldName::ClientCert, ",", element);
}

/// Adds the key that an HTTP/1 server requires of WebSocket (RFC 6455, section 4.1), and that HTTP/2 doesn't have.
pub fn websocket_key(request: &mut Head, rng: &mut fastrand::Rng) {
    let upgrade = request.get(FieldName::Upgrade);
    if request.version() == Version::Http2
        && upgrade.is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
        && request.values("sec-websocket-key").next().is_none()
    {
        let key = BASE64.encode(rng.u128(..).to_be_bytes());
        request.add("sec-websocket-key", key.as_bytes());
    }
}

/// Adds the proof that an HTTP/1 client requires of WebSocket (RFC 6455, section 4.2.2), when the upstream speaks
/// HTTP/2, which has none.
pub fn websocket_accept(request: &Head, response: &mut Head) {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let Some(key) = request.values("sec-websocket-key").next() else {
        return;
    };
    if response.values("sec-websocket-accept").next().is_none() {
        let proof = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
        let proof = BASE64.encode(proof.as_ref());
        response.add("sec-websocket-accept", proof.as_bytes());
    }
}

/// Appends an element to a list field, and merges its lines into one.
fn append(request: &mut Head, name: &str, known: FieldName, separator: &str, element: &str) {
    if request.get(known).is_none() {
        return request.set(name, known, element.as_bytes());
    }
    let mut value = Vec::new();
    for before in request.get_all(known) {
        value.extend_from_slice(before);
        value.extend_from_slice(separator.as_bytes());
    }
    value.extend_from_slice(element.as_bytes());
    request.set(name, known, &value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_when_there_is_none_and_kept_when_there_is() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut head = Head::request("GET", "/");
        request_id(&mut head, &mut rng);
        let id = head.get(FieldName::RequestId).expect("set").to_vec();
        let dashes = [8, 13, 18, 23].map(|at| id[at]);
        assert_eq!((id.len(), dashes, id[14]), (36, *b"----", b'4'));
        request_id(&mut head, &mut rng);
        assert_eq!(head.get(FieldName::RequestId), Some(id.as_slice()));
        let mut head = Head::request("GET", "/");
        head.add("X-Request-Id", b"mine");
        request_id(&mut head, &mut rng);
        assert_eq!(head.get(FieldName::RequestId), Some(&b"mine"[..]));
        let mut response = Head::response(200);
        echo_id(&head, &mut response);
        assert_eq!(response.get(FieldName::RequestId), Some(&b"mine"[..]));
    }

    #[test]
    fn numbers_are_written_in_hexadecimal() {
        for number in [0, 0x0123_4567, 0x89ab_cdef, 0x9a9a_0f0f, u32::MAX] {
            let written = hexadecimal(number);
            assert_eq!(written, *format!("{number:08x}").as_bytes());
        }
    }

    #[test]
    fn websocket_is_proven_as_the_rfc_shows() {
        let mut request = Head::request("GET", "/chat");
        request.add("Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ==");
        let mut response = Head::response(101);
        websocket_accept(&request, &mut response);
        let accept: Vec<_> = response.values("sec-websocket-accept").collect();
        assert_eq!(accept, [b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]);
    }

    #[test]
    fn callers_are_appended_not_replaced() {
        let mut head = Head::request("GET", "/");
        head.add("X-Forwarded-For", b"1.1.1.1");
        head.add("X-Forwarded-For", b"2.2.2.2");
        forwarded_for(&mut head, "3.3.3.3");
        assert_eq!(
            head.get(FieldName::ForwardedFor),
            Some(&b"1.1.1.1, 2.2.2.2, 3.3.3.3"[..])
        );
        assert_eq!(head.get_all(FieldName::ForwardedFor).count(), 1);
    }
}
