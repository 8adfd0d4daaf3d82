//! A client of Exchange, which makes a program an *exchange*: it handles messages and emits messages, over links that
//! come back by themselves and lose nothing.
//!
//! ```
//! use exchange_grpc::{Exchange, Result};
//!
//! #[tokio::main]
//! async fn main() -> Result<()> {
//!     let shop = Exchange::new("shop")?;
//!     shop.handle("cake.price", |_| async { Ok(4) })?;
//!     let till = Exchange::new("till")?;
//!     till.connect(&shop.listen("grpc://127.0.0.1:0").await?).await?;
//!     assert_eq!(till.request("cake.price", "sacher").await?.value(), 4);
//!     Ok(())
//! }
//! ```
//!
//! - [`Exchange`] is where all begins: [`connect`](Exchange::connect), [`handle`](Exchange::handle),
//!   [`request`](Exchange::request), [`send`](Exchange::send), [`publish`](Exchange::publish).
//! - A handler is given a [`Call`]. It is the explicit context of the causes: what is emitted by it, says so.
//! - Dropping the future of a request withdraws it. Deadlines are set by `timeout`, or by `tokio::time::timeout`.
//! - [`Error`] is the one tree of errors; [`Event`] what happens to links. Logs go to `tracing`.
//!
//! An exchange of this crate is a leaf: it takes what is for itself, and passes nothing on between others.

mod call;
mod core;
mod count;
mod dispatch;
mod emit;
mod error;
mod exchange;
mod grpc;
mod ledger;
pub mod limits;
mod message;
mod names;
mod options;
mod payload;
mod peer;
mod pump;
mod session;
mod shared;
mod state;
mod system;
mod traces;
mod wire;

pub use call::Call;
pub use core::{Event, Seen};
pub use emit::{Replies, Request, Send};
pub use error::{Code, Delivered, Error, HandlerError, Refused, RequestError, RequestErrorKind, Result};
pub use exchange::{Builder, Events, Exchange, Registered};
pub use limits::Limits;
pub use message::{Hop, Kind, Message, Outcome};
pub use options::{ConnectOptions, ListenOptions};
pub use payload::{IntoPayload, Payload};
pub use peer::Peer;
pub use state::{RemoteState, StateValue, Watch};

/// What [`ConnectOptions::tls`] and [`ListenOptions::tls`] take.
#[cfg(feature = "tls")]
pub mod tls {
    pub use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
