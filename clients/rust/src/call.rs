//! What a handler is given: the message, and the means to emit because of it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::core::Run;
use crate::emit::{Emission, Replies, Request, Send};
use crate::error::Result;
use crate::message::{Kind, Message};
use crate::payload::IntoPayload;
use crate::shared::Shared;

/// A message with a handler, a listener or a subscriber: it reads as the [`Message`], and what is emitted by it says
/// that it was caused by it.
///
/// This is the explicit context of the causes: `call.request(...)` in place of `exchange.request(...)`. A reply that is
/// awaited by it becomes a further cause of what is emitted afterwards. It can be cloned and moved into other tasks.
#[derive(Clone)]
pub struct Call {
    shared: Arc<Shared>,
    run: Arc<Run>,
}

impl Call {
    pub(crate) fn new(shared: Arc<Shared>, run: Run) -> Self {
        Self { shared, run: Arc::new(run) }
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.run.invocation.message
    }

    /// The time that is left to the message.
    pub fn time_left(&self) -> Duration {
        let left = self.message().head.deadline - self.shared.now();
        Duration::try_from_secs_f64(left.max(0.0)).unwrap_or(Duration::MAX)
    }

    /// As [`Exchange::send`](crate::Exchange::send), caused by this message.
    pub fn send(&self, name: &str, value: impl IntoPayload) -> Send {
        Send(self.emission(Kind::Send, name, value))
    }

    /// As [`Exchange::publish`](crate::Exchange::publish), caused by this message.
    pub fn publish(&self, name: &str, value: impl IntoPayload) -> Send {
        Send(self.emission(Kind::Publish, name, value))
    }

    /// As [`Exchange::broadcast`](crate::Exchange::broadcast), caused by this message.
    pub fn broadcast(&self, name: &str, value: impl IntoPayload) -> Send {
        Send(self.emission(Kind::Broadcast, name, value))
    }

    /// As [`Exchange::request`](crate::Exchange::request), caused by this message. It has, unless told, the time that
    /// is left to this one.
    pub fn request(&self, name: &str, value: impl IntoPayload) -> Request {
        Request(self.emission(Kind::Request, name, value))
    }

    /// As [`Exchange::request_many`](crate::Exchange::request_many), caused by this message.
    pub fn request_many(&self, name: &str, value: impl IntoPayload) -> Replies {
        Replies::new(self.emission(Kind::Request, name, value))
    }

    fn emission(&self, kind: Kind, name: &str, value: impl IntoPayload) -> Emission {
        Emission::new(&self.shared, kind, name, value.into_payload()).caused_by(self.run.invocation.clone())
    }

    /// One of many replies to a request to many; of any other request the first is its answer, and the rest is dropped.
    /// Returns when there is room for more.
    pub async fn reply(&self, value: impl IntoPayload) -> Result<()> {
        let payload = value.into_payload()?;
        let invocation = &self.run.invocation;
        let many = self.message().head.many;
        let over = if many {
            invocation.answered.load(Ordering::Relaxed)
        } else {
            invocation.answered.swap(true, Ordering::Relaxed)
        };
        if over || self.message().kind() != Kind::Request {
            return Ok(());
        }
        let line = self.shared.with(|core, now| core.answer(&self.run, Ok(payload), !many, None, now));
        if let Some(line) = line {
            crate::emit::room(&self.shared, line).await;
        }
        tokio::task::yield_now().await; // one that never waits must let others run
        Ok(())
    }
}

impl Deref for Call {
    type Target = Message;

    fn deref(&self) -> &Message {
        self.message()
    }
}
