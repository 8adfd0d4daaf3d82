//! What a side of a link says of itself, in Hello or Welcome.

use bytes::Bytes;
use exchange_proto::exchange::v1 as proto;

use super::inbox::Credit;
use crate::error::Result;
use crate::limits::{FRAME_BYTES, MESSAGE_BYTES};
use crate::names::{check_id, check_name, check_pattern};
use crate::wire::Frame;

/// The version of the protocol that is spoken here.
pub(crate) const PROTOCOL: u32 = 1;
/// The feature: payloads are wanted as `value`.
pub(crate) const VALUE: &str = "value";
/// ... it acknowledges, and may resume.
pub(crate) const RESUME: &str = "resume";
/// ... it answers Ping.
pub(crate) const PING: &str = "ping";
/// Characters of an agent, a session and a token that are kept: ours are shorter.
const AGENT: usize = 200;
const SESSION: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Introduction {
    pub exchange: String,
    pub epoch: u64,
    pub protocol: u32,
    pub features: Vec<String>,
    pub agent: String,
    pub relay: bool,
    pub revision: u64,
    pub handles: Vec<String>,
    pub subscribes: Vec<String>,
    pub exports: Vec<String>,
    pub message_bytes: usize,
    pub frame_bytes: usize,
    pub session: String,
    pub token: Bytes,
    pub received: u64,
    pub received_bytes: u64,
    pub credit: Option<Credit>,
    pub recovered: bool,
}

impl Introduction {
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|word| word == feature)
    }

    pub fn into_hello(self) -> Frame {
        Frame::Hello(proto::Hello {
            interest: Some(self.interest()),
            limits: Some(self.limits()),
            credit: self.credit.map(credit_frame),
            exchange: self.exchange,
            epoch: self.epoch,
            protocol: self.protocol,
            features: self.features,
            agent: self.agent,
            relay: self.relay,
            session: self.session,
            resume_token: self.token,
            received: self.received,
            received_bytes: self.received_bytes,
        })
    }

    pub fn into_welcome(self) -> Frame {
        Frame::Welcome(proto::Welcome {
            interest: Some(self.interest()),
            limits: Some(self.limits()),
            credit: self.credit.map(credit_frame),
            exchange: self.exchange,
            epoch: self.epoch,
            protocol: self.protocol,
            features: self.features,
            agent: self.agent,
            relay: self.relay,
            session: self.session,
            resume_token: self.token,
            received: self.received,
            received_bytes: self.received_bytes,
            recovered: self.recovered,
        })
    }

    fn interest(&self) -> proto::InterestSet {
        proto::InterestSet {
            revision: self.revision,
            handles: self.handles.clone(),
            subscribes: self.subscribes.clone(),
            exports: self.exports.clone(),
        }
    }

    fn limits(&self) -> proto::Limits {
        proto::Limits { message_bytes: self.message_bytes as u64, frame_bytes: self.frame_bytes as u64 }
    }

    /// What a Hello says.
    pub fn of_hello(hello: proto::Hello) -> Result<Self> {
        Self::of_welcome(proto::Welcome {
            exchange: hello.exchange,
            epoch: hello.epoch,
            protocol: hello.protocol,
            features: hello.features,
            agent: hello.agent,
            relay: hello.relay,
            interest: hello.interest,
            limits: hello.limits,
            session: hello.session,
            resume_token: hello.resume_token,
            received: hello.received,
            credit: hello.credit,
            recovered: false,
            received_bytes: hello.received_bytes,
        })
    }

    /// What a Welcome says.
    pub fn of_welcome(mut welcome: proto::Welcome) -> Result<Self> {
        check_id(&welcome.exchange)?;
        let interest = welcome.interest.unwrap_or_default();
        interest.handles.iter().chain(&interest.exports).try_for_each(|name| check_name(name))?;
        interest.subscribes.iter().try_for_each(|pattern| check_pattern(pattern))?;
        let limits = welcome.limits.unwrap_or_default();
        let or = |said: u64, default: usize| match usize::try_from(said) {
            Ok(0) | Err(_) => default,
            Ok(said) => said,
        };
        welcome.resume_token.truncate(SESSION);
        Ok(Self {
            exchange: welcome.exchange,
            epoch: welcome.epoch,
            protocol: welcome.protocol.max(1),
            features: welcome.features,
            agent: welcome.agent.chars().take(AGENT).collect(),
            relay: welcome.relay,
            revision: interest.revision,
            handles: interest.handles,
            subscribes: interest.subscribes,
            exports: interest.exports,
            message_bytes: or(limits.message_bytes, MESSAGE_BYTES),
            frame_bytes: or(limits.frame_bytes, FRAME_BYTES),
            session: welcome.session.chars().take(SESSION).collect(),
            token: welcome.resume_token,
            received: welcome.received,
            received_bytes: welcome.received_bytes,
            credit: welcome.credit.map(|credit| Credit { seq: credit.seq, bytes: credit.bytes }),
            recovered: welcome.recovered,
        })
    }
}

pub(crate) fn credit_frame(credit: Credit) -> proto::Credit {
    proto::Credit { seq: credit.seq, bytes: credit.bytes }
}
