//! A linked exchange, as this one sees it.

use std::future::Future;

use crate::call::Call;
use crate::emit::{Replies, Request, Send};
use crate::error::Result;
use crate::exchange::{Exchange, Registered, wait_for};
use crate::payload::IntoPayload;
use crate::state::RemoteState;

/// A linked exchange. What is sent by it takes that link first, and may be passed on from there.
#[derive(Clone)]
pub struct Peer {
    exchange: Exchange,
    id: String,
}

impl Peer {
    pub(crate) fn new(exchange: Exchange, id: String) -> Self {
        Self { exchange, id }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the link is there now: it may be broken, and made again.
    pub fn is_connected(&self) -> bool {
        self.exchange.shared().with(|core, _| core.is_linked(&self.id))
    }

    /// Its language and library version; empty if it is gone.
    pub fn agent(&self) -> String {
        self.told().map(|peer| peer.agent).unwrap_or_default()
    }

    /// Whether it passes on messages of others.
    pub fn relays(&self) -> bool {
        self.told().is_some_and(|peer| peer.relay)
    }

    /// The names that it handles, sorted.
    pub fn handles(&self) -> Vec<String> {
        self.told().map(|peer| peer.handles).unwrap_or_default()
    }

    /// The patterns that it subscribes to, sorted.
    pub fn subscribes(&self) -> Vec<String> {
        self.told().map(|peer| peer.subscribes).unwrap_or_default()
    }

    fn told(&self) -> Option<crate::session::introduction::Introduction> {
        let peers = self.exchange.shared().with(|core, _| core.describe_peers());
        peers.into_iter().map(|(peer, ..)| peer).find(|peer| peer.exchange == self.id)
    }

    /// As [`Exchange::send`], by this link.
    pub fn send(&self, name: &str, value: impl IntoPayload) -> Send {
        self.exchange.send(name, value).via(&self.id)
    }

    /// As [`Exchange::request`], by this link.
    pub fn request(&self, name: &str, value: impl IntoPayload) -> Request {
        self.exchange.request(name, value).via(&self.id)
    }

    /// As [`Exchange::request_many`], by this link alone.
    pub fn request_many(&self, name: &str, value: impl IntoPayload) -> Replies {
        self.exchange.request_many(name, value).via(&self.id)
    }

    /// As [`Exchange::on`], for what comes over this link.
    pub fn on<F, A>(&self, name: &str, function: F) -> Result<Registered>
    where
        F: Fn(Call) -> A + std::marker::Send + Sync + 'static,
        A: Future<Output = ()> + std::marker::Send + 'static,
    {
        self.exchange.on_from(name, Some(self.id.clone()), function)
    }

    /// What it shares of its state.
    pub fn state(&self) -> RemoteState {
        self.exchange.state_of(&self.id)
    }

    /// Say goodbye, after what is queued.
    pub async fn close(&self) {
        let shared = self.exchange.shared();
        if let Some(line) = shared.with(|core, now| core.leave(&self.id, now)) {
            wait_for(shared, vec![line]).await;
        }
    }
}
