//! Every error of the crate, one tree.
//!
//! ```text
//! Error
//! ├── Invalid          a name, id, payload or frame breaks a rule of the protocol
//! ├── LimitExceeded    ... because it is larger or deeper than a named limit
//! ├── Address          a URL that cannot be dialled or listened at
//! ├── Link             a link could not be made: we concluded so
//! └── Request          a request ended without its answer: `code`, `reason`, `at`, `delivered`
//!     └── kind()       Unhandled, DeadlineExceeded, Unavailable, Cancelled, Refused, HandlerFailed, Other
//! ```
//!
//! A [`RequestError`] crosses the wire as a `google.rpc.Status` with a `google.rpc.ErrorInfo`. Nothing above
//! the transport ever sees a `tonic::Status` or an `io::Error`.

use std::fmt;

use serde::Serialize;

/// What a fallible call of this crate gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whatever the crate refuses or fails at.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A name, an id, a payload or a frame breaks a rule of the protocol.
    #[error("{0}")]
    Invalid(String),
    /// Something is larger, longer or deeper than the limit its text names.
    #[error("{0}")]
    LimitExceeded(String),
    /// A URL that names nothing usable, or that cannot be listened at.
    #[error("{0}")]
    Address(String),
    /// A link could not be made, or was refused.
    #[error("{0}")]
    Link(String),
    /// A request, or a send, ended without its answer.
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl Error {
    /// The same as what ended a request, if that is what it is.
    pub fn request(&self) -> Option<&RequestError> {
        match self {
            Self::Request(error) => Some(error),
            _ => None,
        }
    }

    /// The status code that stands for it.
    pub fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code,
            Self::Link(_) => Code::Unavailable,
            Self::LimitExceeded(_) => Code::OutOfRange,
            Self::Invalid(_) | Self::Address(_) => Code::InvalidArgument,
        }
    }

    /// A fixed upper-case word for programs.
    pub fn reason(&self) -> &str {
        match self {
            Self::Request(error) => &error.reason,
            Self::Link(_) => "LINK",
            Self::LimitExceeded(_) => "LIMIT_EXCEEDED",
            Self::Address(_) => "ADDRESS",
            Self::Invalid(_) => "INVALID_MESSAGE",
        }
    }

    /// As a status: what whoever sent a message hears when it broke a rule.
    pub(crate) fn into_refusal(self, at: &str) -> RequestError {
        match self {
            Self::Request(error) => error,
            Self::LimitExceeded(text) => {
                RequestError::new(Code::OutOfRange, "LIMIT_EXCEEDED", text).at(at).undelivered()
            }
            other => {
                RequestError::new(Code::InvalidArgument, "INVALID_MESSAGE", other.to_string()).at(at).undelivered()
            }
        }
    }
}

/// The status codes of gRPC, with their numbers in `google/rpc/code.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(i32)]
#[allow(missing_docs)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

