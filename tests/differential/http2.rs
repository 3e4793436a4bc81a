//! Our HTTP/2 against the `h2` crate. The relation: every request that ours reads whole, `h2` reads as well, and the same
//! way: method, path, authority, fields, body and trailers. Good requests both read all. (Ours may refuse more. Where `h2`
//! ends a connection by an error, which loses what had just arrived, the longest beginning is compared that it accepts; a request that was
//! sent whole, before what is wrong with its stream, may be ours alone.)

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use http::Response;
use http::uri::{Authority, PathAndQuery};
use leno_http::Incoming;
use leno_http::h1::{Framing, HeadLimits, Timeouts};
use leno_http::h2::{ServerConfig, StreamRequest, serve};
use leno_http::head::{FieldName, Head};
use leno_http::stream::Stream;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::LocalSet;
use tokio::time::timeout;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
/// Bytes of a connection that wait to be read.
const BUFFER: usize = 1 << 20;
/// The last frame of a connection: a PING, whose answer says that all was read.
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0leno-end";

/// A request as a reader understood it; names are in lower case, and sorted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Read {
    method: Vec<u8>,
    path: Vec<u8>,
    authority: Vec<u8>,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
}

fn sorted<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<(String, Vec<u8>)> {
    let lower = |name: &[u8]| String::from_utf8_lossy(name).to_lowercase();
    let mut fields: Vec<_> = fields
        .map(|(name, value)| (lower(name), value.to_vec()))
        .collect();
    fields.sort();
    fields
}

/// Sends `bytes`, waits until all was read or the connection has ended, and closes it.
async fn client(mut io: DuplexStream, bytes: &[u8]) {
    let _ = io.write_all(bytes).await;
    let mut answer = Vec::new();
    let is_over = |answer: &[u8]| answer.windows(8).any(|eight| eight == &PING[9..]);
    let reading = async {
        while !is_over(&answer) && io.read_buf(&mut answer).await.is_ok_and(|count| count > 0) {}
    };
    // A reader that waits for the rest of a frame answers no more.
    let _ = timeout(Duration::from_millis(20), reading).await;
    // The answers to the last requests.
    let _ = timeout(Duration::from_millis(1), io.read_buf(&mut answer)).await;
}

/// The requests of a connection that our reader reads whole.
async fn ours(bytes: &[u8]) -> Vec<Read> {
    let (io, server) = tokio::io::duplex(BUFFER);
    let all: Rc<RefCell<Vec<Read>>> = Rc::default();
    let kept = Rc::clone(&all);
    let second = Duration::from_secs(1);
    let config = ServerConfig {
        limits: HeadLimits::default(),
        timeouts: Timeouts {
            idle: second,
            head: second,
            flush: second,
        },
        is_mesh: false,
        is_ours: false,
        until: None,
    };
    let handle = async move |request: &mut StreamRequest| {
        let Some(stream) = request.stream.as_mut().filter(|_| request.read.is_ok()) else {
            return;
        };
        let mut body = Vec::new();
        loop {
            match poll_fn(|cx| stream.poll_data(cx)).await {
                Ok(true) => {
                    let count = stream.data().len();
                    body.extend_from_slice(stream.data());
                    stream.consume(count);
                }
                Ok(false) => break,
                Err(_) => return,
            }
        }
        let head = &request.head;
        let is_own = |(name, _): &(&[u8], &[u8])| !name.eq_ignore_ascii_case(b"host");
        kept.borrow_mut().push(Read {
            method: head.method().to_vec(),
            path: head.target().to_vec(),
            authority: head.get(FieldName::Host).unwrap_or_default().to_vec(),
            fields: sorted(head.fields().filter(is_own)),
            body,
            trailers: stream
                .trailers()
                .map(|head| sorted(head.fields()))
                .unwrap_or_default(),
        });
        stream.respond(&mut Head::response(204), Framing::Empty);
    };
    let serving = serve(
        Stream::Tunnel(Box::new(server)),
        Vec::new(),
        config,
        std::future::pending(),
        handle,
    );
    tokio::join!(serving, client(io, bytes));
    all.take()
}

/// Fields that Leno removes from a trailer section (RFC 9110, section 6.5.1), of those that the damage can make.
const NO_TRAILERS: [&str; 5] = [
    "content-length",
    "host",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
];

