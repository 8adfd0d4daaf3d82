//! The links of one exchange: made, broken, resumed and gone.
//!
//! A *line* is a session and whatever carries it; it outlives its *connections*, each of which is one stream while it
//! lasts. A line is in `by_peer` as long as its session may be resumed; a peer is in `links` (for routing) from its first
//! handshake until nobody should wait for it any more. The side that dialled dials again; the other side waits.

mod lives;

use std::collections::BTreeMap;
use std::task::{Poll, Waker};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{ConnId, Core, Event, LineId, Link, Notice};
use crate::error::{Code, Error, RequestError, Result};
use crate::limits::{FRAME_BYTES, LINKS, MESSAGE_BYTES, RETRY_AFTER_MS};
use crate::message::{Kind, Message, Time};
use crate::session::backoff::Backoff;
use crate::session::introduction::{Introduction, PING, PROTOCOL, RESUME};
use crate::session::{Ended, Phase, Session};
use crate::wire::Frame;

/// Language and library version, for people.
const AGENT: &str = concat!("rust/", env!("CARGO_PKG_VERSION"));

/// Who waits for the Welcome of whom it dialled.
#[derive(Debug)]
pub(crate) struct Opening {
    pub url: String,
    /// The id of the peer, or why there is none.
    pub told: oneshot::Sender<Result<String>>,
}

/// A session, and what carries it.
#[derive(Debug)]
pub(crate) struct Line {
    pub session: Session,
    pub connection: Option<ConnId>,
    /// Whoever waits for room, or for the end.
    pub changed: Notice,
    /// Dial again for so many seconds after a break. None: not dialled.
    retry: Option<Time>,
    backoff: Backoff,
    broke_at: Option<Time>,
    redialling: bool,
    /// Whoever dials is told to, not before so many seconds.
    redial: Option<mpsc::UnboundedSender<Time>>,
    opening: Option<Opening>,
    ended: Option<Ended>,
    /// By our own wish.
    leaving: bool,
    finished: bool,
    /// The other side will send no more, but reads: what it asked is still answered, then the link ends.
    read_all: bool,
    /// It has been shown as connected.
    known: bool,
    /// Since when it is broken.
    broken: Option<Time>,
    /// Ids that routing was told of, and nobody else so far.
    uncertain: Vec<String>,
}

/// One stream, while it lasts.
#[derive(Debug)]
pub(crate) struct Conn {
    pub line: LineId,
    /// Tells whoever reads that it is over.
    pub notice: Notice,
    /// Why it is to end at once.
    pub dropped: Option<String>,
    /// All is said: the other side may hear it, and end.
    pub finished: bool,
    waker: Option<Waker>,
    /// Since when there is something to write that is not taken.
    offered: Option<Time>,
}

/// So many random bytes.
pub(crate) fn random(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    // Without randomness there is nothing that could be kept secret, or made.
    getrandom::fill(&mut bytes).expect("the system has random bytes");
    bytes
}

/// From 0 to 1.
fn draw() -> f64 {
    let bytes = random(4);
    f64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])) / f64::from(u32::MAX)
}

impl Core {
    // ------------------------------------------------------------------------------------------- what goes out

    /// What we say of ourselves.
    fn introduction(&self, protocol: u32) -> Introduction {
        Introduction {
            exchange: self.id.clone(),
            epoch: self.epoch,
            protocol: protocol.min(PROTOCOL),
            features: vec![PING.into(), RESUME.into()],
            agent: AGENT.into(),
            relay: false,
            revision: self.revision,
            handles: self.table.handles(),
            subscribes: self.table.subscribes(),
            exports: vec![],
            message_bytes: MESSAGE_BYTES,
            frame_bytes: FRAME_BYTES,
            session: String::new(),
            token: Bytes::new(),
            received: 0,
            received_bytes: 0,
            credit: None,
            recovered: false,
        }
    }

