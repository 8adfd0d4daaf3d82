//! gRPC: the stream `Peer`, dialled and served.
//!
//! Frames travel as bytes and are parsed by the session, not by the codec: one that cannot be parsed then ends one
//! session with a Goodbye that says why, where a codec of messages would kill the stream without one.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::core::{Conn, ConnId};
use crate::error::{Error, Result};
use crate::limits::{FRAME_BYTES, MESSAGE_BYTES};
use crate::options::{ConnectOptions, ListenOptions};
use crate::pump::{Answering, Outgoing, read, said};
use crate::shared::Shared;

const SERVICE: &str = "exchange.v1.ExchangeService";
const PEER: &str = "/exchange.v1.ExchangeService/Peer";
/// What a URL begins with.
const SCHEMES: [&str; 3] = ["grpc", "grpcs", "unix"];
/// Room for the frame around what it carries: the limits themselves are checked by the session.
const LARGEST: usize = FRAME_BYTES + MESSAGE_BYTES;
/// HTTP/2 windows: a large batch leaves without waiting for the other side.
const WINDOW: u32 = 4 << 20;
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams on one connection of others.
const STREAMS: u32 = 2_000;

/// Bytes, as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, frame: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(frame.len());
        to.put(frame);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

// ------------------------------------------------------------------------------------------------ dialling

/// Makes streams to one place.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub url: String,
    endpoint: Endpoint,
    metadata: MetadataMap,
}

impl Dialer {
    pub fn new(url: &str, options: &ConnectOptions) -> Result<Self> {
        check_scheme(url)?;
        let secure = url.starts_with("grpcs://");
        let uri = match url.split_once("://") {
            Some(("grpc", place)) if is_host_and_port(place) => format!("http://{place}"),
            Some(("grpcs", place)) if is_host_and_port(place) => format!("https://{place}"),
            _ if url.starts_with("unix:") && url.len() > 5 => url.to_owned(),
            _ => return Err(Error::Address(format!("'{url}' is no address: grpc://HOST:PORT"))),
        };
        let endpoint = Endpoint::from_shared(uri).map_err(|_| Error::Address(format!("'{url}' is no address")))?;
        let endpoint = endpoint
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(2 * WINDOW)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let endpoint = options.secured(endpoint, secure)?;
        let mut metadata = MetadataMap::new();
        if let Some(token) = &options.bearer {
            let value = AsciiMetadataValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Error::Address("a bearer token is printable ASCII".into()))?;
            metadata.insert("authorization", value);
        }
        Ok(Self { url: url.to_owned(), endpoint, metadata })
    }

    pub async fn connect(&self) -> Result<Channel> {
        let connected = self.endpoint.connect().await;
        connected.map_err(|error| Error::Link(format!("nobody answers at {}: {}", self.url, innermost(&error))))
    }

    /// Carry a connection over this channel, to its end.
    pub async fn run(self, shared: Arc<Shared>, conn: ConnId, channel: Channel) {
        let _open = shared.stream_opened();
        match self.open(&shared, conn, channel).await {
            Ok(stream) => read(shared, conn, stream).await,
            Err(Some(error)) => shared.with(|core, now| core.not_taken(conn, error, now)),
            Err(None) => shared.with(|core, now| core.disconnected(conn, "the link was closed", now)),
        }
    }

    /// The stream of the other side, or why it gives none; None if nobody here wants it any more.
    async fn open(
        self,
        shared: &Arc<Shared>,
        conn: ConnId,
        channel: Channel,
    ) -> Result<Streaming<Bytes>, Option<Error>> {
        let notice = shared.with(|core, _| core.conn(conn).map(|conn| conn.notice.clone())).ok_or(None)?;
        let mut request = Request::new(Outgoing::new(shared, conn));
        *request.metadata_mut() = self.metadata;
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(LARGEST);
        let call = async {
            grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
            grpc.streaming(request, http::uri::PathAndQuery::from_static(PEER), Raw).await
        };
        tokio::pin!(call);
        loop {
            tokio::select! {
                response = &mut call => {
                    return response.map(Response::into_inner).map_err(|status| Some(refusal(&self.url, &status)));
                }
                () = notice.notified() => {
                    let over = |conn: &Conn| conn.finished || conn.dropped.is_some();
                    if shared.with(|core, _| core.conn(conn).is_none_or(over)) {
                        return Err(None); // with the request goes its stream, and so the connection
                    }
                }
            }
        }
    }
}

