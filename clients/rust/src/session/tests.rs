//! Two sessions that talk to each other without anything between them, or one that is told what to hear.

use bytes::Bytes;
use exchange_proto::exchange::v1 as proto;
use prost::Message as _;

use super::introduction::{Introduction, PING, PROTOCOL, RESUME};
use super::*;
use crate::limits::FRAME_BYTES;
use crate::message::Kind;
use crate::message::tests::head;
use crate::payload::Payload;

fn introduction(exchange: &str) -> Introduction {
    Introduction {
        exchange: exchange.into(),
        epoch: 7,
        protocol: PROTOCOL,
        features: vec![PING.into(), RESUME.into()],
        agent: "test".into(),
        relay: false,
        revision: 1,
        handles: vec!["x".into()],
        subscribes: vec![],
        exports: vec![],
        message_bytes: 4 << 20,
        frame_bytes: FRAME_BYTES,
        session: String::new(),
        token: Bytes::new(),
        received: 0,
        received_bytes: 0,
        credit: None,
        recovered: false,
    }
}

fn session(exchange: &str, dialled: bool) -> Session {
    Session::new(introduction(exchange), dialled, 0.0, &Limits::default(), |count| vec![b'r'; count])
}

fn frames(from: &mut Session, now: Time) -> Vec<Bytes> {
    std::iter::from_fn(|| from.data_to_send(now, &mut Vec::new())).collect()
}

/// Let both hear all that the other says; what they understood.
fn talk(one: &mut Session, other: &mut Session, now: Time) -> Vec<Event> {
    let mut understood = Vec::new();
    loop {
        let (ones, others) = (frames(one, now), frames(other, now));
        if ones.is_empty() && others.is_empty() {
            return understood;
        }
        for frame in ones {
            let events = other.receive(frame, now);
            if matches!(events.as_slice(), [Event::Opened(_)]) {
                other.welcome(introduction("b"), false);
            }
            understood.extend(events);
        }
        others.into_iter().for_each(|frame| understood.extend(one.receive(frame, now)));
    }
}

fn opened() -> (Session, Session) {
    let (mut a, mut b) = (session("a", true), session("b", false));
    let events = talk(&mut a, &mut b, 0.0);
    assert!(matches!(events.as_slice(), [Event::Opened(_), Event::Opened(_)]), "{events:?}");
    (a, b)
}

fn message(number: u32) -> Message {
    Message::new(head(&format!("a.7.{number}"), "x", Kind::Send, &["a"]), Payload::null())
}

fn numbers(events: &[Event]) -> Vec<u32> {
    let taken = events.iter().flat_map(|event| match event {
        Event::Received(taken) => taken.as_slice(),
        _ => &[],
    });
    taken.map(|taken| taken.message.id().rsplit('.').next().unwrap().parse().unwrap()).collect()
}

fn hear(session: &mut Session, frame: Frame, now: Time) -> Vec<Event> {
    session.receive(wire::encode(frame), now)
}

