//! The session of two exchanges, from Hello to Goodbye, over as many connections as it takes.
//!
//! Law: no I/O, clock or randomness. Bytes that came in go into `receive`, which returns what they mean; what shall be
//! said goes into `send`, `announce`, `control` and `goodbye`, and comes out of `data_to_send` as bytes; `tick` is told
//! the time, at `next_deadline` at the latest.
//!
//! ```text
//! OPENING --Hello, Welcome--> OPEN --goodbye--> CLOSING --queue empty, Goodbye, Goodbye--> CLOSED
//!    ^                         |
//!    +--dial / rejoin-- AWAY <-+ the connection broke: what has left and was not acknowledged is kept
//! ```
//!
//! Control frames never wait behind messages: `data_to_send` gives them first, then one Batch with as many of the
//! queued messages as one write may carry. So batches form by themselves while a write is under way.
//!
//! A link is never trusted about who it is: a message counts only if its last hop is the peer; and from a peer that
//! does not relay, only if the peer made it.

pub(crate) mod backoff;
pub(crate) mod inbox;
pub(crate) mod introduction;
pub(crate) mod outbox;
mod receive;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use exchange_proto::exchange::v1 as proto;

use crate::error::{Code, Error, RequestError, Result};
use crate::limits::{ACK_SECONDS, CONTEST_SECONDS, CONTROL_FRAMES, Limits};
use crate::message::{Head, Message, Time, hex};
use crate::wire::{self, Frame};
use inbox::{Credit, Inbox};
use introduction::{Introduction, PING, RESUME, VALUE, credit_frame};
use outbox::{AROUND, Entry, Outbox};

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Opening,
    Open,
    Away,
    Closing,
    Closed,
}

/// A message that was taken, and its number in all sessions.
#[derive(Debug)]
pub(crate) struct Taken {
    pub message: Message,
    pub seq: u64,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub code: Code,
    pub reason: String,
    /// The id of who ended it.
    pub by: String,
    pub retry_after_ms: u32,
    pub stay_away: bool,
}

/// What was understood.
#[derive(Debug)]
pub(crate) enum Event {
    /// The first handshake is done: this is the peer.
    Opened(Box<Introduction>),
    /// The peer is there again. If it was not recovered: what is uncertain, and what never left.
    Resumed {
        peer: Box<Introduction>,
        recovered: bool,
        uncertain: Vec<Arc<Head>>,
        unsent: Vec<Message>,
    },
    /// Messages, each with its last hop confirmed.
    Received(Vec<Taken>),
    /// The peer refused a message of ours.
    Rejected {
        head: Option<Arc<Head>>,
        id: String,
        error: RequestError,
    },
    /// The interest of the peer has changed.
    Interest(proto::Interest),
    Query(proto::Query),
    Answer(proto::Answer),
    /// This connection is of no use any more; the session may be resumed over another.
    Broken {
        reason: String,
        retry_after_ms: u32,
    },
    /// The peer has been away for so long that nobody should wait.
    Missing {
        unsent: Vec<Message>,
    },
    /// The session cannot be resumed any more.
    Forgotten {
        uncertain: Vec<Arc<Head>>,
    },
    /// The session is over. Nothing else follows.
    Ended(Ended),
}

/// One side of a link. `draw` gives so many random bytes, for tokens.
#[derive(Debug)]
pub(crate) struct Session {
    pub me: Introduction,
    pub dialled: bool,
    pub phase: Phase,
    pub peer: Option<Introduction>,
    pub out: Outbox,
    pub into: Inbox,
    /// By our own wish.
    pub leaves: bool,
    as_value: bool,
    limits: Limits,
    draw: fn(usize) -> Vec<u8>,
    /// The peer has introduced itself on this connection.
    met: bool,
    since: Time,
    left: Time,
    missing: bool,
    forgotten: bool,
    session: String,
    token: Bytes,
    /// Counts until the peer is known to have the other.
    former_token: Bytes,
    gap_at: u64,
    heard: Time,
    pinged: Time,
    ticked: Time,
    contested: Option<Time>,
    pings: u64,
    ping: Option<u64>,
    pong: Option<u64>,
    control: VecDeque<Bytes>,
    rejects: VecDeque<Bytes>,
    revision: u64,
    goodbye: Option<proto::Goodbye>,
    /// Our Goodbye has left: nothing more is taken, and theirs is awaited.
    parting: bool,
    /// Revision of the peer's interest.
    expected: u64,
    handles: std::collections::HashSet<String>,
    subscribes: std::collections::HashSet<String>,
}

