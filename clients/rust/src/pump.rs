//! The pump: moves one session's bytes, over one stream after another.
//!
//! What is to be written is asked for by the transport, when it can write: then the session gives whatever there is, one
//! frame at a time. What is queued meanwhile leaves in the next batch, and a lone message at once. There is one reader
//! task for each stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use crate::core::{ConnId, LineId, Opening};
use crate::error::{Error, Result};
use crate::grpc::Dialer;
use crate::limits::{CLOSE_SECONDS, DIAL_SECONDS};
use crate::message::Time;
use crate::shared::Shared;

/// Between two looks at whether a peer without credit may send on.
const CROWDED: Duration = Duration::from_millis(10);

/// What is to be written on one stream.
pub(crate) struct Outgoing {
    shared: Arc<Shared>,
    conn: ConnId,
}

impl Outgoing {
    pub fn new(shared: &Arc<Shared>, conn: ConnId) -> Self {
        Self { shared: shared.clone(), conn }
    }
}

impl Stream for Outgoing {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.shared.with(|core, now| core.next_frame(self.conn, context.waker(), now))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.shared.with(|core, now| {
            if !core.is_opening(self.conn) {
                core.disconnected(self.conn, "the connection was lost", now);
            } // else whoever dialled says why it was
        });
    }
}

/// The same for a server, which may say why a call failed: it never does.
pub(crate) struct Answering(pub Outgoing);

impl Stream for Answering {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(context).map(|frame| frame.map(Ok))
    }
}

/// Read one stream to its end.
pub(crate) async fn read(shared: Arc<Shared>, conn: ConnId, mut stream: Streaming<Bytes>) {
    let _open = shared.stream_opened();
    let reason = read_all(&shared, conn, &mut stream).await;
    shared.with(|core, now| core.disconnected(conn, &reason, now));
    // Let the other side hear what was said last: what it still says is not looked at.
    let rest = async { while let Ok(Some(_)) = stream.message().await {} };
    let _ = tokio::time::timeout(Duration::from_secs_f64(CLOSE_SECONDS), rest).await;
}

/// Why there is nothing more to read.
async fn read_all(shared: &Arc<Shared>, conn: ConnId, stream: &mut Streaming<Bytes>) -> String {
    let Some(notice) = shared.with(|core, _| core.conn(conn).map(|conn| conn.notice.clone())) else {
        return String::new();
    };
    let mut ended = false;
    loop {
        tokio::select! {
            frame = stream.message(), if !ended => match frame {
                Ok(Some(frame)) => {
                    if !shared.with(|core, now| core.receive(conn, frame, now)) {
                        return "the connection was closed".into();
                    }
                    // While nothing is read, the peer's writer waits.
                    while shared.with(|core, _| core.crowded(conn)) {
                        tokio::time::sleep(CROWDED).await;
                    }
                }
                Ok(None) => {
                    ended = true;
                    if !shared.with(|core, _| core.read_all(conn)) {
                        return "the peer ended the connection".into();
                    }
                }
                Err(status) => return format!("the connection was lost: {}", said(&status)),
            },
            () = notice.notified() => {
                let over = shared.with(|core, _| core.conn(conn).is_none_or(|conn| conn.finished || conn.dropped.is_some()));
                if over {
                    return "the link was closed".into();
                }
            }
        }
    }
}

/// What gRPC says of an error, without its internals.
pub(crate) fn said(status: &Status) -> String {
    let text = status.message().lines().next().unwrap_or_default();
    if text.is_empty() { "the stream is closed".into() } else { text.chars().take(200).collect() }
}

/// Dial, and say who is there. The link is made again for `retry` seconds after each break.
pub(crate) async fn connect(shared: &Arc<Shared>, dialer: Dialer, retry: Time) -> Result<String> {
    let seconds = shared.with(|core, _| core.limits.handshake);
    let channel = tokio::time::timeout(seconds, dialer.connect())
        .await
        .map_err(|_| Error::Link(format!("nobody answers at {} within {} s", dialer.url, seconds.as_secs_f64())))??;
    let (told, opened) = oneshot::channel();
    let opening = Opening { url: dialer.url.clone(), told };
    let (redial, redials) = mpsc::unbounded_channel();
    let (line, conn) = shared.with(|core, now| core.begin_dialled(opening, redial, retry, now));
    shared.runtime.spawn(dialer.clone().run(shared.clone(), conn, channel));
    shared.runtime.spawn(keep_dialled(shared.clone(), line, dialer, redials));
    let mut guard = Abandoned { shared, line, armed: true };
    let peer = opened.await.map_err(|_| Error::Link("the link was closed".into()))?;
    guard.armed = false;
    peer
}

/// Whoever dials has gone: so does the link, if it was not made yet.
struct Abandoned<'a> {
    shared: &'a Arc<Shared>,
    line: LineId,
    armed: bool,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.shared.with(|core, _| core.drop_line(self.line, "nobody waits for it any more"));
        }
    }
}

/// Dial again, whenever the core says so.
async fn keep_dialled(shared: Arc<Shared>, line: LineId, dialer: Dialer, mut redials: mpsc::UnboundedReceiver<Time>) {
    while let Some(mut pause) = redials.recv().await {
        while let Some(seconds) = shared.with(|core, now| core.next_attempt(line, pause, now)) {
            pause = 0.0;
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            let attempt = tokio::time::timeout(Duration::from_secs_f64(DIAL_SECONDS), dialer.connect()).await;
            let Ok(Ok(channel)) = attempt else { continue };
            if let Some(conn) = shared.with(|core, now| core.redialled(line, now)) {
                shared.runtime.spawn(dialer.clone().run(shared.clone(), conn, channel));
            }
            break;
        }
    }
}
