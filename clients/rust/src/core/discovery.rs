//! The way to what is not next to us, by asking the relays and by remembering.
//!
//! A *target* is a name that somebody handles, or the id of an exchange. A message for a target without a way is held
//! while a question is out. The first yes lets it go; later ones become further ways. It is "no" only if every branch
//! said no; that is believed for a moment. A branch that is lost, that cannot be asked, or is silent for
//! `QUESTION_SECONDS` makes it "incomplete", which is never believed. While a relay is away, and for a moment after it
//! came back without its memory, no message is given up, and the question is asked again.
//!
//! Questions of others are answered for this exchange alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use exchange_proto::exchange::v1 as proto;
use proto::{Found, answer, query};

use super::{Core, HERE};
use crate::error::RequestError;
use crate::limits::{HELD_MESSAGES, HOPS_OF_A_QUESTION, NO_SECONDS, QUESTION_SECONDS, REPEAT_SECONDS, ROUTES};
use crate::message::{Message, Outcome, Time};
use crate::names::{check_id, check_name};
use crate::wire::Frame;

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Name(String),
    Exchange(String),
}

impl Target {
    pub fn of(message: &Message) -> Self {
        if message.to().is_empty() { Self::Name(message.name().into()) } else { Self::Exchange(message.to().into()) }
    }

    fn is_well_formed(&self) -> bool {
        match self {
            Self::Name(name) => check_name(name).is_ok(),
            Self::Exchange(id) => check_id(id).is_ok(),
        }
    }
}

/// A question under way.
#[derive(Debug)]
struct Question {
    target: Target,
    deadline: Time,
    /// Relays whose answer is awaited.
    asked: BTreeSet<String>,
    held: Vec<Message>,
    found: bool,
    incomplete: bool,
}

/// What one exchange knows and asks of the mesh beyond its peers.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    prefix: String,
    count: u64,
    /// Target -> link -> hops from here.
    ways: HashMap<Target, BTreeMap<String, u32>>,
    /// Believed until.
    nobody: HashMap<Target, Time>,
    questions: BTreeMap<String, Question>,
    /// What is tried again, and when, in order.
    resting: VecDeque<(Time, Target, Message)>,
}

static NO_WAYS: BTreeMap<String, u32> = BTreeMap::new();

impl Discovery {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    pub fn ways(&self, target: &Target) -> &BTreeMap<String, u32> {
        self.ways.get(target).unwrap_or(&NO_WAYS)
    }

    /// The target is that many hops from here by this link.
    pub fn learn(&mut self, target: Target, link: &str, hops: u32) {
        self.nobody.remove(&target);
        if self.ways.len() >= ROUTES && !self.ways.contains_key(&target) {
            self.ways.clear(); // they are found again
        }
        self.ways.entry(target).or_default().insert(link.to_owned(), hops);
    }

    /// The way to the target by this link has gone.
    pub fn forget(&mut self, target: &Target, link: &str) {
        if let Some(ways) = self.ways.get_mut(target) {
            ways.remove(link);
            if ways.is_empty() {
                self.ways.remove(target);
            }
        }
    }

    /// There is a new relay, behind which may be anybody.
    pub fn changed(&mut self) {
        self.nobody.clear();
    }

    fn forget_all(&mut self, link: &str) {
        self.ways.retain(|_, ways| {
            ways.remove(link);
            !ways.is_empty()
        });
    }

    fn held(&self) -> usize {
        self.resting.len() + self.questions.values().map(|question| question.held.len()).sum::<usize>()
    }

    fn asking(&self, target: &Target) -> Option<String> {
        let mut open = self.questions.iter().filter(|(_, question)| question.target == *target && !question.found);
        open.next().map(|(id, _)| id.clone())
    }
}

impl Core {
    /// Hold the message and ask, unless the answer is known to be no.
    pub(super) fn ask_for(&mut self, target: Target, message: &Message, now: Time) {
        if self.discovery.held() >= HELD_MESSAGES {
            let error = RequestError::full("too many messages wait for an answer about who takes them").at(&self.id);
            return self.fail(message, HERE, now, Outcome::Dropped, error);
        }
        if self.discovery.nobody.get(&target).is_some_and(|until| *until > now) {
            return self.no_way(message, target, false, now);
        }
        let id = self.discovery.asking(&target).unwrap_or_else(|| self.ask(&target, now));
        match self.discovery.questions.get_mut(&id) {
            Some(question) if !question.asked.is_empty() => question.held.push(message.clone()),
            _ => {
                let incomplete = self.discovery.questions.remove(&id).is_some_and(|question| question.incomplete);
                self.no_way(message, target, incomplete, now);
            }
        }
    }

