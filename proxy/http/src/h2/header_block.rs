//! Header sections in and out: a field block (RFC 9113, section 4.3) is decoded into a [`Head`], in HTTP/1 form, and a
//! [`Head`] is encoded as a field block.
//!
//! HTTP/2 has no upper-case names. Between two sidecars of ours names keep their case, and a private field, which the
//! receiving sidecar consumes, marks the message as HTTP/1: apps get the names that callers wrote, and the other way
//! round.

use super::hpack::{Case, Decoder, Kind, Line, indexed};
use super::prefix_cache::{CacheLookup, PrefixCache};
use crate::h1::{self, HeadLimits, InvalidHead};
use crate::head::{FieldName, FieldSet, Head, Span, Version};

/// The field that marks a request as HTTP/1, and carries an HTTP/1 response's reason phrase if that is unusual.
pub(super) const HTTP1: &[u8] = b"x-leno-http1";

/// Connection-specific fields of HTTP/1 (RFC 9113, section 8.2.2).
pub(super) const CONNECTION: FieldSet = FieldSet::of(&[
    FieldName::Connection,
    FieldName::Upgrade,
    FieldName::TransferEncoding,
    FieldName::KeepAlive,
    FieldName::ProxyConnection,
]);

/// The kind of a peer: only a sidecar of ours may send mixed-case names and the private field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// A sidecar of ours that proved to be in the mesh.
    Mesh,
    /// Any other peer.
    Foreign,
}

impl Peer {
    /// Case of the field names sent to the peer and accepted from it.
    pub(super) fn case(self) -> Case {
        match self {
            Peer::Mesh => Case::Kept,
            Peer::Foreign => Case::Lower,
        }
    }
}

/// Reason for rejecting a header section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadError {
    /// The field block can't be decoded: a connection error (RFC 9113, section 4.3).
    Garbled,
    /// The message is malformed (RFC 9113, section 8.1.1): its stream is reset.
    Malformed(&'static str),
    /// The message can't be expressed in HTTP/1, or is too large: it is answered with an error response.
    Invalid(InvalidHead),
}

/// Builds a head from the lines of a field block.
struct Reader<'a> {
    head: &'a mut Head,
    peer: Peer,
    limits: &'a HeadLimits,
    bad: Option<HeadError>,
    /// The cookies so far, joined; an empty one is a field too.
    cookies: Option<Vec<u8>>,
    so_far: SoFar,
}

/// State of a partly read field block, besides the head.
#[derive(Debug, Clone, Copy, Default)]
struct SoFar {
    count: usize,
    bytes: usize,
    pseudo: [Option<Span>; 6],
    has_fields: bool,
    has_host: bool,
    /// Value of the private field, if it was received.
    http1: Option<Span>,
}