    /// Put a message on a link, and say on which line.
    pub(super) fn transmit(&mut self, to: &str, message: &Message) -> Result<LineId> {
        let Some((id, line)) = self.by_peer.get(to).and_then(|id| Some((*id, self.lines.get_mut(id)?))) else {
            return Err(RequestError::full(format!("the link to {to} was lost")).into());
        };
        line.session.send(message)?;
        if message.kind() == Kind::Reply {
            self.ledger.note(&message.head);
        }
        self.wake(id);
        Ok(id)
    }

    /// Put a question or an answer on a link; false if it takes no more.
    pub(super) fn control(&mut self, to: &str, frame: Frame) -> bool {
        let Some((id, line)) = self.by_peer.get(to).and_then(|id| Some((*id, self.lines.get_mut(id)?))) else {
            return false;
        };
        let taken = line.session.control(frame);
        self.wake(id);
        taken
    }

    /// The session has something to say.
    pub(super) fn wake(&mut self, id: LineId) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        match line.connection.and_then(|conn| self.conns.get_mut(&conn)) {
            Some(conn) => {
                if let Some(waker) = conn.waker.take() {
                    self.wakers.push(waker);
                }
            }
            None if line.session.phase == Phase::Closed => self.finish(id), // not to be dialled again either
            None => {}
        }
    }

    /// What to write next; pending until there is something, None at the end.
    pub fn next_frame(&mut self, conn_id: ConnId, waker: &Waker, now: Time) -> Poll<Option<Bytes>> {
        let Some(conn) = self.conns.get_mut(&conn_id) else { return Poll::Ready(None) };
        let id = conn.line;
        conn.offered = None;
        let Some(line) = self.lines.get_mut(&id).filter(|line| line.connection == Some(conn_id)) else {
            return Poll::Ready(None);
        };
        if conn.dropped.is_some() {
            return Poll::Ready(None);
        }
        if line.read_all && line.session.peer.as_ref().is_none_or(|peer| has_all_answers(&self.links, peer)) {
            line.session.say_goodbye(Code::Ok, "", 0);
        }
        let mut expired = Vec::new();
        let data = line.session.data_to_send(now, &mut expired);
        let (room, over) = (!line.session.out.full(), line.session.phase == Phase::Closed);
        let mut due = line.session.next_deadline();
        if room {
            line.changed.notify_waiters();
        }
        let ready = if data.is_some() {
            conn.offered = Some(now); // until it asks for more
            due = due.min(now + self.limits.silence.as_secs_f64() + 0.01);
            Poll::Ready(data)
        } else if over {
            conn.finished = true;
            conn.notice.notify_one();
            Poll::Ready(None)
        } else {
            conn.waker = Some(waker.clone());
            Poll::Pending
        };
        if !expired.is_empty() {
            self.expired(&expired, now);
        }
        self.arm(due);
        ready
    }

    // --------------------------------------------------------------------------------- connections come and go

    /// A line to dial, whose peer will be told to `opening`.
    pub fn begin_dialled(
        &mut self,
        opening: Opening,
        redial: mpsc::UnboundedSender<Time>,
        retry: Time,
        now: Time,
    ) -> (LineId, ConnId) {
        let line = self.begin_line(Some(retry), now);
        if let Some(line) = self.lines.get_mut(&line) {
            (line.opening, line.redial) = (Some(opening), Some(redial));
        }
        (line, self.attach(line, now))
    }

    /// Somebody has dialled us.
    pub fn begin_accepted(&mut self, now: Time) -> ConnId {
        let full = self.lines.len() >= LINKS;
        let id = self.begin_line(None, now);
        if let Some(line) = self.lines.get_mut(&id).filter(|_| full || self.closed) {
            let reason = format!("{} takes no more links", self.id);
            line.session.say_goodbye(Code::ResourceExhausted, &reason, 0);
        }
        self.attach(id, now)
    }

    fn begin_line(&mut self, retry: Option<Time>, now: Time) -> LineId {
        let id = self.number();
        let session = Session::new(self.introduction(PROTOCOL), retry.is_some(), now, &self.limits, random);
        let line = Line {
            session,
            connection: None,
            changed: Notice::default(),
            retry,
            backoff: Backoff::new(&self.limits),
            broke_at: None,
            redialling: false,
            redial: None,
            opening: None,
            ended: None,
            leaving: false,
            finished: false,
            read_all: false,
            known: false,
            broken: None,
            uncertain: Vec::new(),
        };
        self.lines.insert(id, line);
        id
    }

    /// The line goes on over a new connection.
    fn attach(&mut self, id: LineId, now: Time) -> ConnId {
        let conn_id = self.number();
        let conn = Conn {
            line: id,
            notice: Notice::default(),
            dropped: None,
            finished: false,
            waker: None,
            offered: Some(now),
        };
        self.conns.insert(conn_id, conn);
        if let Some(line) = self.lines.get_mut(&id) {
            line.connection = Some(conn_id);
            line.read_all = false;
            let due = line.session.next_deadline();
            self.arm(due);
        }
        conn_id
    }

    pub fn conn(&self, id: ConnId) -> Option<&Conn> {
        self.conns.get(&id)
    }

    /// Dialled again: on with it. None if nobody wants that any more.
    pub fn redialled(&mut self, id: LineId, now: Time) -> Option<ConnId> {
        let introduction = self.introduction(PROTOCOL);
        let line = self.lines.get_mut(&id).filter(|line| line.redialling && !line.finished && !line.leaving)?;
        line.redialling = false; // from here on, a break begins a new one
        line.session.dial(introduction, now);
        Some(self.attach(id, now))
    }

    /// The seconds until the next attempt to dial; None if it is not worth while, or nobody wants it any more.
    pub fn next_attempt(&mut self, id: LineId, pause: Time, now: Time) -> Option<Time> {
        let line = self.lines.get_mut(&id).filter(|line| line.redialling && !line.finished && !line.leaving)?;
        let seconds = pause.max(line.backoff.next(draw()));
        let retry = line.retry.unwrap_or(0.0);
        if now + seconds - line.broke_at.unwrap_or(now) <= retry {
            return Some(seconds);
        }
        line.redialling = false;
        line.session.say_goodbye(Code::Ok, "", 0);
        self.gave_up(id, &format!("it was not back within {retry} s"), now);
        self.finish(id);
        None
    }

    /// Whether whoever dialled waits for the Welcome.
    pub fn is_opening(&self, conn_id: ConnId) -> bool {
        let line = self.conns.get(&conn_id).and_then(|conn| self.lines.get(&conn.line));
        line.is_some_and(|line| line.opening.is_some())
    }

    /// What was dialled takes no such stream.
    pub fn not_taken(&mut self, conn_id: ConnId, error: Error, now: Time) {
        let Some(conn) = self.conns.get(&conn_id) else { return };
        let reason = error.to_string();
        if let Some(opening) = self.lines.get_mut(&conn.line).and_then(|line| line.opening.take()) {
            let _ = opening.told.send(Err(error)); // whoever dialled may have gone
        }
        self.disconnected(conn_id, &reason, now);
    }

    /// A connection carries nothing any more.
    pub fn disconnected(&mut self, conn_id: ConnId, reason: &str, now: Time) {
        let Some(conn) = self.conns.remove(&conn_id) else { return };
        let id = conn.line;
        let Some(line) = self.lines.get_mut(&id).filter(|line| line.connection == Some(conn_id)) else { return };
        line.connection = None;
        let reason = conn.dropped.as_deref().unwrap_or(reason);
        if line.session.disconnected(now) {
            self.broke(id, reason, now);
            self.come_back(id, 0.0, now);
        } else {
            let said = line.ended.as_ref().map(|ended| ended.reason.clone()).filter(|said| !said.is_empty());
            self.session_over(id, &said.unwrap_or_else(|| reason.to_owned()), now);
        }
    }

    /// Dial again, or wait for the peer to do so.
    fn come_back(&mut self, id: LineId, pause: Time, now: Time) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.backoff.broke(now);
        line.changed.notify_waiters();
        let due = line.session.next_deadline();
        if line.retry.is_some_and(|retry| retry > 0.0) && !line.redialling {
            line.redialling = true;
            line.broke_at.get_or_insert(now);
            if let Some(redial) = &line.redial {
                let _ = redial.send(pause); // else the process is ending
            }
        } else if line.retry == Some(0.0) {
            self.gave_up(id, "the link was lost", now);
            self.finish(id);
        }
        self.arm(due);
    }

    /// Nothing is left of it.
    fn finish(&mut self, id: LineId) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.finished = true;
        line.redialling = false;
        line.changed.notify_waiters();
        if let Some(opening) = line.opening.take() {
            let _ = opening.told.send(Err(Error::Link("the link was closed".into())));
        }
        if line.connection.is_none() {
            self.lines.remove(&id);
        }
    }

    fn drop_connection(&mut self, conn_id: ConnId, reason: &str) {
        let Some(conn) = self.conns.get_mut(&conn_id) else { return };
        conn.dropped.get_or_insert_with(|| reason.to_owned());
        conn.notice.notify_one();
        if let Some(waker) = conn.waker.take() {
            self.wakers.push(waker);
        }
    }

    // ------------------------------------------------------------------------------------------- what is heard

    /// A frame came in. False if no more should be read.
    pub fn receive(&mut self, conn_id: ConnId, frame: Bytes, now: Time) -> bool {
        let Some(id) = self.conns.get(&conn_id).filter(|conn| conn.dropped.is_none()).map(|conn| conn.line) else {
            return false;
        };
        let Some(line) = self.lines.get_mut(&id).filter(|line| line.connection == Some(conn_id)) else { return false };
        let said = line.session.receive(frame, now);
        self.understand(id, said, now);
        // It may be another line's connection now.
        let id = self.conns.get(&conn_id).map_or(id, |conn| conn.line);
        self.wake(id);
        if let Some(line) = self.lines.get(&id) {
            let due = line.session.next_deadline();
            self.arm(due);
        }
        true
    }

    /// Whether no more should be read for now: so much waits here, of a peer that does not keep to credit.
    pub fn crowded(&self, conn_id: ConnId) -> bool {
        let line = self.conns.get(&conn_id).and_then(|conn| self.lines.get(&conn.line));
        line.is_some_and(|line| {
            let keeps = line.session.peer.as_ref().is_some_and(|peer| peer.credit.is_some());
            line.session.into.crowded() && !keeps
        })
    }

    /// The other side ended its half of the stream. Whether it may still be written to.
    pub fn read_all(&mut self, conn_id: ConnId) -> bool {
        let Some(id) = self.conns.get(&conn_id).map(|conn| conn.line) else { return false };
        let Some(line) = self.lines.get_mut(&id).filter(|line| line.connection == Some(conn_id)) else { return false };
        if line.session.into.acknowledges || line.session.dialled {
            return false; // who resumes says goodbye before it ends
        }
        line.read_all = true;
        self.wake(id);
        true
    }

    // ------------------------------------------------------------------------------------- what takes too long

    pub(super) fn tick_lines(&mut self, now: Time) {
        let silence = self.limits.silence.as_secs_f64();
        let ids: Vec<LineId> = self.lines.keys().copied().collect();
        for id in ids {
            let Some(line) = self.lines.get_mut(&id) else { continue };
            if line.session.next_deadline() <= now {
                let said = line.session.tick(now);
                let closed = line.session.phase == Phase::Closed;
                let conn = line.connection;
                self.understand(id, said, now);
                self.wake(id);
                if let (true, Some(conn)) = (closed, conn.filter(|conn| self.is_stuck(*conn, now))) {
                    self.drop_connection(conn, "it did not take leave in time");
                }
            }
            let Some(line) = self.lines.get(&id) else { continue };
            let (due, conn) = (line.session.next_deadline(), line.connection);
            self.arm(due);
            let Some(conn_id) = conn else { continue };
            let Some(offered) = self.conns.get(&conn_id).and_then(|conn| conn.offered) else { continue };
            if now - offered > silence {
                self.drop_connection(conn_id, &format!("it has read nothing for {silence} s"));
            } else {
                self.arm(offered + silence + 0.001);
            }
        }
    }

    fn is_stuck(&self, conn: ConnId, now: Time) -> bool {
        self.conns.get(&conn).is_some_and(|conn| conn.offered.is_some_and(|offered| now - offered > 1.0))
    }

    // ----------------------------------------------------------------------------------------- what waits here

    pub(super) fn retain(&mut self, id: LineId, size: usize) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.session.into.retain(size);
        }
    }

    pub(super) fn release(&mut self, id: LineId, size: usize) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        if line.session.into.release(size) {
            self.wake(id);
        }
    }

    pub(super) fn settle(&mut self, taken: Option<(LineId, u64, usize)>) {
        let Some((id, seq, _)) = taken else { return };
        if let Some(line) = self.lines.get_mut(&id) {
            line.session.into.settle(seq);
        }
    }

    // ------------------------------------------------------------------------------------------- what is asked

    /// Whether so much waits on this line that whoever can wait should; and what tells when to look again.
    pub fn full(&self, id: LineId) -> Option<Notice> {
        let line = self.lines.get(&id)?;
        (line.session.out.full() && !line.finished && line.session.phase != Phase::Closed).then(|| line.changed.clone())
    }

    /// The peers that are linked, by id.
    pub fn peers(&self) -> Vec<String> {
        self.links.keys().cloned().collect()
    }

    pub fn is_linked(&self, peer: &str) -> bool {
        self.links.get(peer).is_some_and(|link| !link.away)
    }

    /// Every peer: what it has said of itself, whether it is away, and what waits for it.
    pub fn describe_peers(&self) -> Vec<(Introduction, bool, usize, (usize, usize))> {
        let described = self.links.iter().filter_map(|(id, link)| {
            let line = self.lines.get(self.by_peer.get(id)?)?;
            let mut peer = line.session.peer.clone()?;
            peer.relay = link.relay;
            peer.handles = link.handles.iter().cloned().collect();
            peer.handles.sort();
            peer.subscribes = link.subscribes.iter().cloned().collect();
            peer.subscribes.sort();
            Some((peer, link.away, link.out.len(), line.session.out.load()))
        });
        described.collect()
    }

    pub fn describe(&self) -> Introduction {
        self.introduction(PROTOCOL)
    }

    /// Say goodbye to a peer, after what is queued. What tells of its end.
    pub fn leave(&mut self, peer: &str, now: Time) -> Option<(LineId, Notice)> {
        let id = *self.by_peer.get(peer)?;
        Some((id, self.close_line(id, 0, now)?))
    }

    /// Say goodbye to all.
    pub fn leave_all(&mut self, now: Time) -> Vec<(LineId, Notice)> {
        let ids: Vec<LineId> = self.lines.keys().copied().collect();
        ids.into_iter().filter_map(|id| Some((id, self.close_line(id, RETRY_AFTER_MS, now)?))).collect()
    }

    fn close_line(&mut self, id: LineId, retry_after_ms: u32, now: Time) -> Option<Notice> {
        let line = self.lines.get_mut(&id)?;
        line.leaving = true;
        line.redialling = false;
        line.session.say_goodbye(Code::Ok, "", retry_after_ms);
        let changed = line.changed.clone();
        if line.connection.is_none() {
            self.gone(id, "the link was closed", false, now);
            self.finish(id);
            return None;
        }
        self.wake(id);
        Some(changed)
    }

    /// Whether something is left of it.
    pub fn has_line(&self, id: LineId) -> bool {
        self.lines.contains_key(&id)
    }

    /// End what did not end by itself.
    pub fn drop_line(&mut self, id: LineId, reason: &str) {
        if let Some(conn) = self.lines.get(&id).and_then(|line| line.connection) {
            self.drop_connection(conn, reason);
        }
    }

    /// End everything at once, without a word.
    pub fn drop_all(&mut self) {
        let conns: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in conns {
            self.drop_connection(conn, "the exchange is gone");
        }
        self.lines.values_mut().for_each(|line| line.leaving = true);
    }
}

/// Whether nothing is open of what this peer asked.
fn has_all_answers(links: &BTreeMap<String, Link>, peer: &Introduction) -> bool {
    links.get(&peer.exchange).is_none_or(|link| link.came.is_empty())
}