fn goodbye_in(frames: &[Bytes]) -> proto::Goodbye {
    let last = proto::Frame::decode(frames.last().expect("a frame").clone()).unwrap();
    match last.kind {
        Some(Frame::Goodbye(goodbye)) => goodbye,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_queued_arrives_once_and_in_order() {
    let (mut a, mut b) = opened();
    (1..=3).for_each(|number| a.send(&message(number)).unwrap());
    assert_eq!(numbers(&talk(&mut a, &mut b, 0.1)), [1, 2, 3]);
    assert_eq!(b.into.received, 3);
    b.tick(0.3);
    talk(&mut a, &mut b, 0.3);
    assert_eq!(a.out.load(), (0, 0)); // acknowledged
}

#[test]
fn a_session_goes_on_after_a_break() {
    let (mut a, mut b) = opened();
    a.send(&message(1)).unwrap();
    talk(&mut a, &mut b, 1.0);
    a.send(&message(2)).unwrap();
    frames(&mut a, 1.0); // lost on the way
    assert!(a.disconnected(1.0) && b.disconnected(1.0));
    a.send(&message(3)).unwrap();
    a.dial(introduction("a"), 2.0);

    let mut again = session("b", false);
    let hello = frames(&mut a, 2.0).remove(0);
    let Some(Event::Opened(peer)) = again.receive(hello, 2.0).pop() else { panic!() };
    let events = b.rejoin(&peer, introduction("b"), 2.0).unwrap();
    assert!(matches!(events.as_slice(), [Event::Resumed { recovered: true, .. }]));
    let events = talk(&mut a, &mut b, 2.0);
    assert!(events.iter().any(|event| matches!(event, Event::Resumed { recovered: true, .. })));
    assert_eq!(numbers(&events), [2, 3]);
}

#[test]
fn a_peer_without_its_memory_begins_anew() {
    let (mut a, mut b) = opened();
    a.send(&message(1)).unwrap();
    talk(&mut a, &mut b, 1.0); // taken, and never settled
    a.disconnected(1.0);
    a.send(&message(2)).unwrap();
    a.dial(introduction("a"), 2.0);
    let mut restarted = session("b", false);
    let events = talk(&mut a, &mut restarted, 2.0);
    let (uncertain, unsent) = events
        .iter()
        .find_map(|event| match event {
            Event::Resumed { recovered: false, uncertain, unsent, .. } => Some((uncertain, unsent)),
            _ => None,
        })
        .unwrap();
    assert_eq!(uncertain.iter().map(|head| head.id.as_str()).collect::<Vec<_>>(), ["a.7.1"]);
    assert_eq!(unsent.iter().map(Message::id).collect::<Vec<_>>(), ["a.7.2"]);
}

#[test]
fn a_gap_breaks_once_and_then_ends() {
    let (mut a, mut b) = opened();
    let batch = |seq| Frame::Batch(proto::Batch { seq, messages: vec![] });
    assert!(matches!(hear(&mut b, batch(5), 1.0).as_slice(), [Event::Broken { .. }]));
    a.disconnected(1.0);
    a.dial(introduction("a"), 1.0);
    let hello = frames(&mut a, 1.0).remove(0);
    let Some(Event::Opened(peer)) = session("b", false).receive(hello, 1.0).pop() else { panic!() };
    b.rejoin(&peer, introduction("b"), 1.0).unwrap();
    let events = hear(&mut b, batch(5), 1.0);
    assert!(matches!(events.as_slice(), [Event::Ended(Ended { code: Code::DataLoss, .. })]), "{events:?}");
}

#[test]
fn silence_is_asked_about_and_then_believed() {
    let (mut a, mut b) = opened();
    assert!(a.next_deadline() <= 5.0);
    assert!(a.tick(5.0).is_empty());
    talk(&mut a, &mut b, 5.0); // Ping, Pong
    assert!(a.tick(10.0).is_empty() && a.tick(15.0).is_empty());
    let events = a.tick(20.0);
    assert!(matches!(events.as_slice(), [Event::Broken { .. }, Event::Missing { .. }]), "{events:?}");
    assert_eq!(a.phase, Phase::Away);
    assert!(matches!(a.tick(60.0).as_slice(), [Event::Forgotten { .. }]));
}

#[test]
fn goodbye_comes_after_what_is_queued_and_is_answered() {
    let (mut a, mut b) = opened();
    a.send(&message(1)).unwrap();
    a.say_goodbye(Code::Ok, "", 500);
    let said = frames(&mut a, 1.0);
    assert_eq!(said.len(), 2);
    assert_eq!(goodbye_in(&said).retry_after_ms, 500);
    let events: Vec<Event> = said.into_iter().flat_map(|frame| b.receive(frame, 1.0)).collect();
    assert_eq!(numbers(&events), [1]);
    assert!(matches!(events.last(), Some(Event::Ended(ended)) if ended.code == Code::Ok && ended.by == "a"));
    let answer = frames(&mut b, 1.0);
    assert_eq!(goodbye_in(&answer).received, 1);
    answer.into_iter().for_each(|frame| drop(a.receive(frame, 1.0)));
    assert_eq!((a.phase, b.phase), (Phase::Closed, Phase::Closed));
    assert!(a.out.take_unsent().is_empty());
}

#[test]
fn one_bad_message_is_refused_and_the_others_stand() {
    let (_, mut b) = opened();
    let good = proto::Message { name: "x".into(), ..Default::default() };
    let bad = proto::Message { name: "a b".into(), ..Default::default() };
    let forged = proto::Message { name: "x".into(), id: "c.1.1".into(), ..Default::default() };
    let messages = vec![good, bad, forged];
    let events = hear(&mut b, Frame::Batch(proto::Batch { seq: 1, messages }), 1.0);
    assert_eq!(numbers(&events), [1]); // its id was filled in: a.7.1
    let said = frames(&mut b, 1.0);
    let rejects = said.iter().filter_map(|frame| match proto::Frame::decode(frame.clone()).unwrap().kind {
        Some(Frame::Reject(reject)) => Some(reject.seq),
        _ => None,
    });
    assert_eq!(rejects.collect::<Vec<_>>(), [2, 3]);
    assert_eq!(b.phase, Phase::Open);
}

#[test]
fn what_is_no_frame_ends_the_session() {
    let (_, mut b) = opened();
    let events = b.receive(Bytes::from_static(b"\xff\xff\xff"), 1.0);
    assert!(matches!(events.as_slice(), [Event::Ended(ended)] if ended.stay_away));
    assert!(goodbye_in(&frames(&mut b, 1.0)).stay_away);
}

#[test]
fn who_sends_beyond_credit_is_told_goodbye() {
    let (_, mut b) = opened();
    let messages = (0..2_000).map(|_| proto::Message { name: "x".into(), ..Default::default() }).collect();
    let events = hear(&mut b, Frame::Batch(proto::Batch { seq: 1, messages }), 1.0);
    assert!(matches!(events.as_slice(), [Event::Ended(ended)] if ended.code == Code::ResourceExhausted));
}

#[test]
fn a_handshake_that_takes_too_long_ends() {
    let mut b = session("b", false);
    assert!(b.tick(4.9).is_empty());
    assert!(matches!(b.tick(5.0).as_slice(), [Event::Ended(ended)] if ended.code == Code::DeadlineExceeded));
    assert_eq!(goodbye_in(&frames(&mut b, 5.0)).exchange, "b");
}

#[test]
fn unknown_frames_are_ignored() {
    let (_, mut b) = opened();
    assert!(b.receive(Bytes::from_static(b"\xfa\x01\x00"), 1.0).is_empty()); // field 31, empty
    assert_eq!(b.phase, Phase::Open);
}

#[test]
fn interest_counts_up() {
    let (_, mut b) = opened();
    let set = proto::InterestSet { handles: vec!["y".into()], ..Default::default() };
    let interest =
        |revision| Frame::Interest(proto::Interest { revision, added: Some(set.clone()), ..Default::default() });
    assert!(matches!(hear(&mut b, interest(2), 1.0).as_slice(), [Event::Interest(_)]));
    assert!(matches!(hear(&mut b, interest(4), 1.0).as_slice(), [Event::Ended(_)]));
}
