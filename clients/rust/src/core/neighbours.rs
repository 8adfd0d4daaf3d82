//! Links come and go, as routing sees it: what waits on one goes another way, or fails; what a peer offers is known as
//! long as it is there.

use std::sync::Arc;

use exchange_proto::exchange::v1 as proto;

use super::discovery::Target;
use super::routing::Open;
use super::{Core, HERE};
use crate::error::{Code, RequestError};
use crate::limits::{QUESTION_SECONDS, SETTLE_SECONDS};
use crate::message::{Head, Kind, Message, Outcome, Time};
use crate::session::introduction::Introduction;

impl Core {
    /// A link is open, or open again: then with all that the peer says of itself now.
    pub(super) fn connect_peer(&mut self, peer: &Introduction, now: Time) {
        let id = &peer.exchange;
        let link = self.links.entry(id.clone()).or_default();
        let known = std::mem::take(&mut link.handles);
        link.away = false;
        link.relay = peer.relay;
        link.handles = peer.handles.iter().cloned().collect();
        link.subscribes = peer.subscribes.iter().cloned().collect();
        let turned_up: Vec<String> = link.handles.difference(&known).cloned().collect();
        self.relay_changed(id);
        if self.expected.remove(id) && peer.relay {
            self.settled = now + SETTLE_SECONDS;
        }
        self.link_is_back(id);
        for name in turned_up {
            self.turned_up(&Target::Name(name), now);
        }
        self.turned_up(&Target::Exchange(id.clone()), now);
    }

    pub(super) fn peer_away(&mut self, id: &str) {
        if let Some(link) = self.links.get_mut(id) {
            link.away = true;
        }
    }

    /// A link is gone. `expected`: the peer may come back.
    pub(super) fn disconnect_peer(&mut self, id: &str, unsent: &[Message], expected: bool, now: Time) {
        if expected {
            self.expected.insert(id.to_owned());
        } else {
            self.expected.remove(id);
        }
        let Some(link) = self.links.remove(id) else { return };
        let reason = format!("the link to {id}, which asked, was lost");
        for request in link.came {
            self.abandon(&request, now, Outcome::Cancelled, &reason, None);
        }
        for request in link.out {
            let waiting = unsent.iter().any(|message| message.id() == request);
            let Some(entry) = self.open.get_mut(&request) else { continue };
            if waiting && entry.scatter.is_none() {
                entry.out = None; // it goes another way
                continue;
            }
            let mut error = RequestError::unavailable(format!("the link to {id} was lost")).at(&self.id);
            if waiting {
                error = error.undelivered();
            }
            self.record(&request, now, Outcome::Dropped, id, &error.message);
            self.lose_holder(&request, id, now, error);
        }
        self.link_is_lost(id, now);
    }

    /// What never left on a link goes another way, if it is to anybody else, or fails.
    pub(super) fn reroute(&mut self, lost: &str, unsent: Vec<Message>, now: Time) {
        for message in unsent {
            let error = RequestError::unavailable(format!("the link to {lost} was lost")).at(&self.id).undelivered();
            self.record(message.id(), now, Outcome::Dropped, lost, &error.message);
            let waits = |entry: &Open| entry.out.is_none() && entry.scatter.is_none();
            match message.kind() {
                Kind::Request if !self.open.get(message.id()).is_some_and(waits) => continue,
                Kind::Send | Kind::Request => {}
                _ => {
                    if self.links.contains_key(lost) {
                        let _ = self.transmit(lost, &message); // the link is there again, and takes it or not
                    }
                    continue;
                }
            }
            let target = Target::of(&message);
            let others = !self.next_to(&target).is_empty() || !self.behind(&target).is_empty();
            if others || self.links.values().any(|link| link.relay) {
                self.dispatch(&message, HERE, now);
            } else if message.kind() == Kind::Send {
                self.report(&message.head, None, now, Outcome::Dropped, error);
            } else {
                self.fail(&message, HERE, now, Outcome::Dropped, error);
            }
        }
    }