/// Why a stream was not taken at this URL: what a server of gRPC has said, or what we found instead of one.
fn refusal(url: &str, status: &Status) -> Error {
    let found = match (status.source(), status.code()) {
        (None, Code::Unimplemented) => "it is no exchange".into(),
        (None, _) => return Error::Link(format!("the link to {url} was refused: {}", said(status))),
        (Some(_), Code::Internal) => "it speaks no gRPC".into(), // its frames are none of HTTP/2
        (Some(_), Code::Cancelled) => "it closed the connection".into(),
        (Some(error), _) => innermost(error),
    };
    Error::Link(format!("nobody answers at {url}: {found}"))
}

fn check_scheme(url: &str) -> Result<()> {
    if url.split_once(':').is_some_and(|(scheme, _)| SCHEMES.contains(&scheme)) {
        return Ok(());
    }
    let known = SCHEMES.join(", ");
    Err(Error::Address(format!("no transport takes '{url}': a URL begins with one of {known}")))
}

fn is_host_and_port(place: &str) -> bool {
    let place = place.trim_end_matches('/');
    let Some((host, port)) = place.rsplit_once(':') else { return false };
    !host.is_empty() && !place.contains('/') && port.parse::<u16>().is_ok()
}

/// What was behind it all: the outer errors say only that something was.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => "it closed the connection".into(),
        _ => cause.to_string(),
    }
}

// ------------------------------------------------------------------------------------------------- serving

/// Accepts links.
#[derive(Clone)]
struct Accepting(Arc<Shared>);

impl NamedService for Accepting {
    const NAME: &'static str = SERVICE;
}

impl StreamingService<Bytes> for Accepting {
    type Response = Bytes;
    type ResponseStream = Answering;
    type Future = std::future::Ready<Result<Response<Answering>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let shared = &self.0;
        let conn = shared.with(|core, now| core.begin_accepted(now));
        shared.runtime.spawn(read(shared.clone(), conn, request.into_inner()));
        std::future::ready(Ok(Response::new(Answering(Outgoing::new(shared, conn)))))
    }
}

impl tower_service::Service<http::Request<Body>> for Accepting {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != PEER {
                let text = "a client listens for peers alone: there is no other door";
                return Ok(Status::unimplemented(text).into_http());
            }
            let mut grpc = tonic::server::Grpc::new(Raw).max_decoding_message_size(LARGEST);
            Ok(grpc.streaming(service, request).await)
        })
    }
}

/// A server at this URL: the URL, with the port, and its task.
pub(crate) async fn listen(
    shared: &Arc<Shared>,
    url: &str,
    options: &ListenOptions,
) -> Result<(String, JoinHandle<()>)> {
    let taken = |why: &dyn std::fmt::Display| Error::Address(format!("cannot listen at {url}: {why}"));
    let (scheme, place) = url.split_once("://").unwrap_or_default();
    check_scheme(url)?;
    if !(scheme == "grpc" || scheme == "grpcs") || !is_host_and_port(place) {
        return Err(Error::Address(format!("'{url}' is no address to listen at: grpc://HOST:PORT")));
    }
    let place = place.trim_end_matches('/');
    let address: SocketAddr =
        tokio::net::lookup_host(place).await.map_err(|e| taken(&e))?.next().ok_or_else(|| taken(&"no such host"))?;
    let incoming = TcpIncoming::bind(address).map_err(|e| taken(&e))?.with_nodelay(Some(true));
    let port = incoming.local_addr().map_err(|e| taken(&e))?.port();
    let server = Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
    let server = options.secured(server, scheme == "grpcs")?;
    let accepting = Accepting(shared.clone());
    let task = shared.runtime.spawn(async move {
        if let Err(error) = server.serve_with_incoming(accepting, incoming).await {
            tracing::error!("listening ended: {}", innermost(&error));
        }
    });
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    Ok((format!("{scheme}://{host}:{port}"), task))
}
