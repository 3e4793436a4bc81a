//! What a peer can provoke by frames, requirement by requirement (RFC 9113, RFC 7541): `requirements.txt` says in which
//! language its rows are written. Each row runs on a [`Core`] of its own, without IO.

use std::collections::BTreeMap;

use super::*;
use crate::h1::request_framing;
use crate::h2::frame::{ACK, END_HEADERS, END_STREAM, HEADER};
use crate::h2::write_head;

const TABLE: &str = include_str!("requirements.txt");

/// `:scheme: http`, `:path: /`, `:authority: a`, the last of which is added to the table.
const PATH: &[u8] = b"\x86\x84\x41\x01a";

/// Our end of a connection, and what it did.
struct End {
    core: Core,
    slots: Vec<Rc<Slot>>,
    /// Resets that the row asks for, which are no reaction.
    resets: Vec<u32>,
    out: Vec<u8>,
}

fn codes(reason: &str) -> Option<u32> {
    (0..14).find(|code| Reason(*code).to_string() == reason)
}

/// Bytes in hexadecimal, an octet of which may be repeated by `*N`; a `.` ends the count.
fn hex(text: &str) -> Vec<u8> {
    let (mut out, mut at): (Vec<u8>, usize) = (Vec::new(), 0);
    let text: Vec<char> = text.chars().collect();
    while at < text.len() {
        if text[at] == '*' {
            let end = text[at + 1..].iter().position(|c| !c.is_ascii_digit());
            let end = end.map_or(text.len(), |end| at + 1 + end);
            let count: String = text[at + 1..end].iter().collect();
            let last = *out.last().expect("an octet");
            out.resize(
                out.len() + count.parse::<usize>().expect("a count") - 1,
                last,
            );
            at = end + usize::from(text.get(end) == Some(&'.'));
            continue;
        }
        let octet: String = text[at..at + 2].iter().collect();
        out.push(u8::from_str_radix(&octet, 16).expect("hexadecimal"));
        at += 2;
    }
    out
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head, &stream.to_be_bytes()[..], payload].concat()
}

/// The words of a row: `NxWORD` stands N times, and a word with a range of streams once for each.
fn words(row: &str) -> Vec<String> {
    let mut out = Vec::new();
    for word in row.split_whitespace() {
        let (times, word) = match word.split_once('x') {
            Some((times, word)) if times.parse::<usize>().is_ok() => {
                (times.parse().expect("a number"), word)
            }
            _ => (1, word),
        };
        for _ in 0..times {
            match word
                .split_once(':')
                .map(|(name, rest)| (name, rest.split_once("..")))
            {
                Some((name, Some((first, rest)))) => {
                    let (last, more) = match rest.find(',') {
                        Some(at) => rest.split_at(at),
                        None => (rest, ""),
                    };
                    let range =
                        first.parse::<u32>().expect("a stream")..=last.parse().expect("a stream");
                    out.extend(range.step_by(2).map(|id| format!("{name}:{id}{more}")));
                }
                _ => out.push(word.to_owned()),
            }
        }
    }
    out
}

/// The bytes of a word that the peer sends; `None` for one that our side does.
fn bytes(word: &str) -> Option<Vec<u8>> {
    let (name, rest) = word.split_once(':').unwrap_or((word, ""));
    let ends = if name.ends_with('!') { END_STREAM } else { 0 };
    let mut parts = rest.split(',');
    let mut number = || {
        parts
            .next()
            .and_then(|part| part.parse::<u32>().ok())
            .unwrap_or(0)
    };
    let block = |first: &[u8], stream| {
        Some(frame(
            frame::HEADERS,
            END_HEADERS | ends,
            stream,
            &[first, PATH].concat(),
        ))
    };
    match name.trim_end_matches('!') {
        "PREFACE" => Some(PREFACE.to_vec()),
        "RAW" => Some(hex(rest)),
        "F" => Some(any_frame(rest)),
        "HEAD" => block(b"\x82", number()),
        "POST" => block(b"\x83", number()),
        "RESP" => Some(frame(frame::HEADERS, END_HEADERS | ends, number(), b"\x88")),
        "DATA" => {
            let (stream, count) = (number(), number());
            Some(frame(
                frame::DATA,
                ends,
                stream,
                &vec![b'x'; count as usize],
            ))
        }
        "RST" => Some(frame(
            frame::RST_STREAM,
            0,
            number(),
            &number().to_be_bytes(),
        )),
        "WIN" => Some(frame(
            frame::WINDOW_UPDATE,
            0,
            number(),
            &number().to_be_bytes(),
        )),
        "GOAWAY" => Some(frame(
            frame::GOAWAY,
            0,
            0,
            &[number().to_be_bytes(), number().to_be_bytes()].concat(),
        )),
        "SET" => Some(frame(frame::SETTINGS, 0, 0, &settings(rest))),
        "SETACK" => Some(frame(frame::SETTINGS, ACK, 0, b"")),
        "PING" => Some(frame(frame::PING, 0, 0, &[0, 1, 2, 3, 4, 5, 6, 7])),
        "PINGACK" => Some(frame(frame::PING, ACK, 0, &[0, 1, 2, 3, 4, 5, 6, 7])),
        "PRI" => Some(frame(frame::PRIORITY, 0, number(), &priority(rest))),
        _ => None,
    }
}

