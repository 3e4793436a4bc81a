//! Two ends without IO between them, and one end that receives violations of the protocol.

use super::*;
use crate::h2::frame::{END_HEADERS, END_STREAM};
use crate::h2::{GROWTH, LARGE_WINDOW, write_head};

fn core(role: Role) -> Core {
    Core::new(role, Peer::Mesh, HeadLimits::default(), Instant::now())
}

/// Passes the frames that one wants to send to the other; returns `true` if there were any.
fn carry(from: &mut Core, to: &mut Core) -> bool {
    let bytes = from.take_out(Vec::new());
    from.record_written(bytes.len());
    assert_eq!(to.receive(&bytes, Instant::now()), bytes.len());
    !bytes.is_empty()
}

/// Passes frames in both directions until neither end has any more.
fn exchange(one: &mut Core, other: &mut Core) {
    while carry(one, other) | carry(other, one) {}
}

fn pair() -> (Core, Core) {
    let (mut client, mut server) = (core(Role::Client), core(Role::Server));
    exchange(&mut client, &mut server);
    (client, server)
}

fn get(client: &mut Core, path: &str) -> Rc<Slot> {
    let mut head = Head::request("GET", path);
    head.add("host", b"shop");
    let opened = client.open(true, Instant::now(), |encoder, out| {
        write_head::write_request(encoder, out, &head, false);
    });
    opened.expect("open")
}

fn respond(server: &mut Core, slot: &Slot, ends: bool) {
    let head = Head::response(200);
    server.write_head(slot, ends, |encoder, out| {
        write_head::write_response(encoder, out, &head);
    });
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame_header(&mut out, payload.len(), kind, flags, stream);
    out.extend_from_slice(payload);
    out
}

/// `:method: GET`, `:scheme: http`, `:path: /`, `:authority: a`.
const HEAD: &[u8] = b"\x82\x86\x84\x01\x01a";

/// A fresh server that received the preface, SETTINGS and then `bytes`, `step` bytes at a time, and the frames that it
/// sends after its SETTINGS acknowledgement.
fn after(bytes: &[u8], step: usize) -> (Core, Vec<u8>) {
    let mut server = core(Role::Server);
    let all = [PREFACE, &frame(frame::SETTINGS, 0, 0, b""), bytes].concat();
    server.take_out(Vec::new());
    let mut unread = Vec::new();
    for part in all.chunks(step) {
        unread.extend_from_slice(part);
        let taken = server.receive(&unread, Instant::now());
        unread.drain(..taken);
    }
    let out = std::mem::take(&mut server.out);
    // The SETTINGS acknowledgement comes first.
    (server, out[HEADER_SIZE..].to_vec())
}

const HEADER_SIZE: usize = frame::HEADER;

/// Frames that a peer must not send, with the code in GOAWAY, and some that are accepted, with NO_ERROR.
fn violations() -> Vec<(Vec<u8>, Reason)> {
    let (headers, whole) = (frame::HEADERS, END_HEADERS | END_STREAM);
    let open = frame(headers, END_HEADERS, 1, HEAD);
    let begun = frame(headers, 0, 1, HEAD);
    let reset = |payload| frame(frame::RST_STREAM, 0, 1, payload);
    let fine = Reason::NO_ERROR;
    let protocol = Reason::PROTOCOL_ERROR;
    vec![
        (frame(headers, whole, 0, HEAD), protocol),
        (frame(headers, whole, 2, HEAD), protocol),
        (begun.clone(), fine),
        (
            [begun, frame(frame::PING, 0, 0, &[0; 8])].concat(),
            protocol,
        ),
        (frame(headers, whole, 1, b"\xff"), Reason::COMPRESSION_ERROR),
        (frame(headers, whole | 8, 1, b"\x07a"), protocol),
        (frame(frame::DATA, 0, 1, b"x"), protocol),
        (frame(frame::DATA, 0, 0, b"x"), protocol),
        (frame(frame::CONTINUATION, 4, 1, b""), protocol),
        (frame(frame::PUSH_PROMISE, 4, 1, b"\0\0\0\x02"), protocol),
        (reset(b"\0\0\0\x08"), protocol),
        ([open, reset(b"\0")].concat(), Reason::FRAME_SIZE_ERROR),
        (frame(77, 0, 5, b"unknown"), fine),
        (frame(frame::PRIORITY, 0, 5, b"12345"), fine),
        (
            b"\xff\xff\xff\0\0\0\0\0\x01".to_vec(),
            Reason::FRAME_SIZE_ERROR,
        ),
    ]
}

