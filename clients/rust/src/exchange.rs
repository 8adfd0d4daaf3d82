//! The exchange itself: what a program does with it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::call::Call;
use crate::core::{Event, LineId, Notice, Registration, Seen, random};
use crate::dispatch::{Function, dispatch};
use crate::emit::{Emission, Replies, Request, Send};
use crate::error::{Error, HandlerError, Result, Unsayable};
use crate::grpc::{Dialer, listen};
use crate::limits::{DRAIN_SECONDS, EVENT_QUEUE, LISTENER_QUEUE, Limits, STOP_SECONDS};
use crate::message::{Kind, Message, hex};
use crate::names::{check_id, check_pattern};
use crate::options::{ConnectOptions, ListenOptions};
use crate::payload::{IntoPayload, Payload};
use crate::peer::Peer;
use crate::shared::Shared;
use crate::state::RemoteState;
use crate::{pump, system};

/// One exchange: a handle, which can be cloned. It ends with [`close`](Self::close), or at once with its last handle.
///
/// It belongs to the tokio runtime it was made in.
#[derive(Clone)]
pub struct Exchange {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    id: String,
    servers: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        for server in self.servers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            server.abort();
        }
        self.shared.with(|core, now| {
            core.closed = true;
            core.drop_all();
            core.abort_all();
            core.end_all(now);
        });
    }
}

/// Makes an [`Exchange`] with limits of its own.
#[derive(Clone, Debug)]
pub struct Builder {
    id: String,
    limits: Limits,
}

impl Builder {
    /// Other limits than the default ones.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The exchange. Fails if its id is not well-formed.
    pub fn build(mut self) -> Result<Exchange> {
        if self.id.is_empty() {
            self.id = format!("exchange-{}", hex(&random(4)));
        }
        check_id(&self.id)?;
        let shared = Shared::new(self.id.clone(), self.limits);
        let handle = Handle { shared, id: self.id, servers: Mutex::default() };
        let exchange = Exchange { handle: Arc::new(handle) };
        system::install(&exchange.handle.shared)?;
        Ok(exchange)
    }
}

/// Takes a function away again, by [`remove`](Self::remove). Dropping it does nothing.
pub struct Registered {
    shared: Arc<Shared>,
    what: What,
}

enum What {
    Function(Registration, u64),
    Observer(u64),
}

impl Registered {
    /// The function is not called for what comes from now on.
    pub fn remove(self) {
        self.shared.with(|core, now| match &self.what {
            What::Function(what, number) => core.unregister(what, *number, now),
            What::Observer(number) => core.forget_observer(*number),
        });
    }
}

/// What happens to an exchange, as it happens: see [`Exchange::events`].
pub struct Events(mpsc::Receiver<Event>);

impl Events {
    /// The next event; None once the exchange is gone.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

impl Exchange {
    /// An exchange with this id, 1 to 64 of `A-Z a-z 0-9 _ -`, which is its own within the mesh. Where it does not matter
    /// let it be empty: then one is made up, `exchange-` and 8 hex digits.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(id: impl Into<String>) -> Result<Self> {
        Self::builder(id).build()
    }

    /// The same, with a choice of limits.
    pub fn builder(id: impl Into<String>) -> Builder {
        Builder { id: id.into(), limits: Limits::default() }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.handle.id
    }

    // -------------------------------------------------------------------------------------------- links

    /// Link to the exchange at `grpc://HOST:PORT` or `unix:PATH` (or `grpcs://HOST:PORT`, with the feature `tls`).
    ///
    /// A link that breaks is made again, for ever, and loses nothing. If the two are linked already, that is the link.
    pub async fn connect(&self, url: &str) -> Result<Peer> {
        self.connect_with(url, ConnectOptions::new()).await
    }

    /// The same, with options.
    pub async fn connect_with(&self, url: &str, options: ConnectOptions) -> Result<Peer> {
        self.check_open()?;
        let retry = options.retry.map_or(f64::INFINITY, |retry| retry.as_secs_f64());
        let id = pump::connect(self.shared(), Dialer::new(url, &options)?, retry).await?;
        if !self.shared().with(|core, _| core.peers().contains(&id)) {
            return Err(Error::Link(format!("the link was refused or lost: {id} has gone again at once")));
        }
        Ok(Peer::new(self.clone(), id))
    }

    /// Let others link to this exchange at `grpc://HOST:PORT`; port 0 takes a free one. Returns the URL, with the port.
    ///
    /// This exchange takes what is for itself, and passes nothing on between those who link to it.
    pub async fn listen(&self, url: &str) -> Result<String> {
        self.listen_with(url, ListenOptions::new()).await
    }

    /// The same, with options.
    pub async fn listen_with(&self, url: &str, options: ListenOptions) -> Result<String> {
        self.check_open()?;
        let (url, server) = listen(self.shared(), url, &options).await?;
        self.handle.servers.lock().unwrap_or_else(PoisonError::into_inner).push(server);
        Ok(url)
    }