    /// Give it up, unless that may soon be wrong.
    fn no_way(&mut self, message: &Message, target: Target, incomplete: bool, now: Time) {
        let patient = now < self.settled || self.links.values().any(|link| link.away && link.relay);
        if patient {
            self.discovery.resting.push_back((now + REPEAT_SECONDS, target, message.clone()));
            self.arm(now + REPEAT_SECONDS);
        } else {
            self.nobody_takes(message, &target, incomplete, now);
        }
    }

    /// Begin a question.
    fn ask(&mut self, target: &Target, now: Time) -> String {
        self.discovery.count += 1;
        let id = format!("{}.q{}", self.discovery.prefix, self.discovery.count);
        let relays: Vec<String> = self.links.iter().filter(|(_, link)| link.relay).map(|(id, _)| id.clone()).collect();
        let (mut asked, mut incomplete) = (BTreeSet::new(), false);
        for relay in relays {
            if self.put_query(&relay, &id, target) {
                asked.insert(relay);
            } else {
                incomplete = true;
            }
        }
        let deadline = now + QUESTION_SECONDS;
        self.arm(deadline);
        let question = Question { target: target.clone(), deadline, asked, held: vec![], found: false, incomplete };
        self.discovery.questions.insert(id.clone(), question);
        id
    }

    fn put_query(&mut self, relay: &str, id: &str, target: &Target) -> bool {
        let target = Some(match target {
            Target::Name(name) => query::Target::Name(name.clone()),
            Target::Exchange(exchange) => query::Target::Exchange(exchange.clone()),
        });
        self.control(relay, Frame::Query(proto::Query { id: id.into(), target, ttl: HOPS_OF_A_QUESTION }))
    }

    /// A peer asks: yes, if it is us.
    pub(super) fn peer_asked(&mut self, link: &str, asked: proto::Query) {
        let mine = match &asked.target {
            Some(query::Target::Name(name)) => self.table.offers(name),
            Some(query::Target::Exchange(id)) => *id == self.id,
            None => false,
        };
        let target = asked.target.map(|target| match target {
            query::Target::Name(name) => answer::Target::Name(name),
            query::Target::Exchange(id) => answer::Target::Exchange(id),
        });
        let found = if mine { Found::Yes } else { Found::No };
        self.control(link, Frame::Answer(proto::Answer { id: asked.id, target, found: found.into(), cost: 0 }));
    }

    /// A peer answers, or takes an earlier yes back.
    pub(super) fn peer_answered(&mut self, link: &str, answer: proto::Answer, now: Time) {
        let target = match answer.target {
            Some(answer::Target::Name(name)) => Target::Name(name),
            Some(answer::Target::Exchange(id)) => Target::Exchange(id),
            None => return,
        };
        if answer.id.is_empty() {
            return self.discovery.forget(&target, link);
        }
        let Some(question) = self.discovery.questions.get_mut(&answer.id) else { return };
        if question.target != target || !target.is_well_formed() || !question.asked.remove(link) {
            return;
        }
        match Found::try_from(answer.found) {
            Ok(Found::Yes) => {
                let hops = answer.cost.min(HOPS_OF_A_QUESTION) + 1;
                self.discovery.learn(target, link, hops);
                self.found(&answer.id, now);
            }
            Ok(Found::No) => {}
            _ => question.incomplete = true,
        }
        self.conclude_if_done(&answer.id, now);
    }

    /// The target is next to us now: whoever waits for it need not wait for the answers.
    pub(super) fn turned_up(&mut self, target: &Target, now: Time) {
        self.discovery.nobody.remove(target);
        if let Some(id) = self.discovery.asking(target) {
            self.found(&id, now);
        }
        self.wake_resting(Some(target), now);
    }