/// The same for identifiers of streams: smaller ones, and those that depend on themselves.
fn violations_of_identifiers() -> Vec<(Vec<u8>, Reason)> {
    let (headers, whole) = (frame::HEADERS, END_HEADERS | END_STREAM);
    let (fine, protocol) = (Reason::NO_ERROR, Reason::PROTOCOL_ERROR);
    vec![
        (
            [
                frame(headers, whole, 5, HEAD),
                frame(headers, whole, 3, HEAD),
            ]
            .concat(),
            protocol,
        ),
        (
            [
                frame(headers, whole, 5, HEAD),
                frame(frame::DATA, 0, 3, b"x"),
            ]
            .concat(),
            protocol,
        ),
        (frame(frame::PRIORITY, 0, 5, b"\x80\0\0\x05\x01"), protocol),
        (
            frame(
                headers,
                whole | 0x20,
                1,
                b"\0\0\0\x01\x01\x82\x86\x84\x01\x01a",
            ),
            protocol,
        ),
        (
            frame(
                headers,
                whole | 0x28,
                1,
                b"\x01\0\0\0\x01\x01\x82\x86\x84\x01\x01a\0",
            ),
            protocol,
        ),
        (
            frame(
                headers,
                whole | 0x20,
                1,
                b"\0\0\0\x03\x01\x82\x86\x84\x01\x01a",
            ),
            fine,
        ),
    ]
}

