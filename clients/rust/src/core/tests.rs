//! The core of an exchange, with peers whose every frame is written here.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use exchange_proto::exchange::v1 as proto;
use prost::Message as _;
use tokio::sync::Notify;

use super::ConnId;
use crate::wire::{self, Frame};
use crate::{Exchange, HandlerError};

/// A connection that a peer has made to an exchange.
struct Accepted<'a> {
    exchange: &'a Exchange,
    conn: ConnId,
}

impl<'a> Accepted<'a> {
    fn new(exchange: &'a Exchange) -> Self {
        Self { exchange, conn: exchange.shared().with(|core, now| core.begin_accepted(now)) }
    }

    fn say(&self, frame: Frame) {
        assert!(self.exchange.shared().with(|core, now| core.receive(self.conn, wire::encode(frame), now)));
    }

    fn end(&self) -> bool {
        self.exchange.shared().with(|core, _| core.read_all(self.conn))
    }

    fn poll(&self) -> Poll<Option<Bytes>> {
        self.exchange.shared().with(|core, now| core.next_frame(self.conn, Waker::noop(), now))
    }

    /// The next frame; None at the end.
    async fn hear(&self) -> Option<Frame> {
        for _ in 0..500 {
            match self.poll() {
                Poll::Ready(frame) => return frame.and_then(|frame| proto::Frame::decode(frame).unwrap().kind),
                Poll::Pending => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("nothing came in time");
    }
}

#[tokio::test]
async fn who_ends_its_half_without_resume_is_still_answered() {
    let me = Exchange::new("me").unwrap();
    let released = Arc::new(Notify::new());
    let wait = released.clone();
    me.handle("wait", move |_| {
        let wait = wait.clone();
        async move {
            wait.notified().await;
            Ok::<_, HandlerError>(5)
        }
    })
    .unwrap();
    let peer = Accepted::new(&me);
    peer.say(Frame::Hello(proto::Hello { exchange: "peer".into(), epoch: 7, ..proto::Hello::default() }));
    assert!(matches!(peer.hear().await, Some(Frame::Welcome(_))));
    let request =
        proto::Message { name: "wait".into(), kind: proto::Kind::Request.into(), ..proto::Message::default() };
    peer.say(Frame::Batch(proto::Batch { seq: 1, messages: vec![request] }));
    assert!(peer.end(), "it may still be written to");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(peer.poll().is_pending());

    released.notify_one();
    let Some(Frame::Batch(answer)) = peer.hear().await else { panic!("no answer") };
    assert_eq!(answer.messages[0].payload, Some(proto::message::Payload::Json(b"5".as_slice().into())));
    assert!(matches!(peer.hear().await, Some(Frame::Goodbye(_))));
    assert_eq!(peer.hear().await, None);
}

#[tokio::test]
async fn who_ends_its_half_and_has_asked_nothing_hears_goodbye() {
    let me = Exchange::new("me").unwrap();
    let peer = Accepted::new(&me);
    peer.say(Frame::Hello(proto::Hello { exchange: "peer".into(), epoch: 7, ..proto::Hello::default() }));
    assert!(peer.end());
    assert!(matches!(peer.hear().await, Some(Frame::Welcome(_))));
    assert!(matches!(peer.hear().await, Some(Frame::Goodbye(_))));
    assert_eq!(peer.hear().await, None);
}
