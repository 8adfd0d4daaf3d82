//! Who takes a message, and the way back.
//!
//! A message that comes over a link is for this exchange, or is refused: a leaf passes nothing on. One that is emitted
//! here goes to the handler here; else to a linked peer that is addressed or declares the name, in turn; else the relays
//! are asked (`discovery.rs`); else nobody takes it. A request to many goes to all who declare the name and to all
//! relays; `scatter.rs` counts who has ended.
//!
//! `open` has every request that awaits its reply, be it emitted here or handled here. A reply counts only from whoever
//! has the request.

use std::cmp::Reverse;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::discovery::Target;
use super::scatter::{Scatter, is_nobody};
use super::{Core, Dispatched, Due, HERE, LineId, Link, Seen, Sink, Way};
use crate::error::{Code, Error, RequestError, Result};
use crate::limits::{HOPS, MESSAGE_SECONDS, OPEN_REQUESTS};
use crate::message::{Context, Head, Hop, Kind, Message, Outcome, Time};
use crate::session::Taken;

/// Sets of candidates whose turn is remembered.
const TURNS: usize = 4_096;

/// A request that awaits its reply.
#[derive(Debug)]
pub(super) struct Open {
    pub head: Arc<Head>,
    /// Where the reply goes; None: it was emitted here.
    pub link: Option<String>,
    /// Who has it: a link, this exchange, or nobody yet.
    pub out: Option<String>,
    /// Kept while it may have to be routed again.
    pub message: Option<Message>,
    /// It was.
    pub again: bool,
    /// It went to several: then they have it, in place of `out`.
    pub scatter: Option<Scatter>,
    pub sink: Option<Sink>,
}

impl Open {
    pub fn holders(&self) -> Vec<String> {
        match &self.scatter {
            Some(scatter) => scatter.branches.keys().cloned().collect(),
            None => self.out.iter().cloned().collect(),
        }
    }

    pub fn has(&self, holder: &str) -> bool {
        match &self.scatter {
            Some(scatter) => scatter.branches.contains_key(holder),
            None => self.out.as_deref() == Some(holder),
        }
    }
}

impl Core {
    // ------------------------------------------------------------------------------------------ what comes in

    /// Messages that came over a link, in one frame.
    pub(super) fn arrived(&mut self, line: LineId, link: &str, messages: Vec<Taken>, now: Time) {
        for Taken { mut message, seq } in messages {
            let taken = Some((line, seq, message.payload.bytes().len()));
            if !self.links.contains_key(link) || !self.admit(&mut message, link, now) {
                self.settle(taken);
                continue;
            }
            self.take_up(&message, link, taken, now);
        }
    }

    /// Whether a received message may go on; refuses it otherwise. Writes the hop to here.
    pub(super) fn admit(&mut self, message: &mut Message, link: &str, now: Time) -> bool {
        let way = Way { link: Some(link), via: None };
        let at_us = self.wall(now);
        let head = message.head_mut();
        let (visited, hops) = (head.visited(&self.id), head.hops.len());
        head.hops.push(Hop { exchange: self.id.clone(), at_us });
        self.ledger.note(&message.head);
        let me = &self.id;
        if visited {
            let trail: Vec<&str> = message.hops().iter().map(|hop| hop.exchange.as_str()).collect();
            let text = format!("it came back to {me}: {}", trail.join(" -> "));
            let error = RequestError::new(Code::Unimplemented, "LOOP", text).at(me).undelivered();
            self.fail(message, way, now, Outcome::Loop, error);
        } else if hops >= HOPS && !matches!(message.kind(), Kind::Reply | Kind::Outcome) {
            let text = format!("it has made {HOPS} hops");
            let error = RequestError::new(Code::OutOfRange, "TOO_MANY_HOPS", text).at(me).undelivered();
            self.fail(message, way, now, Outcome::Denied, error);
        } else if message.head.deadline <= now {
            let error = self.too_late(message.name());
            self.fail(message, way, now, Outcome::Expired, error);
        } else {
            if hops > 1 {
                // Like a switch: its origin lies behind this link.
                let target = Target::Exchange(message.from().to_owned());
                self.discovery.learn(target, link, u32::try_from(hops).unwrap_or(u32::MAX));
            }
            return true;
        }
        false
    }