impl<'a> Reader<'a> {
    fn new(head: &'a mut Head, peer: Peer, limits: &'a HeadLimits) -> Reader<'a> {
        head.begin_http2();
        Reader {
            head,
            peer,
            limits,
            bad: None,
            cookies: None,
            so_far: SoFar::default(),
        }
    }

    /// Copies the head and the state so far, for a block that begins with the same lines. `None` if the lines are
    /// invalid, if cookies are still to be joined, or if there is too much to keep.
    fn snapshot(&self) -> Option<(Head, SoFar)> {
        const MUCH: usize = 2048;
        let is_whole = self.bad.is_none() && self.cookies.is_none() && self.so_far.bytes <= MUCH;
        is_whole.then(|| (self.head.clone(), self.so_far))
    }

    /// Restores the snapshot of an earlier block that begins with the same lines.
    fn resume(&mut self, (head, so_far): &(Head, SoFar)) {
        self.head.copy_from(head);
        self.so_far = *so_far;
    }

    #[cold]
    fn bad(&mut self, bad: HeadError) {
        self.bad.get_or_insert(bad);
    }

    #[inline]
    fn lines(&mut self, decoder: &mut Decoder, mut block: &[u8]) -> Result<(), HeadError> {
        while let Some(line) = decoder.line(&mut block).map_err(|_| HeadError::Garbled)? {
            self.line(&line);
        }
        Ok(())
    }

    #[inline]
    fn line(&mut self, line: &Line<'_>) {
        self.so_far.bytes += line.name.len() + line.value.len();
        if self.so_far.bytes > self.limits.head_bytes {
            self.bad(HeadError::Invalid(InvalidHead::TooLarge(
                self.limits.head_bytes,
            )));
        }
        if self.bad.is_some() {
            return;
        }
        match line.kind {
            Kind::Field(FieldName::Host | FieldName::Http1) => self.special(line),
            Kind::Field(known) => self.field(line, known),
            Kind::Cookie if self.so_far.http1.is_some() => self.field(line, FieldName::Other),
            Kind::Cookie => self.cookie(line),
            Kind::Malformed(why) => self.bad(HeadError::Malformed(why.text())),
            kind => self.pseudo_header(line, kind),
        }
    }

    fn field(&mut self, line: &Line<'_>, known: FieldName) {
        self.one_more();
        if self.bad.is_none() {
            let mixed_case = self.peer == Peer::Mesh;
            match line.whole {
                Some(text) => self.head.add_line(text, line.name.len(), known, mixed_case),
                None => (self.head).add_checked(line.name, known, line.value, mixed_case),
            }
        }
    }

    /// Handles the private field and `Host`.
    fn special(&mut self, line: &Line<'_>) {
        match line.kind {
            Kind::Field(FieldName::Http1)
                if self.peer == Peer::Mesh && self.so_far.http1.is_none() =>
            {
                // The private field doesn't count towards the limits of a head.
                self.so_far.bytes -= line.name.len() + line.value.len();
                self.begin_fields();
                self.so_far.http1 = Some(self.head.append_text(line.value));
            }
            Kind::Field(FieldName::Http1) => self.one_more(),
            _ => {
                if self.check_host(line.value) {
                    self.field(line, FieldName::Host);
                }
            }
        }
    }

    /// Joins cookies: HTTP/2 may split them into several lines; HTTP/1 has one field (RFC 9113, section 8.2.3).
    fn cookie(&mut self, line: &Line<'_>) {
        self.one_more();
        match &mut self.cookies {
            None => self.cookies = Some(line.value.to_vec()),
            Some(cookies) => {
                cookies.extend_from_slice(b"; ");
                cookies.extend_from_slice(line.value);
            }
        }
    }

    fn pseudo_header(&mut self, line: &Line<'_>, kind: Kind) {
        let place = &mut self.so_far.pseudo[pseudo(kind)];
        if self.so_far.has_fields {
            return self.bad(HeadError::Malformed("a pseudo-header after a field"));
        }
        if place.is_some() {
            return self.bad(HeadError::Malformed("a pseudo-header twice"));
        }
        *place = Some(self.head.append_text(line.value));
    }

    /// Counts a field.
    fn one_more(&mut self) {
        self.begin_fields();
        self.so_far.count += 1;
        if self.so_far.count > self.limits.headers {
            self.bad(HeadError::Invalid(InvalidHead::TooMany(
                self.limits.headers,
            )));
        }
    }

    /// Ends the pseudo-header fields: `:authority`, if there is one, becomes the first field, `Host`.
    fn begin_fields(&mut self) {
        if std::mem::replace(&mut self.so_far.has_fields, true) {
            return;
        }
        if let Some(authority) = self.so_far.pseudo[pseudo(Kind::Authority)]
            && !self.head.text(authority).is_empty()
        {
            self.head.add_with_text(b"host", FieldName::Host, authority);
        }
    }

    /// Checks a `Host` against `:authority` and against others; returns `true` if it is to be added.
    fn check_host(&mut self, value: &[u8]) -> bool {
        self.begin_fields();
        let is_second = std::mem::replace(&mut self.so_far.has_host, true);
        let invalid = match self.head.get(FieldName::Host) {
            _ if is_second => "more than one Host header",
            None => return true,
            Some(host) if host.eq_ignore_ascii_case(value) => return false,
            Some(_) => "Host differs from :authority",
        };
        self.bad(HeadError::Invalid(InvalidHead::Syntax(invalid)));
        false
    }

    fn text(&self, kind: Kind) -> Option<&[u8]> {
        self.so_far.pseudo[pseudo(kind)].map(|span| self.head.text(span))
    }

    fn has(&self, kind: Kind) -> bool {
        self.so_far.pseudo[pseudo(kind)].is_some()
    }

    /// Ends the fields: returns the first error, or adds the joined cookies.
    fn end(&mut self) -> Result<(), HeadError> {
        self.begin_fields();
        if let Some(bad) = self.bad {
            return Err(bad);
        }
        if let Some(cookies) = &self.cookies {
            self.head.add_known(b"cookie", FieldName::Other, cookies);
        }
        Ok(())
    }

    /// Sets the request line and checks the request. Extended CONNECT (RFC 8441) becomes the GET with `Upgrade` of an
    /// HTTP/1 client.
    fn request(&mut self) -> Result<(), HeadError> {
        let syntax = |text| Err(HeadError::Invalid(InvalidHead::Syntax(text)));
        let method =
            self.so_far.pseudo[pseudo(Kind::Method)].ok_or(HeadError::Malformed("no :method"))?;
        let is_connect = self.head.text(method) == b"CONNECT";
        let protocol = self.text(Kind::Protocol).map(<[u8]>::to_vec);
        let path = self.so_far.pseudo[pseudo(Kind::Path)];
        let is_whole =
            path.is_some_and(|path| !self.head.text(path).is_empty()) && self.has(Kind::Scheme);
        match (is_connect, &protocol) {
            (true, None) if path.is_some() || self.has(Kind::Scheme) => {
                return Err(HeadError::Malformed("CONNECT with :path or :scheme"));
            }
            (true, None) => {}
            (false, Some(_)) => return Err(HeadError::Malformed(":protocol without CONNECT")),
            _ if !is_whole => return Err(HeadError::Malformed("no :path or :scheme")),
            _ => {}
        }
        // An absolute target, as a proxy takes it in HTTP/1, would compete with :authority (RFC 9113, section 8.3.1).
        let is_path = |path: Span| matches!(self.head.text(path), [b'/', ..] | [b'*']);
        let is_no_path = path.is_some_and(|path| !is_path(path));
        if self.has(Kind::Status) {
            return Err(HeadError::Malformed(":status in a request"));
        }
        let (method, target) = match (is_connect, &protocol) {
            (true, Some(_)) => (self.head.append_text(b"GET"), path),
            (true, None) => (method, self.so_far.pseudo[pseudo(Kind::Authority)]),
            (false, _) => (method, path),
        };
        let name = self.head.text(method);
        if !h1::is_token_method(name) {
            return Err(HeadError::Malformed("invalid method"));
        }
        let target = target.unwrap_or_default();
        self.head.set_request_line(method, target, Version::Http2);
        if is_no_path {
            return syntax(":path is neither a path nor *");
        }
        if self.head.get(FieldName::Host).is_none_or(<[u8]>::is_empty) {
            return syntax("neither :authority nor Host");
        }
        if let Some(protocol) = protocol {
            // A tunnel has no length.
            if !h1::is_token(&protocol) {
                return syntax("invalid :protocol");
            }
            if self.head.get(FieldName::ContentLength).is_some() {
                return syntax("Content-Length with :protocol");
            }
            self.head.add("connection", b"upgrade");
            self.head.add("upgrade", &protocol);
        }
        h1::check_request(self.head).map_err(HeadError::Invalid)
    }

    fn response(&mut self) -> Result<(), HeadError> {
        let status = self
            .text(Kind::Status)
            .ok_or(HeadError::Malformed("no :status"))?;
        let requests = [
            Kind::Method,
            Kind::Scheme,
            Kind::Authority,
            Kind::Path,
            Kind::Protocol,
        ];
        if requests.into_iter().any(|kind| self.has(kind)) {
            return Err(HeadError::Malformed(
                "a request's pseudo-header in a response",
            ));
        }
        let [
            hundreds @ b'1'..=b'9',
            tens @ b'0'..=b'9',
            ones @ b'0'..=b'9',
        ] = *status
        else {
            return Err(HeadError::Malformed("invalid :status"));
        };
        let digit = |byte: u8| u16::from(byte - b'0');
        let status = digit(hundreds) * 100 + digit(tens) * 10 + digit(ones);
        let reason = self.so_far.http1.unwrap_or_default();
        self.head.set_status_line(status, reason, Version::Http2);
        Ok(())
    }
}

