//! What is registered here: who handles, listens and subscribes, and what waits for it.
//!
//! Law: what comes over a wire resolves in this table and nowhere else. Each function has a queue, and starts in order
//! of arrival; a task of its own (`dispatch.rs`) takes from the queue and runs it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

use super::{Core, LineId, Notice};
use crate::error::{Error, RequestError, Result};
use crate::limits::{HANDLER_CONCURRENCY, HANDLER_QUEUE, LISTENER_QUEUE};
use crate::message::{Context, Kind, Message, Time};
use crate::names::{RESERVED, check_name, check_pattern, fits};

/// What is done because of one message, by one function.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub message: Message,
    /// The peer it came from; None if it was emitted here.
    pub link: Option<String>,
    /// The name of the function, for people.
    pub by: String,
    /// The first answer wins. A listener has no right to one.
    pub answered: AtomicBool,
    /// None: nobody has asked for it yet.
    context: Mutex<Option<Context>>,
}

impl Invocation {
    fn with_context<R>(&self, work: impl FnOnce(&mut Context) -> R) -> R {
        let mut context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        work(context.get_or_insert_with(|| Context::of(&self.message.head)))
    }

    /// What stands behind whatever is emitted now.
    pub fn context(&self) -> Context {
        self.with_context(|context| context.clone())
    }

    /// A reply was awaited: a further cause of what follows.
    pub fn after(&self, reply: &Message) {
        self.with_context(|context| context.then(&reply.head));
    }
}

/// A message that waits for a function, or is with it.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub number: u64,
    pub function: u64,
    pub invocation: Arc<Invocation>,
    /// It is the handler, and answers.
    pub answers: bool,
    /// Where the message came in: who is told that it does not wait any more.
    pub taken: Option<(LineId, u64, usize)>,
}

#[derive(Debug)]
struct Function {
    label: String,
    queue: VecDeque<Run>,
    running: usize,
    missed: u64,
    gone: bool,
    notice: Notice,
}

/// What a function was registered for.
#[derive(Clone, Debug)]
pub(crate) enum Registration {
    Handle(String),
    /// Perhaps only for what comes from this peer.
    On(String, Option<String>),
    Subscribe(String),
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    functions: HashMap<u64, Function>,
    handlers: HashMap<String, u64>,
    listeners: HashMap<String, Vec<(Option<String>, u64)>>,
    subscribers: Vec<(String, u64)>,
    /// Requests that run or wait here: their run.
    requests: HashMap<String, Run>,
    /// What runs, and how to stop it; None as long as it has only begun.
    active: HashMap<u64, Option<AbortHandle>>,
}

impl Table {
    /// Whether the name is handled here.
    pub fn offers(&self, name: &str) -> bool {
        self.handlers.contains_key(name) || self.listeners.contains_key(name)
    }

