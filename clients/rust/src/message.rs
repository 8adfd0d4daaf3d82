//! The message: the one noun that travels, and what it says of its way and its causes.
//!
//! A message is a [`Head`] that never changes once it is here, shared by all who look at it, and a payload. On the
//! wire it has the time left; in memory a deadline on the clock of this exchange.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use blake2::digest::consts::{U8, U16};
use blake2::{Blake2b, Digest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, RequestError, Result};
use crate::limits::{CAUSES, PATH, TRACE_BASE_BYTES};
use crate::payload::Payload;

/// Seconds on the clock of one exchange, which starts at its start.
pub(crate) type Time = f64;

/// Who takes a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Kind {
    /// One exchange that handles the name.
    Send = 1,
    /// The same, and it answers.
    Request = 2,
    /// The answer, which goes back the way the request came.
    Reply = 3,
    /// Withdraws a request.
    Cancel = 4,
    /// Tells the origin of a send that it was not handled.
    Outcome = 5,
    /// Every exchange of the mesh that subscribes to the name, once.
    Publish = 6,
    /// Every direct peer.
    Broadcast = 7,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] =
        [Self::Send, Self::Request, Self::Reply, Self::Cancel, Self::Outcome, Self::Publish, Self::Broadcast];

    /// Its name in the schema, without the prefix: `SEND`.
    pub fn name(self) -> &'static str {
        ["SEND", "REQUEST", "REPLY", "CANCEL", "OUTCOME", "PUBLISH", "BROADCAST"][self as usize - 1]
    }
}

/// What became of a message at one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[repr(i32)]
pub enum Outcome {
    /// A handler took it and ended well.
    Handled = 1,
    /// It was passed on to a peer.
    Forwarded = 2,
    /// Nobody takes it.
    Unhandled = 3,
    /// It had been here before.
    Loop = 4,
    /// Its time was over.
    Expired = 5,
    /// The caller withdrew it.
    Cancelled = 6,
    /// It broke a rule, or was not allowed.
    Denied = 7,
    /// A bound was reached, or a link was lost.
    Dropped = 8,
    /// Its handler failed.
    Failed = 9,
}

impl Outcome {
    pub(crate) const ALL: [Self; 9] = [
        Self::Handled,
        Self::Forwarded,
        Self::Unhandled,
        Self::Loop,
        Self::Expired,
        Self::Cancelled,
        Self::Denied,
        Self::Dropped,
        Self::Failed,
    ];

    /// Its name in the schema, without the prefix: `HANDLED`.
    pub fn name(self) -> &'static str {
        ["HANDLED", "FORWARDED", "UNHANDLED", "LOOP", "EXPIRED", "CANCELLED", "DENIED", "DROPPED", "FAILED"]
            [self as usize - 1]
    }
}

/// One stop of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Hop {
    /// The exchange.
    pub exchange: String,
    /// When it got there, in microseconds since the Unix epoch, by the clock of that exchange.
    pub at_us: i64,
}

/// All of a message but what it carries.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub id: String,
    pub name: String,
    pub kind: Kind,
    pub from: String,
    pub to: String,
    pub reply_to: String,
    pub hops: Vec<Hop>,
    pub causes: Vec<String>,
    /// Empty: the message itself.
    pub root: String,
    pub path: Vec<String>,
    pub cut: bool,
    pub traceparent: String,
    pub timestamp_us: i64,
    pub deadline: Time,
    pub headers: BTreeMap<String, String>,
    pub many: bool,
}

impl Head {
    pub fn root(&self) -> &str {
        if self.root.is_empty() { &self.id } else { &self.root }
    }

    /// The exchanges visited, from the root along the newest cause to here, equal neighbours merged.
    pub fn trace(&self) -> Vec<&str> {
        let path = self.path.iter().map(String::as_str);
        let mut names: Vec<&str> = path.chain(self.hops.iter().map(|hop| hop.exchange.as_str())).collect();
        names.dedup();
        names
    }

    pub fn visited(&self, exchange: &str) -> bool {
        self.hops.iter().any(|hop| hop.exchange == exchange)
    }
}

