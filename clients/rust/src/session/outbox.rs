//! The outgoing half of a session: what waits, what has left, and what must leave again.
//!
//! Law: no I/O and no clock. A message waits in the queue until credit lets it go; then it gets the next sequence
//! number. If the peer acknowledges what it takes, a message is kept until then. After a break what the peer has not
//! taken leaves again, under its number and before anything new. So the numbers have no gap, whatever breaks.
//!
//! ```text
//! queue --credit--> (numbered) flight --Ack--> unsettled --settled--> gone
//!   ^                  |
//!   |                  +--break, then resumed--> again --> flight
//!   +-- unsent: never numbered, so surely not delivered; uncertain: numbered and not settled
//! ```

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::inbox::Credit;
use crate::error::RequestError;
use crate::limits::{
    BATCH_BYTES, BATCH_MESSAGES, LINK_HIGH_WATER, LINK_HIGH_WATER_BYTES, LINK_QUEUE_BYTES, LINK_QUEUE_MESSAGES,
    UNACKED_BYTES, UNACKED_MESSAGES, UNSETTLED_IDS,
};
use crate::message::{Head, Kind, Message, Time};
use crate::wire;

/// Bytes: a message's time left, its tag and length in the batch; and the frame around a batch.
pub(crate) const AROUND: usize = 32;

/// A message ready to leave.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub message: Message,
    /// Without its time left.
    pub data: Bytes,
}

impl Entry {
    fn size(&self) -> usize {
        self.data.len() + AROUND
    }

    fn head(&self) -> &Arc<Head> {
        &self.message.head
    }

    fn is_cancel(&self) -> bool {
        self.message.head.kind == Kind::Cancel
    }
}

/// What one session sends.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// The peer acknowledges: what has left is kept until then.
    pub keeps: bool,
    /// None: no limit by credit.
    pub credit: Option<Credit>,
    queue: VecDeque<Entry>,
    queued_bytes: usize,
    cancels: usize,
    flight: VecDeque<Entry>,
    flight_bytes: usize,
    again: VecDeque<Entry>,
    /// The number of the last message that ever left; `again` and `flight` end there.
    sent: u64,
    /// Of Batch frames, as the receiver counts them.
    sent_bytes: u64,
    /// For a Reject, if nothing is kept.
    last_heads: VecDeque<(u64, Arc<Head>)>,
    /// Acknowledged.
    unsettled: VecDeque<(u64, Arc<Head>)>,
}

impl Outbox {
    /// So much waits that whoever can wait should.
    pub fn full(&self) -> bool {
        self.queue.len() > LINK_HIGH_WATER || self.queued_bytes > LINK_HIGH_WATER_BYTES
    }

    /// Whether something has yet to leave, as far as credit lets it.
    pub fn waits(&self) -> bool {
        !self.queue.is_empty() || !self.again.is_empty()
    }

    /// Messages that wait, and that were not acknowledged.
    pub fn load(&self) -> (usize, usize) {
        (self.queue.len(), self.flight.len() + self.again.len())
    }

    /// Queue a message.
    pub fn put(&mut self, entry: Entry) -> Result<(), RequestError> {
        let size = entry.size();
        if self.queue.len() >= LINK_QUEUE_MESSAGES || self.queued_bytes + size > LINK_QUEUE_BYTES {
            let text = format!("more than {LINK_QUEUE_MESSAGES} messages or {LINK_QUEUE_BYTES} bytes wait on the link");
            return Err(RequestError::full(text));
        }
        self.queued_bytes += size;
        self.cancels += usize::from(entry.is_cancel());
        self.queue.push_back(entry);
        Ok(())
    }

    fn left_queue(&mut self, entry: &Entry) {
        self.queued_bytes -= entry.size();
        self.cancels -= usize::from(entry.is_cancel());
    }

    // -------------------------------------------------------------------------------------- what leaves