fn pseudo(kind: Kind) -> usize {
    match kind {
        Kind::Method => 0,
        Kind::Scheme => 1,
        Kind::Authority => 2,
        Kind::Path => 3,
        Kind::Status => 4,
        _ => 5,
    }
}

/// Decodes the header sections received on a connection.
#[derive(Debug)]
pub(super) struct HeadDecoder {
    peer: Peer,
    limits: HeadLimits,
    decoder: Decoder,
    prefixes: PrefixCache<(Head, SoFar)>,
}

impl HeadDecoder {
    /// Creates the decoder of the header sections that `peer` sends.
    pub(super) fn new(peer: Peer, limits: HeadLimits) -> HeadDecoder {
        HeadDecoder {
            peer,
            limits,
            decoder: Decoder::new(peer.case()),
            prefixes: PrefixCache::default(),
        }
    }

    /// Decodes a field block only for its effect on the dynamic table.
    ///
    /// # Errors
    /// [`HeadError::Garbled`] when the block can't be decoded.
    pub(super) fn skip(&mut self, block: &[u8]) -> Result<(), HeadError> {
        self.decoder.skip(block).map_err(|_| HeadError::Garbled)
    }

    /// Reads a request; returns `true` for an HTTP/1 request that a sidecar carries.
    ///
    /// # Errors
    /// [`HeadError`] when it is rejected.
    pub(super) fn request(&mut self, block: &[u8], head: &mut Head) -> Result<bool, HeadError> {
        let mut reader = self.read(block, head)?;
        // Set before any error, so that a request answered with an error keeps its own method and target.
        if let Some(method) = reader.so_far.pseudo[pseudo(Kind::Method)] {
            let target = reader.so_far.pseudo[pseudo(Kind::Path)].unwrap_or_default();
            reader.head.set_request_line(method, target, Version::Http2);
        }
        reader.end()?;
        reader.request()?;
        Ok(reader.so_far.http1.is_some())
    }

