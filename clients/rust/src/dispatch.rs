//! How functions run: one task for each takes what waits for it, in order of arrival.
//!
//! A run begins in that task, so runs begin in order; one that does not end at once goes on in a task of its own. So a
//! message costs no task unless its handler waits for something. Long computations belong into
//! `tokio::task::spawn_blocking`: until its first `await` a handler holds up those behind it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::call::Call;
use crate::core::{Notice, Run};
use crate::error::HandlerError;
use crate::message::Time;
use crate::payload::Payload;
use crate::shared::Shared;

type Running = Pin<Box<dyn Future<Output = Result<Payload, HandlerError>> + Send>>;
pub(crate) type Function = Box<dyn Fn(Call) -> Running + Send + Sync>;

/// Runs that begin before others have a turn.
const TURN: usize = 64;

/// Run `function` for whatever waits, until it is taken away.
pub(crate) async fn dispatch(shared: Arc<Shared>, number: u64, notice: Notice, function: Function) {
    let mut begun = 0;
    loop {
        match shared.with(|core, _| core.next_run(number)) {
            Err(()) => return,
            Ok(None) => notice.notified().await,
            Ok(Some(run)) => {
                begin(&shared, run, &function);
                begun += 1;
                if begun % TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

fn begin(shared: &Arc<Shared>, run: Run, function: &Function) {
    let mut ending = Ending { shared: shared.clone(), run: run.clone(), started: shared.now(), over: false };
    // What cannot be read never reaches a handler.
    if let Err(error) = run.invocation.message.parse() {
        let error = error.into_refusal("");
        let no = crate::error::Refused::new(error.message).code(error.code).reason(error.reason);
        return ending.end(Err(HandlerError::Refused(no)));
    }
    let call = Call::new(shared.clone(), run.clone());
    let Ok(mut running) = catch_unwind(AssertUnwindSafe(|| function(call))) else {
        return ending.end(Err(HandlerError::Failed("it panicked".into())));
    };
    // Polled again, with a waker that counts, in a task of its own if this is not all.
    if let Poll::Ready(result) = poll(&mut running, &mut Context::from_waker(Waker::noop())) {
        return ending.end(result);
    }
    let task = shared.runtime.spawn(async move {
        let result = std::future::poll_fn(|context| poll(&mut running, context)).await;
        drop(running);
        ending.end(result);
    });
    let abort = task.abort_handle();
    if !task.is_finished() && !shared.with(|core, _| core.running(&run, abort)) {
        task.abort(); // it was withdrawn meanwhile
    }
}

fn poll(running: &mut Running, context: &mut Context<'_>) -> Poll<Result<Payload, HandlerError>> {
    catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context)))
        .unwrap_or_else(|_| Poll::Ready(Err(HandlerError::Failed("it panicked".into()))))
}

/// Says how a run ended; if it was dropped before, that it did not.
struct Ending {
    shared: Arc<Shared>,
    run: Run,
    started: Time,
    over: bool,
}

impl Ending {
    fn end(&mut self, result: Result<Payload, HandlerError>) {
        self.over = true;
        self.shared.with(|core, now| {
            core.ran(&self.run);
            core.ended(&self.run, result, self.started, now);
        });
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.over {
            self.shared.with(|core, now| {
                core.ran(&self.run);
                core.stopped(&self.run, self.started, now);
            });
        }
    }
}
