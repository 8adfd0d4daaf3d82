//! What comes in, and what it means for a session.

use bytes::Bytes;
use exchange_proto::exchange::v1 as proto;
use prost::Message as _;

use super::inbox::{Credit, NotTaken};
use super::introduction::Introduction;
use super::{Ended, Event, Phase, Session, Taken, farewell};
use crate::count;
use crate::error::{Code, Error, Result};
use crate::limits::{FRAME_BYTES, ID_LENGTH, MESSAGE_BYTES, NAMES_PER_PEER};
use crate::message::{Head, Hop, Kind, Message, Time};
use crate::names::{check_name, check_pattern, shown};
use crate::wire::{self, Frame};

/// Characters of an id that is sent back in a Reject.
const SHOWN_ID: usize = 128;

impl Session {
    /// What the bytes of one frame mean. A frame that breaks the protocol ends the session.
    pub fn receive(&mut self, data: Bytes, now: Time) -> Vec<Event> {
        if matches!(self.phase, Phase::Closed | Phase::Away) {
            return Vec::new();
        }
        self.heard = now;
        self.contested = None;
        let size = data.len();
        if size > FRAME_BYTES {
            return self.broken(&format!("the frame is larger than {FRAME_BYTES} bytes"));
        }
        if let Err(reason) = count::check(&data) {
            return self.broken(&reason);
        }
        let Ok(frame) = proto::Frame::decode(data) else {
            return self.broken("the frame cannot be parsed");
        };
        match frame.kind {
            None => Vec::new(), // a kind that came later
            Some(frame) if self.met => self.understood(frame, size, now),
            Some(frame) => self.introduced(frame),
        }
    }

    fn introduced(&mut self, frame: Frame) -> Vec<Event> {
        if let Frame::Goodbye(goodbye) = frame {
            return self.goodbye_heard(goodbye);
        }
        if self.phase == Phase::Closing {
            return Vec::new(); // we have said goodbye already: who it was does not matter any more
        }
        let peer = match frame {
            Frame::Welcome(welcome) if self.dialled => Introduction::of_welcome(welcome),
            Frame::Hello(hello) if !self.dialled => Introduction::of_hello(hello),
            _ => {
                let wanted = if self.dialled { "Welcome" } else { "Hello" };
                return self.broken(&format!("the first frame is a {wanted}"));
            }
        };
        let peer = match peer {
            Ok(peer) => peer,
            Err(error) => return self.broken(&error.to_string()),
        };
        if peer.exchange == self.me.exchange {
            let reason = format!("both ends of this link call themselves {}", peer.exchange);
            return self.refuse(Code::AlreadyExists, &reason);
        }
        if peer.handles.len().max(peer.subscribes.len()).max(peer.exports.len()) > NAMES_PER_PEER {
            return self.broken(&format!("more than {NAMES_PER_PEER} names or patterns are declared"));
        }
        if self.dialled && self.peer.is_some() {
            return self.welcomed_back(peer);
        }
        self.meet(peer.clone(), false);
        vec![Event::Opened(Box::new(peer))]
    }

    /// We have dialled again.
    fn welcomed_back(&mut self, peer: Introduction) -> Vec<Event> {
        if !peer.recovered {
            let (uncertain, unsent) = self.lost();
            self.into.begin(true);
            self.meet(peer.clone(), false);
            return vec![Event::Resumed { peer: Box::new(peer), recovered: false, uncertain, unsent }];
        }
        let ours = |known: &Introduction| {
            (&known.exchange, known.epoch, &self.session) == (&peer.exchange, peer.epoch, &peer.session)
        };
        if self.session.is_empty() || !self.peer.as_ref().is_some_and(ours) {
            return self.broken("a session is resumed that is none of ours");
        }
        if let Err(reason) = self.out.resumed(peer.received, peer.received_bytes) {
            return self.broken(&reason);
        }
        self.meet(peer.clone(), true);
        vec![Event::Resumed { peer: Box::new(peer), recovered: true, uncertain: vec![], unsent: vec![] }]
    }

