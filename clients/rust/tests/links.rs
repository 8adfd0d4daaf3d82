//! Links that break, exchanges that are restarted, and what becomes of messages meanwhile.

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::Proxy;
use exchange_grpc::{
    Code, ConnectOptions, Delivered, Error, Event, Events, Exchange, Limits, Outcome, RequestErrorKind,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const CUTS: u32 = 20;
const SENT: u64 = 20_000;

/// The next event that is not left aside.
async fn next(events: &mut Events) -> Event {
    tokio::time::timeout(Duration::from_secs(10), events.next()).await.expect("an event in time").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_a_link_is_cut() {
    let taker = Exchange::new("taker").unwrap();
    let taken: Arc<Mutex<Vec<u64>>> = Arc::default();
    let into = taken.clone();
    taker
        .handle("take", move |call| {
            into.lock().unwrap().push(call.json().unwrap());
            async { Ok(()) }
        })
        .unwrap();
    let proxy = Proxy::to(&taker.listen("grpc://127.0.0.1:0").await.unwrap()).await;
    let giver = Exchange::new("giver").unwrap();
    let mut events = giver.events();
    giver.connect(&proxy.url).await.unwrap();

    let sending = tokio::spawn({
        let giver = giver.clone();
        async move {
            for number in 0..SENT {
                giver.send("take", number).timeout(Duration::from_secs(60)).await.unwrap();
            }
        }
    });
    assert!(matches!(next(&mut events).await, Event::Connected { .. }));
    for _ in 0..CUTS {
        tokio::time::sleep(Duration::from_millis(110)).await; // one that lasts shorter is not dialled again at once
        proxy.cut();
        assert!(matches!(next(&mut events).await, Event::Lost { .. }));
        let event = next(&mut events).await;
        assert!(matches!(event, Event::Resumed { recovered: true, .. }), "{event:?}");
    }
    sending.await.unwrap();
    giver.close().await;
    taker.close().await;
    assert_eq!(*taken.lock().unwrap(), (0..SENT).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_told_and_work_goes_on() {
    let place = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let url = format!("grpc://{place}");
    let start = || async {
        let hub = Exchange::new("hub").unwrap();
        hub.handle("wait", |_| std::future::pending::<Result<(), exchange_grpc::HandlerError>>()).unwrap();
        hub.handle("echo", |call| async move { Ok(call.payload().clone()) }).unwrap();
        while hub.listen(&url).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await; // the port is not free yet
        }
        hub
    };
    let hub = start().await;
    let me = Exchange::new("me").unwrap();
    let mut events = me.events();
    let peer = me.connect(&url).await.unwrap();
    assert!(matches!(next(&mut events).await, Event::Connected { .. }));
    let asked = tokio::spawn(peer.request("wait", ()).into_future());
    let sent = peer.send("wait", ()).await.unwrap();
    peer.request("echo", 1).await.unwrap();

    drop(hub); // without a word
    assert!(matches!(next(&mut events).await, Event::Lost { .. }));
    let hub = start().await;
    let error = asked.await.unwrap().unwrap_err();
    let error = error.request().unwrap();
    assert_eq!((error.kind(), error.delivered), (RequestErrorKind::Unavailable, Delivered::Unknown));
    let (mut resumed, mut unhandled) = (None, None);
    while resumed.is_none() || unhandled.is_none() {
        match next(&mut events).await {
            Event::Resumed { recovered, uncertain, .. } => resumed = Some((recovered, uncertain)),
            Event::Unhandled { id, outcome, error, .. } => unhandled = Some((id, outcome, error.reason)),
            other => panic!("{other:?}"),
        }
    }
    let (recovered, uncertain) = resumed.unwrap();
    assert!(!recovered && uncertain.contains(&sent), "{uncertain:?}");
    assert_eq!(unhandled.unwrap(), (sent, Outcome::Dropped, "UNCERTAIN".into()));
    assert_eq!(me.request("echo", 2).await.unwrap().value(), 2);
    hub.close().await;
    me.close().await;
}

#[tokio::test]
async fn who_does_not_come_back_is_not_waited_for() {
    let hub = Exchange::new("hub").unwrap();
    hub.handle("echo", |call| async move { Ok(call.payload().clone()) }).unwrap();
    let url = hub.listen("grpc://127.0.0.1:0").await.unwrap();
    let limits = Limits { away: Duration::from_millis(200), ..Limits::default() };
    let me = Exchange::builder("me").limits(limits).build().unwrap();
    let mut events = me.events();
    me.connect_with(&url, ConnectOptions::new().retry(Duration::from_secs(1))).await.unwrap();
    assert!(matches!(next(&mut events).await, Event::Connected { .. }));
    drop(hub);
    assert!(matches!(next(&mut events).await, Event::Lost { .. }));
    let error = me.request("echo", 1).await.unwrap_err(); // it waits for a while, and then fails
    let error = error.request().unwrap();
    assert_eq!((error.code, error.delivered), (Code::Unavailable, Delivered::No), "{error}");
    loop {
        match next(&mut events).await {
            Event::GaveUp { id, .. } => break assert_eq!(id, "hub"),
            Event::Unhandled { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(me.peers().is_empty());
    me.close().await;
}

#[tokio::test]
async fn nobody_there_is_an_error() {
    let me = Exchange::new("me").unwrap();
    for url in
        ["http://127.0.0.1:1", "grpc://", "grpc://host", "grpc://a:b", "unix:", "nonsense", "grpcs://127.0.0.1:x"]
    {
        let error = me.connect(url).await.err().unwrap();
        assert!(matches!(error, Error::Address(_)), "{url}: {error}");
    }
    for url in ["foo://x", "ws://127.0.0.1:8080", "nonsense", ""] {
        let known = format!("no transport takes '{url}': a URL begins with one of grpc, grpcs, unix");
        assert_eq!(me.connect(url).await.err().unwrap().to_string(), known);
        assert_eq!(me.listen(url).await.err().unwrap().to_string(), known);
    }
    let error = me.connect("grpc://host").await.err().unwrap();
    assert_eq!(error.to_string(), "'grpc://host' is no address: grpc://HOST:PORT");
    let error = me.connect("grpc://127.0.0.1:1").await.err().unwrap();
    assert!(matches!(error, Error::Link(_)), "{error}");
    let first = Exchange::new("first").unwrap();
    let url = first.listen("grpc://127.0.0.1:0").await.unwrap();
    assert!(me.listen(&url).await.is_err());
    assert!(Exchange::new("no id").is_err());
}

#[tokio::test]
async fn an_id_is_made_up_where_none_is_given() {
    let (one, other) = (Exchange::new("").unwrap(), Exchange::new("").unwrap());
    for exchange in [&one, &other] {
        let digits = exchange.id().strip_prefix("exchange-").unwrap();
        assert!(digits.len() == 8 && digits.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')), "{digits}");
    }
    assert_ne!(one.id(), other.id());
}

#[tokio::test]
async fn an_id_that_is_taken_is_a_reason() {
    let hub = Exchange::new("hub").unwrap();
    let url = hub.listen("grpc://127.0.0.1:0").await.unwrap();
    let first = Exchange::new("x").unwrap();
    first.connect(&url).await.unwrap();
    let error = Exchange::new("x").unwrap().connect(&url).await.err().unwrap();
    assert_eq!(error, Error::Link("the link was refused or lost: x is linked to hub already".into()));
    hub.close().await;
}

/// A server that says this to whoever has said something, and then no more; if it is nothing, it ends the connection.
async fn saying(text: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(text.as_bytes()).await;
            while !text.is_empty() && stream.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
        }
    });
    url
}

#[tokio::test]
async fn somebody_else_is_there() {
    let me = Exchange::new("me").unwrap();
    for (text, found) in [
        ("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", "it speaks no gRPC"),
        ("220 mail.example ESMTP\r\n", "it speaks no gRPC"),
        ("", "it closed the connection"),
    ] {
        let url = saying(text).await;
        let error = me.connect(&url).await.err().unwrap();
        assert_eq!(error, Error::Link(format!("nobody answers at {url}: {found}")));
    }
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let me = Exchange::builder("me").limits(limits).build().unwrap();
    let url = saying(" ").await; // which is no frame yet
    let error = me.connect(&url).await.err().unwrap();
    assert_eq!(error, Error::Link(format!("nobody answers at {url}: no introduction within 0.2 s")));
}