    pub(super) fn take_up(&mut self, message: &Message, link: &str, taken: Option<(LineId, u64, usize)>, now: Time) {
        let way = Way { link: Some(link), via: None };
        match message.kind() {
            Kind::Send => self.take(message, way, taken, now),
            Kind::Request => {
                if message.head.many && message.to().is_empty() && !self.seen.first(message.id(), now) {
                    let error = RequestError::unhandled("it was here by another way").at(&self.id);
                    let error = RequestError { reason: "LOOP".into(), ..error };
                    self.refuse(&message.head, way.link, now, Some(error), vec![]);
                    self.settle(taken);
                } else if self.remember(message, way.link, None, now) {
                    self.take(message, way, taken, now);
                } else {
                    self.settle(taken);
                }
            }
            Kind::Reply => {
                self.show(Seen::Received, message);
                self.reply(message, Some(link), now);
                self.settle(taken);
            }
            Kind::Cancel => {
                self.cancelled(message, Some(link), now);
                self.settle(taken);
            }
            Kind::Outcome => {
                self.outcome(message, link, now);
                self.settle(taken);
            }
            Kind::Publish | Kind::Broadcast => {
                if message.kind() == Kind::Publish && !self.seen.first(message.id(), now) {
                    self.settle(taken);
                    return;
                }
                self.show(Seen::Received, message);
                if !self.deliver(message, Some(link), taken, now).unwrap_or(false) {
                    self.settle(taken);
                }
            }
        }
    }

    /// It is handled here, or by nobody.
    pub(super) fn take(&mut self, message: &Message, way: Way<'_>, taken: Option<(LineId, u64, usize)>, now: Time) {
        let for_me = message.to().is_empty() || message.to() == self.id;
        if !for_me || !self.table.offers(message.name()) {
            let relays = if message.to() == self.id { "" } else { " and does not relay" };
            let error = RequestError::unhandled(format!("{} does not handle it{relays}", self.id)).at(&self.id);
            self.settle(taken);
            return self.fail(message, way, now, Outcome::Unhandled, error);
        }
        if let Some(entry) = self.open.get_mut(message.id()) {
            entry.out = Some(self.id.clone());
        }
        if way.link.is_some() {
            self.show(Seen::Received, message);
        }
        match self.deliver(message, way.link, taken, now) {
            Ok(true) if way.link.is_none() => self.dispatched(message, Ok(None)),
            Ok(true) => {}
            Ok(false) => {
                // Those who claim the name listen to other links only.
                let error = RequestError::unhandled(format!("{} does not handle it", self.id)).at(&self.id);
                self.settle(taken);
                self.fail(message, way, now, Outcome::Unhandled, error);
            }
            Err(error) => {
                self.settle(taken);
                self.fail(message, way, now, Outcome::Dropped, error);
            }
        }
    }

    /// Open a request; refuses it if it is open already or too many are.
    pub(super) fn remember(&mut self, message: &Message, link: Option<&str>, sink: Option<Sink>, now: Time) -> bool {
        let id = message.id();
        if self.open.contains_key(id) {
            let text = "a request with this id is open here already";
            let error = RequestError::new(Code::AlreadyExists, "DUPLICATE", text).at(&self.id).undelivered();
            self.record(id, now, Outcome::Denied, "", text);
            self.refuse(&message.head, link, now, Some(error), vec![]); // and the first goes on
            return false;
        }
        let full = self.open.len() >= OPEN_REQUESTS;
        let entry = Open {
            head: message.head.clone(),
            link: link.map(str::to_owned),
            out: None,
            message: None,
            again: false,
            scatter: None,
            sink,
        };
        self.open.insert(id.to_owned(), entry);
        if full {
            let error = RequestError::full(format!("more than {OPEN_REQUESTS} requests are open")).at(&self.id);
            self.fail(message, Way { link, via: None }, now, Outcome::Dropped, error);
            return false;
        }
        if let Some(peer) = link.and_then(|link| self.links.get_mut(link)) {
            peer.came.insert(id.to_owned());
        }
        self.deadlines.push(Reverse((Due(message.head.deadline), id.to_owned())));
        self.arm(message.head.deadline);
        true
    }