    /// The names that are announced, sorted.
    pub fn handles(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .handlers
            .keys()
            .chain(self.listeners.keys())
            .filter(|name| !name.starts_with(RESERVED))
            .cloned()
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The patterns that are subscribed to, sorted.
    pub fn subscribes(&self) -> Vec<String> {
        let mut patterns: Vec<String> = self.subscribers.iter().map(|(pattern, _)| pattern.clone()).collect();
        patterns.sort();
        patterns.dedup();
        patterns
    }

    pub fn wants(&self, name: &str) -> bool {
        self.subscribers.iter().any(|(pattern, _)| fits(pattern, name))
    }

    /// How many run and wait.
    pub fn busy(&self) -> usize {
        self.functions.values().map(|function| function.running + function.queue.len()).sum()
    }

    fn queue(&mut self, run: Run) -> Result<(), Run> {
        let Some(function) = self.functions.get_mut(&run.function) else { return Err(run) };
        let most = if run.answers { HANDLER_CONCURRENCY + HANDLER_QUEUE } else { LISTENER_QUEUE };
        if function.running + function.queue.len() >= most {
            return Err(run);
        }
        function.queue.push_back(run);
        function.notice.notify_one();
        Ok(())
    }

    fn missed(&mut self, number: u64) {
        let Some(function) = self.functions.get_mut(&number) else { return };
        function.missed += 1;
        if function.missed.is_power_of_two() {
            tracing::warn!(function = %function.label, "it is too slow: it has missed {} messages", function.missed);
        }
    }
}

impl Core {
    /// Register a function: its number, and what tells it that something waits.
    pub fn register(&mut self, what: &Registration, system: bool, now: Time) -> Result<(u64, Notice)> {
        let before = (self.table.handles(), self.table.subscribes());
        let number = self.number();
        let label = match what {
            Registration::Handle(name) => {
                check_name(name)?;
                if (name.starts_with(RESERVED) || name == "message.unhandled") && !system {
                    return Err(Error::Invalid(format!("the name '{name}' is reserved for the system")));
                }
                if self.table.handlers.contains_key(name) {
                    return Err(Error::Invalid(format!("'{name}' has a handler already")));
                }
                self.table.handlers.insert(name.clone(), number);
                name
            }
            Registration::On(name, peer) => {
                check_name(name)?;
                if name.starts_with(RESERVED) {
                    return Err(Error::Invalid(format!("the name '{name}' is reserved for the system")));
                }
                self.table.listeners.entry(name.clone()).or_default().push((peer.clone(), number));
                name
            }
            Registration::Subscribe(pattern) => {
                check_pattern(pattern)?;
                self.table.subscribers.push((pattern.clone(), number));
                pattern
            }
        };
        let notice = Notice::default();
        let function = Function {
            label: label.clone(),
            queue: VecDeque::new(),
            running: 0,
            missed: 0,
            gone: false,
            notice: notice.clone(),
        };
        self.table.functions.insert(number, function);
        self.interest_changed(&before, now);
        Ok((number, notice))
    }

    /// Take it away again: what waits still runs.
    pub fn unregister(&mut self, what: &Registration, number: u64, now: Time) {
        let before = (self.table.handles(), self.table.subscribes());
        match what {
            Registration::Handle(name) => {
                if self.table.handlers.get(name) == Some(&number) {
                    self.table.handlers.remove(name);
                }
            }
            Registration::On(name, _) => {
                if let Some(entries) = self.table.listeners.get_mut(name) {
                    entries.retain(|(_, known)| *known != number);
                    if entries.is_empty() {
                        self.table.listeners.remove(name);
                    }
                }
            }
            Registration::Subscribe(_) => self.table.subscribers.retain(|(_, known)| *known != number),
        }
        if let Some(function) = self.table.functions.get_mut(&number) {
            function.gone = true;
            function.notice.notify_one();
        }
        self.interest_changed(&before, now);
    }

    /// Let what is registered for the message run soon. False if nothing is; an error if the handler's queue is full.
    pub(super) fn deliver(
        &mut self,
        message: &Message,
        link: Option<&str>,
        taken: Option<(LineId, u64, usize)>,
        now: Time,
    ) -> Result<bool, RequestError> {
        let name = message.name();
        let published = message.kind() == Kind::Publish;
        let handler = if published { None } else { self.table.handlers.get(name).copied() };
        let beside: Vec<u64> = if published {
            self.table
                .subscribers
                .iter()
                .filter(|(pattern, _)| fits(pattern, name))
                .map(|(_, number)| *number)
                .collect()
        } else {
            let listeners = self.table.listeners.get(name).into_iter().flatten();
            listeners.filter(|(peer, _)| peer.is_none() || peer.as_deref() == link).map(|(_, number)| *number).collect()
        };
        if handler.is_none() && beside.is_empty() {
            return Ok(false);
        }
        let mut kept = false;
        if let Some(function) = handler {
            let run = self.run(function, message, link, taken);
            if message.kind() == Kind::Request {
                self.table.requests.insert(message.id().to_owned(), run.clone());
            }
            if self.table.queue(run).is_err() {
                self.table.requests.remove(message.id());
                return Err(
                    RequestError::full(format!("more than {HANDLER_QUEUE} messages wait for {name}")).at(&self.id)
                );
            }
            if let Some((line, _, size)) = taken {
                kept = true;
                self.retain(line, size);
            }
        }
        for function in beside {
            let run = self.run(function, message, link, None);
            let run = Run { answers: false, ..run };
            run.invocation.answered.store(true, Ordering::Relaxed);
            if self.table.queue(run).is_err() {
                self.table.missed(function);
            }
        }
        if !kept {
            self.settle(taken);
        }
        if handler.is_none() && !published {
            let run = self.run(0, message, link, None);
            self.ended(&run, Ok(crate::payload::Payload::null()), now, now);
        }
        Ok(true)
    }

