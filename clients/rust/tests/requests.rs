//! Requests between exchanges of one process: answers, refusals, withdrawals, many replies, causes.

use std::sync::Arc;
use std::time::Duration;

use exchange_grpc::{Code, Exchange, HandlerError, Payload, Refused, RequestErrorKind};
use serde_json::json;
use tokio::sync::mpsc;

/// An exchange that is linked to this one.
async fn linked_to(b: &Exchange) -> Exchange {
    let a = Exchange::new("a").unwrap();
    a.connect(&b.listen("grpc://127.0.0.1:0").await.unwrap()).await.unwrap();
    a
}

/// Says that it was dropped.
struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

#[tokio::test]
async fn errors_are_told_as_they_are_meant() {
    let b = Exchange::new("b").unwrap();
    b.handle("refuse", |_| async { Err::<(), _>(Refused::new("no").code(Code::NotFound).reason("NO").into()) })
        .unwrap();
    b.handle("fail", |_| async { Err::<(), _>(std::io::Error::other("secret").into()) }).unwrap();
    b.handle("panic", |_| async { panic!("secret") as Result<(), HandlerError> }).unwrap();
    let a = linked_to(&b).await;
    let error = a.request("refuse", ()).await.unwrap_err();
    let no = error.request().unwrap();
    assert_eq!((no.code, no.reason.as_str(), no.message.as_str(), no.at.as_str()), (Code::NotFound, "NO", "no", "b"));
    for name in ["fail", "panic"] {
        let error = a.request(name, ()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("the handler of {name} failed"));
        assert_eq!(error.request().unwrap().kind(), RequestErrorKind::HandlerFailed);
    }
    assert_eq!(a.request("nobody", ()).await.unwrap_err().reason(), "UNHANDLED");
    assert_eq!(a.request("a b", ()).await.unwrap_err().reason(), "INVALID_MESSAGE");
    let large = a.request("refuse", "x".repeat(5 << 20)).await.unwrap_err();
    assert_eq!(large.reason(), "LIMIT_EXCEEDED");
}

#[tokio::test]
async fn a_request_that_is_dropped_drops_its_handler() {
    let b = Exchange::new("b").unwrap();
    let (sender, mut dropped) = mpsc::unbounded_channel();
    b.handle("wait", move |_| {
        let guard = Dropped(sender.clone());
        async move {
            let _guard = guard;
            std::future::pending::<Result<(), HandlerError>>().await
        }
    })
    .unwrap();
    let a = linked_to(&b).await;
    let asked = tokio::time::timeout(Duration::from_millis(100), a.request("wait", ()).into_future());
    assert!(asked.await.is_err());
    tokio::time::timeout(Duration::from_secs(5), dropped.recv()).await.unwrap();
    let late = a.request("wait", ()).timeout(Duration::from_millis(100)).await.unwrap_err();
    assert_eq!((late.code(), late.to_string().as_str()), (Code::DeadlineExceeded, "the time for wait was over at a"));
    tokio::time::timeout(Duration::from_secs(5), dropped.recv()).await.unwrap();
}

#[tokio::test]
async fn everybody_answers_a_request_to_many() {
    let b = Exchange::new("b").unwrap();
    b.handle("count", |call| async move {
        for number in 1..=2 {
            call.reply(number).await?;
        }
        Ok(())
    })
    .unwrap();
    let c = Exchange::new("c").unwrap();
    c.handle("count", |_| async { Ok(3) }).unwrap();
    let a = linked_to(&b).await;
    c.connect(&a.listen("grpc://127.0.0.1:0").await.unwrap()).await.unwrap();
    let mut replies = a.request_many("count", ());
    let mut told = Vec::new();
    while let Some(reply) = replies.next().await.unwrap() {
        told.push((reply.from().to_owned(), reply.json::<u32>().unwrap()));
    }
    told.sort();
    assert_eq!(told, [("b".into(), 1), ("b".into(), 2), ("c".into(), 3)]);
    assert!(replies.lost().is_empty());
    assert_eq!(a.request_many("nobody", ()).next().await.unwrap_err().reason(), "UNHANDLED");
}

#[tokio::test]
async fn who_is_alone_says_so() {
    let lone = Exchange::new("lone").unwrap();
    for (request, what) in [
        (lone.request("compute.sum", ()), "nobody handles compute.sum"),
        (lone.request("compute.sum", ()).to("shop"), "there is no exchange shop"),
    ] {
        let error = request.await.unwrap_err();
        assert_eq!(error.to_string(), format!("{what} within reach of lone (it is linked to nobody)"));
    }
    let a = linked_to(&lone).await;
    let error = a.request("compute.sum", ()).await.unwrap_err();
    assert_eq!(error.to_string(), "nobody handles compute.sum within reach of a");
}

#[tokio::test]
async fn causes_travel_by_the_call() {
    let b = Exchange::new("b").unwrap();
    let (sender, mut heard) = mpsc::unbounded_channel();
    let a = Exchange::new("a").unwrap();
    a.handle("inner", |_| async { Ok(1) }).unwrap();
    a.subscribe("said.*", move |call| {
        let sender = sender.clone();
        async move { sender.send(call.message().clone()).unwrap() }
    })
    .unwrap();
    b.handle("outer", |call| async move {
        call.request("inner", ()).await?;
        call.publish("said.so", ()).await?;
        Ok(())
    })
    .unwrap();
    a.connect(&b.listen("grpc://127.0.0.1:0").await.unwrap()).await.unwrap();
    let reply = a.request("outer", ()).await.unwrap();
    let said = heard.recv().await.unwrap();
    assert_eq!(said.root(), reply.root());
    assert_eq!((said.causes().len(), said.causes()[0].as_str()), (2, reply.root()));
    assert_eq!(said.trace(), ["a", "b", "a", "b", "a"]);
    let trace = a.trace(reply.root()).await.unwrap();
    assert_eq!((trace["spans"].as_array().unwrap().len(), &trace["missing"]), (5, &json!([])));
}

#[tokio::test]
async fn bytes_travel_as_they_are() {
    let b = Exchange::new("b").unwrap();
    b.handle("echo", |call| async move { Ok(call.payload().clone()) }).unwrap();
    let a = linked_to(&b).await;
    let image = Payload::data("image/png", vec![0, 255, 1]);
    assert_eq!(a.request("echo", image.clone()).await.unwrap().payload(), &image);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_begin_in_order_and_go_on_side_by_side() {
    let b = Exchange::new("b").unwrap();
    let begun: Arc<std::sync::Mutex<Vec<u32>>> = Arc::default();
    let all = Arc::new(tokio::sync::Barrier::new(100));
    let into = begun.clone();
    b.handle("together", move |call| {
        let (into, all) = (into.clone(), all.clone());
        async move {
            into.lock().unwrap().push(call.json()?);
            all.wait().await;
            Ok(())
        }
    })
    .unwrap();
    let a = linked_to(&b).await;
    for number in 0..100 {
        a.send("together", number).await.unwrap();
    }
    a.close().await;
    b.close().await; // which lets them end
    assert_eq!(*begun.lock().unwrap(), (0..100).collect::<Vec<_>>());
}