    // ------------------------------------------------------------------------------------- what is emitted here

    /// Route a message of ours. What became of it, or where that will be told.
    pub fn emit(
        &mut self,
        message: &Message,
        via: Option<&str>,
        sink: Option<Sink>,
        now: Time,
    ) -> Result<Dispatched, oneshot::Receiver<Dispatched>> {
        self.emitting = Some((message.head.clone(), None));
        self.route(message, Way { link: None, via }, sink, now);
        match self.emitting.take() {
            Some((_, Some(dispatched))) => Ok(dispatched),
            _ if message.kind() == Kind::Request => Ok(Ok(None)),
            _ => {
                let (sender, receiver) = oneshot::channel();
                self.dispatching.insert(message.id().to_owned(), sender);
                Err(receiver)
            }
        }
    }

    pub(super) fn route(&mut self, message: &Message, way: Way<'_>, sink: Option<Sink>, now: Time) {
        self.ledger.note(&message.head);
        self.show(Seen::Emitted, message);
        match message.kind() {
            Kind::Send => self.dispatch(message, way, now),
            Kind::Request if message.head.many && message.to().is_empty() => self.scatter(message, way, sink, now),
            Kind::Request => {
                if self.remember(message, None, sink, now) {
                    self.dispatch(message, way, now);
                }
            }
            Kind::Reply => self.reply(message, None, now),
            Kind::Cancel => self.cancelled(message, None, now),
            Kind::Outcome => {}
            Kind::Publish | Kind::Broadcast => self.spread(message, now),
        }
    }

    /// What became of a send, a publication or a broadcast of ours.
    pub(super) fn dispatched(&mut self, message: &Message, dispatched: Dispatched) {
        if let Some((head, slot)) = &mut self.emitting
            && Arc::ptr_eq(head, &message.head)
        {
            *slot = Some(dispatched);
        } else if let Some(sender) = self.dispatching.remove(message.id()) {
            let _ = sender.send(dispatched); // whoever sent it may have gone
        }
    }

    /// A send or a request of ours: here, to a linked peer, to one that was found, or to be found.
    pub(super) fn dispatch(&mut self, message: &Message, way: Way<'_>, now: Time) {
        if let Some(via) = way.via {
            return self.forward(message, via, false, now);
        }
        let to = message.to();
        if to == self.id || (to.is_empty() && self.table.offers(message.name())) {
            return self.take(message, HERE, None, now);
        }
        let target = Target::of(message);
        let near = self.next_to(&target);
        let learned = near.is_empty();
        let candidates = if learned { self.behind(&target) } else { near };
        match self.in_turn(candidates) {
            Some(link) => self.forward(message, &link, learned, now),
            None => self.ask_for(target, message, now),
        }
    }

    /// The linked peers that are, or declare, the target; those that are away only if all are.
    pub(super) fn next_to(&self, target: &Target) -> Vec<String> {
        let found = match target {
            Target::Exchange(id) => self.links.get_key_value(id).map(|(id, _)| id.clone()).into_iter().collect(),
            Target::Name(name) => {
                self.links.iter().filter(|(_, link)| link.handles.contains(name)).map(|(id, _)| id.clone()).collect()
            }
        };
        self.present(found)
    }

    /// The linked peers behind which the target is, those with the fewest hops.
    pub(super) fn behind(&self, target: &Target) -> Vec<String> {
        let ways = self.discovery.ways(target);
        let mut found = self.present(ways.keys().cloned().collect());
        let nearest = found.iter().map(|link| ways[link]).min();
        found.retain(|link| Some(ways[link]) == nearest);
        found
    }