    fn understood(&mut self, frame: Frame, size: usize, now: Time) -> Vec<Event> {
        if !matches!(frame, Frame::Interest(_) | Frame::Query(_) | Frame::Answer(_)) {
            self.former_token.clear(); // those may be said before our Welcome is heard
        }
        match frame {
            Frame::Batch(_) if self.parting => Vec::new(),
            Frame::Batch(batch) => self.batch(batch, size, now),
            Frame::Ack(ack) => match self.out.acknowledged(ack.seq) {
                Ok(()) => {
                    self.out.settled(ack.settled);
                    Vec::new()
                }
                Err(reason) => self.broken(&reason),
            },
            Frame::Credit(credit) => {
                self.out.credited(Credit { seq: credit.seq, bytes: credit.bytes });
                Vec::new()
            }
            Frame::Ping(ping) => {
                self.pong = Some(ping.nonce);
                Vec::new()
            }
            Frame::Pong(_) => Vec::new(),
            Frame::Query(query) => self.checked(check_question(&query.id, query.target.is_some()), Event::Query(query)),
            Frame::Answer(answer) => {
                let id = if answer.id.is_empty() { "withdrawn" } else { &answer.id };
                self.checked(check_question(id, answer.target.is_some()), Event::Answer(answer))
            }
            Frame::Interest(interest) => self.interest(interest),
            Frame::Reject(reject) => {
                let error = wire::read_status(&reject.status.unwrap_or_default());
                let head =
                    if reject.id.is_empty() { self.out.head_of(reject.seq) } else { self.out.head_with_id(&reject.id) };
                let id = head.as_ref().map_or(reject.id, |head| head.id.clone());
                vec![Event::Rejected { head, id, error }]
            }
            Frame::Goodbye(goodbye) => self.goodbye_heard(goodbye),
            Frame::Hello(_) | Frame::Welcome(_) => self.broken("an introduction comes once, as the first frame"),
        }
    }

    fn checked(&mut self, checked: Result<()>, event: Event) -> Vec<Event> {
        match checked {
            Ok(()) => vec![event],
            Err(error) => self.broken(&error.to_string()),
        }
    }

    fn batch(&mut self, batch: proto::Batch, size: usize, now: Time) -> Vec<Event> {
        let (first, known) = match self.into.take(batch.seq, batch.messages.len(), size, now) {
            Ok(taken) => taken,
            Err(NotTaken::Gap(reason)) => return self.gap(&reason, now),
            Err(NotTaken::Invalid(reason)) => return self.broken(&reason),
        };
        let mut taken = Vec::with_capacity(batch.messages.len() - known);
        let mut counted = 0; // the last one that needs credit
        for (seq, packed) in (first..).zip(batch.messages.into_iter().skip(known)) {
            let read = read(packed, size, now).and_then(|(message, used_value)| {
                self.as_value |= used_value;
                if message.kind() != Kind::Cancel {
                    counted = seq;
                }
                self.admit(message, seq)
            });
            match read {
                Ok(message) => taken.push(Taken { message, seq: self.into.before + seq }),
                Err((id, error)) => {
                    let id = if id.len() <= SHOWN_ID { id.as_str() } else { "" };
                    self.into.settle(self.into.before + seq);
                    self.reject(seq, id, &error.into_refusal(""));
                }
            }
        }
        let keeps_to_credit = self.peer.as_ref().is_some_and(|peer| peer.credit.is_some());
        if counted > 0
            && keeps_to_credit
            && let Some(reason) = self.into.overdrawn(counted)
        {
            return self.refuse(Code::ResourceExhausted, &reason);
        }
        if taken.is_empty() { Vec::new() } else { vec![Event::Received(taken)] }
    }

    /// Once, the peer may send again what is missing.
    fn gap(&mut self, reason: &str, now: Time) -> Vec<Event> {
        let at = self.into.received + 1;
        if self.gap_at == at || self.token.is_empty() || self.phase != Phase::Open {
            return self.refuse(Code::DataLoss, reason);
        }
        self.gap_at = at;
        self.leave(now);
        vec![Event::Broken { reason: reason.into(), retry_after_ms: 0 }]
    }

    /// Confirm who sent it, and fill in what a simple peer leaves out.
    fn admit(&self, mut message: Message, seq: u64) -> Result<Message, (String, Error)> {
        let Some(peer) = &self.peer else { return Ok(message) };
        let head = message.head_mut();
        if head.hops.is_empty() {
            head.hops.push(Hop { exchange: peer.exchange.clone(), at_us: head.timestamp_us });
        }
        if head.from.is_empty() {
            head.from.clone_from(&head.hops[0].exchange);
        }
        if head.id.is_empty() && head.from == peer.exchange {
            head.id = format!("{}.{}.{seq}", head.from, peer.epoch);
        }
        match check_origin_of(head, peer) {
            Ok(()) => Ok(message),
            Err(text) => Err((std::mem::take(&mut head.id), Error::Invalid(text))),
        }
    }