impl Session {
    pub fn new(me: Introduction, dialled: bool, now: Time, limits: &Limits, draw: fn(usize) -> Vec<u8>) -> Self {
        let window = Credit { seq: limits.credit_messages, bytes: limits.credit_bytes };
        let revision = me.revision;
        let mut session = Self {
            me,
            dialled,
            phase: Phase::Opening,
            peer: None,
            out: Outbox::default(),
            into: Inbox::new(window),
            leaves: false,
            as_value: false,
            limits: limits.clone(),
            draw,
            met: false,
            since: now,
            left: now,
            missing: false,
            forgotten: false,
            session: String::new(),
            token: Bytes::new(),
            former_token: Bytes::new(),
            gap_at: 0,
            heard: now,
            pinged: now,
            ticked: now,
            contested: None,
            pings: 0,
            ping: None,
            pong: None,
            control: VecDeque::new(),
            rejects: VecDeque::new(),
            revision,
            goodbye: None,
            parting: false,
            expected: 0,
            handles: std::collections::HashSet::new(),
            subscribes: std::collections::HashSet::new(),
        };
        if dialled {
            session.say_hello();
        }
        session
    }

    fn say_hello(&mut self) {
        let hello = self.introduction().into_hello();
        self.control.push_back(wire::encode(hello));
    }

    // ------------------------------------------------------------------------------ connections come and go

    /// We who dialled have a new connection: Hello again.
    pub fn dial(&mut self, me: Introduction, now: Time) {
        self.revision = me.revision;
        self.me = me;
        (self.phase, self.met, self.since, self.heard, self.ticked) = (Phase::Opening, false, now, now, now);
        self.control.clear(); // of an attempt that came to nothing
        if self.session.is_empty() {
            self.into.begin(false);
        }
        self.say_hello();
    }

    /// The connection is gone. Whether it is worth while to wait for the peer.
    pub fn disconnected(&mut self, now: Time) -> bool {
        match self.phase {
            Phase::Open if self.dialled || !self.token.is_empty() => self.leave(now),
            Phase::Opening if self.peer.is_some() && self.dialled => self.phase = Phase::Away,
            Phase::Away => {}
            _ => self.phase = Phase::Closed,
        }
        self.phase == Phase::Away
    }

    fn leave(&mut self, now: Time) {
        (self.phase, self.met, self.left) = (Phase::Away, false, now);
        (self.missing, self.forgotten) = (false, false);
        (self.contested, self.ping, self.pong) = (None, None, None);
        self.control.clear(); // said anew in Hello and Welcome, but for what was refused
    }

    /// After its end: we who dialled may dial again, for a new session.
    pub fn revive(&mut self, now: Time) {
        self.leave(now);
        (self.goodbye, self.parting) = (None, false);
        (self.missing, self.forgotten) = (true, true);
    }

    /// The peer has dialled again, and says this. None if the connection that we have may be alive: then whoever
    /// dialled is to be refused. If both dial at the same time, the attempt of the smaller id counts.
    pub fn rejoin(&mut self, peer: &Introduction, me: Introduction, now: Time) -> Option<Vec<Event>> {
        if matches!(self.phase, Phase::Closing | Phase::Closed) {
            return None;
        }
        if self.phase == Phase::Opening && self.dialled && self.me.exchange < peer.exchange {
            return None;
        }
        if self.proves_itself(peer) {
            if self.out.resumed(peer.received, peer.received_bytes).is_err() {
                return Some(self.begin_anew(peer, me, now));
            }
            self.former_token = peer.token.clone();
            self.present(peer, me, now, true);
            let peer = Box::new(peer.clone());
            return Some(vec![Event::Resumed { peer, recovered: true, uncertain: vec![], unsent: vec![] }]);
        }
        let contest_lost = self.contested.is_some_and(|since| now >= since + CONTEST_SECONDS);
        if self.phase != Phase::Away && !contest_lost {
            if self.contested.is_none() && self.answers_pings() {
                self.contested = Some(now);
                self.ask(now);
            }
            return None;
        }
        Some(self.begin_anew(peer, me, now))
    }