    pub(super) fn present(&self, links: Vec<String>) -> Vec<String> {
        let there = |link: &&String| self.links.get(*link).is_some_and(|link| !link.away);
        if links.iter().any(|link| there(&link)) { links.iter().filter(there).cloned().collect() } else { links }
    }

    /// One turn per set of candidates.
    pub(super) fn in_turn(&mut self, mut candidates: Vec<String>) -> Option<String> {
        if candidates.len() <= 1 {
            return candidates.pop();
        }
        if self.turns.len() >= TURNS && !self.turns.contains_key(&candidates) {
            self.turns.clear();
        }
        let turn = self.turns.entry(candidates.clone()).or_default();
        let index = *turn % candidates.len();
        *turn = index + 1;
        Some(candidates.swap_remove(index))
    }

    /// A peer takes it.
    pub(super) fn forward(&mut self, message: &Message, to: &str, learned: bool, now: Time) {
        if !self.links.contains_key(to) {
            let error = RequestError::unavailable(format!("the link to {to} was lost")).at(&self.id).undelivered();
            return self.fail(message, HERE, now, Outcome::Dropped, error);
        }
        let line = match self.transmit(to, message) {
            Ok(line) => line,
            Err(error) => {
                let outcome = if matches!(error, Error::Invalid(_)) { Outcome::Denied } else { Outcome::Dropped };
                let error = error.into_refusal(&self.id);
                return self.fail(message, HERE, now, outcome, error);
            }
        };
        self.record(message.id(), now, Outcome::Forwarded, to, "");
        if message.kind() != Kind::Request {
            return self.dispatched(message, Ok(Some(line)));
        }
        if let Some(entry) = self.open.get_mut(message.id()) {
            entry.out = Some(to.to_owned());
            entry.message = (learned && !entry.again).then(|| message.clone());
        }
        if let Some(peer) = self.links.get_mut(to) {
            peer.out.insert(message.id().to_owned());
        }
    }

    /// A request to many: to all who handle it here and next to here, and to all relays.
    pub(super) fn scatter(&mut self, message: &Message, way: Way<'_>, sink: Option<Sink>, now: Time) {
        self.seen.first(message.id(), now);
        if !self.remember(message, None, sink, now) {
            return;
        }
        let mut scatter = Scatter::default();
        let takes = |link: &Link| link.relay || link.handles.contains(message.name());
        let takers: Vec<String> = match way.via {
            Some(via) => vec![via.to_owned()],
            None => self.links.iter().filter(|(_, link)| takes(link)).map(|(id, _)| id.clone()).collect(),
        };
        let here = way.via.is_none() && self.table.offers(message.name());
        if here {
            scatter.branches.insert(self.id.clone(), false);
        }
        for to in takers {
            if self.pass_on(&to, message, now) {
                let peer = self.links.get_mut(&to);
                scatter.branches.insert(to, peer.as_ref().is_some_and(|peer| peer.relay));
                peer.map(|peer| peer.out.insert(message.id().to_owned()));
            } else {
                scatter.lose(&to);
            }
        }
        if let Some(entry) = self.open.get_mut(message.id()) {
            entry.scatter = Some(scatter);
        }
        if here {
            let delivered = self.deliver(message, None, None, now);
            let scatter = self.open.get_mut(message.id()).and_then(|entry| entry.scatter.as_mut());
            match (delivered, scatter) {
                (Ok(false), Some(scatter)) => drop(scatter.branches.remove(&self.id)),
                (Err(_), Some(scatter)) => scatter.lose(&self.id),
                _ => {}
            }
        }
        self.ended_one_of_many(message.id(), now);
    }