    fn check_open(&self) -> Result<()> {
        if self.shared().with(|core, _| core.closed) {
            return Err(Error::Link(format!("the exchange {} is closed", self.id())));
        }
        Ok(())
    }

    /// The peer with this id, if it is linked.
    pub fn peer(&self, id: &str) -> Option<Peer> {
        let linked = self.shared().with(|core, _| core.peers().iter().any(|peer| peer == id));
        linked.then(|| Peer::new(self.clone(), id.to_owned()))
    }

    /// All peers that are linked.
    pub fn peers(&self) -> Vec<Peer> {
        let ids = self.shared().with(|core, _| core.peers());
        ids.into_iter().map(|id| Peer::new(self.clone(), id)).collect()
    }

    /// What happens from now on: links that come and go, and messages that were not handled. Whoever does not take them
    /// misses those beyond 4,096.
    pub fn events(&self) -> Events {
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
        self.shared().with(|core, _| core.follow(sender));
        Events(receiver)
    }

    // ---------------------------------------------------------------------------------------- registering

    /// The one function that answers `name`. Up to 1,024 runs of it are under way at once; they begin in the order in
    /// which the messages came.
    ///
    /// What it returns answers a request: a value, or `()` for an empty answer. [`Refused`](crate::Refused) says no, any
    /// other error is told with a fixed text, its details in the log. When the caller withdraws the request, or its
    /// time is over, the function's future is dropped where it waits. To answer a request to many more than once, see
    /// [`Call::reply`].
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> exchange_grpc::Result<()> {
    /// use exchange_grpc::{Exchange, Refused};
    ///
    /// let shop = Exchange::new("shop")?;
    /// shop.handle("bread.price", |call| async move {
    ///     match call.json::<String>()?.as_str() {
    ///         "rye" => Ok(4),
    ///         other => Err(Refused::new(format!("there is no {other}")).into()),
    ///     }
    /// })?;
    /// assert_eq!(shop.request("bread.price", "rye").await?.value(), 4);
    /// let error = shop.request("bread.price", "sand").await.unwrap_err();
    /// assert_eq!(error.to_string(), "there is no sand");
    /// # Ok(())
    /// # }
    /// ```
    pub fn handle<F, A, R>(&self, name: &str, function: F) -> Result<Registered>
    where
        F: Fn(Call) -> A + std::marker::Send + Sync + 'static,
        A: Future<Output = Result<R, HandlerError>> + std::marker::Send + 'static,
        R: IntoPayload,
    {
        register(self.shared(), Registration::Handle(name.to_owned()), false, boxed(function))
    }

    /// A function that runs for the same messages beside the handler, and answers nothing. It claims the name as well.
    pub fn on<F, A>(&self, name: &str, function: F) -> Result<Registered>
    where
        F: Fn(Call) -> A + std::marker::Send + Sync + 'static,
        A: Future<Output = ()> + std::marker::Send + 'static,
    {
        self.on_from(name, None, function)
    }

    pub(crate) fn on_from<F, A>(&self, name: &str, peer: Option<String>, function: F) -> Result<Registered>
    where
        F: Fn(Call) -> A + std::marker::Send + Sync + 'static,
        A: Future<Output = ()> + std::marker::Send + 'static,
    {
        register(self.shared(), Registration::On(name.to_owned(), peer), false, quiet(function))
    }

    /// A function for publications whose name fits the pattern, from anywhere in the mesh.
    pub fn subscribe<F, A>(&self, pattern: &str, function: F) -> Result<Registered>
    where
        F: Fn(Call) -> A + std::marker::Send + Sync + 'static,
        A: Future<Output = ()> + std::marker::Send + 'static,
    {
        register(self.shared(), Registration::Subscribe(pattern.to_owned()), false, quiet(function))
    }

    /// A function that is shown what is received and emitted here, one message after another, and claims nothing. One
    /// that is slow misses those beyond 1,024. In a pattern `*` is one token and `**` any number; `*` alone is
    /// everything.
    pub fn observe<F, A>(&self, pattern: &str, function: F) -> Result<Registered>
    where
        F: Fn(Seen, Message) -> A + std::marker::Send + Sync + 'static,
        A: Future<Output = ()> + std::marker::Send + 'static,
    {
        check_pattern(pattern)?;
        let (sender, mut receiver) = mpsc::channel(LISTENER_QUEUE);
        let number = self.shared().with(|core, _| core.observe(pattern, sender));
        self.shared().runtime.spawn(async move {
            while let Some((seen, message)) = receiver.recv().await {
                function(seen, message).await;
            }
        });
        Ok(Registered { shared: self.shared().clone(), what: What::Observer(number) })
    }

    // --------------------------------------------------------------------------------------------- emitting

    /// Send a message to one exchange that handles `name`: here, next to here, or found by asking. Awaited, it gives
    /// the id. Fails with `Unhandled` if nobody takes it; what goes wrong further on is an [`Event::Unhandled`].
    pub fn send(&self, name: &str, value: impl IntoPayload) -> Send {
        Send(self.emission(Kind::Send, name, value))
    }

    /// Send a request to one exchange that handles `name`. Awaited, it gives the reply. Dropping the future withdraws
    /// the request.
    pub fn request(&self, name: &str, value: impl IntoPayload) -> Request {
        Request(self.emission(Kind::Request, name, value))
    }

    /// Send a request to every exchange within reach that handles `name`. Each may reply many times.
    pub fn request_many(&self, name: &str, value: impl IntoPayload) -> Replies {
        Replies::new(self.emission(Kind::Request, name, value))
    }

    /// Send a message to every exchange of the mesh that subscribes to `name`, once each.
    pub fn publish(&self, name: &str, value: impl IntoPayload) -> Send {
        Send(self.emission(Kind::Publish, name, value))
    }

    /// Send a message to every direct peer, one hop, interested or not.
    pub fn broadcast(&self, name: &str, value: impl IntoPayload) -> Send {
        Send(self.emission(Kind::Broadcast, name, value))
    }

    fn emission(&self, kind: Kind, name: &str, value: impl IntoPayload) -> Emission {
        Emission::new(self.shared(), kind, name, value.into_payload())
    }

    // --------------------------------------------------------------------------------------------- asking why

    /// What another exchange, anywhere in the mesh, shares of its state.
    pub fn state_of(&self, exchange: impl Into<String>) -> RemoteState {
        RemoteState::new(self.clone(), exchange.into())
    }

    /// All that is known of the message `id` and of those with the same root, here and where they have been, in the
    /// JSON of `exchange.trace`. Fails with the reason `NOT_FOUND` if nobody knows it.
    pub async fn trace(&self, id: &str) -> Result<Value> {
        system::trace(self.shared(), id, Duration::from_secs(30)).await.map_err(Error::Request)
    }

    /// Why a name of the state of `exchange` has its value, or what became of the message with this id, in the JSON of
    /// `exchange.why`.
    pub async fn why(&self, key: &str, exchange: &str) -> Result<Value> {
        let reply = self.request("exchange.why", BTreeMap::from([("key", key)])).to(exchange).await?;
        Ok(reply.value().clone())
    }

    // ----------------------------------------------------------------------------------------------- ending

    /// Let running handlers end (within 10 s), say goodbye to all peers, and leave nothing behind.
    pub async fn close(&self) {
        let shared = self.shared();
        let ended = async {
            while shared.with(|core, _| core.table.busy()) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs_f64(STOP_SECONDS), ended).await;
        shared.with(|core, _| core.abort_all());
        let lines = shared.with(|core, now| {
            core.closed = true;
            core.leave_all(now)
        });
        wait_for(shared, lines).await;
        let drained = Duration::from_secs_f64(DRAIN_SECONDS);
        let _ = tokio::time::timeout(drained, shared.streams_closed()).await;
        for server in self.handle.servers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            server.abort();
        }
        shared.with(|core, now| {
            core.drop_all();
            core.end_all(now);
        });
    }
}