/// A frame of any kind: type and flags in hexadecimal, the stream, the payload.
fn any_frame(rest: &str) -> Vec<u8> {
    let parts: Vec<&str> = rest.splitn(4, ',').collect();
    let octet = |part: &str| u8::from_str_radix(part, 16).expect("hexadecimal");
    let stream = parts[2].parse().expect("a stream");
    frame(octet(parts[0]), octet(parts[1]), stream, &hex(parts[3]))
}

/// The payload of SETTINGS: `name=value;...`.
fn settings(rest: &str) -> Vec<u8> {
    let settings = rest.split(';').filter_map(|one| one.split_once('='));
    let one = |(name, value): (&str, &str)| {
        let name: u16 = name.parse().expect("a name");
        let value: u32 = value.parse().expect("a value");
        [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
    };
    settings.flat_map(one).collect()
}

/// The payload of PRIORITY: the stream, then `dep=`, `w=` and `excl`, each of which may be left out.
fn priority(rest: &str) -> Vec<u8> {
    let field = |name: &str| {
        rest.split(',')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    };
    let dependency: u32 = field("dep").map_or(0, |dep| dep.parse().expect("a stream"));
    let exclusive = if rest.contains("excl") { 1 << 31 } else { 0 };
    let weight: u8 = field("w").map_or(15, |weight| weight.parse().expect("a weight"));
    [&(dependency | exclusive).to_be_bytes()[..], &[weight]].concat()
}

impl End {
    /// Runs the words of a row, and gathers what our side sends.
    fn run(role: Role, row: &str) -> End {
        let core = Core::new(role, Peer::Foreign, HeadLimits::default(), Instant::now());
        let mut end = End {
            core,
            slots: Vec::new(),
            resets: Vec::new(),
            out: Vec::new(),
        };
        end.core.take_out(Vec::new());
        let mut unread = Vec::new();
        let is_bare = row.starts_with("BARE");
        if !is_bare {
            let preface = if role == Role::Server { PREFACE } else { b"" };
            end.receive(
                &mut unread,
                &[preface, &frame(frame::SETTINGS, 0, 0, b"")].concat(),
            );
            end.out.clear();
        }
        for word in words(row) {
            match bytes(&word) {
                Some(bytes) => end.receive(&mut unread, &bytes),
                None => end.act(&word),
            }
        }
        end
    }

    fn receive(&mut self, unread: &mut Vec<u8>, bytes: &[u8]) {
        if self.core.end.is_some() {
            return;
        }
        unread.extend_from_slice(bytes);
        let taken = self.core.receive(unread, Instant::now());
        unread.drain(..taken);
        self.slots.extend(self.core.arrived.drain(..));
        self.flush();
    }

    fn flush(&mut self) {
        let out = self.core.take_out(Vec::new());
        self.core.record_written(out.len());
        self.out.extend(out);
    }

    fn slot(&self, id: &str) -> Option<Rc<Slot>> {
        let id: u32 = id.parse().expect("a stream");
        self.slots.iter().find(|slot| slot.id == id).cloned()
    }

    /// Does a word of our side.
    fn act(&mut self, word: &str) {
        let (name, rest) = word.split_once(':').unwrap_or((word, ""));
        match name {
            "BARE" => {}
            "OPEN" | "OPENPOST" | "OPENHEAD" => {
                let method = match name {
                    "OPENPOST" => "POST",
                    "OPENHEAD" => "HEAD",
                    _ => "GET",
                };
                let mut head = Head::request(method, "/");
                head.add("host", b"a");
                let opened = self
                    .core
                    .open(method != "POST", Instant::now(), |encoder, out| {
                        write_head::write_request(encoder, out, &head, false);
                    });
                self.slots.extend(opened);
            }
            "ANSWER" | "BEGIN" => {
                let slot = self.slot(rest).expect("a request");
                if slot.state.borrow().failed.is_none() {
                    let head = Head::response(200);
                    self.core
                        .write_head(&slot, name == "ANSWER", |encoder, out| {
                            write_head::write_response(encoder, out, &head);
                        });
                }
            }
            "RESET" => {
                let slot = self.slot(rest).expect("a stream");
                self.resets.push(slot.id);
                self.core.reset(&slot, Reason::CANCEL);
            }
            "SHUTDOWN" => self.core.shut_down(),
            _ => panic!("{word} is no word"),
        }
        self.flush();
    }

    /// The frames that our side sent: kind, flags, stream, payload.
    fn frames(&self) -> Vec<(u8, u8, u32, &[u8])> {
        let (mut frames, mut at) = (Vec::new(), 0);
        while let Some(head) = self.out[at..].first_chunk::<HEADER>() {
            let frame = frame::FrameHeader::read(head);
            let payload = &self.out[at + HEADER..at + HEADER + frame.length];
            let flags = head[4];
            frames.push((frame.kind, flags, frame.stream, payload));
            at += HEADER + frame.length;
        }
        frames
    }

    /// The reactions that a row must list completely.
    fn reactions(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut reset = self.resets.clone();
        let mut has_ended = false;
        let mut own = BTreeMap::new();
        for (kind, flags, stream, payload) in self.frames() {
            let number = |at| payload.get(at..).and_then(frame::number).unwrap_or(0);
            match kind {
                frame::GOAWAY => {
                    has_ended |= number(4) != 0;
                    all.push(format!("GOAWAY:{}", Reason(number(4))));
                }
                frame::RST_STREAM => {
                    own.insert(stream, Reason(number(0)));
                    match reset.iter().position(|id| *id == stream) {
                        Some(at) => drop(reset.remove(at)),
                        None => all.push(format!("RST:{stream},{}", Reason(number(0)))),
                    }
                }
                frame::SETTINGS if flags & ACK != 0 => all.push("ACK".to_owned()),
                frame::PING if flags & ACK != 0 => all.push("PONG".to_owned()),
                _ => {}
            }
        }
        for slot in self.slots.iter().filter(|_| !has_ended) {
            self.deliveries(slot, own.get(&slot.id).copied(), &mut all);
        }
        all.sort();
        all
    }

    /// What was delivered of a stream, which our side has `reset` with a code, if it has.
    fn deliveries(&self, slot: &Slot, reset: Option<Reason>, all: &mut Vec<String>) {
        let (id, state) = (slot.id, slot.state.borrow());
        let failed = match &state.failed {
            _ if self.resets.contains(&id) => return,
            // Our own reset failed it.
            Some(Failure::Reset(reason)) if reset == Some(*reason) => return,
            Some(Failure::Reset(reason)) => {
                Some(format!("FAILED:{id},{reason}").replace("error 0x", "0x"))
            }
            Some(Failure::Unprocessed(_)) => Some(format!("UNPROCESSED:{id}")),
            _ => None,
        };
        let is_kept = self.core.role == Role::Client && state.stream.is_remote_ended();
        if let Some(failed) = failed.filter(|_| !is_kept) {
            return all.push(failed);
        }
        all.extend(state.informational.iter().map(|_| format!("INFO:{id}")));
        let Some(head) = &state.head else { return };
        let is_refused = self.core.role == Role::Server && request_framing(head).is_err();
        all.push(match (self.core.role, &state.invalid) {
            (_, Some(InvalidHead::TooLarge(_) | InvalidHead::TooMany(_))) => format!("431:{id}"),
            (Role::Server, invalid) if invalid.is_some() || is_refused => format!("400:{id}"),
            (Role::Server, _) => format!("REQUEST:{id}"),
            (Role::Client, _) => format!("RESPONSE:{id}"),
        });
    }

    /// True when a detail that a row lists is so; `None` for a part that must be listed completely.
    fn detail(&self, part: &str) -> Option<bool> {
        let (name, rest) = part.split_once(':').unwrap_or((part, ""));
        let (first, more) = rest.split_once(',').unwrap_or((rest, ""));
        let state = |is: &dyn Fn(&State) -> bool| {
            let slot = self.slot(first);
            Some(slot.is_some_and(|slot| is(&slot.state.borrow())))
        };
        match name {
            "CLOSED" => Some(self.core.end.is_some()),
            "CONNECT" => Some(self.core.takes_connect()),
            "BODY" => state(&|state| state.data.len().to_string() == more),
            "END" => state(&|state| state.stream.is_remote_ended()),
            "TRAILERS" => state(&|state| state.trailers.is_some()),
            "FIELD" => state(&|state| {
                let (name, value) = more.split_once('=').unwrap_or((more, ""));
                let head = state.head.as_ref();
                let values: Vec<&[u8]> = head
                    .into_iter()
                    .flat_map(|head| head.values(name))
                    .collect();
                values == [value.as_bytes()]
            }),
            "LAST" | "WIN" => {
                let mut sums: BTreeMap<u32, u32> = BTreeMap::new();
                let mut last = None;
                for (kind, _, stream, payload) in self.frames() {
                    let number = frame::number(payload).unwrap_or(0);
                    match kind {
                        frame::WINDOW_UPDATE => *sums.entry(stream).or_default() += number,
                        frame::GOAWAY => last = Some(number),
                        _ => {}
                    }
                }
                let sum = sums
                    .get(&first.parse().expect("a stream"))
                    .copied()
                    .unwrap_or(0);
                match name {
                    "LAST" => Some(last.map(|last| last.to_string()).as_deref() == Some(first)),
                    _ => Some(sum.to_string() == more),
                }
            }
            _ => None,
        }
    }

    /// True when one of the alternatives of a row is what our side did.
    fn matches(&self, required: &str) -> bool {
        let actual = self.reactions();
        required.split(" or ").any(|alternative| {
            let expand = |part: &str| match part.contains('=') {
                true => vec![part.to_owned()],
                false => words(part),
            };
            let parts: Vec<String> = alternative.split(" + ").flat_map(expand).collect();
            let details = parts.iter().filter_map(|part| self.detail(part));
            let mut complete: Vec<&String> = parts
                .iter()
                .filter(|part| *part != "NOTHING" && self.detail(part).is_none())
                .collect();
            complete.sort();
            let is_same = complete
                .iter()
                .map(|part| part.as_str())
                .eq(actual.iter().map(String::as_str));
            details.into_iter().all(|is_so| is_so) && (is_same || is_harder(&complete, &actual))
        })
    }
}

/// True where a stream error is treated as a connection error, which section 5.4 allows.
fn is_harder(required: &[&String], actual: &[String]) -> bool {
    let Some(reset) = required.iter().find(|part| part.starts_with("RST:")) else {
        return false;
    };
    let code = reset.rsplit(',').next().unwrap_or_default();
    actual.contains(&format!("GOAWAY:{code}"))
}

#[test]
fn what_a_peer_can_provoke_is_answered_as_the_rfcs_require() {
    let (mut wrong, mut count, mut differing) = (Vec::new(), BTreeMap::new(), 0);
    let rows = TABLE
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    for row in rows {
        let columns: Vec<&str> = row.split(" | ").collect();
        let [section, role, name, sent, required, own @ ..] = columns.as_slice() else {
            panic!("{row}: five columns");
        };
        let role = match *role {
            "server" => Role::Server,
            "client" => Role::Client,
            _ => panic!("{row}: no role"),
        };
        let chapter = section.split('.').next().unwrap_or_default();
        *count.entry(chapter.to_owned()).or_insert(0) += 1;
        let end = End::run(role, sent);
        // A row in which Leno differs on purpose says how and why, and isn't to agree with the RFC in silence.
        let expected = own
            .first()
            .and_then(|own| own.strip_prefix("Leno: ")?.split(" because ").next());
        differing += usize::from(expected.is_some());
        let is_right = end.matches(expected.unwrap_or(required))
            && !(expected.is_some() && end.matches(required));
        if !is_right {
            wrong.push(format!(
                "{section} {name}: {}, not {required}",
                end.reactions().join(" + ")
            ));
        }
    }
    println!("cases by section: {count:?}; {differing} differ on purpose");
    assert!(count.values().sum::<i32>() >= 140);
    assert!(wrong.is_empty(), "{} rows: {wrong:#?}", wrong.len());
    assert_eq!(codes("CANCEL"), Some(8));
}