    /// If nobody has it any more, say so to whoever asked.
    pub(super) fn ended_one_of_many(&mut self, id: &str, now: Time) {
        let Some(entry) = self.open.get_mut(id) else { return };
        let Some(scatter) = entry.scatter.as_mut().filter(|scatter| scatter.branches.is_empty()) else { return };
        let (taken, lost) = (scatter.taken, std::mem::take(&mut scatter.lost));
        let head = entry.head.clone();
        if taken || !lost.is_empty() {
            return self.answer_error(&head, None, now, None, lost);
        }
        let error =
            RequestError::unhandled(format!("nobody handles {} within reach of {}", head.name, self.id)).at(&self.id);
        self.record(id, now, Outcome::Unhandled, "", &error.message);
        self.unhandled(&head, Outcome::Unhandled, &error);
        self.answer_error(&head, None, now, Some(error), vec![]);
    }

    /// A publication goes to relays and to those who want it, a broadcast to every peer.
    pub(super) fn spread(&mut self, message: &Message, now: Time) {
        use crate::names::fits;
        let published = message.kind() == Kind::Publish;
        let name = message.name();
        if published {
            self.seen.first(message.id(), now);
            if self.table.wants(name) {
                let _ = self.deliver(message, None, None, now); // subscribers never refuse
            }
        }
        let wants = |link: &Link| !published || link.relay || link.subscribes.iter().any(|pattern| fits(pattern, name));
        let takers: Vec<String> = self.links.iter().filter(|(_, link)| wants(link)).map(|(id, _)| id.clone()).collect();
        let alone = takers.len() == 1;
        for to in takers {
            self.pass_on(&to, message, now);
        }
        // What goes to many must not wait for the slowest of them.
        let line = if alone && self.by_peer.len() == 1 { self.by_peer.values().next().copied() } else { None };
        self.dispatched(message, Ok(line));
    }

    /// One of several copies: what one peer cannot take costs the others nothing.
    pub(super) fn pass_on(&mut self, to: &str, message: &Message, now: Time) -> bool {
        let passed = self.transmit(to, message);
        match &passed {
            Ok(_) => self.record(message.id(), now, Outcome::Forwarded, to, ""),
            Err(error) => self.record(message.id(), now, Outcome::Dropped, to, &error.to_string()),
        }
        passed.is_ok()
    }

    // ---------------------------------------------------------------------------------- what belongs to others

    pub(super) fn reply(&mut self, message: &Message, link: Option<&str>, now: Time) {
        let holder = link.unwrap_or(&self.id).to_owned();
        let id = message.reply_to();
        let Some(entry) = self.open.get_mut(id).filter(|entry| entry.has(&holder)) else {
            if message.lost.is_none() {
                self.record(message.id(), now, Outcome::Dropped, "", "nobody waits for it, or not from there");
            }
            return;
        };
        // The very peer from which we had the way says that it leads nowhere: ask once more.
        let astray = message.error.as_ref().is_some_and(|error| is_nobody(error) && Some(error.at.as_str()) == link);
        if let Some(request) = entry.message.take_if(|_| astray) {
            (entry.again, entry.out) = (true, None);
            if let Some(peer) = self.links.get_mut(&holder) {
                peer.out.remove(id);
            }
            self.discovery.forget(&Target::of(&request), &holder);
            return self.dispatch(&request, HERE, now);
        }
        let is_one = match &mut entry.scatter {
            Some(scatter) => scatter.heard(&holder, message),
            None => true,
        };
        let over = entry.scatter.is_none() && (message.last || message.lost.is_some() || !entry.head.many);
        let ended = entry.scatter.as_ref().is_some_and(|scatter| !scatter.branches.contains_key(&holder));
        let asker = entry.link.clone();
        if is_one {
            match asker {
                Some(asker) => self.pass_back(&asker, message, now),
                None => self.resolve(id, message, over, now),
            }
        }
        if over {
            self.close(id);
        } else if ended {
            if let Some(peer) = self.links.get_mut(&holder) {
                peer.out.remove(id);
            }
            self.ended_one_of_many(id, now);
        }
    }

