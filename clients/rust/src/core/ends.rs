//! How messages end: answered, refused, too late, or with nobody to take them. Nothing ends silently: whatever it was is
//! in the ledger, and its origin is told.

use std::cmp::Reverse;

use super::routing::Open;
use super::{Core, Due, HERE, LineId, Run, Sink, Way};
use crate::error::{Code, Error, HandlerError, RequestError, Result, Unsayable};
use crate::limits::MESSAGE_SECONDS;
use crate::message::{Context, Head, Kind, Message, Outcome, Time};
use crate::payload::Payload;

impl Core {
    /// A function has ended: record it, and answer what it left unanswered.
    pub fn ended(&mut self, run: &Run, result: Result<Payload, HandlerError>, started: Time, now: Time) {
        let invocation = &run.invocation;
        let message = &invocation.message;
        let (outcome, result) = match result {
            Ok(payload) => (Outcome::Handled, Ok(payload)),
            Err(error) => {
                let (outcome, error) = self.told(message, error);
                (outcome, Err(error))
            }
        };
        let reason = result.as_ref().err().map_or(String::new(), |error| error.message.clone());
        if run.answers {
            let at_us = self.wall(now);
            self.ledger.record(message.id(), at_us, outcome, &invocation.by, now - started, &reason);
        }
        if run.answers && message.kind() == Kind::Request {
            if !invocation.answered.swap(true, std::sync::atomic::Ordering::Relaxed) {
                // To many, who gave nothing has said all by now.
                let silent = message.head.many && result.as_ref().is_ok_and(Payload::is_null);
                self.answer(run, result, true, silent.then(Vec::new), now);
            }
        } else if let (true, Kind::Send, Err(error)) = (run.answers, message.kind(), result) {
            self.report(&message.head, invocation.link.as_deref(), now, outcome, error);
        }
    }

    /// It was dropped where it waited: withdrawn, or because the exchange stops.
    pub fn stopped(&mut self, run: &Run, started: Time, now: Time) {
        let error = RequestError::new(Code::Internal, "HANDLER_FAILED", "the handler was stopped").at(&self.id);
        let at_us = self.wall(now);
        let (message, by) = (&run.invocation.message, &run.invocation.by);
        self.ledger.record(message.id(), at_us, Outcome::Cancelled, by, now - started, &error.message);
        if !run.answers {
            return;
        }
        if message.kind() == Kind::Send {
            self.report(&message.head, run.invocation.link.as_deref(), now, Outcome::Cancelled, error);
        } else if message.kind() == Kind::Request
            && !run.invocation.answered.swap(true, std::sync::atomic::Ordering::Relaxed)
        {
            self.answer(run, Err(error), true, None, now);
        }
    }

    /// What others hear of a handler that did not end well.
    pub(super) fn told(&self, message: &Message, error: HandlerError) -> (Outcome, RequestError) {
        let refused = match error {
            HandlerError::Refused(no) => RequestError::new(no.code, &no.reason, no.text).undelivered(),
            HandlerError::Failed(error) => match error.downcast_ref::<Error>() {
                // Another said no, and the handler has nothing to add.
                Some(Error::Request(inner)) if inner.kind() == crate::error::RequestErrorKind::Refused => inner.clone(),
                _ => {
                    let name = message.name();
                    tracing::error!(name, id = message.id(), "a handler failed: {error}");
                    let (reason, text) = if error.is::<Unsayable>() {
                        ("ANSWER", format!("the answer of the handler of {name} cannot be said in JSON"))
                    } else {
                        ("HANDLER_FAILED", format!("the handler of {name} failed"))
                    };
                    return (Outcome::Failed, RequestError::new(Code::Internal, reason, text).at(&self.id));
                }
            },
        };
        let outcome = if refused.code == Code::Internal { Outcome::Failed } else { Outcome::Denied };
        (outcome, refused.at(&self.id))
    }

    /// Reply to the request of this run. What stands behind the reply is what its handler has awaited.
    pub fn answer(
        &mut self,
        run: &Run,
        result: Result<Payload, RequestError>,
        last: bool,
        lost: Option<Vec<String>>,
        now: Time,
    ) -> Option<LineId> {
        let request = &run.invocation.message.head;
        let mut reply = self.make(Kind::Reply, &request.name, run.invocation.context(), now, MESSAGE_SECONDS);
        let head = reply.head_mut();
        (head.to, head.reply_to) = (request.from.clone(), request.id.clone());
        if request.many {
            head.deadline = head.deadline.max(request.deadline); // it may wait as long as the request may
        }
        (reply.last, reply.lost) = (last, lost);
        match result {
            Ok(payload) => reply.payload = payload,
            Err(error) => reply.error = Some(error),
        }
        self.route(&reply, HERE, None, now);
        run.invocation.link.as_ref().and_then(|link| self.by_peer.get(link)).copied()
    }

    /// Every refusal: recorded here, signalled here, and told to the origin.
    pub(super) fn fail(&mut self, message: &Message, way: Way<'_>, now: Time, outcome: Outcome, error: RequestError) {
        self.record(message.id(), now, outcome, "", &error.message);
        if outcome == Outcome::Unhandled {
            self.unhandled(&message.head, outcome, &error);
        }
        match message.kind() {
            Kind::Request => self.answer_error(&message.head, way.link, now, Some(error), vec![]),
            _ if way.link.is_none() => self.dispatched(message, Err(error)),
            Kind::Send => self.report(&message.head, way.link, now, outcome, error),
            _ => {}
        }
    }

