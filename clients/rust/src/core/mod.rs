//! The core of one exchange: its links, its routing and what is registered, under one lock.
//!
//! Law: no I/O, no clock and no waiting. Whatever happens is a method with the time in it; whoever has to be
//! woken is in `wakers`. An exchange of this crate is a leaf: it takes what is for itself, and passes nothing on.

mod discovery;
mod ends;
mod links;
mod neighbours;
mod routing;
mod scatter;
mod table;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::error::{RequestError, Result};
use crate::ledger::Ledger;
use crate::limits::{Limits, SEEN_IDS, SEEN_SECONDS};
use crate::message::{Context, Head, Hop, Kind, Message, Outcome, Time};
use crate::payload::Payload;
use discovery::Discovery;
use links::Line;
pub(crate) use links::{Conn, Opening, random};
use routing::Open;
pub(crate) use table::{Invocation, Registration, Run, Table};

pub(crate) type LineId = u64;
pub(crate) type ConnId = u64;

/// What happened to an exchange itself. [`Exchange::events`](crate::Exchange::events) tells of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A link is there.
    Connected {
        /// The peer.
        id: String,
        /// Its language and library version.
        agent: String,
        /// It passes on messages of others.
        relay: bool,
    },
    /// The link has broken or ended.
    Lost {
        /// The peer.
        id: String,
        /// Why.
        reason: String,
    },
    /// It is there again.
    Resumed {
        /// The peer.
        id: String,
        /// Nothing was lost, nothing came twice.
        recovered: bool,
        /// If not: the ids of the messages of which nobody knows whether they arrived.
        uncertain: Vec<String>,
        /// How long it was away.
        seconds: f64,
    },
    /// It is not waited for, or dialled, any more.
    GaveUp {
        /// The peer.
        id: String,
        /// Why.
        reason: String,
    },
    /// A message that was sent from here, or came here, was not handled.
    Unhandled {
        /// The message.
        id: String,
        /// Its name.
        name: String,
        /// What became of it.
        outcome: Outcome,
        /// Why.
        #[serde(flatten)]
        error: RequestError,
    },
}

/// Why an observer sees a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It came here.
    Received,
    /// It was made here.
    Emitted,
}

/// Who waits for the answers to a request of ours.
#[derive(Debug)]
pub(crate) enum Sink {
    One(oneshot::Sender<Message>),
    Many(mpsc::Sender<Message>),
}

/// A message that comes to be routed: from a link, or emitted here (None), then perhaps by way of a given link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way<'a> {
    pub link: Option<&'a str>,
    pub via: Option<&'a str>,
}

const HERE: Way<'static> = Way { link: None, via: None };

/// Its number, what it wants to see, and where that goes.
type Observer = (u64, String, mpsc::Sender<(Seen, Message)>);

/// What became of an emission: the line by which it left, if by one.
pub(crate) type Dispatched = Result<Option<LineId>, RequestError>;

/// A time that can be ordered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Due(pub Time);

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A bounded memory of ids: each is new once, for a while.
#[derive(Debug, Default)]
pub(super) struct Once {
    known: HashSet<String>,
    order: VecDeque<(Time, String)>,
}

impl Once {
    pub fn first(&mut self, id: &str, now: Time) -> bool {
        if self.known.contains(id) {
            return false;
        }
        while self.order.len() >= SEEN_IDS || self.order.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, old)) = self.order.pop_front() else { break };
            self.known.remove(&old);
        }
        self.known.insert(id.to_owned());
        self.order.push_back((now + SEEN_SECONDS, id.to_owned()));
        true
    }
}

/// What routing knows of one peer.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub relay: bool,
    pub handles: HashSet<String>,
    pub subscribes: HashSet<String>,
    /// It is broken, and may be there again soon.
    pub away: bool,
    /// Open requests that were passed to it.
    pub out: HashSet<String>,
    /// Open requests that came from it.
    pub came: HashSet<String>,
}

pub(crate) struct Core {
    pub id: String,
    pub epoch: u64,
    pub limits: Limits,
    pub closed: bool,
    /// Connections that have something to write: woken once the lock is open.
    pub wakers: Vec<Waker>,
    /// When `tick` is due.
    pub due: Time,
    pub table: Table,
    pub(super) ledger: Ledger,
    /// What the clock has to be added to, for the time of day in microseconds.
    wall_us: i64,
    count: u64,
    // links.rs
    lines: HashMap<LineId, Line>,
    conns: HashMap<ConnId, Conn>,
    by_peer: HashMap<String, LineId>,
    last_number: u64,
    revision: u64,
    // routing.rs
    links: BTreeMap<String, Link>,
    open: HashMap<String, Open>,
    deadlines: BinaryHeap<Reverse<(Due, String)>>,
    seen: Once,
    turns: HashMap<Vec<String>, usize>,
    discovery: Discovery,
    /// Peers that are gone, and may come back.
    expected: HashSet<String>,
    settled: Time,
    dispatching: HashMap<String, oneshot::Sender<Dispatched>>,
    /// What is being emitted, and what has become of it so far.
    emitting: Option<(Arc<Head>, Option<Dispatched>)>,
    events: Vec<mpsc::Sender<Event>>,
    observers: Vec<Observer>,
}

