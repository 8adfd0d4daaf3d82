//! A request to many, while those who have it answer.
//!
//! Each copy is a *branch*: a linked peer, or this exchange itself for its own handler. A branch ends by its `end`; if
//! nobody behind it is asked in turn (our own handler, a peer that does not relay) also by its last reply. A branch
//! that says that nobody there handles the name was none. One that could not take it, for whatever reason, is lost.

use std::collections::BTreeMap;

use crate::error::{Code, RequestError};
use crate::limits::LOST_NAMES;
use crate::message::Message;

/// Whether this says that a way leads nowhere.
pub(super) fn is_nobody(error: &RequestError) -> bool {
    error.code == Code::Unimplemented && (error.reason == "UNHANDLED" || error.reason == "LOOP")
}

#[derive(Debug, Default)]
pub(super) struct Scatter {
    /// Those that have not ended: who has it, and whether it relays.
    pub branches: BTreeMap<String, bool>,
    /// Whose replies are not all there.
    pub lost: Vec<String>,
    /// Somebody handles it.
    pub taken: bool,
}

impl Scatter {
    /// A reply came from this branch: whether it is one, and not only the branch's end.
    pub fn heard(&mut self, branch: &str, reply: &Message) -> bool {
        let nobody = reply.error.as_ref().is_some_and(is_nobody);
        self.taken |= !nobody;
        let end = reply.lost.is_some() || nobody;
        for exchange in reply.lost.iter().flatten() {
            if self.lost.len() < LOST_NAMES && !self.lost.contains(exchange) {
                self.lost.push(exchange.clone());
            }
        }
        if end && reply.error.is_some() && !nobody {
            self.lose(branch);
        }
        if end || (reply.last && self.branches.get(branch) == Some(&false)) {
            self.branches.remove(branch);
        }
        !end
    }

    /// Nothing more will come of this branch. Named first: a liar must not crowd it out.
    pub fn lose(&mut self, branch: &str) {
        self.branches.remove(branch);
        self.lost.retain(|known| known != branch);
        self.lost.insert(0, branch.to_owned());
        self.lost.truncate(LOST_NAMES);
    }
}