    /// The reply of this exchange itself to a request that ends here; only one to many ends without an error.
    pub(super) fn answer_error(
        &mut self,
        request: &Head,
        link: Option<&str>,
        now: Time,
        error: Option<RequestError>,
        lost: Vec<String>,
    ) {
        if self.open.get(&request.id).is_some_and(|entry| entry.link.as_deref() == link) {
            let mut reply = self.own_reply(request, now);
            (reply.error, reply.lost) = (error, request.many.then_some(lost));
            if link.is_none() {
                self.resolve(&request.id, &reply, true, now);
            }
            self.close(&request.id);
            if let Some(link) = link {
                let _ = self.transmit(link, &reply); // whoever waits there has a deadline
            }
        } else {
            self.refuse(request, link, now, error, lost);
        }
    }

    /// The same, whatever is open under its id.
    pub(super) fn refuse(
        &mut self,
        request: &Head,
        link: Option<&str>,
        now: Time,
        error: Option<RequestError>,
        lost: Vec<String>,
    ) {
        if let Some(link) = link {
            let mut reply = self.own_reply(request, now);
            (reply.error, reply.lost) = (error, request.many.then_some(lost));
            let _ = self.transmit(link, &reply); // whoever waits there has a deadline
        }
    }

    pub(super) fn own_reply(&mut self, request: &Head, now: Time) -> Message {
        let mut reply = self.make(Kind::Reply, &request.name, Context::of(request), now, MESSAGE_SECONDS);
        let head = reply.head_mut();
        (head.to, head.reply_to) = (request.from.clone(), request.id.clone());
        reply.last = true;
        self.ledger.note(&reply.head);
        reply
    }

    /// Tell the origin of a send, which may be here, what became of it.
    pub(super) fn report(&mut self, head: &Head, link: Option<&str>, now: Time, outcome: Outcome, error: RequestError) {
        let Some(link) = link else { return self.unhandled(head, outcome, &error) };
        let mut report = self.make(Kind::Outcome, &head.name, Context::of(head), now, MESSAGE_SECONDS);
        let about = report.head_mut();
        (about.to, about.reply_to) = (head.from.clone(), head.id.clone());
        (report.outcome, report.error) = (Some(outcome), Some(error));
        self.ledger.note(&report.head);
        let _ = self.transmit(link, &report); // its origin hears nothing, if its link takes nothing
    }

    pub(super) fn too_late(&self, name: &str) -> RequestError {
        let text = format!("the time for {name} was over at {}", self.id);
        RequestError::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", text).at(&self.id)
    }

    pub(super) fn close(&mut self, id: &str) -> Option<Open> {
        let entry = self.open.remove(id)?;
        if let Some(peer) = entry.link.as_ref().and_then(|link| self.links.get_mut(link)) {
            peer.came.remove(id);
        }
        if let Some(line) = entry.link.as_ref().and_then(|link| self.by_peer.get(link)) {
            self.wake(*line); // it may have been all that was waited for
        }
        for holder in entry.holders() {
            if let Some(peer) = self.links.get_mut(&holder) {
                peer.out.remove(id);
            }
        }
        Some(entry)
    }

    /// Who has it will not answer (any more).
    pub(super) fn lose_holder(&mut self, id: &str, holder: &str, now: Time, error: RequestError) {
        let Some(entry) = self.open.get_mut(id).filter(|entry| entry.has(holder)) else { return };
        if let Some(scatter) = &mut entry.scatter {
            scatter.lose(holder);
            if let Some(peer) = self.links.get_mut(holder) {
                peer.out.remove(id);
            }
            return self.ended_one_of_many(id, now);
        }
        let head = entry.head.clone();
        self.answer_error(&head, None, now, Some(error), vec![]);
    }

    pub(super) fn tick_requests(&mut self, now: Time) {
        while let Some(Reverse((Due(due), _))) = self.deadlines.peek() {
            if *due > now {
                let due = *due;
                return self.arm(due);
            }
            let Some(Reverse((_, id))) = self.deadlines.pop() else { return };
            let Some(entry) = self.open.get_mut(&id) else { continue };
            let (head, link) = (entry.head.clone(), entry.link.clone());
            let sink = entry.sink.take();
            let lost = entry.scatter.as_ref().map(|scatter| [entry.holders(), scatter.lost.clone()].concat());
            self.abandon(&id, now, Outcome::Expired, "its time was over", None);
            // What has come so far counts, and whose replies have not is said.
            let error = lost.is_none().then(|| self.too_late(&head.name));
            let mut reply = self.own_reply(&head, now);
            (reply.error, reply.lost) = (error, head.many.then(|| lost.unwrap_or_default()));
            match (link, sink) {
                (Some(link), _) => drop(self.transmit(&link, &reply)),
                (None, Some(Sink::One(sender))) => drop(sender.send(reply)),
                (None, Some(Sink::Many(sender))) => drop(sender.try_send(reply)),
                (None, None) => {}
            }
        }
    }

    /// Everything that this process waits for ends: the exchange was closed.
    pub fn end_all(&mut self, now: Time) {
        let error = RequestError::unavailable(format!("the exchange {} was closed", self.id)).at(&self.id);
        let mine: Vec<String> =
            self.open.iter().filter(|(_, entry)| entry.link.is_none()).map(|(id, _)| id.clone()).collect();
        for id in mine {
            let Some(entry) = self.open.get_mut(&id) else { continue };
            let head = entry.head.clone();
            self.answer_error(&head, None, now, Some(error.clone()), vec![]);
        }
        for (_, sender) in self.dispatching.drain() {
            let _ = sender.send(Err(error.clone()));
        }
    }
}