    fn run(
        &mut self,
        function: u64,
        message: &Message,
        link: Option<&str>,
        taken: Option<(LineId, u64, usize)>,
    ) -> Run {
        let by = self.table.functions.get(&function).map_or("listeners", |function| &function.label).to_owned();
        let invocation = Arc::new(Invocation {
            context: Mutex::new(None),
            message: message.clone(),
            link: link.map(str::to_owned),
            by,
            answered: AtomicBool::new(false),
        });
        Run { number: self.number(), function, invocation, answers: true, taken }
    }

    // ------------------------------------------------------------------------------------ what dispatch asks

    /// The next message for this function, which begins with it now. An error if there will be none.
    pub fn next_run(&mut self, number: u64) -> Result<Option<Run>, ()> {
        let closed = self.closed;
        let function = self.table.functions.get_mut(&number).ok_or(())?;
        if function.running >= HANDLER_CONCURRENCY {
            return Ok(None);
        }
        let Some(run) = function.queue.pop_front() else {
            if function.gone || closed {
                if function.running == 0 {
                    self.table.functions.remove(&number);
                }
                return Err(());
            }
            return Ok(None);
        };
        function.running += 1;
        self.table.active.insert(run.number, None);
        if let Some((line, _, size)) = run.taken {
            self.release(line, size);
            self.settle(run.taken);
        }
        Ok(Some(run))
    }

    /// It goes on beside others. False if it was withdrawn meanwhile.
    pub fn running(&mut self, run: &Run, abort: AbortHandle) -> bool {
        let request = run.answers && run.invocation.message.kind() == Kind::Request;
        let known = self.table.requests.get(run.invocation.message.id());
        if request && known.is_none_or(|known| known.number != run.number) {
            return false;
        }
        if let Some(active) = self.table.active.get_mut(&run.number) {
            *active = Some(abort); // else it has ended already
        }
        true
    }

    /// It has ended, however it did.
    pub fn ran(&mut self, run: &Run) {
        self.table.active.remove(&run.number);
        let id = run.invocation.message.id();
        if run.answers && self.table.requests.get(id).is_some_and(|known| known.number == run.number) {
            self.table.requests.remove(id);
        }
        if let Some(function) = self.table.functions.get_mut(&run.function) {
            function.running -= 1;
            function.notice.notify_one();
            if function.gone && function.running == 0 && function.queue.is_empty() {
                self.table.functions.remove(&run.function);
            }
        }
    }

    /// Nobody waits for this request any more: one that runs is dropped where it waits, one that waits never starts.
    pub(super) fn withdraw(&mut self, request: &str) {
        let Some(run) = self.table.requests.remove(request) else { return };
        run.invocation.answered.store(true, Ordering::Relaxed);
        if let Some(active) = self.table.active.get(&run.number) {
            active.iter().for_each(AbortHandle::abort); // one that has only begun is not gone on with
            return;
        }
        let Some(function) = self.table.functions.get_mut(&run.function) else { return };
        let waiting = function.queue.len();
        function.queue.retain(|waits| waits.number != run.number);
        if let Some((line, _, size)) = run.taken.filter(|_| function.queue.len() < waiting) {
            self.release(line, size);
            self.settle(run.taken);
        }
    }

    /// Stop all that runs.
    pub fn abort_all(&mut self) {
        self.table.active.values().flatten().for_each(AbortHandle::abort);
        for function in self.table.functions.values_mut() {
            function.queue.clear();
            function.notice.notify_one();
        }
    }
}