impl Core {
    pub fn new(id: String, epoch: u64, limits: Limits) -> Self {
        Self {
            ledger: Ledger::new(&id),
            discovery: Discovery::new(&format!("{id}.{epoch}")),
            wall_us: epoch.cast_signed(),
            id,
            epoch,
            limits,
            closed: false,
            wakers: Vec::new(),
            due: f64::INFINITY,
            table: Table::default(),
            count: 0,
            lines: HashMap::new(),
            conns: HashMap::new(),
            by_peer: HashMap::new(),
            last_number: 0,
            revision: 0,
            links: BTreeMap::new(),
            open: HashMap::new(),
            deadlines: BinaryHeap::new(),
            seen: Once::default(),
            turns: HashMap::new(),
            expected: HashSet::new(),
            settled: 0.0,
            dispatching: HashMap::new(),
            emitting: None,
            events: Vec::new(),
            observers: Vec::new(),
        }
    }

    /// The time of day in microseconds.
    pub fn wall(&self, now: Time) -> i64 {
        #[allow(clippy::cast_possible_truncation)] // of a process's life
        let since = (now * 1e6) as i64;
        self.wall_us + since
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// A new message of this exchange.
    pub fn make(&mut self, kind: Kind, name: &str, context: Context, now: Time, seconds: Time) -> Message {
        self.count += 1;
        let at_us = self.wall(now);
        let mut head = Head {
            id: format!("{}.{}.{}", self.id, self.epoch, self.count),
            name: name.to_owned(),
            kind,
            from: self.id.clone(),
            to: String::new(),
            reply_to: String::new(),
            hops: vec![Hop { exchange: self.id.clone(), at_us }],
            causes: Vec::new(),
            root: String::new(),
            path: Vec::new(),
            cut: false,
            traceparent: String::new(),
            timestamp_us: at_us,
            deadline: now + seconds,
            headers: BTreeMap::new(),
            many: false,
        };
        context.write(&mut head);
        Message::new(head, Payload::null())
    }

    /// `tick` is due at this time, or before.
    fn arm(&mut self, due: Time) {
        self.due = self.due.min(due);
    }

    /// Tell the core the time: what is over ends.
    pub fn tick(&mut self, now: Time) {
        self.due = f64::INFINITY;
        self.tick_lines(now);
        self.tick_requests(now);
        self.tick_discovery(now);
    }

    /// What the ledger has of everything with the same root as this message.
    pub fn known_of(&self, id: &str, root: &str) -> Option<serde_json::Value> {
        self.ledger.trace(id, root)
    }

    fn record(&mut self, id: &str, now: Time, outcome: Outcome, by: &str, reason: &str) {
        let at_us = self.wall(now);
        self.ledger.record(id, at_us, outcome, by, 0.0, reason);
    }

    // -------------------------------------------------------------------------------- who is told

    /// Whoever takes these hears of what happens from now on.
    pub fn follow(&mut self, events: mpsc::Sender<Event>) {
        self.events.push(events);
    }

    fn tell(&mut self, event: &Event) {
        // One that is full misses it: nobody waits for who does not listen.
        self.events
            .retain(|events| !matches!(events.try_send(event.clone()), Err(mpsc::error::TrySendError::Closed(_))));
    }

    /// Show what passes to whoever takes these.
    pub fn observe(&mut self, pattern: &str, observer: mpsc::Sender<(Seen, Message)>) -> u64 {
        let number = self.number();
        self.observers.push((number, pattern.to_owned(), observer));
        number
    }

    pub fn forget_observer(&mut self, number: u64) {
        self.observers.retain(|(known, ..)| *known != number);
    }

    fn show(&mut self, seen: Seen, message: &Message) {
        use crate::names::{RESERVED, fits};
        if self.observers.is_empty() || message.name().starts_with(RESERVED) {
            return;
        }
        for (_, pattern, observer) in &self.observers {
            if fits(pattern, message.name()) && observer.try_send((seen, message.clone())).is_err() {
                tracing::debug!(
                    pattern,
                    id = message.id(),
                    "an observer is too slow, or gone, and has missed a message"
                );
            }
        }
    }

    fn unhandled(&mut self, head: &Head, outcome: Outcome, error: &RequestError) {
        if head.from == self.id && head.name.starts_with(crate::names::RESERVED) {
            return; // we asked about a trace, and name in it whom we could not ask
        }
        let at = if error.at.is_empty() { &self.id } else { &error.at };
        tracing::warn!(name = %head.name, id = %head.id, at = %at, "not handled: {}", error.message);
        self.tell(&Event::Unhandled { id: head.id.clone(), name: head.name.clone(), outcome, error: error.clone() });
    }
}

/// Held by whoever needs to look again when something has changed.
pub(crate) type Notice = Arc<tokio::sync::Notify>;