/// The same by the `h2` crate; `None` where it ends the connection by an error.
async fn theirs(bytes: &[u8]) -> Option<Vec<Read>> {
    let (io, server) = tokio::io::duplex(BUFFER);
    let all: Rc<RefCell<Vec<Read>>> = Rc::default();
    let kept = Rc::clone(&all);
    let serving = async move {
        let Ok(mut connection) = h2::server::handshake(server).await else {
            return false;
        };
        while let Some(accepted) = connection.accept().await {
            let (request, mut respond) = match accepted {
                Ok(accepted) => accepted,
                // The end of the client is none of h2's errors.
                Err(error) => return error.is_io(),
            };
            let kept = Rc::clone(&kept);
            tokio::task::spawn_local(async move {
                let (parts, mut incoming) = request.into_parts();
                let mut body = Vec::new();
                while let Some(data) = incoming.data().await {
                    let Ok(data) = data else { return };
                    let _ = incoming.flow_control().release_capacity(data.len());
                    body.extend_from_slice(&data);
                }
                let Ok(trailers) = incoming.trailers().await else {
                    return;
                };
                // Around a value Leno cuts off whitespace.
                let pairs = |(name, value): (&'_ http::HeaderName, &'_ http::HeaderValue)| {
                    let value = value.as_bytes().trim_ascii();
                    (name.as_str().to_owned(), value.to_vec())
                };
                let mut fields: Vec<_> = parts.headers.iter().map(pairs).collect();
                fields.sort();
                let is_kept = |(name, _): &(String, _)| !NO_TRAILERS.contains(&name.as_str());
                let mut trailers: Vec<_> = (trailers.iter().flatten().map(pairs))
                    .filter(is_kept)
                    .collect();
                trailers.sort();
                let authority = parts.uri.authority().map(|authority| authority.as_str());
                let path = parts.uri.path_and_query().map(|path| path.as_str());
                kept.borrow_mut().push(Read {
                    method: parts.method.as_str().as_bytes().to_vec(),
                    path: path.unwrap_or_default().as_bytes().to_vec(),
                    authority: authority.unwrap_or_default().as_bytes().to_vec(),
                    fields,
                    body,
                    trailers,
                });
                let response = Response::builder()
                    .status(204)
                    .body(())
                    .expect("a response");
                let _ = respond.send_response(response, true);
            });
        }
        true
    };
    let (is_whole, ()) = tokio::join!(serving, client(io, bytes));
    is_whole.then(|| all.take())
}

/// A request to be sent.
#[derive(Debug, Clone)]
struct Sent {
    post: bool,
    path: u8,
    /// Fields by number, each with the way in which it is encoded.
    fields: Vec<(u8, u8)>,
    /// Pieces of the body, each with its padding.
    body: Vec<(usize, u8)>,
    trailers: bool,
    /// Places at which the block of its head is cut.
    cuts: Vec<u8>,
    priority: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    let fields = proptest::collection::vec((0..12_u8, 0..3_u8), 0..6);
    let body = proptest::collection::vec((0..300_usize, 0..20_u8), 0..4);
    let cuts = proptest::collection::vec(any::<u8>(), 0..3);
    (
        any::<bool>(),
        0..4_u8,
        fields,
        body,
        any::<bool>(),
        cuts,
        any::<bool>(),
    )
        .prop_map(
            |(post, path, fields, body, trailers, cuts, priority)| Sent {
                post,
                path,
                fields,
                body,
                trailers,
                cuts,
                priority,
            },
        )
}

/// HPACK's dynamic table, as far as a client needs it.
#[derive(Default)]
struct Table(Vec<(String, String)>);

impl Table {
    fn string(out: &mut Vec<u8>, text: &str) {
        out.push(u8::try_from(text.len()).expect("short"));
        out.extend_from_slice(text.as_bytes());
    }