    /// A Batch frame of about `room` bytes at most, or None. Messages whose time ended in the queue are put in `expired`.
    pub fn batch(&mut self, room: usize, now: Time, expired: &mut Vec<Message>) -> Option<Bytes> {
        let room = room.min(BATCH_BYTES);
        if !self.again.is_empty() {
            return Some(self.resend(room, now));
        }
        let mut batch = self.take(room, now, expired);
        if batch.is_empty() && self.cancels > 0 {
            batch = self.take_cancels(room);
        }
        if batch.is_empty() {
            return None;
        }
        let first = self.sent + 1 - batch.len() as u64;
        let frame = self.frame(&batch, first, now);
        if self.keeps {
            self.flight_bytes += batch.iter().map(Entry::size).sum::<usize>();
            self.flight.extend(batch);
        } else {
            self.remember(first, batch);
        }
        Some(frame)
    }

    fn remember(&mut self, first: u64, batch: Vec<Entry>) {
        self.last_heads.extend((first..).zip(batch.into_iter().map(|entry| entry.message.head)));
        let surplus = self.last_heads.len().saturating_sub(BATCH_MESSAGES);
        self.last_heads.drain(..surplus);
    }

    /// The next messages that credit lets go, numbered.
    fn take(&mut self, room: usize, now: Time, expired: &mut Vec<Message>) -> Vec<Entry> {
        let mut batch = Vec::with_capacity(self.queue.len().min(BATCH_MESSAGES));
        let mut size = 0;
        while batch.len() < BATCH_MESSAGES {
            let Some(entry) = self.queue.front() else { break };
            let alive = entry.head().deadline > now;
            let larger = size + entry.size();
            if alive && ((!batch.is_empty() && larger > room) || !self.may_leave(larger, batch.len())) {
                break;
            }
            let Some(entry) = self.queue.pop_front() else { break };
            self.left_queue(&entry);
            if alive {
                size = larger;
                self.sent += 1;
                batch.push(entry);
            } else {
                expired.push(entry.message);
            }
        }
        batch
    }

    fn may_leave(&self, size: usize, batched: usize) -> bool {
        let bytes = self.sent_bytes + (size + AROUND) as u64;
        if self.credit.is_some_and(|credit| self.sent >= credit.seq || bytes > credit.bytes) {
            return false;
        }
        self.flight.len() + batched < UNACKED_MESSAGES && self.flight_bytes < UNACKED_BYTES
    }

    /// A cancel needs no credit. One whose request waits here as well takes that with it, and neither leaves.
    fn take_cancels(&mut self, room: usize) -> Vec<Entry> {
        let cancels = self.queue.iter().filter(|entry| entry.is_cancel());
        let cancelled: HashSet<String> = cancels.map(|entry| entry.head().reply_to.clone()).collect();
        let waiting: HashSet<String> = self.queue.iter().map(|entry| entry.head().id.clone()).collect();
        let mut batch: Vec<Entry> = Vec::new();
        let mut size = 0;
        for entry in std::mem::take(&mut self.queue) {
            if !entry.is_cancel() && !cancelled.contains(&entry.head().id) {
                self.queue.push_back(entry);
            } else if entry.is_cancel() && !waiting.contains(&entry.head().reply_to) {
                size += entry.size();
                if !batch.is_empty() && (size > room || batch.len() >= BATCH_MESSAGES) {
                    self.queue.push_back(entry); // for the next frame
                    continue;
                }
                self.left_queue(&entry);
                self.sent += 1;
                batch.push(entry);
            } else {
                self.left_queue(&entry);
            }
        }
        batch
    }

    /// What has left before leaves again. What has expired meanwhile does too: its number is taken.
    fn resend(&mut self, room: usize, now: Time) -> Bytes {
        let first = self.sent - self.again.len() as u64 + 1;
        let mut batch: Vec<Entry> = Vec::new();
        let mut size = 0;
        while batch.len() < BATCH_MESSAGES {
            let Some(entry) = self.again.front() else { break };
            // A cancel may have left without credit: what needs credit shall not be counted together with it.
            let apart = entry.is_cancel() && batch.last().is_some_and(|last| !last.is_cancel());
            if !batch.is_empty() && (size + entry.size() > room || apart) {
                break;
            }
            size += entry.size();
            batch.extend(self.again.pop_front());
        }
        let frame = self.frame(&batch, first, now);
        self.flight_bytes += size;
        self.flight.extend(batch);
        frame
    }

    fn frame(&mut self, batch: &[Entry], first: u64, now: Time) -> Bytes {
        let frame = wire::batch(first, now, batch.iter().map(|entry| (&entry.data, entry.head().deadline)));
        self.sent_bytes += frame.len() as u64;
        frame
    }

