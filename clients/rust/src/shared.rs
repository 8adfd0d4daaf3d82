//! The core under its lock, the clock, and the task that tells the core the time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::core::Core;
use crate::limits::Limits;
use crate::message::Time;

pub(crate) struct Shared {
    pub runtime: Handle,
    core: Mutex<Core>,
    started: Instant,
    /// The core is to be told the time earlier than was thought.
    earlier: Notify,
    /// Streams that are not closed.
    streams: AtomicUsize,
    closed: Notify,
}

impl Shared {
    pub fn new(id: String, limits: Limits) -> Arc<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let epoch = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        let shared = Arc::new(Self {
            runtime: Handle::current(),
            core: Mutex::new(Core::new(id, epoch, limits)),
            started: Instant::now(),
            earlier: Notify::new(),
            streams: AtomicUsize::new(0),
            closed: Notify::new(),
        });
        shared.runtime.spawn(shared.clone().tell_time());
        shared
    }

    pub fn now(&self) -> Time {
        self.started.elapsed().as_secs_f64()
    }

    /// Do something with the core; then wake whoever has something to do.
    pub fn with<R>(&self, work: impl FnOnce(&mut Core, Time) -> R) -> R {
        let now = self.now();
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let before = core.due;
        let result = work(&mut core, now);
        let wakers = std::mem::take(&mut core.wakers);
        let earlier = core.due < before;
        drop(core);
        wakers.into_iter().for_each(std::task::Waker::wake);
        if earlier {
            self.earlier.notify_one();
        }
        result
    }

    async fn tell_time(self: Arc<Self>) {
        loop {
            let (due, closed) = self.with(|core, _| (core.due, core.closed));
            if closed && Arc::strong_count(&self) == 1 {
                return;
            }
            let pause = (due - self.now()).clamp(0.0, 1.0);
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs_f64(pause)) => {}
                () = self.earlier.notified() => {}
            }
            self.with(|core, now| {
                if core.due <= now {
                    core.tick(now);
                }
            });
        }
    }

    /// A stream is open, until what this gives is dropped.
    pub fn stream_opened(self: &Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(self.clone())
    }

    /// All streams are closed.
    pub async fn streams_closed(&self) {
        loop {
            let closed = self.closed.notified();
            if self.streams.load(Ordering::Relaxed) == 0 {
                return;
            }
            closed.await;
        }
    }
}

pub(crate) struct OpenStream(Arc<Shared>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.closed.notify_waiters();
    }
}