/// One message, as a handler or a listener sees it.
#[derive(Clone, Debug)]
pub struct Message {
    pub(crate) head: Arc<Head>,
    pub(crate) payload: Payload,
    pub(crate) value: OnceLock<Value>,
    pub(crate) last: bool,
    pub(crate) error: Option<RequestError>,
    pub(crate) outcome: Option<Outcome>,
    /// Of the reply that ends those to many.
    pub(crate) lost: Option<Vec<String>>,
}

impl Message {
    pub(crate) fn new(head: Head, payload: Payload) -> Self {
        let head = Arc::new(head);
        Self { head, payload, value: OnceLock::new(), last: false, error: None, outcome: None, lost: None }
    }

    /// Of a message that nobody has seen yet.
    pub(crate) fn head_mut(&mut self) -> &mut Head {
        Arc::make_mut(&mut self.head)
    }

    /// `<exchange>.<epoch>.<n>`: who made it, when that exchange started, and the how-manieth it was.
    pub fn id(&self) -> &str {
        &self.head.id
    }

    /// What it is about.
    pub fn name(&self) -> &str {
        &self.head.name
    }

    /// Who takes it.
    pub fn kind(&self) -> Kind {
        self.head.kind
    }

    /// The id of the exchange that made it.
    pub fn from(&self) -> &str {
        &self.head.from
    }

    /// The id of the exchange it is for, or empty.
    pub fn to(&self) -> &str {
        &self.head.to
    }

    /// The id of the message that it is about, or empty.
    pub fn reply_to(&self) -> &str {
        &self.head.reply_to
    }

    /// Metadata that travels along.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.head.headers
    }

    /// What it carries, encoded.
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// What it carries, as JSON; `null` if it is data.
    pub fn value(&self) -> &Value {
        self.value.get_or_init(|| self.payload.parse().unwrap_or_default())
    }

    /// What it carries, as a type of yours.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self.payload.bytes())
            .map_err(|error| Error::Invalid(format!("what {} carries is something else: {error}", self.name())))
    }

    /// Where this very message has been, from its origin to here.
    pub fn hops(&self) -> &[Hop] {
        &self.head.hops
    }

    /// The exchanges visited, from the root along the newest cause to here.
    pub fn trace(&self) -> Vec<&str> {
        self.head.trace()
    }

    /// The ids of what stands directly behind it, the newest last.
    pub fn causes(&self) -> &[String] {
        &self.head.causes
    }

    /// The id of the message where it all began: its own if nothing stands behind it.
    pub fn root(&self) -> &str {
        self.head.root()
    }

    /// When its origin made it, in microseconds since the Unix epoch.
    pub fn timestamp_us(&self) -> i64 {
        self.head.timestamp_us
    }

    /// Why it failed, if it is a reply to a request to many, or an outcome.
    pub fn error(&self) -> Option<&RequestError> {
        self.error.as_ref()
    }

    /// Its W3C trace context: what it says itself, or what follows from its root and its id.
    pub fn traceparent(&self) -> String {
        if !self.head.traceparent.is_empty() {
            return self.head.traceparent.clone();
        }
        let trace: [u8; 16] = Blake2b::<U16>::digest(self.root()).into();
        format!("00-{}-{}-01", hex(&trace), span_of(self.id()))
    }

    pub(crate) fn parse(&self) -> Result<()> {
        if self.value.get().is_none() && self.payload.is_json() {
            let _ = self.value.set(self.payload.parse()?);
        }
        Ok(())
    }
}