    /// There is a way: whoever it helps goes on.
    fn found(&mut self, id: &str, now: Time) {
        let Some(question) = self.discovery.questions.get_mut(id) else { return };
        question.found = true;
        let held = std::mem::take(&mut question.held);
        let rest: Vec<Message> = held.into_iter().filter(|message| !self.resume(message, now)).collect();
        if let Some(question) = self.discovery.questions.get_mut(id) {
            question.held = rest;
        }
    }

    /// Route it again, if there is a way for it now or nobody waits for it any more; false if not.
    fn resume(&mut self, message: &Message, now: Time) -> bool {
        let target = Target::of(message);
        if !self.is_wanted(message) {
            return true;
        }
        let mine = matches!(&target, Target::Name(name) if self.table.offers(name));
        if !mine && self.next_to(&target).is_empty() && self.behind(&target).is_empty() {
            return false;
        }
        self.dispatch(message, HERE, now);
        true
    }

    fn conclude_if_done(&mut self, id: &str, now: Time) {
        if self.discovery.questions.get(id).is_some_and(|question| question.asked.is_empty()) {
            self.conclude(id, now);
        }
    }

    /// All answers are there, or the time is over.
    fn conclude(&mut self, id: &str, now: Time) {
        self.found_or_not(id, now);
        let Some(question) = self.discovery.questions.remove(id) else { return };
        for message in question.held {
            self.no_way(&message, question.target.clone(), question.incomplete, now);
        }
    }

    fn found_or_not(&mut self, id: &str, now: Time) {
        let patient = now < self.settled || self.links.values().any(|link| link.away && link.relay);
        let Some(question) = self.discovery.questions.get(id) else { return };
        if !question.found && !question.incomplete && !patient {
            if self.discovery.nobody.len() >= ROUTES {
                self.discovery.nobody.clear();
            }
            self.discovery.nobody.insert(question.target.clone(), now + NO_SECONDS);
        }
        self.found(id, now); // somebody may have turned up whom no answer told of
    }

    /// The link was broken: what it was told, and did not tell us, is not known. It is asked again.
    pub(super) fn link_is_back(&mut self, link: &str) {
        self.discovery.forget_all(link);
        let open = self.discovery.questions.iter().filter(|(_, question)| question.asked.contains(link));
        let again: Vec<(String, Target)> = open.map(|(id, question)| (id.clone(), question.target.clone())).collect();
        for (id, target) in again {
            self.put_query(link, &id, &target);
        }
    }

    /// The link has gone, and with it all that was behind it.
    pub(super) fn link_is_lost(&mut self, link: &str, now: Time) {
        self.discovery.forget_all(link);
        let ids: Vec<String> = self.discovery.questions.keys().cloned().collect();
        for id in ids {
            if let Some(question) = self.discovery.questions.get_mut(&id)
                && question.asked.remove(link)
            {
                question.incomplete = true;
                self.conclude_if_done(&id, now);
            }
        }
    }

    /// Try again with what has rested long enough, or is for this target.
    fn wake_resting(&mut self, target: Option<&Target>, now: Time) {
        let resting = std::mem::take(&mut self.discovery.resting);
        let (ready, rest) = resting.into_iter().partition(|(until, wanted, _)| *until <= now || Some(wanted) == target);
        self.discovery.resting = rest;
        let ready: VecDeque<(Time, Target, Message)> = ready;
        for (_, wanted, message) in ready {
            if !self.resume(&message, now) {
                self.ask_for(wanted, &message, now);
            }
        }
    }

    pub(super) fn tick_discovery(&mut self, now: Time) {
        let late = self.discovery.questions.iter().filter(|(_, question)| question.deadline <= now);
        let late: Vec<String> = late.map(|(id, _)| id.clone()).collect();
        for id in late {
            if let Some(question) = self.discovery.questions.get_mut(&id) {
                question.incomplete = true;
            }
            self.conclude(&id, now);
        }
        if self.discovery.resting.front().is_some_and(|(until, ..)| *until <= now) {
            self.wake_resting(None, now);
        }
        let questions = self.discovery.questions.values().map(|question| question.deadline);
        let due =
            questions.chain(self.discovery.resting.front().map(|(until, ..)| *until)).fold(f64::INFINITY, f64::min);
        self.arm(due);
    }
}
