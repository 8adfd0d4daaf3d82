//! A trace put together of what several exchanges know of it.
//!
//! Law: no I/O, plain JSON in the shape of `exchange.trace`. An answer is read as a stranger's: what is not of that shape
//! is left out, and each exchange tells only what happened at itself. The result does not depend on who asked, nor on
//! the order of the answers.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::limits::{CAUSES, HOPS, LEDGER_EVENTS, TRACE_EXCHANGES};
use crate::message::{Kind, Outcome};

/// What one exchange answered, as far as it can be believed.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub root: String,
    spans: Vec<Value>,
    cut: bool,
}

/// What `exchange` answered to `exchange.trace`; None if that is no trace.
pub(crate) fn read(answer: &Value, exchange: &str) -> Option<Known> {
    let root = text(answer, "root");
    let spans = answer["spans"].as_array()?;
    if root.is_empty() {
        return None;
    }
    let spans =
        spans.iter().filter(|span| !text(span, "id").is_empty()).map(|span| read_span(span, exchange)).collect();
    Some(Known { root, spans, cut: answer["cut"] == true })
}

/// One trace of all that was answered about `root`.
pub(crate) fn merge(root: &str, answers: &BTreeMap<String, Known>) -> Map<String, Value> {
    let mut spans: BTreeMap<String, Value> = BTreeMap::new();
    let mut cut = false;
    for answer in answers.values().filter(|answer| answer.root == root) {
        cut |= answer.cut;
        for span in &answer.spans {
            let Some(known) = spans.get_mut(&text(span, "id")) else {
                spans.insert(text(span, "id"), span.clone());
                continue;
            };
            let (mut one, mut other) = (known.clone(), span.clone());
            let mut events = take_events(&mut one);
            events.extend(take_events(&mut other));
            if claim(&other) > claim(&one) {
                one = other;
            }
            one["events"] = events.into();
            *known = one;
        }
    }
    let mut spans: Vec<Value> = spans.into_values().collect();
    for span in &mut spans {
        let mut events = take_events(span);
        events.sort_by_cached_key(|event| (event["at_us"].as_i64(), text(event, "exchange"), text(event, "outcome")));
        span["events"] = events.into();
    }
    spans
        .sort_by_cached_key(|span| (span["hops"][0]["at_us"].as_i64(), number_of(&text(span, "id")), text(span, "id")));
    let whole = json!({"root": root, "spans": spans, "cut": cut});
    whole.as_object().cloned().unwrap_or_default()
}

/// The exchanges where these messages were, or to which they were passed on.
pub(crate) fn passed(answer: &Known) -> Vec<String> {
    let mut found = Vec::new();
    for span in &answer.spans {
        let hops = span["hops"].as_array().into_iter().flatten().map(|hop| text(hop, "exchange"));
        let events = span["events"].as_array().into_iter().flatten();
        let forwarded = events.filter(|event| event["outcome"] == "OUTCOME_FORWARDED").map(|event| text(event, "by"));
        found.extend(hops.chain(forwarded).filter(|id| !id.is_empty()));
    }
    found.dedup();
    found.truncate(4 * TRACE_EXCHANGES);
    found
}

fn take_events(span: &mut Value) -> Vec<Value> {
    span["events"].as_array_mut().map(std::mem::take).unwrap_or_default()
}

/// Of two who tell of the same message, whom to believe: it has come further there.
fn claim(span: &Value) -> (usize, String) {
    (span["hops"].as_array().map_or(0, Vec::len), span.to_string())
}

fn number_of(id: &str) -> u64 {
    id.rsplit('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn read_span(span: &Value, exchange: &str) -> Value {
    let mut hops: Vec<Value> = list(span, "hops", HOPS + 1)
        .map(|hop| json!({"exchange": text(hop, "exchange"), "at_us": number(hop, "at_us")}))
        .collect();
    if hops.last().is_none_or(|hop| hop["exchange"] != exchange) {
        hops.clear(); // it did not come as far as there
    }
    let events: Vec<Value> = list(span, "events", LEDGER_EVENTS)
        .map(|event| {
            json!({
                "exchange": exchange, // whatever it says: nobody speaks for another
                "at_us": number(event, "at_us"),
                "outcome": word(event, "outcome", "OUTCOME_", &Outcome::ALL.map(Outcome::name)),
                "by": text(event, "by"),
                "duration_us": number(event, "duration_us"),
                "reason": text(event, "reason"),
            })
        })
        .collect();
    let causes: Vec<&str> = list(span, "causes", CAUSES).filter_map(Value::as_str).collect();
    json!({
        "id": text(span, "id"),
        "name": text(span, "name"),
        "kind": word(span, "kind", "KIND_", &Kind::ALL.map(Kind::name)),
        "from": text(span, "from"),
        "to": text(span, "to"),
        "causes": causes,
        "hops": hops,
        "reply_to": text(span, "reply_to"),
        "events": events,
    })
}

fn text(of: &Value, key: &str) -> String {
    of[key].as_str().unwrap_or_default().chars().take(1_000).collect()
}

fn number(of: &Value, key: &str) -> i64 {
    of[key].as_i64().unwrap_or(0)
}

fn word(of: &Value, key: &str, prefix: &str, words: &[&str]) -> String {
    let said = text(of, key);
    let known = said.strip_prefix(prefix).is_some_and(|word| words.contains(&word));
    if known { said } else { format!("{prefix}UNSPECIFIED") }
}

fn list<'a>(of: &'a Value, key: &str, most: usize) -> impl Iterator<Item = &'a Value> {
    of[key].as_array().into_iter().flatten().take(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(hops: &[&str], outcome: &str, at: i64) -> Value {
        let hops: Vec<Value> = hops.iter().map(|id| json!({"exchange": id, "at_us": at})).collect();
        let event = json!({"exchange": "liar", "at_us": at, "outcome": outcome, "by": "x"});
        let span = json!({"id": "a.1.1", "name": "x", "kind": "KIND_SEND", "hops": hops, "events": [event]});
        json!({"root": "a.1.1", "spans": [span, {"nonsense": 1}]})
    }

    #[test]
    fn answers_become_one_trace() {
        let mut answers = BTreeMap::new();
        answers.insert("a".to_owned(), read(&answer(&["a"], "OUTCOME_FORWARDED", 1), "a").unwrap());
        answers.insert("b".to_owned(), read(&answer(&["a", "b"], "OUTCOME_HANDLED", 2), "b").unwrap());
        assert_eq!(passed(&answers["a"]), ["a", "x"]);
        let trace = merge("a.1.1", &answers);
        let span = &trace["spans"][0];
        assert_eq!(span["hops"].as_array().unwrap().len(), 2);
        let where_: Vec<&Value> = span["events"].as_array().unwrap().iter().map(|event| &event["exchange"]).collect();
        assert_eq!(where_, ["a", "b"]);
    }

    #[test]
    fn what_is_no_trace_is_none() {
        assert!(read(&json!([1]), "a").is_none() && read(&json!({"root": "a.1.1"}), "a").is_none());
        let known = read(&answer(&["a", "b"], "OUTCOME_MADE_UP", 2), "a").unwrap();
        assert_eq!(known.spans[0]["hops"], json!([]));
        assert_eq!(known.spans[0]["events"][0]["outcome"], "OUTCOME_UNSPECIFIED");
    }
}
