//! Heads in and out: a map is copied once into a [`Head`], in the form that HTTP/1 has, and a [`Head`] once into a map.
//!
//! HTTP/2 has no upper-case names. Between two sidecars those of an HTTP/1 message travel in a private field, which the
//! other one consumes; apps see their names as they were written.

use ::h2::ext::Protocol;
use http::header::{COOKIE, HOST, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version as HttpVersion};

use crate::http::h1::{self, Invalid, Limits};
use crate::http::head::{Head, Known, Version};

/// Names of an HTTP/1 message as they were written, separated by commas. Empty asks for the response's.
const CASE: HeaderName = HeaderName::from_static("x-leno-header-case");

/// What only a sidecar of ours is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// It proved to be in the mesh.
    Mesh,
    /// Anyone.
    Foreign,
}

/// Reads a request. Extended CONNECT (RFC 8441) becomes what an HTTP/1 client would have sent.
///
/// # Errors
/// [`Invalid`] when HTTP/1 couldn't say it, or two readers could understand it differently.
pub(super) fn read_request(
    request: &Request<()>,
    peer: Peer,
    limits: &Limits,
    head: &mut Head,
) -> Result<(), Invalid> {
    let (uri, map) = (request.uri(), request.headers());
    let authority = uri.authority().map_or("", Authority::as_str);
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let protocol = request.extensions().get::<Protocol>();
    match request.method() {
        &Method::CONNECT if protocol.is_some() => head.begin_request(b"GET", path.as_bytes()),
        &Method::CONNECT => head.begin_request(b"CONNECT", authority.as_bytes()),
        method => head.begin_request(method.as_str().as_bytes(), path.as_bytes()),
    }
    let host = map
        .get(HOST)
        .map_or(authority.as_bytes(), HeaderValue::as_bytes);
    if map.get_all(HOST).iter().nth(1).is_some() {
        return Err(Invalid::Syntax("more than one Host header"));
    }
    if !authority.is_empty() && !host.eq_ignore_ascii_case(authority.as_bytes()) {
        return Err(Invalid::Syntax("Host differs from :authority"));
    }
    if host.is_empty() {
        return Err(Invalid::Syntax("neither :authority nor Host"));
    }
    head.add("host", host);
    read_fields(map, peer, limits, head)?;
    if let Some(protocol) = protocol {
        // The library takes any text, and a tunnel has no length.
        if !h1::is_token(protocol.as_str().as_bytes()) {
            return Err(Invalid::Syntax("invalid :protocol"));
        }
        if head.get(Known::ContentLength).is_some() {
            return Err(Invalid::Syntax("Content-Length with :protocol"));
        }
        head.add("connection", b"upgrade");
        head.add("upgrade", protocol.as_str().as_bytes());
    }
    h1::check_request(head)
}

/// Reads a response.
///
/// # Errors
/// [`Invalid`] when there are too many fields.
pub(super) fn read_response(
    response: &Response<()>,
    peer: Peer,
    limits: &Limits,
    head: &mut Head,
) -> Result<(), Invalid> {
    head.begin_response(response.status().as_u16());
    read_fields(response.headers(), peer, limits, head)
}

/// Reads a trailer section. It was bounded with the head.
pub(super) fn read_trailers(map: &HeaderMap) -> Head {
    let mut head = Head::default();
    for (name, value) in map {
        head.add(name.as_str(), value.as_bytes().trim_ascii());
    }
    head.sanitise_trailers();
    head
}

/// Whether the message says how its names were written, or asks for it.
pub(super) fn has_case(map: &HeaderMap) -> bool {
    map.contains_key(CASE)
}