/// Wait for the ends of these lines, within a bound, whatever the peers do.
pub(crate) async fn wait_for(shared: &Arc<Shared>, lines: Vec<(LineId, Notice)>) {
    let ended = async {
        for (line, changed) in &lines {
            loop {
                let changed = changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if !shared.with(|core, _| core.has_line(*line)) {
                    break;
                }
                changed.await;
            }
        }
    };
    let drained = Duration::from_secs_f64(DRAIN_SECONDS);
    if tokio::time::timeout(drained, ended).await.is_err() {
        for (line, _) in lines {
            shared.with(|core, _| core.drop_line(line, "the peer did not take what was queued in time"));
        }
    }
}

/// Let a function be called from now on.
pub(crate) fn register(
    shared: &Arc<Shared>,
    what: Registration,
    system: bool,
    function: Function,
) -> Result<Registered> {
    let (number, notice) = shared.with(|core, now| core.register(&what, system, now))?;
    shared.runtime.spawn(dispatch(shared.clone(), number, notice, function));
    Ok(Registered { shared: shared.clone(), what: What::Function(what, number) })
}

/// A handler as it is kept.
pub(crate) fn boxed<F, A, R>(function: F) -> Function
where
    F: Fn(Call) -> A + std::marker::Send + Sync + 'static,
    A: Future<Output = Result<R, HandlerError>> + std::marker::Send + 'static,
    R: IntoPayload,
{
    Box::new(move |call| {
        let answer = function(call);
        Box::pin(async move { Ok(answer.await?.into_payload().map_err(Unsayable)?) })
    })
}

fn quiet<F, A>(function: F) -> Function
where
    F: Fn(Call) -> A + std::marker::Send + Sync + 'static,
    A: Future<Output = ()> + std::marker::Send + 'static,
{
    Box::new(move |call| {
        let heard = function(call);
        Box::pin(async move {
            heard.await;
            Ok(Payload::null())
        })
    })
}