const CODES: [(Code, &str); 17] = [
    (Code::Ok, "OK"),
    (Code::Cancelled, "CANCELLED"),
    (Code::Unknown, "UNKNOWN"),
    (Code::InvalidArgument, "INVALID_ARGUMENT"),
    (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (Code::NotFound, "NOT_FOUND"),
    (Code::AlreadyExists, "ALREADY_EXISTS"),
    (Code::PermissionDenied, "PERMISSION_DENIED"),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (Code::FailedPrecondition, "FAILED_PRECONDITION"),
    (Code::Aborted, "ABORTED"),
    (Code::OutOfRange, "OUT_OF_RANGE"),
    (Code::Unimplemented, "UNIMPLEMENTED"),
    (Code::Internal, "INTERNAL"),
    (Code::Unavailable, "UNAVAILABLE"),
    (Code::DataLoss, "DATA_LOSS"),
    (Code::Unauthenticated, "UNAUTHENTICATED"),
];

impl Code {
    /// The code with this number; `Unknown` if there is none.
    pub fn from_number(number: i32) -> Self {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        CODES.get(index).map_or(Self::Unknown, |(code, _)| *code)
    }

    /// Its name in `google/rpc/code.proto`.
    pub fn name(self) -> &'static str {
        CODES[self as usize].1
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which branch of the tree a [`RequestError`] is; it follows from the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestErrorKind {
    /// Nobody within reach handles the name, or nobody has that exchange id.
    Unhandled,
    /// The time given was over before the answer came.
    DeadlineExceeded,
    /// The way to the handler was lost, or could not be found out in time: see [`RequestError::delivered`].
    Unavailable,
    /// The request was withdrawn before it was answered.
    Cancelled,
    /// Whoever took the message said no: a rule, a bound, or the handler.
    Refused,
    /// The handler failed. Details are in the log of `at`.
    HandlerFailed,
    /// A code that says nothing of these.
    Other,
}

/// Whether a handler may have seen a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivered {
    /// Surely not: asking again does no harm.
    No,
    /// Nobody knows.
    Unknown,
}

/// A request ended without its answer.
#[derive(Clone, Debug, PartialEq, Serialize, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct RequestError {
    /// A status code of gRPC.
    pub code: Code,
    /// A fixed upper-case word for programs: `docs/errors.md` lists them.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// The id of the exchange that concluded it.
    pub at: String,
    /// Whether a handler may have seen it.
    pub delivered: Delivered,
}

impl RequestError {
    pub(crate) fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        let (reason, message) = (reason.to_owned(), message.into());
        Self { code, reason, message, at: String::new(), delivered: Delivered::Unknown }
    }

    pub(crate) fn unhandled(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, "UNHANDLED", message).undelivered()
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, "UNAVAILABLE", message)
    }

    pub(crate) fn full(message: impl Into<String>) -> Self {
        Self::new(Code::ResourceExhausted, "FULL", message).undelivered()
    }

    pub(crate) fn at(mut self, exchange: &str) -> Self {
        exchange.clone_into(&mut self.at);
        self
    }

    pub(crate) fn undelivered(mut self) -> Self {
        self.delivered = Delivered::No;
        self
    }

    /// Which branch of the tree it is.
    pub fn kind(&self) -> RequestErrorKind {
        match self.code {
            Code::Unimplemented => RequestErrorKind::Unhandled,
            Code::DeadlineExceeded => RequestErrorKind::DeadlineExceeded,
            Code::Unavailable => RequestErrorKind::Unavailable,
            Code::Cancelled => RequestErrorKind::Cancelled,
            Code::Internal => RequestErrorKind::HandlerFailed,
            Code::Unknown | Code::Ok => RequestErrorKind::Other,
            _ => RequestErrorKind::Refused,
        }
    }
}

/// A handler's no: its caller gets the code, the reason and the text as they are.
///
/// ```
/// use exchange_grpc::{Code, Refused};
///
/// let no = Refused::new("there is no cake left").code(Code::NotFound).reason("NO_CAKE");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    pub(crate) code: Code,
    pub(crate) reason: String,
    pub(crate) text: String,
}

impl Refused {
    /// With the code `INVALID_ARGUMENT` and the reason `REFUSED`.
    pub fn new(text: impl Into<String>) -> Self {
        Self { code: Code::InvalidArgument, reason: "REFUSED".into(), text: text.into() }
    }

    /// Another code.
    pub fn code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Another reason, an upper-case word.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }
}

/// How a handler ends that does not answer. Made by `?` from [`Refused`] and from any error.
#[derive(Debug)]
pub enum HandlerError {
    /// It says no: its caller hears why.
    Refused(Refused),
    /// It failed: its caller gets a fixed text, and the details go to the log: to `tracing`, which shows them where the
    /// program has a subscriber, such as `tracing_subscriber::fmt::init()`.
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

/// What a handler gave cannot be said in JSON.
#[derive(Debug, thiserror::Error)]
#[error("what it gave cannot be sent: {0}")]
pub(crate) struct Unsayable(pub Error);

impl From<Refused> for HandlerError {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error))
    }
}
