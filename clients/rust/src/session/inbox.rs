//! The incoming half of a session: what was taken, what is told of it, and how much more is welcome.
//!
//! Law: no I/O and no clock. Messages are taken in the order of their numbers, each once. What was taken is
//! acknowledged now and then, and so is what of it is *settled*: what would not be lost with us. A message that waits
//! here for its handler is *retained*; the credit that we give is always so much that no more can wait.

use std::collections::BTreeSet;

use crate::limits::{ACK_MESSAGES, ACK_SECONDS};
use crate::message::Time;

/// A total of messages and of bytes, counted since the session began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credit {
    pub seq: u64,
    pub bytes: u64,
}

impl Credit {
    /// What is left of it once so much was taken.
    pub fn beyond(self, seq: u64, bytes: u64) -> Self {
        Self { seq: self.seq.saturating_sub(seq), bytes: self.bytes.saturating_sub(bytes) }
    }

    pub fn at_least(self, other: Self) -> Self {
        Self { seq: self.seq.max(other.seq), bytes: self.bytes.max(other.bytes) }
    }
}

/// Why a Batch cannot be taken.
#[derive(Debug, PartialEq)]
pub(crate) enum NotTaken {
    /// A message is missing: it may be sent again.
    Gap(String),
    /// It breaks the protocol.
    Invalid(String),
}

/// What one session receives.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// The number of the last message that was taken.
    pub received: u64,
    /// Of Batch frames.
    pub received_bytes: u64,
    /// The peer wants to hear what was taken.
    pub acknowledges: bool,
    /// How many were taken in former sessions: what is settled is counted beyond that.
    pub before: u64,
    window: Credit,
    given: Option<Credit>,
    retained: Credit,
    told: (u64, u64),
    unsettled: BTreeSet<u64>,
    ack_due: Option<Time>,
}

impl Inbox {
    pub fn new(window: Credit) -> Self {
        Self {
            received: 0,
            received_bytes: 0,
            acknowledges: false,
            before: 0,
            window,
            given: None,
            retained: Credit { seq: 0, bytes: 0 },
            told: (0, 0),
            unsettled: BTreeSet::new(),
            ack_due: None,
        }
    }

    /// Take a Batch of so many messages and bytes: the number of the first that is new, and how many to leave out.
    /// `seq` is the number of its first message, 0 if the sender does not count.
    pub fn take(&mut self, seq: u64, count: usize, size: usize, now: Time) -> Result<(u64, usize), NotTaken> {
        let next = self.received.wrapping_add(1);
        let first = if seq == 0 { next } else { seq };
        if first > next {
            return Err(NotTaken::Gap(format!("message {first} came after {}", self.received)));
        }
        let Some(end) = first.checked_add(count as u64) else {
            return Err(NotTaken::Invalid("the sequence numbers ran over".into()));
        };
        let known = usize::try_from(next - first).unwrap_or(usize::MAX).min(count);
        if end > next {
            self.received = end - 1;
            self.received_bytes += size as u64; // of a frame that comes twice, once
            if self.acknowledges {
                self.unsettled.extend(self.before + next..self.before + end);
                self.ack_due.get_or_insert(now + ACK_SECONDS);
            }
        }
        Ok((next, known))
    }

    /// Whether the message with this number, or all bytes so far, are more than was welcome.
    pub fn overdrawn(&self, seq: u64) -> Option<String> {
        let given = self.given?;
        (seq > given.seq || self.received_bytes > given.bytes)
            .then(|| format!("more was sent than there was credit for: {} messages, {} bytes", given.seq, given.bytes))
    }

    /// A message that was taken waits here.
    pub fn retain(&mut self, size: usize) {
        self.retained.seq += 1;
        self.retained.bytes += size as u64;
    }

    /// ... and does not any more. Whether there is credit to tell.
    pub fn release(&mut self, size: usize) -> bool {
        self.retained.seq -= 1;
        self.retained.bytes -= size as u64;
        self.grown()
    }

    /// The message with this number, counted from the first session on, is not lost any more if we are.
    pub fn settle(&mut self, seq: u64) {
        self.unsettled.remove(&seq);
    }

    /// So much waits here that no more should be read from a peer that does not keep to credit.
    pub fn crowded(&self) -> bool {
        self.retained.seq >= self.window.seq || self.retained.bytes >= self.window.bytes
    }

    /// What is welcome now, to be told. It never becomes less.
    pub fn give(&mut self) -> Credit {
        let room = self.window.beyond(self.retained.seq, self.retained.bytes);
        let welcome = Credit { seq: self.received + room.seq, bytes: self.received_bytes + room.bytes };
        let credit = self.given.map_or(welcome, |given| given.at_least(welcome));
        self.given = Some(credit);
        credit
    }