    /// Writes a field: `way` 0 adds it to the table, or is its index where it stands there; 1 and 2 are literals.
    fn write(&mut self, out: &mut Vec<u8>, name: &str, value: &str, way: u8) {
        let pair = (name.to_owned(), value.to_owned());
        let known = self.0.iter().rev().position(|known| *known == pair);
        match (way, known) {
            (0, Some(at)) if at < 60 => out.push(0x80 | u8::try_from(62 + at).expect("few")),
            (0, _) if self.0.len() < 60 => {
                out.push(0x40);
                Table::string(out, name);
                Table::string(out, value);
                self.0.push(pair);
            }
            _ => {
                out.push(if way == 1 { 0 } else { 0x10 });
                Table::string(out, name);
                Table::string(out, value);
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// The frames of requests, one after the other, and what is to be read of them.
fn frames(requests: &[Sent]) -> (Vec<Vec<u8>>, Vec<Read>) {
    let (mut table, mut frames, mut reads) = (Table::default(), Vec::new(), Vec::new());
    for (number, request) in requests.iter().enumerate() {
        let stream = u32::try_from(2 * number + 1).expect("few");
        let (path, method) = (
            format!("/{}", request.path),
            if request.post { "POST" } else { "GET" },
        );
        let mut block = vec![if request.post { 0x83 } else { 0x82 }, 0x86];
        table.write(&mut block, ":path", &path, request.path % 3);
        table.write(&mut block, ":authority", "shop", 0);
        let mut fields = Vec::new();
        for (field, way) in &request.fields {
            let (name, value) = (format!("x-field-{}", field / 2), format!("value {field}"));
            table.write(&mut block, &name, &value, *way);
            fields.push((name, value.into_bytes()));
        }
        fields.sort();
        let mut read = Read {
            method: method.as_bytes().to_vec(),
            path: path.into_bytes(),
            authority: b"shop".to_vec(),
            fields,
            body: Vec::new(),
            trailers: Vec::new(),
        };
        let is_bare = request.body.is_empty() && !request.trailers;
        head(&mut frames, stream, &block, request, is_bare);
        for (at, (length, padding)) in request.body.iter().enumerate() {
            let data = vec![b'a' + u8::try_from(at).expect("few"); *length];
            read.body.extend_from_slice(&data);
            let is_last = at + 1 == request.body.len() && !request.trailers;
            let ends = if is_last { END_STREAM } else { 0 };
            frames.push(match padding {
                0 => frame(0, ends, stream, &data),
                _ => {
                    let padded = [&[*padding][..], &data, &vec![0; usize::from(*padding)]].concat();
                    frame(0, ends | PADDED, stream, &padded)
                }
            });
        }
        if request.trailers {
            let mut block = Vec::new();
            table.write(&mut block, "x-sum", "7", 0);
            frames.push(frame(1, END_HEADERS | END_STREAM, stream, &block));
            read.trailers.push(("x-sum".to_owned(), b"7".to_vec()));
        }
        reads.push(read);
    }
    (frames, reads)
}

/// HEADERS with `block`, cut into CONTINUATION frames.
fn head(frames: &mut Vec<Vec<u8>>, stream: u32, block: &[u8], request: &Sent, ends: bool) {
    let mut cuts: Vec<usize> = request
        .cuts
        .iter()
        .map(|cut| usize::from(*cut) % block.len())
        .collect();
    cuts.push(block.len());
    cuts.sort_unstable();
    let mut at = 0;
    let mut whole = Vec::new();
    for (number, cut) in cuts.iter().enumerate() {
        let mut flags = if number + 1 == cuts.len() {
            END_HEADERS
        } else {
            0
        };
        let mut payload = Vec::new();
        if number == 0 {
            flags |= if ends { END_STREAM } else { 0 };
            if request.priority {
                flags |= 0x20;
                payload.extend_from_slice(&[0, 0, 0, 0, 15]);
            }
        }
        payload.extend_from_slice(&block[at..*cut]);
        whole.extend(frame(
            if number == 0 { 1 } else { 9 },
            flags,
            stream,
            &payload,
        ));
        at = *cut;
    }
    frames.push(whole);
}

fn both(bytes: &[u8]) -> (Vec<Read>, Option<Vec<Read>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let run = async { (ours(bytes).await, theirs(bytes).await) };
    LocalSet::new().block_on(&runtime, run)
}

fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &frame(4, 0, 0, b""), &frames.concat(), PING].concat()
}

proptest! {
    #![proptest_config(crate::cases(300))]

    #[test]
    fn good_streams_are_all_read_as_h2_reads_them(requests in proptest::collection::vec(sent(), 1..6)) {
        let (frames, expected) = frames(&requests);
        let (mut ours, theirs) = both(&connection(&frames));
        let mut theirs = theirs.unwrap_or_default();
        let mut expected = expected;
        expected.sort();
        ours.sort();
        theirs.sort();
        prop_assert_eq!(&ours, &expected);
        prop_assert_eq!(theirs, expected);
    }
}

/// True where the `http` crate, which h2 reads URIs by, takes the path and the authority as they are: it takes fewer
/// characters than Leno.
fn is_uri(read: &Read) -> bool {
    let authority = Authority::try_from(&read.authority[..]);
    let path = PathAndQuery::try_from(&read.path[..]);
    authority.is_ok() && path.is_ok_and(|path| path.as_str().as_bytes() == read.path)
}

proptest! {
    #![proptest_config(crate::cases(1_500))]

    #[test]
    fn what_ours_reads_of_damaged_streams_h2_reads_the_same(
        requests in proptest::collection::vec(sent(), 1..5),
        damage in 0..4_u8,
        at in any::<proptest::sample::Index>(),
        other in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let (mut frames, sent) = frames(&requests);
        let (one, two) = (at.index(frames.len()), other.index(frames.len()));
        match damage {
            0 => {
                let within = other.index(frames[one].len());
                frames[one][within] = byte;
            }
            1 => drop(frames.remove(one)),
            2 => frames.insert(two, frames[one].clone()),
            _ => frames.swap(one, two),
        }
        for count in (0..=frames.len()).rev() {
            let bytes = connection(&frames[..count]);
            let (ours, Some(theirs)) = both(&bytes) else {
                continue;
            };
            for read in ours.into_iter().filter(is_uri) {
                let is_right = theirs.contains(&read) || sent.contains(&read);
                prop_assert!(is_right, "only ours reads {read:?} of {bytes:02x?}; h2 reads {theirs:?}");
            }
            break;
        }
    }
}
