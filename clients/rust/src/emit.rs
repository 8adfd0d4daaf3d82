//! What can be said of a message before it leaves, and how its end is awaited.

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::core::{Invocation, LineId, Sink};
use crate::error::{Error, RequestError, Result};
use crate::limits::{MESSAGE_BYTES, MESSAGE_SECONDS, REPLIES};
use crate::message::{Context, Kind, Message, Time};
use crate::names::{check_id, check_name};
use crate::payload::Payload;
use crate::shared::Shared;
use crate::wire;

type Future_<T> = Pin<Box<dyn Future<Output = T> + std::marker::Send>>;

/// A message that has not left yet.
#[derive(Clone)]
pub(crate) struct Emission {
    shared: Arc<Shared>,
    kind: Kind,
    name: String,
    payload: Result<Payload>,
    to: String,
    via: Option<String>,
    headers: BTreeMap<String, String>,
    timeout: Option<Duration>,
    because: Option<Arc<Invocation>>,
}

impl Emission {
    pub fn new(shared: &Arc<Shared>, kind: Kind, name: &str, payload: Result<Payload>) -> Self {
        Self {
            shared: shared.clone(),
            kind,
            name: name.to_owned(),
            payload,
            to: String::new(),
            via: None,
            headers: BTreeMap::new(),
            timeout: None,
            because: None,
        }
    }

    pub fn caused_by(mut self, invocation: Arc<Invocation>) -> Self {
        self.because = Some(invocation);
        self
    }

    fn seconds(&self, now: Time) -> Time {
        match (self.timeout, &self.because, self.kind) {
            (Some(timeout), ..) => timeout.as_secs_f64(),
            (None, Some(because), Kind::Request) => MESSAGE_SECONDS.min(because.message.head.deadline - now),
            _ => MESSAGE_SECONDS,
        }
    }

    /// The message, if it may be sent.
    fn compose(&self, many: bool) -> Result<Message> {
        check_name(&self.name)?;
        if !self.to.is_empty() {
            check_id(&self.to)?;
        }
        wire::check_headers(&self.headers)?;
        let payload = self.payload.clone()?;
        let context = self.because.as_ref().map_or_else(Context::default, |because| because.context());
        let mut message = self.shared.with(|core, now| {
            if core.closed {
                return Err(Error::Link(format!("the exchange {} is closed", core.id)));
            }
            Ok(core.make(self.kind, &self.name, context, now, self.seconds(now)))
        })?;
        let head = message.head_mut();
        head.to.clone_from(&self.to);
        head.headers.clone_from(&self.headers);
        head.many = many;
        message.payload = payload;
        if message.payload.bytes().len() > MESSAGE_BYTES / 2 {
            wire::pack(&message, false)?; // a smaller one has room enough for all the rest
        }
        Ok(message)
    }
}

/// Wait until little enough is queued, or nobody should wait any more.
pub(crate) async fn room(shared: &Shared, line: LineId) {
    while let Some(changed) = shared.with(|core, _| core.full(line)) {
        let changed = changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if shared.with(|core, _| core.full(line)).is_some() {
            changed.await;
        }
    }
}

macro_rules! options {
    () => {
        /// For the exchange with this id, and for nobody else.
        pub fn to(mut self, exchange: impl Into<String>) -> Self {
            self.0.to = exchange.into();
            self
        }

        /// By way of this linked peer, which may pass it on.
        pub fn via(mut self, peer: impl Into<String>) -> Self {
            self.0.via = Some(peer.into());
            self
        }

        /// Metadata that travels along.
        pub fn header(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
            self.0.headers.insert(key.into(), value.into());
            self
        }

        /// How long it lives: 30 s if nothing is said.
        pub fn timeout(mut self, timeout: Duration) -> Self {
            self.0.timeout = Some(timeout);
            self
        }
    };
}

/// A send, a publication or a broadcast: awaited, it gives the id of the message, once it was taken here or has been put
/// on its way. That waits while the way is congested.
#[must_use = "it leaves when it is awaited"]
pub struct Send(pub(crate) Emission);

impl Send {
    options!();
}

impl IntoFuture for Send {
    type Output = Result<String>;
    type IntoFuture = Future_<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let message = self.0.compose(false)?;
            let shared = &self.0.shared;
            let emitted = shared.with(|core, now| core.emit(&message, self.0.via.as_deref(), None, now));
            let dispatched = match emitted {
                Ok(dispatched) => dispatched,
                Err(later) => later.await.unwrap_or_else(|_| Err(closed())),
            };
            if let Some(line) = dispatched? {
                room(shared, line).await;
            }
            Ok(message.id().to_owned())
        })
    }
}

