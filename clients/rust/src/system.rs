//! What this exchange answers about itself: `exchange.describe`, `exchange.peers` and `exchange.trace`.
//!
//! Ordinary requests, in the shapes of docs/system.md. The other names of the system are unhandled here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Value, json};

use crate::core::{Core, Registration};
use crate::emit::{Emission, Replies, Request};
use crate::error::{Code, Error, HandlerError, Refused, RequestError, Result};
use crate::exchange::{boxed, register};
use crate::limits::{TRACE_EXCHANGES, TRACE_SECONDS};
use crate::message::{Kind, Message, Time};
use crate::names::{origin, shown};
use crate::payload::Payload;
use crate::session::introduction::PROTOCOL;
use crate::shared::Shared;
use crate::traces::{self, Known};

/// Of the shapes of all answers.
const VERSION: u64 = 1;
/// Of the time left: the rest is for the answer to arrive.
const SHARE: f64 = 0.8;

/// Answer from now on.
pub(crate) fn install(shared: &Arc<Shared>) -> Result<()> {
    answer(shared, "exchange.describe", |shared, _| async move { Ok(shared.with(|core, _| describe(core))) })?;
    answer(shared, "exchange.peers", |shared, _| async move { Ok(shared.with(|core, _| peers(core))) })?;
    answer(shared, "exchange.trace", trace_asked)
}

fn answer<F, A>(shared: &Arc<Shared>, name: &str, function: F) -> Result<()>
where
    F: Fn(Arc<Shared>, crate::call::Call) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Value, HandlerError>> + Send + 'static,
{
    let weak: Weak<Shared> = Arc::downgrade(shared);
    let function = move |call| {
        let answered = weak.upgrade().map(|shared| function(shared, call));
        async move {
            match answered {
                Some(answered) => answered.await,
                None => Err(Refused::new("the exchange is gone").code(Code::Unavailable).into()),
            }
        }
    };
    let _stays = register(shared, Registration::Handle(name.into()), true, boxed(function))?;
    Ok(())
}

fn said(core: &Core, fields: Value) -> Value {
    let mut said = json!({"version": VERSION, "exchange": core.id});
    if let (Some(said), Value::Object(fields)) = (said.as_object_mut(), fields) {
        said.extend(fields);
    }
    said
}

fn describe(core: &Core) -> Value {
    let me = core.describe();
    let interest = json!({
        "revision": me.revision, "handles": me.handles, "subscribes": me.subscribes, "exports": me.exports,
    });
    let fields = json!({
        "epoch": me.epoch, "agent": me.agent, "protocol": PROTOCOL, "relay": me.relay,
        "interest": interest, "accepts": [], "peers": core.peers(),
    });
    said(core, fields)
}

fn peers(core: &Core) -> Value {
    let peers: Vec<Value> = core
        .describe_peers()
        .into_iter()
        .map(|(peer, away, pending, (queued, unacknowledged))| {
            json!({
                "id": peer.exchange, "agent": peer.agent, "away": away, "relay": peer.relay,
                "handles": peer.handles, "subscribes": peer.subscribes, "exports": peer.exports,
                "pending": pending, "queued": queued, "unacknowledged": unacknowledged, "dropped": 0, "slowed": 0,
            })
        })
        .collect();
    said(core, json!({"peers": peers}))
}

async fn trace_asked(shared: Arc<Shared>, call: crate::call::Call) -> Result<Value, HandlerError> {
    let question = call.value();
    let Some(id) = question["id"].as_str() else {
        return Err(Refused::new("exchange.trace takes {\"id\": \"...\"}").reason("INVALID_MESSAGE").into());
    };
    if question["here"] != true {
        return trace(&shared, id, call.time_left()).await.map_err(|error| refused(error).into());
    }
    let root = question["root"].as_str().unwrap_or_default();
    let known = shared.with(|core, _| core.known_of(id, root).map(|trace| said(core, trace)));
    known.ok_or_else(|| refused(unknown(&shared, id)).into())
}

fn refused(error: RequestError) -> Refused {
    Refused::new(error.message).code(error.code).reason(error.reason)
}

fn unknown(shared: &Shared, id: &str) -> RequestError {
    let me = shared.with(|core, _| core.id.clone());
    RequestError::new(Code::NotFound, "NOT_FOUND", format!("{me} knows no message {}", shown(id))).at(&me)
}