    fn interest(&mut self, interest: proto::Interest) -> Vec<Event> {
        let revision = interest.revision;
        if revision != 0 && revision != self.expected.wrapping_add(1) {
            return self.broken(&format!("interest revision {revision} came after {}", self.expected));
        }
        if let Err(error) = check_interest(&interest) {
            return self.broken(&error.to_string());
        }
        self.expected = revision;
        if let Some(removed) = &interest.removed {
            self.handles.retain(|name| !removed.handles.contains(name));
            self.subscribes.retain(|pattern| !removed.subscribes.contains(pattern));
        }
        if let Some(added) = &interest.added {
            self.handles.extend(added.handles.iter().cloned());
            self.subscribes.extend(added.subscribes.iter().cloned());
        }
        if self.handles.len().max(self.subscribes.len()) > NAMES_PER_PEER {
            return self.broken(&format!("more than {NAMES_PER_PEER} names or patterns are declared"));
        }
        if let (Some(relay), Some(peer)) = (interest.relay, self.peer.as_mut()) {
            peer.relay = relay;
        }
        vec![Event::Interest(interest)]
    }

    fn goodbye_heard(&mut self, frame: proto::Goodbye) -> Vec<Event> {
        let status = frame.status.unwrap_or_default();
        if self.phase == Phase::Opening && !self.met && self.peer.is_some() && !frame.stay_away {
            self.phase = Phase::Away; // not now: we have dialled too soon
            return vec![Event::Broken { reason: status.message, retry_after_ms: frame.retry_after_ms }];
        }
        if self.met && self.out.keeps {
            if let Err(reason) = self.out.refused_after(frame.received)
                && frame.received > 0
            {
                return self.broken(&reason);
            }
            if !self.parting {
                self.goodbye = Some(farewell(Code::Ok, "", 0, false));
            }
        }
        let by: String = frame.exchange.chars().take(ID_LENGTH).collect();
        self.end(Code::from_number(status.code), &status.message, &by, frame.retry_after_ms, frame.stay_away)
    }

    pub(super) fn broken(&mut self, reason: &str) -> Vec<Event> {
        self.refuse(Code::InvalidArgument, reason)
    }

    pub(super) fn refuse(&mut self, code: Code, reason: &str) -> Vec<Event> {
        let stay_away = code == Code::InvalidArgument;
        self.goodbye = Some(farewell(code, reason, 0, stay_away));
        let me = self.me.exchange.clone();
        self.end(code, reason, &me, 0, stay_away)
    }

    pub(super) fn end(
        &mut self,
        code: Code,
        reason: &str,
        by: &str,
        retry_after_ms: u32,
        stay_away: bool,
    ) -> Vec<Event> {
        self.phase = Phase::Closed;
        vec![Event::Ended(Ended { code, reason: reason.into(), by: by.into(), retry_after_ms, stay_away })]
    }
}

/// Why this message cannot have come from this peer.
fn check_origin_of(head: &Head, peer: &Introduction) -> Result<(), String> {
    if head.id.is_empty() {
        return Err("it is passed on, and has no id".into());
    }
    let last = &head.hops[head.hops.len() - 1].exchange;
    if *last != peer.exchange {
        return Err(format!("its last hop is {last}, but it came from {}", peer.exchange));
    }
    let made_it = head.id.strip_prefix(head.from.as_str()).is_some_and(|rest| rest.starts_with('.'));
    if head.hops[0].exchange != head.from || !made_it {
        return Err("its id, its `from` and its first hop do not agree".into());
    }
    if head.hops.len() > 1 && !peer.relay {
        return Err(format!("{} does not relay, so it cannot pass on a message of {}", peer.exchange, head.from));
    }
    Ok(())
}

fn read(packed: proto::Message, frame: usize, now: Time) -> Result<(Message, bool), (String, Error)> {
    if frame > MESSAGE_BYTES && packed.encoded_len() > MESSAGE_BYTES {
        return Err((packed.id, wire::too_large()));
    }
    wire::read(packed, now)
}

fn check_question(id: &str, has_target: bool) -> Result<()> {
    if id.is_empty() || id.len() > SHOWN_ID || !id.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err(Error::Invalid(format!("{} is no id of a question", shown(id))));
    }
    if !has_target {
        return Err(Error::Invalid("a question names what it looks for".into()));
    }
    Ok(())
}

fn check_interest(interest: &proto::Interest) -> Result<()> {
    for set in [&interest.added, &interest.removed].into_iter().flatten() {
        set.handles.iter().try_for_each(|name| check_name(name))?;
        set.subscribes.iter().try_for_each(|pattern| check_pattern(pattern))?;
    }
    Ok(())
}