    // -------------------------------------------------------------------------------- what the peer tells us

    fn unacknowledged(&self) -> u64 {
        (self.again.len() + self.flight.len()) as u64
    }

    /// The peer has taken all up to this number.
    pub fn acknowledged(&mut self, seq: u64) -> Result<(), String> {
        if seq > self.sent {
            return Err(format!("message {seq} is acknowledged, and {} were sent", self.sent));
        }
        for number in self.sent - self.unacknowledged() + 1..=seq {
            let entry = self.flight.pop_front().inspect(|entry| self.flight_bytes -= entry.size());
            let Some(entry) = entry.or_else(|| self.again.pop_front()) else { break };
            self.unsettled.push_back((number, entry.message.head));
        }
        let surplus = self.unsettled.len().saturating_sub(UNSETTLED_IDS);
        self.unsettled.drain(..surplus);
        Ok(())
    }

    /// What the peer has of the messages up to this number would not be lost with it.
    pub fn settled(&mut self, seq: u64) {
        while self.unsettled.front().is_some_and(|(number, _)| *number <= seq) {
            self.unsettled.pop_front();
        }
    }

    /// The peer takes so much. It never becomes less.
    pub fn credited(&mut self, credit: Credit) {
        self.credit = self.credit.map(|known| known.at_least(credit));
    }

    /// The message with this number, as far as it is remembered.
    pub fn head_of(&self, seq: u64) -> Option<Arc<Head>> {
        let first = self.sent - self.unacknowledged() + 1;
        if self.keeps && seq >= first && seq <= self.sent {
            let index = usize::try_from(seq - first).ok()?;
            return self.flight.iter().chain(&self.again).nth(index).map(|entry| entry.message.head.clone());
        }
        self.last_heads.iter().chain(&self.unsettled).find(|(number, _)| *number == seq).map(|(_, head)| head.clone())
    }

    /// The same by its id.
    pub fn head_with_id(&self, id: &str) -> Option<Arc<Head>> {
        let kept = self.flight.iter().chain(&self.again).map(|entry| &entry.message.head);
        let heads = kept.chain(self.last_heads.iter().chain(&self.unsettled).map(|(_, head)| head));
        heads.into_iter().find(|head| head.id == id).cloned()
    }

    // ------------------------------------------------------------------------------------ breaks and ends

    /// The session goes on: the peer has taken so much.
    pub fn resumed(&mut self, received: u64, received_bytes: u64) -> Result<(), String> {
        if received < self.sent - self.unacknowledged() {
            return Err(format!("the peer has taken {received} messages, and had acknowledged more"));
        }
        self.acknowledged(received)?;
        let mut again = std::mem::take(&mut self.flight);
        again.append(&mut self.again);
        self.again = again;
        self.flight_bytes = 0;
        self.sent_bytes = received_bytes;
        Ok(())
    }

    /// The peer has taken so much and takes no more: what was sent after that counts as never sent.
    pub fn refused_after(&mut self, received: u64) -> Result<(), String> {
        self.resumed(received, 0)?;
        for entry in std::mem::take(&mut self.again).into_iter().rev() {
            self.queued_bytes += entry.size();
            self.cancels += usize::from(entry.is_cancel());
            self.queue.push_front(entry);
        }
        self.unsettled.clear();
        Ok(())
    }

    /// The messages that never left, which are not sent any more.
    pub fn take_unsent(&mut self) -> Vec<Message> {
        (self.queued_bytes, self.cancels) = (0, 0);
        std::mem::take(&mut self.queue).into_iter().map(|entry| entry.message).collect()
    }

    /// Those that have left, and would be lost if the peer's memory was; none is sent any more.
    pub fn take_uncertain(&mut self) -> Vec<Arc<Head>> {
        let settled = std::mem::take(&mut self.unsettled).into_iter().map(|(_, head)| head);
        let flight = std::mem::take(&mut self.flight);
        let again = std::mem::take(&mut self.again);
        self.flight_bytes = 0;
        settled.chain(flight.into_iter().chain(again).map(|entry| entry.message.head)).collect()
    }