fn read_fields(
    map: &HeaderMap,
    peer: Peer,
    limits: &Limits,
    head: &mut Head,
) -> Result<(), Invalid> {
    if map.len() > limits.headers {
        return Err(Invalid::TooMany(limits.headers));
    }
    for (name, value) in map {
        if *name != HOST && *name != COOKIE && *name != CASE {
            head.add(name.as_str(), value.as_bytes().trim_ascii());
        }
    }
    // HTTP/2 may cut cookies apart; HTTP/1 has one field (RFC 9113, section 8.2.3).
    let cookies: Vec<&[u8]> = map
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if !cookies.is_empty() {
        head.add("cookie", &cookies.join(&b"; "[..]));
    }
    if peer == Peer::Mesh {
        let names = map
            .get_all(CASE)
            .iter()
            .flat_map(|v| v.as_bytes().split(|&b| b == b','));
        names
            .take(limits.headers)
            .for_each(|name| head.set_case(name));
    }
    Ok(())
}

/// A request as HTTP/2 says it. `upgrades` makes it an extended CONNECT.
///
/// # Errors
/// [`Invalid`] when HTTP/2 can't say it.
pub(super) fn write_request(
    head: &Head,
    peer: Peer,
    upgrades: bool,
) -> Result<Request<()>, Invalid> {
    let mut request = Request::new(());
    let mut parts = Uri::default().into_parts();
    let path = PathAndQuery::try_from(head.target());
    parts.path_and_query =
        Some(path.map_err(|_| Invalid::Syntax("HTTP/2 can't carry the target"))?);
    match head.get(Known::Host).filter(|host| !host.is_empty()) {
        Some(host) => {
            let authority = Authority::try_from(host);
            let authority =
                authority.map_err(|_| Invalid::Syntax("HTTP/2 can't carry the Host"))?;
            (parts.scheme, parts.authority) = (Some(Scheme::HTTP), Some(authority));
        }
        // The library wants to be told that this is meant (RFC 9113, section 8.3.1).
        None => *request.version_mut() = HttpVersion::HTTP_11,
    }
    *request.uri_mut() =
        Uri::from_parts(parts).map_err(|_| Invalid::Syntax("HTTP/2 can't carry the target"))?;
    let method = Method::from_bytes(head.method());
    *request.method_mut() = method.map_err(|_| Invalid::Syntax("HTTP/2 can't carry the method"))?;
    *request.headers_mut() = write_fields(head);
    if upgrades {
        let protocol = head.get(Known::Upgrade).unwrap_or_default();
        let protocol = Protocol::from(&*String::from_utf8_lossy(protocol));
        request.extensions_mut().insert(protocol);
        *request.method_mut() = Method::CONNECT;
        request.headers_mut().remove("sec-websocket-key");
    }
    if peer == Peer::Mesh && head.version() != Version::Http2 {
        request.headers_mut().insert(CASE, case(head));
    }
    Ok(request)
}

/// A response as HTTP/2 says it; with the names as they were written, if the peer `wants_case`.
pub(super) fn write_response(head: &Head, wants_case: bool) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() =
        StatusCode::from_u16(head.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = write_fields(head);
    if wants_case && head.version() != Version::Http2 {
        response.headers_mut().insert(CASE, case(head));
    }
    response
}

/// Fields as a map, without those that belong to one HTTP/1 connection.
pub(super) fn write_fields(head: &Head) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(head.len());
    for (known, name, value) in head.known_fields() {
        let is_of_http1 = matches!(
            known,
            Known::Host | Known::Connection | Known::Upgrade | Known::TransferEncoding
        );
        if is_of_http1 || known == Known::KeepAlive || known == Known::ProxyConnection {
            continue;
        }
        // A head holds tokens and field values only; the map takes both.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    map
}

