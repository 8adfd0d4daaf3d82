//! What sessions say, and what becomes of their peers: they come, are away, come back or are gone. Routing is told, and
//! whoever takes the events.

use std::sync::Arc;

use exchange_proto::exchange::v1 as proto;

use super::{Core, Event, LineId};
use crate::core::discovery::Target;
use crate::error::{Code, Error};
use crate::limits::CONTEST_SECONDS;
use crate::message::{Head, Message, Time};
use crate::session::introduction::{Introduction, PROTOCOL};
use crate::session::{Event as Said, Phase, Session};

impl Core {
    // --------------------------------------------------------------------------------- what a session has said

    pub(super) fn understand(&mut self, id: LineId, said: Vec<Said>, now: Time) {
        for said in said {
            match said {
                Said::Opened(peer) => self.opened(id, &peer, now),
                Said::Resumed { peer, recovered, uncertain, unsent } => {
                    if let Some(line) = self.lines.get_mut(&id) {
                        line.broke_at = None;
                        line.backoff.made(now);
                    }
                    if !recovered {
                        self.lose(id, &unsent, &uncertain, true, now);
                    }
                    self.resumed(id, &peer, recovered, unsent, now);
                }
                Said::Broken { reason, retry_after_ms } => {
                    if let Some(conn) = self.lines.get_mut(&id).and_then(|line| line.connection.take()) {
                        self.drop_connection(conn, &reason);
                    }
                    self.broke(id, &reason, now);
                    self.come_back(id, f64::from(retry_after_ms) / 1_000.0, now);
                }
                Said::Missing { unsent } => {
                    let expected = self.lines.get(&id).is_some_and(|line| line.session.dialled);
                    if let Some(peer) = self.peer_of(id) {
                        self.disconnect_peer(&peer, &unsent, expected, now);
                        self.reroute(&peer, unsent, now);
                    }
                    self.changed(id);
                }
                Said::Forgotten { uncertain } => {
                    self.keep_uncertain(id, &uncertain, now);
                    if self.lines.get(&id).is_some_and(|line| line.retry.is_none()) {
                        let seconds = self.limits.resume.as_secs_f64();
                        self.gave_up(id, &format!("it was not back within {seconds} s"), now);
                        self.finish(id);
                    }
                }
                Said::Ended(ended) => {
                    if let Some(line) = self.lines.get_mut(&id) {
                        line.ended = Some(ended);
                    }
                }
                other => self.routed(id, other, now),
            }
        }
    }

    /// What is for routing.
    fn routed(&mut self, id: LineId, said: Said, now: Time) {
        let Some(peer) = self.peer_of(id) else { return };
        match said {
            Said::Received(messages) => self.arrived(id, &peer, messages, now),
            Said::Interest(interest) => self.peer_interest(&peer, interest, now),
            Said::Query(query) => self.peer_asked(&peer, query),
            Said::Answer(answer) => self.peer_answered(&peer, answer, now),
            Said::Rejected { head, id, error } => self.rejected(&peer, head.as_deref(), &id, error, now),
            _ => {}
        }
    }

    pub(super) fn peer_of(&self, id: LineId) -> Option<String> {
        let peer = &self.lines.get(&id)?.session.peer.as_ref()?.exchange;
        (self.by_peer.get(peer) == Some(&id)).then(|| peer.clone())
    }

    pub(super) fn changed(&self, id: LineId) {
        if let Some(line) = self.lines.get(&id) {
            line.changed.notify_waiters();
        }
    }

    // ----------------------------------------------------------------------------------------- a peer is there

    fn opened(&mut self, id: LineId, peer: &Introduction, now: Time) {
        let introduction = self.introduction(peer.protocol);
        let known = self.by_peer.get(&peer.exchange).copied().filter(|known| *known != id);
        let Some(dialled) = self.lines.get(&id).map(|line| line.session.dialled) else { return };
        if let (Some(known), false) = (known, dialled) {
            return self.comes_again(id, known, peer, introduction, now);
        }
        if let Some(known) = known {
            // Two who dial each other at the same time keep the link that the smaller id dialled.
            let other = self.lines.get(&known).map(|line| (line.session.phase != Phase::Away, line.session.dialled));
            let keeps = other.is_some_and(|(open, theirs)| open && (theirs || self.id > peer.exchange));
            if keeps {
                let reason = format!("{} is linked to {} already", peer.exchange, self.id);
                if let Some(line) = self.lines.get_mut(&id) {
                    line.session.say_goodbye(Code::AlreadyExists, &reason, 0);
                }
                return self.settle_opening(id, &peer.exchange);
            }
            self.part(known, now);
        }
        let revision = self.revision;
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.backoff.made(now);
        if !dialled {
            line.session.welcome(introduction, false);
        } else if line.session.me.revision != revision {
            catch_up(&mut line.session, &introduction); // what changed since the Hello was written
        }
        line.known = true;
        self.tell(&Event::Connected { id: peer.exchange.clone(), agent: peer.agent.clone(), relay: peer.relay });
        self.is_open(id, peer, now);
        self.settle_opening(id, &peer.exchange);
    }