    fn proves_itself(&self, peer: &Introduction) -> bool {
        let same = |known: &Introduction| (&known.exchange, known.epoch) == (&peer.exchange, peer.epoch);
        self.peer.as_ref().is_some_and(same)
            && !self.token.is_empty()
            && !self.forgotten
            && peer.session == self.session
            && (same_secret(&peer.token, &self.token)
                || (!self.former_token.is_empty() && same_secret(&peer.token, &self.former_token)))
    }

    fn begin_anew(&mut self, peer: &Introduction, me: Introduction, now: Time) -> Vec<Event> {
        let (uncertain, unsent) = self.lost();
        self.into.begin(false);
        self.present(peer, me, now, false);
        vec![Event::Resumed { peer: Box::new(peer.clone()), recovered: false, uncertain, unsent }]
    }

    /// The session is over: what is uncertain, and what never left. Nothing more is taken.
    pub fn lost(&mut self) -> (Vec<Arc<Head>>, Vec<Message>) {
        (self.forget(), self.out.take_unsent())
    }

    fn forget(&mut self) -> Vec<Arc<Head>> {
        self.session.clear();
        (self.token, self.former_token) = (Bytes::new(), Bytes::new());
        self.gap_at = 0;
        self.rejects.clear();
        self.parting = self.phase == Phase::Closing; // if its Goodbye has not left yet
        self.out.keeps = false;
        self.out.take_uncertain()
    }

    /// Welcome the peer, whom we know, on a new connection.
    fn present(&mut self, peer: &Introduction, me: Introduction, now: Time, recovered: bool) {
        self.control.clear();
        (self.contested, self.ping, self.pong, self.goodbye) = (None, None, None, None);
        (self.since, self.heard, self.ticked) = (now, now, now);
        self.meet(peer.clone(), recovered);
        self.welcome(me, recovered);
    }

    /// This is the peer, and what it has said of itself.
    fn meet(&mut self, peer: Introduction, recovered: bool) {
        self.met = true;
        (self.missing, self.forgotten) = (false, false);
        self.as_value |= peer.has(VALUE);
        self.expected = peer.revision;
        self.handles = peer.handles.iter().cloned().collect();
        self.subscribes = peer.subscribes.iter().cloned().collect();
        let resumes = peer.has(RESUME);
        (self.out.keeps, self.into.acknowledges) = (resumes, resumes);
        self.out.credit = peer.credit;
        if !recovered {
            self.out.begin();
            // Said for the session that could have gone on.
            self.out.credit = peer.credit.map(|credit| credit.beyond(peer.received, peer.received_bytes));
        }
        if self.dialled {
            (self.session, self.token) =
                if resumes { (peer.session.clone(), peer.token.clone()) } else { Default::default() };
            self.phase = Phase::Open;
        }
        self.peer = Some(peer);
    }

    /// What Hello and Welcome say, with the session in it.
    fn introduction(&mut self) -> Introduction {
        let mut me = self.me.clone();
        me.session.clone_from(&self.session);
        me.token = self.token.clone();
        (me.received, me.received_bytes) = (self.into.received, self.into.received_bytes);
        me.credit = Some(self.into.give());
        me
    }

    /// Answer the Hello: the link is open.
    pub fn welcome(&mut self, me: Introduction, recovered: bool) {
        self.revision = me.revision;
        self.me = me;
        self.phase = Phase::Open;
        if self.into.acknowledges {
            if !recovered {
                self.session = hex(&(self.draw)(8));
            }
            self.token = (self.draw)(16).into();
        }
        let mut me = self.introduction();
        me.recovered = recovered;
        self.control.push_back(wire::encode(me.into_welcome()));
    }

    // ------------------------------------------------------------------------------------------------- time

    /// When `tick` is due, if nothing is heard before.
    pub fn next_deadline(&self) -> Time {
        let limits = &self.limits;
        match self.phase {
            Phase::Away if !self.missing => self.left + self.away_seconds(),
            Phase::Away if !self.forgotten => self.left + limits.resume.as_secs_f64(),
            Phase::Away | Phase::Closed => f64::INFINITY,
            Phase::Opening => self.since + limits.handshake.as_secs_f64(),
            Phase::Open | Phase::Closing => {
                // What was due at the last tick is said when there is something to write on: no need to hurry.
                let ack = self.into.ack_due().map_or(f64::INFINITY, |due| due.max(self.ticked + ACK_SECONDS / 2.0));
                if !self.answers_pings() {
                    return ack;
                }
                let beat = self.heard.max(self.pinged) + limits.heartbeat.as_secs_f64();
                ack.min(beat).min(self.silent_at())
            }
        }
    }