/// The names that aren't lower-case.
fn case(head: &Head) -> HeaderValue {
    let mut names = Vec::new();
    for (name, _) in head.fields() {
        if name.iter().any(u8::is_ascii_uppercase) {
            if !names.is_empty() {
                names.push(b',');
            }
            names.extend_from_slice(name);
        }
    }
    HeaderValue::from_bytes(&names).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(head: &Head) -> String {
        let mut out = Vec::new();
        head.write_request(&mut out);
        String::from_utf8(out).expect("ASCII")
    }

    fn read(request: &Request<()>, peer: Peer) -> Result<Head, Invalid> {
        let mut head = Head::default();
        read_request(request, peer, &Limits::default(), &mut head).map(|()| head)
    }

    fn request(method: &str, uri: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("valid")
    }

    #[test]
    fn a_request_becomes_what_http_1_would_have_said() {
        let cookies = [("cookie", "a=1"), ("x-b", "2"), ("cookie", "c=3")];
        let head = read(
            &request("GET", "http://shop:80/a?b", &cookies),
            Peer::Foreign,
        );
        assert_eq!(
            written(&head.expect("valid")),
            "GET /a?b HTTP/1.1\r\nhost: shop:80\r\nx-b: 2\r\ncookie: a=1; c=3\r\n"
        );
    }

    #[test]
    fn what_two_readers_could_understand_differently_is_refused() {
        for (uri, fields) in [
            ("http://a/", &[("host", "b")][..]),
            ("/", &[("host", "a"), ("host", "b")]),
            ("http://user@a/", &[]),
        ] {
            assert!(
                read(&request("GET", uri, fields), Peer::Foreign).is_err(),
                "{uri}"
            );
        }
        for (protocol, fields) in [
            ("websocket\r\nx-forwarded-client-cert: me", &[][..]),
            ("websocket\r\n\r\nGET / HTTP/1.1", &[]),
            ("", &[]),
            ("websocket", &[("content-length", "5")]),
        ] {
            let mut connect = request("CONNECT", "http://a/", fields);
            connect.extensions_mut().insert(Protocol::from(protocol));
            assert!(read(&connect, Peer::Foreign).is_err(), "{protocol:?}");
        }
        assert!(read(&request("GET", "/", &[]), Peer::Foreign).is_err());
        let many: Vec<_> = (0..101).map(|_| ("x", "y")).collect();
        let many = read(&request("GET", "http://a/", &many), Peer::Foreign);
        assert_eq!(many.err(), Some(Invalid::TooMany(100)));
    }

    #[test]
    fn names_keep_their_case_between_sidecars_only() {
        let mut head = Head::request("GET", "/");
        head.add("Host", b"a");
        head.add("X-Request-ID", b"1");
        head.add("accept", b"2");
        head.add("Connection", b"close");
        head.remove_hop_by_hop();
        let request = write_request(&head, Peer::Mesh, false).expect("valid");
        assert_eq!(request.headers()[&CASE], "Host,X-Request-ID");
        let here = read(&request, Peer::Mesh).expect("valid");
        assert_eq!(
            written(&here),
            "GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: 1\r\naccept: 2\r\n"
        );
        let there = read(&request, Peer::Foreign).expect("valid");
        assert_eq!(
            written(&there),
            "GET / HTTP/1.1\r\nhost: a\r\nx-request-id: 1\r\naccept: 2\r\n"
        );
        let request = write_request(&head, Peer::Foreign, false).expect("valid");
        assert!(!has_case(request.headers()));
    }

    #[test]
    fn extended_connect_is_an_upgrade_and_back() {
        let mut connect = request(
            "CONNECT",
            "http://a/chat",
            &[("sec-websocket-version", "13")],
        );
        connect
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        let mut head = read(&connect, Peer::Foreign).expect("valid");
        assert_eq!((head.method(), head.target()), (&b"GET"[..], &b"/chat"[..]));
        assert_eq!(head.get(Known::Upgrade), Some(&b"websocket"[..]));
        head.add("Sec-WebSocket-Key", b"x");
        let again = write_request(&head, Peer::Foreign, true).expect("valid");
        assert_eq!(again.method(), Method::CONNECT);
        let protocol = again.extensions().get::<Protocol>().map(Protocol::as_str);
        assert_eq!(protocol, Some("websocket"));
        assert_eq!(again.headers().len(), 1, "{:?}", again.headers());
    }
}