    /// A peer that we have dials us once more.
    fn comes_again(&mut self, id: LineId, known: LineId, peer: &Introduction, me: Introduction, now: Time) {
        let Some(line) = self.lines.get_mut(&known) else { return };
        if let Some(said) = line.session.rejoin(peer, me, now) {
            self.take_over(known, id);
            return self.understand(known, said, now);
        }
        let reason = format!("{} is linked to {} already", peer.exchange, self.id);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it is 2
        let retry_after_ms = (CONTEST_SECONDS * 1_000.0) as u32;
        if let Some(line) = self.lines.get_mut(&id) {
            line.session.say_goodbye(Code::AlreadyExists, &reason, retry_after_ms);
        }
        self.wake(known); // it is asked whether it is alive
        let due = self.lines.get(&known).map_or(f64::INFINITY, |line| line.session.next_deadline());
        self.arm(due);
    }

    /// A line goes on over the connection of another, of which nothing is left then.
    fn take_over(&mut self, id: LineId, other: LineId) {
        let Some(conn_id) = self.lines.remove(&other).and_then(|line| line.connection) else { return };
        if let Some(conn) = self.conns.get_mut(&conn_id) {
            conn.line = id;
        }
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.redialling = false;
        line.read_all = false;
        if let Some(former) = line.connection.replace(conn_id) {
            self.drop_connection(former, "the peer has come back by another connection");
        }
        self.wake(id);
    }

    fn settle_opening(&mut self, id: LineId, peer: &str) {
        if let Some(opening) = self.lines.get_mut(&id).and_then(|line| line.opening.take()) {
            let _ = opening.told.send(Ok(peer.to_owned()));
        }
    }

    /// It was broken, and is there again.
    fn resumed(&mut self, id: LineId, peer: &Introduction, recovered: bool, unsent: Vec<Message>, now: Time) {
        let taken = self.by_peer.get(&peer.exchange).is_some_and(|known| *known != id);
        if taken {
            let reason = format!("{} is linked to {} already", peer.exchange, self.id);
            if let Some(line) = self.lines.get_mut(&id) {
                line.session.say_goodbye(Code::AlreadyExists, &reason, 0);
            }
            return self.reroute(&peer.exchange, unsent, now);
        }
        let (introduction, revision) = (self.introduction(PROTOCOL), self.revision);
        let Some(line) = self.lines.get_mut(&id) else { return };
        if line.session.me.revision != revision {
            catch_up(&mut line.session, &introduction);
        }
        let seconds = now - line.broken.unwrap_or(now);
        let uncertain = std::mem::take(&mut line.uncertain);
        self.is_open(id, peer, now);
        self.reroute(&peer.exchange, unsent, now);
        if !uncertain.is_empty() {
            tracing::warn!(peer = %peer.exchange, "{} messages are uncertain", uncertain.len());
        }
        tracing::info!(peer = %peer.exchange, recovered, seconds, "the link is there again");
        self.tell(&Event::Resumed { id: peer.exchange.clone(), recovered, uncertain, seconds });
    }

