//! The ledger: what happened here, and because of what.
//!
//! Law: bounded, and without payloads. It keeps the newest messages that were emitted or received here, and what became
//! of each; the oldest go first. A trace is answered from it: everything with the same root, in the JSON shape of
//! `exchange.trace`.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
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

/// A message, known by its id.
#[derive(Debug)]
struct ById(Arc<Head>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    exchange: String,
    /// What became of each.
    entries: HashMap<ById, Vec<Happened>>,
    order: VecDeque<Arc<Head>>,
    /// Root -> ids in order of arrival, where it is more than the root alone.
    families: HashMap<String, VecDeque<String>>,
    /// Roots of which something was forgotten, and something is left.
    cut: HashSet<String>,
}

impl Ledger {
    pub fn new(exchange: &str) -> Self {
        Self { exchange: exchange.into(), ..Self::default() }
    }

    /// Remember that this message was here. Traffic of the system is not remembered.
    pub fn note(&mut self, head: &Arc<Head>) {
        if !is_traced(&head.name) || self.entries.contains_key(head.id.as_str()) {
            return;
        }
        self.entries.insert(ById(head.clone()), Vec::new());
        self.order.push_back(head.clone());
        let root = head.root();
        if root != head.id {
            let known = self.entries.contains_key(root);
            let family = self.families.entry(root.to_owned());
            family.or_insert_with(|| known.then(|| root.to_owned()).into_iter().collect()).push_back(head.id.clone());
        } else if let Some(family) = self.families.get_mut(root) {
            family.push_back(head.id.clone());
        }
        if self.order.len() > LEDGER_MESSAGES {
            self.forget_oldest();
        }
    }

    /// Remember what became of a message: `by` is its handler or the peer it was passed on to.
    pub fn record(&mut self, id: &str, at_us: i64, outcome: Outcome, by: &str, seconds: f64, reason: &str) {
        let Some(events) = self.entries.get_mut(id) else { return };
        if events.len() >= LEDGER_EVENTS {
            let root = self.head(id).map(|head| head.root().to_owned());
            self.cut.extend(root);
            return;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a handler's run
        let duration_us = (seconds * 1e6) as u64;
        let reason = reason.chars().take(REASON).collect();
        events.push(Happened { at_us, outcome, by: by.into(), duration_us, reason });
    }

    fn head(&self, id: &str) -> Option<&Arc<Head>> {
        self.entries.get_key_value(id).map(|(known, _)| &known.0)
    }

    /// Everything known here with the same root as the message `id`; None if nothing is. If it is too much for one
    /// answer, what led to `id` comes first.
    pub fn trace(&self, id: &str, root: &str) -> Option<Value> {
        let known = self.head(id).map(|head| head.root());
        let root = known.unwrap_or(if root.is_empty() { id } else { root });
        let family: Vec<&str> = match self.families.get(root) {
            Some(family) => family.iter().map(String::as_str).collect(),
            None if self.entries.contains_key(root) => vec![root],
            None => return None,
        };
        let mut said: HashMap<&str, Value> = HashMap::new();
        let mut size = 0;
        for member in self.lineage(id).into_iter().chain(family.iter().copied()) {
            let Some(head) = self.head(member).filter(|_| !said.contains_key(member)) else { continue };
            let span = self.span(head);
            size += span.to_string().len() + 1;
            if size > TRACE_ANSWER_BYTES {
                break;
            }
            said.insert(member, span);
        }
        let spans: Vec<Value> = family.iter().filter_map(|member| said.remove(member)).collect();
        let cut = self.cut.contains(root) || spans.len() < family.len();
        Some(json!({"root": root, "spans": spans, "cut": cut}))
    }

    /// The message and its newest causes, as far back as they are known.
    fn lineage<'a>(&'a self, id: &'a str) -> Vec<&'a str> {
        let mut line = Vec::new();
        let mut next = self.head(id);
        while let Some(head) = next.filter(|head| !line.contains(&head.id.as_str())) {
            line.push(head.id.as_str());
            next = head.causes.iter().rev().find_map(|cause| self.head(cause));
        }
        line
    }

    fn forget_oldest(&mut self) {
        let Some(head) = self.order.pop_front() else { return };
        self.entries.remove(head.id.as_str());
        let root = head.root();
        if let Some(family) = self.families.get_mut(root) {
            if family.front().is_some_and(|id| *id == head.id) {
                family.pop_front();
            } else {
                family.retain(|id| *id != head.id); // its root came after what it caused
            }
            if !family.is_empty() {
                self.cut.insert(root.to_owned());
                return;
            }
            self.families.remove(root);
        }
        self.cut.remove(root);
    }

    fn span(&self, head: &Head) -> Value {
        let hops: Vec<Value> =
            head.hops.iter().map(|hop| json!({"exchange": hop.exchange, "at_us": hop.at_us})).collect();
        let events: Vec<Value> = self.entries[head.id.as_str()]
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