    /// They have left on a link, and nobody will ever know whether they arrived.
    pub(super) fn uncertain(&mut self, link: &str, heads: &[Arc<Head>], now: Time) {
        let text = format!("the link to {link} was lost: it may have arrived");
        let error = RequestError::new(Code::Unavailable, "UNCERTAIN", text).at(&self.id);
        for head in heads {
            self.record(&head.id, now, Outcome::Dropped, link, &error.message);
            if head.kind == Kind::Send {
                self.report(head, None, now, Outcome::Dropped, error.clone());
            }
        }
    }

    /// Their time ended while they waited to be written. A request hears it from its own deadline.
    pub(super) fn expired(&mut self, messages: &[Message], now: Time) {
        for message in messages {
            self.record(message.id(), now, Outcome::Expired, "", "it waited too long");
            if message.kind() == Kind::Send {
                let error = self.too_late(message.name());
                self.report(&message.head, None, now, Outcome::Expired, error);
            }
        }
    }

    /// The peer refused a message.
    pub(super) fn rejected(&mut self, link: &str, head: Option<&Head>, id: &str, error: RequestError, now: Time) {
        self.record(id, now, Outcome::Denied, link, &error.message);
        self.lose_holder(id, link, now, error.clone());
        if let Some(head) = head.filter(|head| head.kind == Kind::Send) {
            self.report(head, None, now, Outcome::Denied, error);
        }
    }

    pub(super) fn peer_interest(&mut self, id: &str, interest: proto::Interest, now: Time) {
        let Some(link) = self.links.get_mut(id) else { return };
        let removed = interest.removed.unwrap_or_default();
        let added = interest.added.unwrap_or_default();
        link.handles.retain(|name| !removed.handles.contains(name));
        link.subscribes.retain(|pattern| !removed.subscribes.contains(pattern));
        link.subscribes.extend(added.subscribes);
        link.handles.extend(added.handles.iter().cloned());
        if let Some(relay) = interest.relay {
            link.relay = relay;
            self.relay_changed(id);
        }
        for name in added.handles {
            self.turned_up(&Target::Name(name), now);
        }
    }

    /// A peer that begins to relay passes on what it has not got yet; and behind it may be anybody.
    pub(super) fn relay_changed(&mut self, id: &str) {
        self.discovery.changed();
        let Some(link) = self.links.get(id).filter(|link| link.relay) else { return };
        for request in &link.out {
            if let Some(scatter) = self.open.get_mut(request).and_then(|entry| entry.scatter.as_mut()) {
                scatter.branches.insert(id.to_owned(), true);
            }
        }
    }

    /// Nobody is known to take it; `incomplete` if not everybody could be asked.
    pub(super) fn nobody_takes(&mut self, message: &Message, target: &Target, incomplete: bool, now: Time) {
        let what = match target {
            Target::Name(name) => format!("nobody handles {name}"),
            Target::Exchange(id) => format!("there is no exchange {id}"),
        };
        let me = &self.id;
        let error = if !self.expected.is_empty() {
            let mut gone: Vec<&str> = self.expected.iter().map(String::as_str).collect();
            gone.sort_unstable();
            gone.truncate(3);
            let gone = gone.join(" and ");
            RequestError::unavailable(format!("{what} within reach of {me}, but the link to {gone} is lost"))
                .undelivered()
        } else if incomplete {
            let text = format!("{what} next to {me}, and not all others answered within {QUESTION_SECONDS} s");
            RequestError::new(Code::Unavailable, "INCOMPLETE", text).undelivered()
        } else {
            let alone = if self.links.is_empty() { " (it is linked to nobody)" } else { "" };
            RequestError::unhandled(format!("{what} within reach of {me}{alone}"))
        };
        let error = error.at(me);
        self.fail(message, HERE, now, Outcome::Unhandled, error);
    }

    /// Whether this message of ours is still wanted: a request may have been withdrawn, or its time was over.
    pub(super) fn is_wanted(&self, message: &Message) -> bool {
        message.kind() != Kind::Request || self.open.contains_key(message.id())
    }
}