fn span_of(id: &str) -> String {
    let span: [u8; 8] = Blake2b::<U8>::digest(id).into();
    hex(&span)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What stands behind a message that is emitted now. The default is a beginning.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context {
    pub causes: Vec<String>,
    pub root: String,
    pub path: Vec<String>,
    pub cut: bool,
    /// Of a caller who brought a trace of its own.
    pub traceparent: String,
}

impl Context {
    /// The context of a handler that was given this message.
    pub fn of(head: &Head) -> Self {
        let (path, cut) = path_of(head);
        let (causes, root) = (vec![head.id.clone()], head.root().to_owned());
        Self { causes, root, path, cut, traceparent: head.traceparent.clone() }
    }

    /// A reply was awaited: a further, newer cause of what follows.
    pub fn then(&mut self, reply: &Head) {
        self.causes.push(reply.id.clone());
        let (path, cut) = path_of(reply);
        self.path = path;
        self.cut |= cut;
        if self.causes.len() > CAUSES {
            self.causes.remove(0);
            self.cut = true;
        }
        if self.root.is_empty() {
            reply.root().clone_into(&mut self.root);
        }
        if self.traceparent.is_empty() {
            self.traceparent.clone_from(&reply.traceparent);
        }
    }

    /// Write it into a new message. The path is shortened, the oldest first, to what a trace has room for.
    pub fn write(self, head: &mut Head) {
        let text = |all: &[String]| all.iter().map(|one| one.len() + 2).sum::<usize>();
        let mut size = text(&self.causes) + text(&self.path) + self.root.len();
        let mut skip = 0;
        while size > TRACE_BASE_BYTES && skip < self.path.len() {
            size -= self.path[skip].len() + 2;
            skip += 1;
        }
        head.path = self.path;
        head.path.drain(..skip);
        head.cut = self.cut || skip > 0;
        (head.causes, head.root) = (self.causes, self.root);
        if !self.traceparent.is_empty() {
            let flags = self.traceparent.get(53..).unwrap_or("01");
            head.traceparent = format!("{}{}-{flags}", &self.traceparent[..36], span_of(&head.id));
        }
    }
}

fn path_of(head: &Head) -> (Vec<String>, bool) {
    let names = head.trace();
    let skip = names.len().saturating_sub(PATH);
    (names[skip..].iter().map(|&name| name.to_owned()).collect(), head.cut || skip > 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn head(id: &str, name: &str, kind: Kind, hops: &[&str]) -> Head {
        Head {
            id: id.into(),
            name: name.into(),
            kind,
            from: hops.first().map_or("", |hop| hop).into(),
            to: String::new(),
            reply_to: String::new(),
            hops: hops.iter().map(|hop| Hop { exchange: (*hop).into(), at_us: 1 }).collect(),
            causes: Vec::new(),
            root: String::new(),
            path: Vec::new(),
            cut: false,
            traceparent: String::new(),
            timestamp_us: 1,
            deadline: f64::INFINITY,
            headers: BTreeMap::new(),
            many: false,
        }
    }

    #[test]
    fn a_context_says_what_stands_behind() {
        let request = head("browser.1.1", "a", Kind::Request, &["browser", "server"]);
        let mut context = Context::of(&request);
        let mut reply = head("worker.1.7", "b", Kind::Reply, &["worker", "server"]);
        reply.path = vec!["browser".into(), "server".into()];
        reply.root = "browser.1.1".into();
        context.then(&reply);
        let mut answer = head("server.1.3", "a", Kind::Reply, &["server"]);
        context.write(&mut answer);
        assert_eq!(answer.causes, ["browser.1.1", "worker.1.7"]);
        assert_eq!(answer.root(), "browser.1.1");
        assert_eq!(answer.trace(), ["browser", "server", "worker", "server"]);
        assert!(!answer.cut);
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        let mut context = Context::of(&head("a.1.1", "a", Kind::Send, &["a", "b"]));
        for number in 0..40 {
            context.then(&head(&format!("c.1.{number}"), "a", Kind::Reply, &["c", "b"]));
        }
        assert_eq!((context.causes.len(), context.cut), (CAUSES, true));
        context.path = (0..40).map(|n| format!("{n}{}", "x".repeat(62))).collect();
        let mut answer = head("b.1.1", "a", Kind::Reply, &["b"]);
        context.write(&mut answer);
        assert!(answer.path.len() < 40 && answer.path.last().unwrap().starts_with("39"));
    }

    #[test]
    fn trace_contexts_follow_from_ids() {
        let message = Message::new(head("a.1.1", "a", Kind::Send, &["a"]), Payload::null());
        let parent = message.traceparent();
        assert_eq!(parent.len(), 55);
        assert!(parent.starts_with("00-") && parent.ends_with("-01"));
        let mut answer = head("b.1.1", "a", Kind::Reply, &["b"]);
        Context { traceparent: parent.clone(), ..Context::default() }.write(&mut answer);
        assert_eq!(answer.traceparent[..36], parent[..36]);
        assert_ne!(answer.traceparent[36..52], parent[36..52]);
    }
}