/// All that is known of a message, here and where it has been.
pub(crate) async fn trace(shared: &Arc<Shared>, id: &str, left: Duration) -> Result<Value, RequestError> {
    let until = shared.now() + TRACE_SECONDS.min(left.as_secs_f64() * SHARE);
    let me = shared.with(|core, _| core.id.clone());
    let mut search = Search { shared, id, until, answers: BTreeMap::new(), missing: BTreeMap::new() };
    search.first(&me).await;
    let root = search.answers.values().next().map_or_else(|| id.to_owned(), |known| known.root.clone());
    if let Some(mine) = search.mine(&me, &root) {
        search.answers.insert(me.clone(), mine); // of others with this root
    }
    search.gather(&me, &root).await;
    let mut found = traces::merge(&root, &search.answers);
    if found["spans"].as_array().is_none_or(Vec::is_empty) {
        return Err(unknown(shared, id));
    }
    let missing = search.missing.iter().map(|(exchange, reason)| json!({"exchange": exchange, "reason": reason}));
    found.insert("missing".into(), missing.collect());
    Ok(shared.with(|core, _| said(core, Value::Object(found))))
}

/// One trace, while it is put together.
struct Search<'a> {
    shared: &'a Arc<Shared>,
    id: &'a str,
    until: Time,
    answers: BTreeMap<String, Known>,
    missing: BTreeMap<String, String>,
}

/// What one exchange answered, or why it could not be asked.
type Asked = (String, Result<Option<Known>, String>);

impl Search<'_> {
    fn mine(&self, me: &str, root: &str) -> Option<Known> {
        let known = self.shared.with(|core, _| core.known_of(self.id, root))?;
        traces::read(&known, me)
    }

    /// What somebody knows of it: this exchange, its origin, anybody who relays, or those who are linked.
    async fn first(&mut self, me: &str) {
        if let Some(mine) = self.mine(me, "") {
            self.answers.insert(me.to_owned(), mine);
            return;
        }
        let Some(maker) = origin(self.id) else { return };
        if maker != me {
            let half = f64::midpoint(self.shared.now(), self.until);
            let asked = ask(self.shared.clone(), maker.to_owned(), self.id.to_owned(), String::new(), half).await;
            if self.note(asked) {
                return;
            }
        }
        self.ask_relays().await;
    }

    async fn ask_relays(&mut self) {
        let question = Payload::json(&json!({"id": self.id, "here": true}));
        let left = (self.until - self.shared.now()).max(0.0) / 2.0;
        let emission = Emission::new(self.shared, Kind::Request, "exchange.trace", question);
        let mut replies = Replies::new(emission).timeout(Duration::from_secs_f64(left));
        while let Ok(Some(reply)) = replies.next().await {
            let heard = if reply.error().is_some() { None } else { traces::read(reply.value(), reply.from()) };
            if let Some(heard) = heard {
                self.answers.insert(reply.from().to_owned(), heard);
                return;
            }
        }
    }

    /// Ask whoever may know more, all at once; what one answers may name others.
    async fn gather(&mut self, me: &str, root: &str) {
        let mut asked: BTreeSet<String> = self.answers.keys().cloned().collect();
        asked.insert(me.to_owned());
        let mut running = tokio::task::JoinSet::new();
        loop {
            let origins = [origin(self.id), origin(root)].into_iter().flatten().map(str::to_owned);
            let named: Vec<String> = origins.chain(self.answers.values().flat_map(traces::passed)).collect();
            for exchange in named {
                if !asked.insert(exchange.clone()) {
                    continue;
                }
                if asked.len() > TRACE_EXCHANGES {
                    let reason = format!("not asked: more than {TRACE_EXCHANGES} exchanges are named");
                    self.missing.insert(exchange, reason);
                } else {
                    running.spawn(ask(self.shared.clone(), exchange, self.id.to_owned(), root.to_owned(), self.until));
                }
            }
            let Some(answered) = running.join_next().await else { return };
            if let Ok((exchange, answer)) = answered {
                let told = answer.map(|known| known.filter(|known| known.root == root));
                self.note((exchange, told));
            }
        }
    }

    /// Whether it was known there.
    fn note(&mut self, (exchange, answer): Asked) -> bool {
        self.missing.remove(&exchange);
        match answer {
            Ok(Some(known)) => {
                self.answers.insert(exchange, known);
                return true;
            }
            Ok(None) => {}
            Err(reason) => drop(self.missing.insert(exchange, reason)),
        }
        false
    }
}

/// Ask one exchange what it knows.
async fn ask(shared: Arc<Shared>, exchange: String, id: String, root: String, until: Time) -> Asked {
    let question = Payload::json(&json!({"id": id, "here": true, "root": root}));
    let left = Duration::from_secs_f64((until - shared.now()).max(0.0));
    let emission = Emission::new(&shared, Kind::Request, "exchange.trace", question);
    let reply: Result<Message> = Request(emission).to(&exchange).timeout(left).await;
    let answer = match reply {
        Ok(reply) => traces::read(reply.value(), &exchange).map(Some).ok_or_else(|| "its answer is no trace".into()),
        Err(Error::Request(error)) if error.code != Code::NotFound => Err(error.message),
        Err(_) => Ok(None), // it knows nothing, or what it is called is no id: nobody can be asked
    };
    (exchange, answer)
}