fn closed() -> RequestError {
    RequestError::unavailable("the exchange was closed")
}

/// A request: awaited, it gives the reply. Dropping that future withdraws the request, and its handler stops.
#[must_use = "it leaves when it is awaited"]
pub struct Request(pub(crate) Emission);

impl Request {
    options!();
}

impl IntoFuture for Request {
    type Output = Result<Message>;
    type IntoFuture = Future_<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let message = self.0.compose(false)?;
            let (sender, reply) = oneshot::channel();
            let asked = Asked { shared: &self.0.shared, id: message.id() };
            let sink = Some(Sink::One(sender));
            let _ = self.0.shared.with(|core, now| core.emit(&message, self.0.via.as_deref(), sink, now));
            let reply = reply.await.map_err(|_| closed())?;
            asked.answered();
            if let Some(because) = &self.0.because {
                because.after(&reply);
            }
            if let Some(error) = reply.error {
                return Err(error.into());
            }
            reply.parse()?; // what cannot be read is no answer
            Ok(reply)
        })
    }
}

/// Withdraws a request if it is dropped before it is answered.
struct Asked<'a> {
    shared: &'a Arc<Shared>,
    id: &'a str,
}

impl Asked<'_> {
    fn answered(self) {
        std::mem::forget(self);
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.shared.with(|core, now| core.withdraw_own(self.id, now));
    }
}

/// The replies to a request to many, as they come. The request leaves with the first [`next`](Self::next); dropping
/// this withdraws it.
///
/// ```no_run
/// # async fn f(exchange: exchange_grpc::Exchange) -> exchange_grpc::Result<()> {
/// let mut replies = exchange.request_many("bread.offers", ());
/// while let Some(reply) = replies.next().await? {
///     println!("{}: {}", reply.from(), reply.value());
/// }
/// println!("lost: {:?}", replies.lost());
/// # Ok(())
/// # }
/// ```
#[must_use = "it leaves with the first `next`"]
pub struct Replies(pub(crate) Emission, Asking);

#[derive(Default)]
struct Asking {
    request: Option<(String, mpsc::Receiver<Message>)>,
    left: Option<usize>,
    lost: Vec<String>,
    over: bool,
}

impl Replies {
    options!();

    pub(crate) fn new(emission: Emission) -> Self {
        Self(emission, Asking::default())
    }

    /// Take so many at most; then it ends.
    pub fn max(mut self, replies: usize) -> Self {
        self.1.left = Some(replies);
        self
    }

    /// The exchanges whose replies are lost or did not all come; complete once it has ended.
    pub fn lost(&self) -> &[String] {
        &self.1.lost
    }

    /// The next reply; None when all who handle the name have ended, or the time is over. One whose handler failed has
    /// an [`error`](Message::error). Fails if nobody handles the name.
    pub async fn next(&mut self) -> Result<Option<Message>> {
        if self.1.over {
            return Ok(None);
        }
        if self.1.request.is_none() {
            self.ask()?;
        }
        let Some((_, replies)) = &mut self.1.request else { return Ok(None) };
        let Some(mut reply) = replies.recv().await else {
            self.1.over = true; // whoever gave them has given up
            return Err(Error::LimitExceeded(format!("more than {REPLIES} replies waited to be taken")));
        };
        if let Some(lost) = reply.lost.take() {
            (self.1.over, self.1.lost) = (true, lost);
            return reply.error.map_or(Ok(None), |error| Err(error.into()));
        }
        if let Some(because) = &self.0.because {
            because.after(&reply);
        }
        self.1.over = reply.last && !self.0.to.is_empty();
        reply.parse()?;
        if let Some(left) = &mut self.1.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.withdraw();
            }
        }
        Ok(Some(reply))
    }

    fn ask(&mut self) -> Result<()> {
        let message = self.0.compose(true)?;
        let (sender, receiver) = mpsc::channel(REPLIES);
        let sink = Some(Sink::Many(sender));
        self.1.request = Some((message.id().to_owned(), receiver));
        let _ = self.0.shared.with(|core, now| core.emit(&message, self.0.via.as_deref(), sink, now));
        Ok(())
    }

    fn withdraw(&mut self) {
        self.1.over = true;
        if let Some((id, _)) = self.1.request.take() {
            self.0.shared.with(|core, now| core.withdraw_own(&id, now));
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        if !self.1.over {
            self.withdraw();
        }
    }
}