    /// The link is open: routing may use it.
    fn is_open(&mut self, id: LineId, peer: &Introduction, now: Time) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.broken = None;
        }
        self.by_peer.insert(peer.exchange.clone(), id);
        self.connect_peer(peer, now);
        self.wake(id);
    }

    /// Another link to the same peer takes its place.
    fn part(&mut self, id: LineId, now: Time) {
        let reason = "another link to it takes its place";
        if let Some(line) = self.lines.get_mut(&id) {
            line.leaving = true;
            line.session.say_goodbye(Code::AlreadyExists, reason, 0);
        }
        self.gone(id, reason, false, now);
        self.wake(id);
    }

    // --------------------------------------------------------------------------------- breaks, losses and ends

    pub(super) fn session_over(&mut self, id: LineId, reason: &str, now: Time) {
        let me = self.id.clone();
        let Some(line) = self.lines.get_mut(&id) else { return };
        let planned = !line.session.leaves
            && line.ended.as_ref().is_some_and(|end| !end.stay_away && end.code != Code::AlreadyExists && end.by != me);
        let retries = line.retry.is_some_and(|retry| retry > 0.0) && !line.leaving;
        if let Some(opening) = line.opening.take() {
            let told = match line.ended.as_ref().filter(|end| end.by != me) {
                // The two have dialled each other, and the other link is there.
                Some(end) if end.code == Code::AlreadyExists && self.links.contains_key(&end.by) => Ok(end.by.clone()),
                Some(_) => Err(Error::Link(format!("the link was refused or lost: {reason}"))),
                None => Err(Error::Link(format!("nobody answers at {}: {reason}", opening.url))),
            };
            let _ = opening.told.send(told);
        } else if retries && planned {
            let pause = line.ended.take().map_or(0, |end| end.retry_after_ms);
            self.gone(id, reason, true, now);
            if let Some(line) = self.lines.get_mut(&id) {
                line.session.revive(now);
            }
            return self.come_back(id, f64::from(pause) / 1_000.0, now);
        } else if retries {
            self.gave_up(id, reason, now);
        }
        self.gone(id, reason, false, now);
        self.finish(id);
    }

    /// The connection is gone, and the session is kept: the peer may be back soon.
    pub(super) fn broke(&mut self, id: LineId, reason: &str, now: Time) {
        let Some(peer) = self.peer_of(id) else { return };
        let Some(line) = self.lines.get_mut(&id).filter(|line| line.broken.is_none()) else { return };
        line.broken = Some(now);
        self.peer_away(&peer);
        tracing::info!(peer = %peer, "the link is lost: {reason}");
        self.tell(&Event::Lost { id: peer, reason: reason.to_owned() });
    }

    fn keep_uncertain(&mut self, id: LineId, heads: &[Arc<Head>], now: Time) {
        let peer = self.lines.get(&id).and_then(|line| line.session.peer.as_ref()).map(|peer| peer.exchange.clone());
        if let Some(line) = self.lines.get_mut(&id) {
            line.uncertain.extend(heads.iter().map(|head| head.id.clone()));
        }
        if let Some(peer) = peer {
            self.uncertain(&peer, heads, now);
        }
    }

    /// It was broken or ended, and is not waited for any more.
    pub(super) fn gave_up(&mut self, id: LineId, reason: &str, now: Time) {
        let known = self.lines.get(&id).filter(|line| line.known);
        let peer = known.and_then(|line| line.session.peer.as_ref()).map(|peer| peer.exchange.clone());
        self.gone(id, reason, false, now);
        if let Some(line) = self.lines.get_mut(&id) {
            line.known = false;
        }
        let Some(peer) = peer else { return };
        if !self.by_peer.contains_key(&peer) {
            self.disconnect_peer(&peer, &[], false, now); // it was expected back
        }
        tracing::info!(peer = %peer, "the link is given up: {reason}");
        self.tell(&Event::GaveUp { id: peer, reason: reason.to_owned() });
    }

    /// The session is over. `returns`: it will be dialled again, for a new one.
    pub(super) fn gone(&mut self, id: LineId, reason: &str, returns: bool, now: Time) {
        let Some(peer) = self.peer_of(id) else { return };
        let Some(line) = self.lines.get_mut(&id) else { return };
        let (uncertain, unsent) = line.session.lost();
        let was_broken = line.broken.is_some();
        if returns {
            line.broken.get_or_insert(now);
        }
        self.lose(id, &unsent, &uncertain, returns, now);
        self.reroute(&peer, unsent, now);
        if !was_broken {
            self.tell(&Event::Lost { id: peer, reason: reason.to_owned() });
        }
        self.changed(id);
    }

    /// One life of the peer is over.
    fn lose(&mut self, id: LineId, unsent: &[Message], uncertain: &[Arc<Head>], expected: bool, now: Time) {
        // By the line, not by its peer: it may call itself as somebody else now.
        let Some(peer) = self.by_peer.iter().find(|(_, known)| **known == id).map(|(peer, _)| peer.clone()) else {
            return;
        };
        self.by_peer.remove(&peer);
        self.disconnect_peer(&peer, unsent, expected, now);
        if let Some(line) = self.lines.get_mut(&id) {
            line.uncertain.extend(uncertain.iter().map(|head| head.id.clone()));
        }
        self.uncertain(&peer, uncertain, now);
    }

    // ------------------------------------------------------------------------------------ what is offered here

    /// Tell all peers how what we handle and subscribe to differs from before.
    pub(in crate::core) fn interest_changed(&mut self, before: &(Vec<String>, Vec<String>), now: Time) {
        let after = (self.table.handles(), self.table.subscribes());
        if *before == after {
            return;
        }
        self.revision += 1;
        let change = difference(before, &after);
        let lines: Vec<LineId> = self.by_peer.values().copied().collect();
        for id in lines {
            if let Some(line) = self.lines.get_mut(&id) {
                line.session.announce(change.clone());
            }
            self.wake(id);
        }
        let offered: Vec<String> = change.added.map(|added| added.handles).unwrap_or_default();
        for name in offered {
            self.turned_up(&Target::Name(name), now);
        }
    }
}

/// What of this is not in the other.
fn without(these: &[String], others: &[String]) -> Vec<String> {
    these.iter().filter(|name| !others.contains(name)).cloned().collect()
}

fn difference(before: &(Vec<String>, Vec<String>), now: &(Vec<String>, Vec<String>)) -> proto::Interest {
    let set = |handles, subscribes| proto::InterestSet { handles, subscribes, ..proto::InterestSet::default() };
    proto::Interest {
        revision: 0,
        added: Some(set(without(&now.0, &before.0), without(&now.1, &before.1))),
        removed: Some(set(without(&before.0, &now.0), without(&before.1, &now.1))),
        relay: None,
    }
}

fn catch_up(session: &mut Session, now: &Introduction) {
    let before = (session.me.handles.clone(), session.me.subscribes.clone());
    session.announce(difference(&before, &(now.handles.clone(), now.subscribes.clone())));
}