    /// The credit, if it has grown by a quarter of the window since it was told.
    pub fn credit_to_tell(&mut self) -> Option<Credit> {
        self.grown().then(|| self.give())
    }

    fn grown(&self) -> bool {
        let Some(told) = self.given else { return false };
        let seq = (self.received + self.window.seq).saturating_sub(self.retained.seq);
        let bytes = (self.received_bytes + self.window.bytes).saturating_sub(self.retained.bytes);
        4 * seq.saturating_sub(told.seq) >= self.window.seq || 4 * bytes.saturating_sub(told.bytes) >= self.window.bytes
    }

    /// What to acknowledge, taken and settled, if that is due and new.
    pub fn ack_to_tell(&mut self, now: Time) -> Option<(u64, u64)> {
        let due = self.ack_due?;
        if now < due && self.received - self.told.0 < ACK_MESSAGES {
            return None;
        }
        let next = self.unsettled.first().copied().unwrap_or(self.before + self.received + 1);
        let settled = next - 1 - self.before;
        self.ack_due = (settled != self.received).then_some(now + ACK_SECONDS);
        if self.told == (self.received, settled) {
            return None;
        }
        self.told = (self.received, settled);
        Some(self.told)
    }

    /// When an acknowledgement is due.
    pub fn ack_due(&self) -> Option<Time> {
        self.ack_due
    }

    /// A new session: the numbers begin anew. What waits here still waits. `told`: the peer knows the credit, and
    /// counts what it was given beyond what was taken.
    pub fn begin(&mut self, told: bool) {
        self.given = self.given.filter(|_| told).map(|given| given.beyond(self.received, self.received_bytes));
        self.before += self.received;
        (self.received, self.received_bytes, self.told) = (0, 0, (0, 0));
        self.unsettled.clear();
        self.ack_due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> Inbox {
        let mut inbox = Inbox::new(Credit { seq: 8, bytes: 800 });
        inbox.acknowledges = true;
        inbox
    }

    #[test]
    fn what_comes_twice_is_taken_once() {
        let mut inbox = inbox();
        assert_eq!(inbox.take(1, 3, 30, 0.0), Ok((1, 0)));
        assert_eq!(inbox.take(2, 4, 40, 0.0), Ok((4, 2)));
        assert_eq!((inbox.received, inbox.received_bytes), (5, 70));
        assert_eq!(inbox.take(1, 2, 20, 0.0), Ok((6, 2)));
        assert_eq!((inbox.received, inbox.received_bytes), (5, 70));
        assert!(matches!(inbox.take(7, 1, 10, 0.0), Err(NotTaken::Gap(_))));
        assert!(matches!(inbox.take(2, usize::MAX, 10, 0.0), Err(NotTaken::Invalid(_))));
        assert_eq!(inbox.take(0, 1, 10, 0.0), Ok((6, 0)));
    }

    #[test]
    fn acks_say_what_is_settled() {
        let mut inbox = inbox();
        inbox.take(1, 3, 30, 0.0).unwrap();
        assert_eq!(inbox.ack_to_tell(0.05), None);
        inbox.settle(1);
        inbox.settle(3);
        assert_eq!(inbox.ack_to_tell(0.1), Some((3, 1)));
        assert_eq!(inbox.ack_due(), Some(0.2));
        inbox.settle(2);
        assert_eq!(inbox.ack_to_tell(0.2), Some((3, 3)));
        assert_eq!(inbox.ack_due(), None);
    }

    #[test]
    fn credit_grows_as_room_is_made() {
        let mut inbox = inbox();
        assert_eq!(inbox.give(), Credit { seq: 8, bytes: 800 });
        inbox.take(1, 8, 80, 0.0).unwrap();
        (0..8).for_each(|_| inbox.retain(10));
        assert!(inbox.crowded() && inbox.credit_to_tell().is_none() && inbox.overdrawn(8).is_none());
        assert!(!inbox.release(10) && inbox.release(10));
        assert_eq!(inbox.credit_to_tell(), Some(Credit { seq: 10, bytes: 820 }));
        assert!(inbox.overdrawn(11).is_some());
    }

    #[test]
    fn a_new_session_counts_anew() {
        let mut inbox = inbox();
        inbox.give();
        inbox.take(1, 3, 30, 0.0).unwrap();
        inbox.begin(true);
        assert_eq!(inbox.give(), Credit { seq: 8, bytes: 800 });
        assert_eq!(inbox.take(1, 1, 10, 0.0), Ok((1, 0)));
        inbox.settle(4);
        assert_eq!(inbox.ack_to_tell(1.0), Some((1, 1)));
    }
}
