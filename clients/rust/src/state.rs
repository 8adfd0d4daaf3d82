//! The state of another exchange: what it exports can be read and watched, what it accepts can be set.
//!
//! Over ordinary requests alone, so any exchange of the mesh can be asked.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::emit::Replies;
use crate::error::{Code, Error, RequestError, Result};
use crate::exchange::Exchange;
use crate::message::Message;
use crate::names::SET;

/// One state name of an exchange.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StateValue {
    /// The name.
    pub name: String,
    /// What it is.
    pub value: Value,
    /// How often it has changed since the exchange started.
    pub revision: u64,
    /// The start of the exchange: revisions of two epochs do not compare.
    pub epoch: u64,
    /// The id of the message that caused the last change, or empty.
    pub cause: String,
    /// The number of the last change: what has the same number changed at once.
    pub transaction: u64,
    /// It was not told because it changed.
    pub snapshot: bool,
}

/// What an exchange shares of its state. Made by [`Exchange::state_of`].
#[derive(Clone)]
pub struct RemoteState {
    exchange: Exchange,
    id: String,
}

impl RemoteState {
    pub(crate) fn new(exchange: Exchange, id: String) -> Self {
        Self { exchange, id }
    }

    /// The value of an exported name; the reason is `NOT_EXPORTED` if it is none.
    pub async fn get(&self, name: &str) -> Result<StateValue> {
        let answer = self.exchange.request("exchange.state.get", json!({"name": name})).to(&self.id).await?;
        self.read(&answer)
    }

    /// Set an accepted name; as it is then. The reason is `NOT_ACCEPTED` if it is none.
    pub async fn set(&self, name: &str, value: impl Serialize) -> Result<StateValue> {
        self.put(json!({"name": name, "value": value})).await
    }

    /// The same, if it is at this revision; else the reason is `REVISION`, and nothing happened.
    pub async fn set_expecting(&self, name: &str, value: impl Serialize, revision: u64) -> Result<StateValue> {
        self.put(json!({"name": name, "value": value, "expected_revision": revision})).await
    }

    async fn put(&self, question: Value) -> Result<StateValue> {
        let answer = self.exchange.request(SET, question).to(&self.id).await?;
        self.read(&answer)
    }

    fn read(&self, answer: &Message) -> Result<StateValue> {
        let mut state = one(&answer.value()["state"]).ok_or_else(|| strange(&self.id))?;
        state.snapshot = true;
        Ok(state)
    }

    /// The exported names (all, if none is given) as they are, then every change in order, none left out.
    pub fn watch(&self, names: &[&str]) -> Watch {
        let replies = self.exchange.request_many("exchange.state.watch", json!({"names": names}));
        Watch { replies: replies.to(&self.id).timeout(Duration::MAX), waiting: Vec::new(), id: self.id.clone() }
    }
}

/// A watch on a state. Dropping it ends it.
#[must_use = "it begins with the first `next`"]
pub struct Watch {
    replies: Replies,
    /// In the reverse order.
    waiting: Vec<StateValue>,
    id: String,
}

impl Watch {
    /// The next value. It goes on until it fails: `Unavailable` when the way to the exchange is lost, with the reason
    /// `SLOW` if it is taken too slowly.
    pub async fn next(&mut self) -> Result<StateValue> {
        loop {
            if let Some(state) = self.waiting.pop() {
                return Ok(state);
            }
            let Some(reply) = self.replies.next().await? else {
                let text = format!("the watch on {} ended", self.id);
                return Err(RequestError::unavailable(text).at(&self.id).into());
            };
            if let Some(error) = reply.error() {
                return Err(error.clone().into());
            }
            let told = reply.value();
            let states = told["states"].as_array().ok_or_else(|| strange(&self.id))?;
            let snapshot = told["snapshot"] == true;
            for state in states.iter().rev() {
                let state = one(state).ok_or_else(|| strange(&self.id))?;
                self.waiting.push(StateValue { snapshot, ..state });
            }
        }
    }
}

fn one(state: &Value) -> Option<StateValue> {
    Some(StateValue {
        name: state["name"].as_str()?.to_owned(),
        value: state.get("value")?.clone(),
        revision: state["revision"].as_u64()?,
        epoch: state["epoch"].as_u64()?,
        cause: state["cause"].as_str()?.to_owned(),
        transaction: state["transaction"].as_u64()?,
        snapshot: false,
    })
}

fn strange(id: &str) -> Error {
    RequestError::new(Code::Unknown, "ANSWER", format!("what {id} answers is no state")).at(id).into()
}