/// The same for frames of the connection.
fn violations_of_the_connection() -> Vec<(Vec<u8>, Reason)> {
    let setting = |name: u16, value: u32| {
        let mut out = Vec::new();
        write_settings(&mut out, &[(name, value)]);
        out
    };
    let window = |stream, more: u32| frame(frame::WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
    let protocol = Reason::PROTOCOL_ERROR;
    let (size, flow) = (Reason::FRAME_SIZE_ERROR, Reason::FLOW_CONTROL_ERROR);
    vec![
        (frame(frame::SETTINGS, 0, 1, b""), protocol),
        (frame(frame::SETTINGS, 0, 0, b"12345"), size),
        (frame(frame::SETTINGS, 1, 0, b"123456"), size),
        (setting(setting::INITIAL_WINDOW_SIZE, 1 << 31), flow),
        (setting(setting::MAX_FRAME_SIZE, 1), protocol),
        (setting(setting::ENABLE_PUSH, 2), protocol),
        (setting(77, 77), Reason::NO_ERROR),
        (frame(frame::PING, 0, 0, b"1234567"), size),
        (frame(frame::GOAWAY, 0, 0, b"1234567"), size),
        (window(0, 0), protocol),
        (window(0, (1 << 31) - 1), flow),
    ]
}

#[test]
fn the_first_frame_is_settings_and_no_acknowledgement() {
    for (flags, is_fine) in [(0, true), (frame::ACK, false)] {
        let mut server = core(Role::Server);
        let bytes = [PREFACE, &frame(frame::SETTINGS, flags, 0, b"")].concat();
        server.receive(&bytes, Instant::now());
        assert_eq!(server.end.is_none(), is_fine);
    }
}

#[test]
fn what_a_peer_must_not_send_ends_the_connection_with_its_reason() {
    for (bytes, reason) in [
        violations(),
        violations_of_identifiers(),
        violations_of_the_connection(),
    ]
    .concat()
    {
        for step in [1, usize::MAX] {
            let (server, out) = after(&bytes, step);
            let last = out.rchunks(17).next();
            let goaway = last.filter(|last| last.get(3) == Some(&frame::GOAWAY));
            let code = goaway.and_then(|last| frame::number(&last[13..]));
            assert_eq!(code.map_or(Reason::NO_ERROR, Reason), reason, "{bytes:?}");
            assert_eq!(server.end.is_some(), reason != Reason::NO_ERROR);
        }
    }
    let mut server = core(Role::Server);
    server.receive(b"GET / HTTP/1.1\r\n\r\n", Instant::now());
    assert!(server.end.is_some(), "no preface");
    let endless = [
        frame(frame::HEADERS, 0, 1, &[0x82; 16_000]),
        frame(frame::CONTINUATION, 0, 1, &[0x82; 16_000]).repeat(9),
    ];
    let (server, _) = after(&endless.concat(), usize::MAX);
    assert!(server.end.is_some(), "a head without an end");
}

#[test]
fn the_window_of_a_reader_that_keeps_up_grows_within_bounds() {
    let (mut client, mut server) = pair();
    let slots: Vec<_> = (0..8).map(|_| get(&mut client, "/")).collect();
    exchange(&mut client, &mut server);
    let served: Vec<_> = server.arrived.drain(..).collect();
    served
        .iter()
        .for_each(|slot| respond(&mut server, slot, false));
    for _ in 0..2_000 {
        // The last one's reader never reads.
        for (slot, reader) in served.iter().zip(&slots) {
            server.write_data(slot, &[b'x'; 16 * 1024]);
            exchange(&mut client, &mut server);
            if reader.id != slots[7].id {
                let read = std::mem::take(&mut reader.state.borrow_mut().data).len();
                client.release_capacity(reader, read);
            }
        }
        exchange(&mut client, &mut server);
    }
    let window = |slot: &Rc<Slot>| slot.state.borrow().window;
    assert_eq!(window(&slots[0]), LARGE_WINDOW);
    assert_eq!(window(&slots[7]), STREAM_WINDOW);
    assert_eq!(slots[7].state.borrow().data.len(), STREAM_WINDOW as usize);
    assert!(client.grown <= GROWTH && client.grown > GROWTH / 2);
    for slot in &slots {
        client.reset(slot, Reason::CANCEL);
    }
    assert_eq!(client.grown, 0);
}

#[test]
fn what_is_wrong_with_one_stream_ends_that_stream_only() {
    let open = |stream| frame(frame::HEADERS, END_HEADERS, stream, HEAD);
    let all = END_HEADERS | END_STREAM;
    let length = b"\x82\x86\x84\x01\x01a\x0f\x0d\x015";
    for (bytes, reason) in [
        (
            frame(frame::HEADERS, all, 1, b"\x82\x86\x84"),
            Some(Reason::NO_ERROR),
        ),
        (
            frame(frame::HEADERS, all, 1, b"\x82\x84\x01\x01a"),
            Some(Reason::PROTOCOL_ERROR),
        ),
        (
            frame(frame::HEADERS, all, 1, length),
            Some(Reason::PROTOCOL_ERROR),
        ),
        ([open(1), open(1)].concat(), Some(Reason::PROTOCOL_ERROR)),
        (
            [open(1), frame(frame::WINDOW_UPDATE, 0, 1, &[0; 4])].concat(),
            Some(Reason::PROTOCOL_ERROR),
        ),
        (
            [open(1), frame(frame::DATA, 0, 1, &[0; 16_384]).repeat(5)].concat(),
            Some(Reason::FLOW_CONTROL_ERROR),
        ),
        (
            [
                frame(frame::HEADERS, all, 1, HEAD),
                frame(frame::DATA, 0, 1, b"x"),
            ]
            .concat(),
            Some(Reason::STREAM_CLOSED),
        ),
        (open(1), None),
    ] {
        let (mut server, out) = after(&bytes, usize::MAX);
        let reset = (out.get(3) == Some(&frame::RST_STREAM)).then(|| frame::number(&out[9..]));
        // A request that only HTTP/1 can't express is answered, not reset.
        let reason = reason.filter(|reason| *reason != Reason::NO_ERROR);
        assert_eq!(reset.flatten().map(Reason), reason, "{bytes:?}");
        assert!(server.end.is_none());
        server.arrived.clear();
        server.receive(&open(3), Instant::now());
        assert_eq!(server.arrived.len(), 1, "the next one is served");
    }
}

#[test]
fn more_streams_than_there_is_room_for_are_refused() {
    let (mut client, mut server) = pair();
    let slots: Vec<_> = (0..=MAX_STREAMS).map(|_| get(&mut client, "/")).collect();
    exchange(&mut client, &mut server);
    assert_eq!(server.arrived.len(), MAX_STREAMS as usize);
    let failed: Vec<u32> = slots
        .iter()
        .filter(|slot| slot.state.borrow().failed.is_some())
        .map(|slot| slot.id)
        .collect();
    assert_eq!(failed, [2 * MAX_STREAMS + 1]);
    let failed = slots[MAX_STREAMS as usize].state.borrow().failed.clone();
    assert!(matches!(failed, Some(Failure::Unprocessed(_))));
}

#[test]
fn bodies_share_what_there_is_room_for() {
    let (mut client, mut server) = pair();
    let slots: Vec<_> = (0..3).map(|_| get(&mut client, "/")).collect();
    exchange(&mut client, &mut server);
    let served: Vec<_> = server.arrived.drain(..).collect();
    let body = vec![b'x'; 60_000];
    let mut written = [0; 3];
    // Each takes its turn, until `HIGH_WATER` bytes are unsent.
    for round in 0..3 {
        for (slot, written) in served.iter().zip(&mut written) {
            if round == 0 {
                respond(&mut server, slot, false);
            }
            *written += server.write_data(slot, &body[*written..]);
            server.wait(slot);
        }
    }
    let least = written.iter().min().expect("three");
    assert!(*least > 30_000, "{written:?}");
    exchange(&mut client, &mut server);
    for (slot, written) in slots.iter().zip(written) {
        assert_eq!(slot.state.borrow().data.len(), written);
        // Consumed bytes return to the window, in time.
        client.release_capacity(slot, written);
    }
    exchange(&mut client, &mut server);
    for (slot, written) in served.iter().zip(&mut written) {
        while *written < body.len() {
            let more = server.write_data(slot, &body[*written..]);
            assert!(more > 0, "{written}");
            *written += more;
        }
        server.end_data(slot);
    }
    exchange(&mut client, &mut server);
    assert!(
        slots
            .iter()
            .all(|slot| slot.state.borrow().stream.is_remote_ended())
    );
    assert!(client.streams.is_empty() && server.streams.is_empty());
}

#[test]
fn an_end_in_two_steps_loses_no_request() {
    let (mut client, mut server) = pair();
    let before = get(&mut client, "/before");
    server.shut_down();
    // A stream opened before the client receives GOAWAY is served.
    let meanwhile = get(&mut client, "/meanwhile");
    exchange(&mut client, &mut server);
    assert!(!client.is_open());
    assert_eq!(server.arrived.len(), 2);
    assert!(!server.is_done());
    let served: Vec<_> = server.arrived.drain(..).collect();
    for slot in &served {
        respond(&mut server, slot, true);
    }
    exchange(&mut client, &mut server);
    assert!(server.is_done() && client.is_done());
    for slot in [before, meanwhile] {
        let state = slot.state.borrow();
        assert!(state.failed.is_none() && state.head.is_some());
    }
}

#[test]
fn what_goaway_leaves_out_was_not_processed() {
    let (mut client, mut server) = pair();
    let slots = [get(&mut client, "/1"), get(&mut client, "/2")];
    let mut goaway = Vec::new();
    write_goaway(&mut goaway, 1, Reason::NO_ERROR);
    client.receive(&goaway, Instant::now());
    let failed = slots.map(|slot| slot.state.borrow().failed.clone());
    assert!(failed[0].is_none());
    assert!(matches!(failed[1], Some(Failure::Unprocessed(_))));
    server.fail(&Failure::Closed);
    client.fail(&Failure::Closed);
    assert!(client.open(true, Instant::now(), |_, _| {}).is_err());
}

#[test]
fn padding_is_given_back_to_the_stream() {
    let (mut server, _) = after(&frame(frame::HEADERS, END_HEADERS, 1, HEAD), usize::MAX);
    let mut padded = vec![255];
    padded.extend([0; 255]);
    // Many times the window, all of it padding.
    let mut window = i64::from(STREAM_WINDOW);
    for _ in 0..2_000 {
        server.receive(&frame(frame::DATA, 8, 1, &padded), Instant::now());
        window -= padded.len() as i64;
        let out = std::mem::take(&mut server.out);
        for update in out.chunks(13).filter(|update| update[8] == 1) {
            assert_eq!(update[3], frame::WINDOW_UPDATE);
            window += i64::from(frame::number(&update[9..]).expect("a number"));
        }
        assert!(window > 0);
    }
    assert!(server.end.is_none());
}

#[test]
fn readers_that_stop_leave_the_others_their_windows() {
    let (mut client, mut server) = pair();
    let slots: Vec<_> = (0..MAX_STREAMS).map(|_| get(&mut client, "/")).collect();
    exchange(&mut client, &mut server);
    let served: Vec<_> = server.arrived.drain(..).collect();
    served
        .iter()
        .for_each(|slot| respond(&mut server, slot, false));
    let (last, stopped) = (MAX_STREAMS as usize - 1, MAX_STREAMS as usize - 1);
    for round in 0..600 {
        for (slot, reader) in served.iter().zip(&slots) {
            server.write_data(slot, &[b'x'; 16 * 1024]);
            exchange(&mut client, &mut server);
            // All read for a while, so that some consumed bytes aren't announced yet when all but one stop.
            if round < 3 || reader.id == slots[last].id {
                let read = std::mem::take(&mut reader.state.borrow_mut().data).len();
                assert!(read > 0, "round {round}, stream {}", reader.id);
                client.release_capacity(reader, read);
                exchange(&mut client, &mut server);
            }
        }
    }
    let unread = slots[..stopped]
        .iter()
        .map(|slot| slot.state.borrow().data.len());
    assert!(unread.sum::<usize>() > 6_000_000);
}

#[test]
fn who_left_takes_nobodys_turn() {
    let (mut client, mut server) = pair();
    let slots: Vec<_> = (0..3).map(|_| get(&mut client, "/")).collect();
    exchange(&mut client, &mut server);
    let served: Vec<_> = server.arrived.drain(..).collect();
    served
        .iter()
        .for_each(|slot| respond(&mut server, slot, false));
    while server.write_data(&served[0], &[0; 16 * 1024]) > 0 {}
    served.iter().for_each(|slot| server.wait(slot));
    server.stop_waiting(&served[0]);
    server.stop_waiting(&served[1]);
    server.stop_waiting(&served[1]);
    assert_eq!(server.blocked.len(), 1);
    assert!(Rc::ptr_eq(&server.blocked[0], &served[2]));
    // A window for one turn only.
    let more = frame(frame::WINDOW_UPDATE, 0, 0, &16_384_u32.to_be_bytes());
    let before = server.take_out(Vec::new()).len();
    server.record_written(before);
    server.receive(&more, Instant::now());
    assert!(server.blocked.is_empty(), "it is woken");
    drop(slots);
}

#[test]
fn what_goaway_said_is_served_is_not_taken_back() {
    let (mut client, mut server) = pair();
    get(&mut client, "/");
    exchange(&mut client, &mut server);
    server.shut_down();
    exchange(&mut client, &mut server);
    // A peer that opens streams all the same, and then breaks the rules.
    let late = frame(frame::HEADERS, END_HEADERS | END_STREAM, 7, HEAD);
    server.receive(&late, Instant::now());
    server.take_out(Vec::new());
    server.receive(&frame(frame::DATA, 0, 0, b""), Instant::now());
    let out = &server.out;
    assert_eq!((out[3], frame::number(&out[9..])), (frame::GOAWAY, Some(1)));
}

/// A server with stream 1, on which `head` was sent, that then gets `bytes` after `first` was done with its slot; the
/// frames that it sends upon `bytes`.
fn after_end(head: u8, first: impl FnOnce(&mut Core, &Slot), bytes: &[u8]) -> (Core, Vec<u8>) {
    let (mut server, _) = after(&frame(frame::HEADERS, head, 1, HEAD), usize::MAX);
    let slot = server.arrived.pop_front().expect("a request");
    first(&mut server, &slot);
    server.take_out(Vec::new());
    server.receive(bytes, Instant::now());
    let out = std::mem::take(&mut server.out);
    (server, out)
}

fn goaway(last: u32, reason: Reason) -> Vec<u8> {
    let mut out = Vec::new();
    write_goaway(&mut out, last, reason);
    out
}

fn rst(id: u32, reason: Reason) -> Vec<u8> {
    frame(frame::RST_STREAM, 0, id, &reason.0.to_be_bytes())
}

#[test]
fn a_frame_after_the_end_is_judged_by_how_the_stream_ended() {
    let (open, whole) = (END_HEADERS, END_HEADERS | END_STREAM);
    let (data, head) = (
        frame(frame::DATA, 0, 1, b"x"),
        frame(frame::HEADERS, whole, 1, HEAD),
    );
    let reset = frame(frame::RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    let harmless = [
        frame(frame::WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()),
        frame(frame::PRIORITY, 0, 1, b"\0\0\0\0\0"),
        reset.clone(),
    ]
    .concat();
    let closed = Reason::STREAM_CLOSED;
    // The peer's direction has ended, ours hasn't: an error of the stream.
    for late in [&data, &head] {
        let (server, out) = after_end(whole, |_, _| {}, late);
        assert_eq!(out, rst(1, closed));
        assert!(server.end.is_none());
    }
    // The peer reset it: an error of the stream, told once.
    for late in [&data, &head] {
        let (_, out) = after_end(open, |_, _| {}, &[&reset[..], late, late].concat());
        assert_eq!(out, rst(1, closed));
    }
    // So it is where both directions had ended before its reset arrived.
    let (_, out) = after_end(
        whole,
        |server, slot| respond(server, slot, true),
        &[&reset[..], &head].concat(),
    );
    assert_eq!(out, rst(1, closed));
    // Both directions have ended: an error of the connection.
    for late in [&data, &head] {
        let (server, out) = after_end(whole, |server, slot| respond(server, slot, true), late);
        assert_eq!(out, goaway(1, closed));
        assert!(server.end.is_some());
    }
    // We reset it, and the peer may not have known: ignored, and the table of HPACK stays in step.
    let cancel = |server: &mut Core, slot: &Slot| server.reset(slot, Reason::CANCEL);
    let indexed = frame(frame::HEADERS, whole, 1, b"\x82\x86\x84\x41\x01b");
    let next = frame(frame::HEADERS, whole, 3, b"\x82\x86\x84\xbe");
    let (mut server, out) = after_end(open, cancel, &[data, indexed, next].concat());
    assert!(out.is_empty() && server.end.is_none());
    let slot = server.arrived.pop_front().expect("the next request");
    let state = slot.state.borrow();
    let host = state
        .head
        .as_ref()
        .and_then(|head| head.get(crate::head::FieldName::Host));
    assert_eq!(host, Some(&b"b"[..]));
    // What may come for a while after the end is ignored.
    for first in [cancel, |server: &mut Core, slot: &Slot| {
        respond(server, slot, true)
    }] {
        let (server, out) = after_end(whole, first, &harmless);
        assert!(out.is_empty() && server.end.is_none());
    }
}