    /// Give a reply to whoever of this process waits for it.
    pub(super) fn resolve(&mut self, id: &str, reply: &Message, over: bool, now: Time) {
        let Some(entry) = self.open.get_mut(id) else { return };
        match entry.sink.take() {
            Some(Sink::One(sender)) => drop(sender.send(reply.clone())),
            Some(Sink::Many(sender)) => {
                if sender.try_send(reply.clone()).is_err() && !over {
                    return self.withdraw_own(id, now);
                }
                if let Some(entry) = self.open.get_mut(id) {
                    entry.sink = Some(Sink::Many(sender));
                }
            }
            None => {}
        }
    }

    /// Nobody of this process waits for the answer to this request of ours any more.
    pub fn withdraw_own(&mut self, id: &str, now: Time) {
        if let Some(entry) = self.open.get(id).filter(|entry| entry.link.is_none()) {
            let head = entry.head.clone();
            let mut cancel = self.make(Kind::Cancel, &head.name, Context::of(&head), now, MESSAGE_SECONDS);
            id.clone_into(&mut cancel.head_mut().reply_to);
            self.route(&cancel, HERE, None, now);
        }
    }

    /// A reply goes back where its request came from. What cannot be said becomes an error that can.
    pub(super) fn pass_back(&mut self, to: &str, message: &Message, now: Time) {
        let Err(error) = self.transmit(to, message) else {
            return self.record(message.id(), now, Outcome::Forwarded, to, "");
        };
        self.record(message.id(), now, Outcome::Denied, "", &error.to_string());
        if message.error.is_none() {
            let code = if matches!(error, Error::Invalid(_)) { Code::OutOfRange } else { Code::ResourceExhausted };
            let refusal = RequestError::new(code, "ANSWER", format!("the answer cannot be sent: {error}")).at(&self.id);
            if let Some(entry) = self.open.get(message.reply_to()) {
                let head = entry.head.clone();
                self.answer_error(&head, Some(to), now, Some(refusal), vec![]);
            }
        }
    }

    pub(super) fn cancelled(&mut self, message: &Message, link: Option<&str>, now: Time) {
        let id = message.reply_to();
        if self.open.get(id).is_none_or(|entry| entry.link.as_deref() != link) {
            return self.record(message.id(), now, Outcome::Dropped, "", "no such open request");
        }
        self.abandon(id, now, Outcome::Cancelled, "the caller withdrew it", Some(message));
    }

    /// Nobody waits for this request any more: tell whoever has it.
    pub(super) fn abandon(&mut self, id: &str, now: Time, outcome: Outcome, reason: &str, cancel: Option<&Message>) {
        let Some(entry) = self.close(id) else { return };
        self.record(id, now, outcome, "", reason);
        for holder in entry.holders() {
            if holder == self.id {
                self.withdraw(id);
                continue;
            }
            let cancel = cancel.cloned().unwrap_or_else(|| {
                let mut cancel =
                    self.make(Kind::Cancel, &entry.head.name, Context::of(&entry.head), now, MESSAGE_SECONDS);
                id.clone_into(&mut cancel.head_mut().reply_to);
                cancel
            });
            let _ = self.transmit(&holder, &cancel); // its queue is full: whoever works there has a deadline
        }
    }

    pub(super) fn outcome(&mut self, message: &Message, link: &str, now: Time) {
        self.show(Seen::Received, message);
        let error = message.error.clone().unwrap_or_else(|| RequestError::unhandled("no reason was given"));
        if is_nobody(&error) && error.at == link {
            self.discovery.forget(&Target::Name(message.name().to_owned()), link);
        }
        if message.to() != self.id {
            return self.record(message.id(), now, Outcome::Dropped, "", "its addressee is gone");
        }
        let mut failed = (*message.head).clone();
        message.reply_to().clone_into(&mut failed.id);
        failed.from.clone_from(&self.id);
        self.unhandled(&failed, message.outcome.unwrap_or(Outcome::Unhandled), &error);
    }
}