    /// Reads a response.
    ///
    /// # Errors
    /// [`HeadError`] when it is rejected.
    pub(super) fn response(&mut self, block: &[u8], head: &mut Head) -> Result<(), HeadError> {
        let mut reader = self.read(block, head)?;
        reader.end()?;
        reader.response()
    }

    /// Reads a trailer section.
    ///
    /// # Errors
    /// [`HeadError`] when it is rejected.
    pub(super) fn trailers(&mut self, block: &[u8], head: &mut Head) -> Result<(), HeadError> {
        let mut reader = self.read(block, head)?;
        reader.end()?;
        if reader.so_far.pseudo.iter().any(Option::is_some) {
            return Err(HeadError::Malformed("a pseudo-header in a trailer section"));
        }
        reader.head.sanitise_trailers();
        Ok(())
    }

    fn read<'a>(
        &'a mut self,
        mut block: &[u8],
        head: &'a mut Head,
    ) -> Result<Reader<'a>, HeadError> {
        let decoder = &mut self.decoder;
        decoder.begin(&mut block).map_err(|_| HeadError::Garbled)?;
        let mut reader = Reader::new(head, self.peer, &self.limits);
        let prefix;
        (prefix, block) = block.split_at(indexed(block));
        match self.prefixes.find(prefix, decoder.changes()) {
            CacheLookup::Hit(snapshot) => reader.resume(snapshot),
            CacheLookup::Fill(place) => {
                reader.lines(decoder, prefix)?;
                *place = reader.snapshot();
            }
            CacheLookup::Miss => reader.lines(decoder, prefix)?,
        }
        reader.lines(decoder, block)?;
        Ok(reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::hpack::Encoder;
    use crate::h2::write_head::{write_request, write_response};

    fn written(head: &Head) -> String {
        let mut out = Vec::new();
        head.write_request(&mut out);
        String::from_utf8(out).expect("ASCII")
    }

    /// Encodes lines as a field block, in the given order, with pseudo-header fields among them.
    fn block(lines: &[(&str, &str)]) -> Vec<u8> {
        let (mut encoder, mut out) = (Encoder::new(Case::Kept), Vec::new());
        for (name, value) in lines {
            encoder.field(
                &mut out,
                FieldName::Other,
                name.as_bytes(),
                value.as_bytes(),
            );
        }
        out
    }

    fn read(block: &[u8], peer: Peer) -> Result<Head, HeadError> {
        let (mut head, limits) = (Head::default(), HeadLimits::default());
        let mut decoder = HeadDecoder::new(peer, limits);
        decoder.request(block, &mut head).map(|_| head)
    }

    fn get<'a>(authority: &'a str, fields: &[(&'a str, &'a str)]) -> Vec<u8> {
        let begin = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/a?b"),
            (":authority", authority),
        ];
        let is_there = |(_, value): &&(&str, &str)| !value.is_empty();
        let begin: Vec<_> = begin.iter().filter(is_there).copied().collect();
        block(&[&begin, fields].concat())
    }

    #[test]
    fn a_request_becomes_what_http_1_would_have_said() {
        let cookies = [("cookie", "a=1"), ("x-b", "2"), ("cookie", "c=3")];
        let head = read(&get("shop:80", &cookies), Peer::Foreign);
        assert_eq!(
            written(&head.expect("valid")),
            "GET /a?b HTTP/1.1\r\nhost: shop:80\r\nx-b: 2\r\ncookie: a=1; c=3\r\n"
        );
        let head = read(&get("", &[("x-b", "2"), ("host", "shop")]), Peer::Foreign);
        assert_eq!(
            written(&head.expect("valid")),
            "GET /a?b HTTP/1.1\r\nx-b: 2\r\nhost: shop\r\n"
        );
    }

    #[test]
    fn cookies_are_joined_as_they_are_and_an_empty_one_stays() {
        let cases = [
            (&[""][..], "cookie: \r\n"),
            (&["a=1", ""], "cookie: a=1; \r\n"),
            (&["", "a=1"], "cookie: ; a=1\r\n"),
        ];
        for (crumbs, field) in cases {
            let fields: Vec<_> = crumbs.iter().map(|crumb| ("cookie", *crumb)).collect();
            let head = read(&get("shop:80", &fields), Peer::Foreign).expect("valid");
            let expected = format!("GET /a?b HTTP/1.1\r\nhost: shop:80\r\n{field}");
            assert_eq!(written(&head), expected, "{crumbs:?}");
        }
        // `:method: GET`, `:scheme: http`, `:path: /` and `cookie` by their indexes, then `host: shop`: a block that begins
        // like one before is read from its snapshot, if there may be one.
        let block = b"\x82\x86\x84\xa0\x0f\x17\x04shop";
        let mut decoder = HeadDecoder::new(Peer::Foreign, HeadLimits::default());
        for _ in 0..5 {
            let mut head = Head::default();
            decoder.request(block, &mut head).expect("valid");
            assert_eq!(
                written(&head),
                "GET / HTTP/1.1\r\nhost: shop\r\ncookie: \r\n"
            );
        }
    }

    #[test]
    fn what_two_readers_could_understand_differently_is_refused() {
        for (authority, fields) in [
            ("a", &[("host", "b")][..]),
            ("", &[("host", "a"), ("host", "b")]),
            ("", &[]),
            ("user@a", &[]),
            ("a", &[("x", "a\r\nb")]),
            ("a", &[("x y", "a")]),
            ("a", &[("transfer-encoding", "chunked")]),
            ("a", &[("connection", "close")]),
            ("a", &[("te", "gzip")]),
            ("a", &[(":path", "/")]),
            ("a", &[("x", "y"), (":method", "GET")]),
            ("a", &[(":status", "200")]),
            ("a", &[(":unknown", "200")]),
        ] {
            assert!(
                read(&get(authority, fields), Peer::Foreign).is_err(),
                "{authority} {fields:?}"
            );
        }
        for lines in [
            &[(":method", "GET"), (":authority", "a")][..],
            &[(":scheme", "http"), (":path", "/"), (":authority", "a")],
            &[
                (":method", "G T"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "a"),
            ],
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/ x"),
                (":authority", "a"),
            ],
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "http://b/"),
                (":authority", "a"),
            ],
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":protocol", "websocket"),
            ],
            &[
                (":method", "CONNECT"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "a:1"),
            ],
        ] {
            assert!(read(&block(lines), Peer::Foreign).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn a_head_is_bounded_however_it_is_told() {
        let many: Vec<_> = (0..101).map(|_| ("x", "y")).collect();
        let many = read(&get("a", &many), Peer::Foreign);
        assert_eq!(
            many.err(),
            Some(HeadError::Invalid(InvalidHead::TooMany(100)))
        );
        // Each repetition of the line is one byte, an index of the dynamic table.
        let value = "x".repeat(900);
        for name in ["x", "x-leno-http1"] {
            let many = get("a", &[(name, &*value); 80]);
            assert!(many.len() < 3_000);
            let mut head = Head::default();
            for peer in [Peer::Foreign, Peer::Mesh] {
                let mut decoder = HeadDecoder::new(peer, HeadLimits::default());
                let read = decoder.request(&many, &mut head);
                assert_eq!(
                    read.err(),
                    Some(HeadError::Invalid(InvalidHead::TooLarge(60 * 1024)))
                );
                assert!(head.buffer().len() < 64 * 1024);
                assert_eq!(head.method(), b"GET");
            }
        }
    }

    fn mesh() -> HeadDecoder {
        HeadDecoder::new(Peer::Mesh, HeadLimits::default())
    }

    /// The caches of either side never take one message for another.
    #[test]
    fn alike_messages_arrive_as_they_were_sent() {
        let mut rng = fastrand::Rng::with_seed(7);
        for peer in [Peer::Mesh, Peer::Foreign] {
            let mut encoder = Encoder::new(peer.case());
            let mut decoder = HeadDecoder::new(peer, HeadLimits::default());
            for round in 0..4_000 {
                let mut head = Head::request("GET", ["/a", "/b"][rng.usize(..2)]);
                head.add("host", b"shop");
                // Mostly a few kinds of messages, and sometimes any.
                let kind = rng.u32(..4);
                for name in [
                    "accept",
                    "user-agent",
                    "x-a",
                    "connection",
                    "x-b",
                    "te",
                    "x-c",
                ] {
                    let value = match rng.u32(..40) {
                        0 => format!("{name} {}", rng.u32(..3)),
                        1 => format!("{name} {round} {}", "x".repeat(rng.usize(1..300))),
                        2 => continue,
                        _ => format!("{name} {kind}"),
                    };
                    head.add(name, value.as_bytes());
                    if rng.u32(..20) == 0 {
                        head.set(name, FieldName::of(name.as_bytes()), b"another");
                    }
                }
                head.remove_hop_by_hop();
                head.add("x-request-id", round.to_string().as_bytes());
                head.add("x-envoy-attempt-count", b"1");
                let (mut out, mut here) = (Vec::new(), Head::default());
                write_request(&mut encoder, &mut out, &head, false);
                let is_carried = decoder.request(&out, &mut here);
                assert_eq!(is_carried, Ok(peer == Peer::Mesh));
                let mut sent: Vec<_> = head.fields().collect();
                let id = sent.remove(sent.len() - 2);
                sent.push(id);
                assert_eq!(here.fields().collect::<Vec<_>>(), sent, "{round}");
                assert_eq!((here.target(), here.size()), (head.target(), head.size()));
            }
        }
    }

    fn request(head: &Head, peer: Peer) -> Vec<u8> {
        let mut out = Vec::new();
        write_request(&mut Encoder::new(peer.case()), &mut out, head, false);
        out
    }

    #[test]
    fn a_message_of_http_1_stays_as_it_is_between_sidecars_only() {
        let mut head = Head::request("GET", "/");
        head.add("User-Agent", b"x");
        head.add("HOST", b"a");
        head.add("Cookie", b"a=1");
        head.add("X-Request-ID", b"1");
        head.add("accept", b"2");
        head.add("Connection", b"close");
        head.remove_hop_by_hop();
        let block = request(&head, Peer::Mesh);
        let (mut here, mut decoder) = (Head::default(), mesh());
        assert_eq!(decoder.request(&block, &mut here), Ok(true));
        let lines = "User-Agent: x\r\nHOST: a\r\nCookie: a=1\r\naccept: 2\r\nX-Request-ID: 1\r\n";
        assert_eq!(written(&here), format!("GET / HTTP/1.1\r\n{lines}"));
        let there = read(&request(&head, Peer::Foreign), Peer::Foreign).expect("valid");
        assert_eq!(
            written(&there),
            "GET / HTTP/1.1\r\nhost: a\r\nuser-agent: x\r\naccept: 2\r\nx-request-id: 1\r\ncookie: a=1\r\n"
        );
        // Mixed-case names from any other peer are malformed.
        assert!(read(&block, Peer::Foreign).is_err());
        // The private field doesn't count towards the limits of a head.
        let mut full = Head::request("GET", "/");
        full.add("Host", b"a");
        (1..100).for_each(|_| full.add("X-Name", b"v"));
        assert!(read(&request(&full, Peer::Mesh), Peer::Mesh).is_ok());
    }

    #[test]
    fn a_name_that_the_path_knows_keeps_its_case_whoever_wrote_it_before() {
        let mut encoder = Encoder::new(Case::Kept);
        let mut decoder = mesh();
        for round in 0..4 {
            for name in ["x-request-id", "X-Request-Id", "traceparent", "TraceParent"] {
                let mut head = Head::request("GET", "/");
                head.add("Host", b"a");
                head.add(name, round.to_string().as_bytes());
                let (mut out, mut here) = (Vec::new(), Head::default());
                write_request(&mut encoder, &mut out, &head, false);
                decoder.request(&out, &mut here).expect("valid");
                assert_eq!(written(&here), written(&head));
            }
        }
    }

    #[test]
    fn a_reason_travels_where_it_is_unusual() {
        let (mut encoder, mut decoder) = (Encoder::new(Case::Kept), mesh());
        for (line, written) in [
            ("HTTP/1.1 200 OK", "200 OK"),
            ("HTTP/1.1 404 Nope", "404 Nope"),
        ] {
            let mut head = Head::default();
            head.clear();
            head.buffer()
                .extend_from_slice(format!("{line}\r\n\r\n").as_bytes());
            let parsed = h1::parse_response(
                &mut head,
                &HeadLimits::default(),
                &mut h1::LastHead::default(),
            );
            parsed.expect("a response");
            let (mut out, mut here, mut text) = (Vec::new(), Head::default(), Vec::new());
            write_response(&mut encoder, &mut out, &head);
            decoder.response(&out, &mut here).expect("valid");
            here.write_response(&mut text);
            assert_eq!(
                String::from_utf8(text),
                Ok(format!("HTTP/1.1 {written}\r\n"))
            );
        }
    }

    #[test]
    fn extended_connect_is_an_upgrade_and_back() {
        let connect = |protocol, fields: &[(&'static str, &'static str)]| {
            let begin = [
                (":method", "CONNECT"),
                (":protocol", protocol),
                (":scheme", "http"),
                (":path", "/chat"),
                (":authority", "a"),
            ];
            block(&[&begin, fields].concat())
        };
        let mut head = read(&connect("websocket", &[]), Peer::Foreign).expect("valid");
        assert_eq!((head.method(), head.target()), (&b"GET"[..], &b"/chat"[..]));
        assert_eq!(head.get(FieldName::Upgrade), Some(&b"websocket"[..]));
        head.add("Sec-WebSocket-Key", b"x");
        let mut out = Vec::new();
        write_request(&mut Encoder::new(Case::Lower), &mut out, &head, true);
        let again = read(&out, Peer::Foreign).expect("valid");
        assert_eq!(
            written(&again),
            "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        );
        for (protocol, fields) in [
            ("websocket\r\nx-forwarded-client-cert: me", &[][..]),
            ("websocket/1 2", &[]),
            ("", &[]),
            ("websocket", &[("content-length", "5")]),
        ] {
            let read = read(&connect(protocol, fields), Peer::Foreign);
            assert!(read.is_err(), "{protocol:?}");
        }
    }
}