    /// Who is forgotten is missing.
    fn away_seconds(&self) -> Time {
        self.limits.away.min(self.limits.resume).as_secs_f64()
    }

    /// Tell the session the time: what takes too long ends.
    pub fn tick(&mut self, now: Time) -> Vec<Event> {
        let slept = now - self.ticked > self.limits.silence.as_secs_f64();
        self.ticked = now;
        match self.phase {
            Phase::Away => self.wait(now),
            Phase::Opening => self.hurry(now),
            Phase::Open | Phase::Closing if self.answers_pings() => self.listen(now, slept),
            _ => Vec::new(),
        }
    }

    fn answers_pings(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.has(PING))
    }

    fn silent_at(&self) -> Time {
        let silent = self.heard + self.limits.silence.as_secs_f64();
        self.contested.map_or(silent, |since| silent.min(since + CONTEST_SECONDS))
    }

    /// Whether the peer is there: asked after a heartbeat of silence, and given up after a long one.
    fn listen(&mut self, now: Time, slept: bool) -> Vec<Event> {
        let (heartbeat, silence) = (self.limits.heartbeat.as_secs_f64(), self.limits.silence.as_secs_f64());
        if slept {
            // It was we who did not listen: the peer has one more heartbeat to be heard.
            self.heard = self.heard.max(now - silence + heartbeat);
        }
        if now >= self.silent_at() {
            if self.phase == Phase::Closing {
                let me = self.me.exchange.clone();
                return self.end(Code::Unavailable, "it did not take leave in time", &me, 0, false);
            }
            let contested = self.contested.is_some();
            let mut reason = format!("nothing was heard of it for {:.1} s", now - self.heard);
            if contested {
                reason += ", and another claims its id";
            }
            self.leave(now);
            let mut events = vec![Event::Broken { reason, retry_after_ms: 0 }];
            events.push(self.give_up_waiting());
            return events;
        }
        if now >= self.heard.max(self.pinged) + heartbeat {
            self.ask(now);
        }
        Vec::new()
    }

    fn ask(&mut self, now: Time) {
        self.pinged = now;
        self.pings += 1;
        self.ping = Some(self.pings);
    }

    /// A handshake that takes too long.
    fn hurry(&mut self, now: Time) -> Vec<Event> {
        let seconds = self.limits.handshake.as_secs_f64();
        if now < self.since + seconds {
            return Vec::new();
        }
        let reason = format!("no introduction within {seconds} s");
        if self.peer.is_some() && self.dialled {
            self.phase = Phase::Away;
            return vec![Event::Broken { reason, retry_after_ms: 0 }];
        }
        self.refuse(Code::DeadlineExceeded, &reason)
    }

    /// AWAY: for how long is it waited for?
    fn wait(&mut self, now: Time) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.missing && now >= self.left + self.away_seconds() {
            events.push(self.give_up_waiting());
        }
        if !self.forgotten && now >= self.left + self.limits.resume.as_secs_f64() {
            self.forgotten = true;
            events.push(Event::Forgotten { uncertain: self.forget() });
        }
        events
    }

    fn give_up_waiting(&mut self) -> Event {
        self.missing = true;
        Event::Missing { unsent: self.out.take_unsent() }
    }

    // -------------------------------------------------------------------------------------------------- out

    /// Queue a message, or say why not.
    pub fn send(&mut self, message: &Message) -> Result<()> {
        let data = wire::pack(message, self.as_value)?;
        if let Some(peer) = &self.peer {
            let size = data.len() + AROUND;
            if size > (peer.message_bytes + AROUND).min(peer.frame_bytes.saturating_sub(AROUND)) {
                return Err(Error::LimitExceeded(format!("the message is larger than {} takes", peer.exchange)));
            }
        }
        Ok(self.out.put(Entry { message: message.clone(), data })?)
    }

    /// Tell the peer that our interest has changed. One who reads none of it is told goodbye instead.
    pub fn announce(&mut self, mut change: proto::Interest) {
        if self.control.len() >= CONTROL_FRAMES {
            self.say_goodbye(Code::ResourceExhausted, &format!("more than {CONTROL_FRAMES} frames wait to be read"), 0);
        }
        if matches!(self.phase, Phase::Opening | Phase::Open) {
            self.revision += 1;
            change.revision = self.revision;
            self.control.push_back(wire::encode(Frame::Interest(change)));
        }
    }

    /// Queue a question or an answer: false if the peer cannot be reading.
    pub fn control(&mut self, frame: Frame) -> bool {
        if self.control.len() >= CONTROL_FRAMES || self.phase == Phase::Away {
            return false;
        }
        self.control.push_back(wire::encode(frame));
        true
    }

    /// Refuse one message that was received; if very many such answers wait, this one is left out.
    pub fn reject(&mut self, seq: u64, id: &str, error: &RequestError) {
        if self.rejects.len() < CONTROL_FRAMES {
            let reject = proto::Reject { seq, id: id.into(), status: Some(wire::status(error)) };
            self.rejects.push_back(wire::encode(Frame::Reject(reject)));
        }
    }

    /// Say that the session ends, after what is queued.
    pub fn say_goodbye(&mut self, code: Code, reason: &str, retry_after_ms: u32) {
        self.leaves = true;
        match self.phase {
            Phase::Opening | Phase::Open => {
                self.phase = Phase::Closing;
                self.goodbye = Some(farewell(code, reason, retry_after_ms, false));
            }
            Phase::Away => self.phase = Phase::Closed,
            Phase::Closing | Phase::Closed => {}
        }
    }

    /// The bytes of the next frame to write. Messages whose time ended in the queue are put in `expired`.
    pub fn data_to_send(&mut self, now: Time, expired: &mut Vec<Message>) -> Option<Bytes> {
        if self.phase == Phase::Away {
            return None;
        }
        if let Some(frame) = self.next_control(now) {
            return Some(frame);
        }
        if self.met && matches!(self.phase, Phase::Open | Phase::Closing) {
            let room = self.peer.as_ref().map_or(0, |peer| peer.frame_bytes.saturating_sub(AROUND));
            if let Some(frame) = self.out.batch(room, now, expired) {
                return Some(frame);
            }
        }
        if self.out.waits() && self.met && self.phase != Phase::Closed {
            return None;
        }
        let mut goodbye = self.goodbye.take()?;
        if self.phase == Phase::Closing && self.met && self.out.keeps {
            self.parting = true;
        } else if self.phase == Phase::Closing {
            self.phase = Phase::Closed;
        }
        goodbye.exchange.clone_from(&self.me.exchange);
        // Before its Welcome it is not known whether the peer counts on or anew.
        goodbye.received = if self.into.acknowledges && self.met { self.into.received } else { 0 };
        Some(wire::encode(Frame::Goodbye(goodbye)))
    }

    /// A frame that does not wait behind messages.
    fn next_control(&mut self, now: Time) -> Option<Bytes> {
        if let Some(frame) = self.control.pop_front() {
            return Some(frame);
        }
        if !self.met {
            return None;
        }
        if let Some(reject) = self.rejects.pop_front() {
            return Some(reject);
        }
        if self.phase == Phase::Closed {
            return None;
        }
        if let Some(nonce) = self.pong.take() {
            return Some(wire::encode(Frame::Pong(proto::Pong { nonce })));
        }
        if let Some(nonce) = self.ping.take() {
            return Some(wire::encode(Frame::Ping(proto::Ping { nonce })));
        }
        if let Some((seq, settled)) = self.into.ack_to_tell(now) {
            return Some(wire::encode(Frame::Ack(proto::Ack { seq, settled })));
        }
        self.peer.as_ref()?.credit?;
        let credit = self.into.credit_to_tell()?;
        Some(wire::encode(Frame::Credit(credit_frame(credit))))
    }
}

fn farewell(code: Code, reason: &str, retry_after_ms: u32, stay_away: bool) -> proto::Goodbye {
    let status = exchange_proto::google::rpc::Status { code: code as i32, message: reason.into(), details: vec![] };
    proto::Goodbye { status: Some(status), retry_after_ms, stay_away, ..proto::Goodbye::default() }
}

/// Compared in the same time wherever they differ.
fn same_secret(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}
