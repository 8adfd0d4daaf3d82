//! The ledger: what happened here, and because of what.
//!
//! Law: bounded, and without payloads. It keeps the newest messages that were emitted or received here, and what became
//! of each; the oldest go first. A trace is answered from it: everything with the same root, in the JSON shape of
//! `exchange.trace`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::limits::{LEDGER_EVENTS, LEDGER_MESSAGES, TRACE_ANSWER_BYTES};
use crate::message::{Head, Outcome};
use crate::names::is_traced;

/// Characters kept of a reason: a peer may have written it.
const REASON: usize = 200;

#[derive(Debug)]
struct Happened {
    at_us: i64,
    outcome: Outcome,
    by: String,
    duration_us: u64,
    reason: String,
}

#[derive(Debug)]
struct Entry {
    head: Arc<Head>,
    events: Vec<Happened>,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    exchange: String,
    entries: HashMap<String, Entry>,
    order: VecDeque<String>,
    /// Root -> ids in order of arrival, where it is more than the root alone.
    families: HashMap<String, Vec<String>>,
    /// Roots of which something was forgotten, and something is left.
    cut: HashSet<String>,
}

impl Ledger {
    pub fn new(exchange: &str) -> Self {
        Self { exchange: exchange.into(), ..Self::default() }
    }

    /// Remember that this message was here. Traffic of the system is not remembered.
    pub fn note(&mut self, head: &Arc<Head>) {
        if !is_traced(&head.name) || self.entries.contains_key(&head.id) {
            return;
        }
        self.entries.insert(head.id.clone(), Entry { head: head.clone(), events: Vec::new() });
        self.order.push_back(head.id.clone());
        let root = head.root();
        if root != head.id {
            let known = self.entries.contains_key(root);
            let family = self.families.entry(root.to_owned());
            family.or_insert_with(|| if known { vec![root.to_owned()] } else { vec![] }).push(head.id.clone());
        } else if let Some(family) = self.families.get_mut(root) {
            family.push(head.id.clone());
        }
        if self.order.len() > LEDGER_MESSAGES {
            self.forget_oldest();
        }
    }

    /// Remember what became of a message: `by` is its handler or the peer it was passed on to.
    pub fn record(&mut self, id: &str, at_us: i64, outcome: Outcome, by: &str, seconds: f64, reason: &str) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        if entry.events.len() >= LEDGER_EVENTS {
            self.cut.insert(entry.head.root().to_owned());
            return;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a handler's run
        let duration_us = (seconds * 1e6) as u64;
        let reason = reason.chars().take(REASON).collect();
        entry.events.push(Happened { at_us, outcome, by: by.into(), duration_us, reason });
    }

    /// Everything known here with the same root as the message `id`; None if nothing is. If it is too much for one
    /// answer, what led to `id` comes first.
    pub fn trace(&self, id: &str, root: &str) -> Option<Value> {
        let known = self.entries.get(id).map(|entry| entry.head.root());
        let root = known.unwrap_or(if root.is_empty() { id } else { root });
        let alone = [root.to_owned()];
        let family = match self.families.get(root) {
            Some(family) => family.as_slice(),
            None if self.entries.contains_key(root) => alone.as_slice(),
            None => return None,
        };
        let mut said: HashMap<&str, Value> = HashMap::new();
        let mut size = 0;
        for member in self.lineage(id).into_iter().chain(family.iter().map(String::as_str)) {
            let Some(entry) = self.entries.get(member).filter(|_| !said.contains_key(member)) else { continue };
            let span = self.span(entry);
            size += span.to_string().len() + 1;
            if size > TRACE_ANSWER_BYTES {
                break;
            }
            said.insert(member, span);
        }
        let spans: Vec<Value> = family.iter().filter_map(|member| said.remove(member.as_str())).collect();
        let cut = self.cut.contains(root) || spans.len() < family.len();
        Some(json!({"root": root, "spans": spans, "cut": cut}))
    }

    /// The message and its newest causes, as far back as they are known.
    fn lineage<'a>(&'a self, id: &'a str) -> Vec<&'a str> {
        let mut line = Vec::new();
        let mut next = self.entries.get(id);
        while let Some(entry) = next.filter(|entry| !line.contains(&entry.head.id.as_str())) {
            line.push(entry.head.id.as_str());
            next = entry.head.causes.iter().rev().find_map(|cause| self.entries.get(cause));
        }
        line
    }

    fn forget_oldest(&mut self) {
        let Some(entry) = self.order.pop_front().and_then(|id| self.entries.remove(&id)) else { return };
        let root = entry.head.root();
        if let Some(family) = self.families.get_mut(root) {
            family.retain(|id| *id != entry.head.id);
            if !family.is_empty() {
                self.cut.insert(root.to_owned());
                return;
            }
            self.families.remove(root);
        }
        self.cut.remove(root);
    }

    fn span(&self, entry: &Entry) -> Value {
        let head = &entry.head;
        let hops: Vec<Value> =
            head.hops.iter().map(|hop| json!({"exchange": hop.exchange, "at_us": hop.at_us})).collect();
        let events: Vec<Value> = entry
            .events
            .iter()
            .map(|event| {
                json!({
                    "exchange": self.exchange,
                    "at_us": event.at_us,
                    "outcome": format!("OUTCOME_{}", event.outcome.name()),
                    "by": event.by,
                    "duration_us": event.duration_us,
                    "reason": event.reason,
                })
            })
            .collect();
        json!({
            "id": head.id,
            "name": head.name,
            "kind": format!("KIND_{}", head.kind.name()),
            "from": head.from,
            "to": head.to,
            "causes": head.causes,
            "hops": hops,
            "reply_to": head.reply_to,
            "events": events,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Kind;
    use crate::message::tests::head;

    #[test]
    fn a_trace_has_everything_with_the_same_root() {
        let mut ledger = Ledger::new("b");
        let first = Arc::new(head("a.1.1", "x", Kind::Request, &["a", "b"]));
        let mut answer = head("b.1.1", "x", Kind::Reply, &["b"]);
        (answer.root, answer.causes) = ("a.1.1".into(), vec!["a.1.1".into()]);
        ledger.note(&first);
        ledger.note(&Arc::new(answer));
        ledger.note(&Arc::new(head("a.1.2", "exchange.describe", Kind::Request, &["a", "b"])));
        ledger.record("a.1.1", 5, Outcome::Handled, "x", 0.5, "");
        let trace = ledger.trace("b.1.1", "").unwrap();
        let ids: Vec<&str> = trace["spans"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["a.1.1", "b.1.1"]);
        assert_eq!(trace["spans"][0]["events"][0]["outcome"], "OUTCOME_HANDLED");
        assert_eq!(ledger.trace("a.1.2", ""), None);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut ledger = Ledger::new("a");
        for number in 0..=LEDGER_MESSAGES {
            ledger.note(&Arc::new(head(&format!("a.1.{number}"), "x", Kind::Send, &["a"])));
        }
        assert!(ledger.trace("a.1.0", "").is_none() && ledger.trace("a.1.1", "").is_some());
        assert!(ledger.families.is_empty() && ledger.cut.is_empty());
    }
}