    /// A new session: the numbers begin anew.
    pub fn begin(&mut self) {
        self.last_heads.clear();
        (self.sent, self.sent_bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests::head;
    use crate::payload::Payload;
    use exchange_proto::exchange::v1::{Frame, frame::Kind as FrameKind};
    use prost::Message as _;

    fn entry(number: u32, kind: Kind) -> Entry {
        let mut head = head(&format!("a.1.{number}"), "x", kind, &["a"]);
        head.deadline = 30.0;
        if kind == Kind::Cancel {
            head.reply_to = format!("a.1.{}", number - 100);
        }
        let message = Message::new(head, Payload::null());
        let data = wire::pack(&message, false).unwrap();
        Entry { message, data }
    }

    fn outbox(entries: u32) -> Outbox {
        let mut outbox = Outbox { keeps: true, ..Outbox::default() };
        (1..=entries).for_each(|number| outbox.put(entry(number, Kind::Send)).unwrap());
        outbox
    }

    fn write(outbox: &mut Outbox, now: Time) -> Option<(u64, Vec<String>)> {
        let frame = Frame::decode(outbox.batch(1 << 20, now, &mut Vec::new())?).unwrap();
        let Some(FrameKind::Batch(batch)) = frame.kind else { panic!("{frame:?}") };
        assert!(batch.messages.iter().all(|message| message.ttl_us > 0));
        Some((batch.seq, batch.messages.into_iter().map(|message| message.id).collect()))
    }

    #[test]
    fn what_waits_leaves_in_one_frame() {
        let mut outbox = outbox(3);
        assert_eq!(write(&mut outbox, 0.0), Some((1, vec!["a.1.1".into(), "a.1.2".into(), "a.1.3".into()])));
        outbox.put(entry(4, Kind::Send)).unwrap();
        assert_eq!(write(&mut outbox, 0.0), Some((4, vec!["a.1.4".into()])));
        assert_eq!(write(&mut outbox, 0.0), None);
    }

    #[test]
    fn credit_holds_back_all_but_cancels() {
        let mut outbox = outbox(2);
        outbox.credit = Some(Credit { seq: 1, bytes: 1 << 20 });
        assert_eq!(write(&mut outbox, 0.0), Some((1, vec!["a.1.1".into()])));
        outbox.put(entry(101, Kind::Cancel)).unwrap();
        outbox.put(entry(102, Kind::Cancel)).unwrap(); // its request waits here: neither leaves
        assert_eq!(write(&mut outbox, 0.0), Some((2, vec!["a.1.101".into()])));
        assert!(!outbox.waits());
    }

    #[test]
    fn what_was_not_taken_leaves_again_under_its_number() {
        let mut outbox = outbox(4);
        write(&mut outbox, 0.0);
        outbox.acknowledged(1).unwrap();
        outbox.put(entry(5, Kind::Send)).unwrap();
        outbox.resumed(2, 50).unwrap();
        assert_eq!(write(&mut outbox, 0.0), Some((3, vec!["a.1.3".into(), "a.1.4".into()])));
        assert_eq!(write(&mut outbox, 0.0), Some((5, vec!["a.1.5".into()])));
        assert!(outbox.acknowledged(6).is_err() && outbox.resumed(1, 0).is_err());
        outbox.settled(1);
        let uncertain: Vec<_> = outbox.take_uncertain().iter().map(|head| head.id.clone()).collect();
        assert_eq!(uncertain, ["a.1.2", "a.1.3", "a.1.4", "a.1.5"]);
    }

    #[test]
    fn a_goodbye_makes_unsent_what_was_not_taken() {
        let mut outbox = outbox(3);
        write(&mut outbox, 0.0);
        outbox.refused_after(1).unwrap();
        let unsent: Vec<_> = outbox.take_unsent().iter().map(|message| message.id().to_owned()).collect();
        assert_eq!(unsent, ["a.1.2", "a.1.3"]);
        assert!(outbox.take_uncertain().is_empty());
    }

    #[test]
    fn what_is_late_does_not_leave() {
        let mut outbox = outbox(2);
        let mut expired = Vec::new();
        assert!(outbox.batch(1 << 20, 31.0, &mut expired).is_none());
        assert_eq!(expired.len(), 2);
    }
}
