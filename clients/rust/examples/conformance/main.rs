//! The process under test: what tests/conformance/README.md asks for, over the public API alone.

mod driver;

use std::{collections::HashMap, sync::Arc, sync::Mutex, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use driver::{Command, drive, tell, text};
use exchange_grpc::*;
use serde_json::{Value, json};
use tokio::sync::Notify;

fn said(message: &Message, mut about: Value) -> Value {
    let payload = message.payload();
    if payload.is_json() {
        about["value"] = message.value().clone();
    } else {
        about["data"] = BASE64_STANDARD.encode(payload.bytes()).into();
        about["content_type"] = payload.content_type().into();
    }
    about
}

fn seen(message: &Message, by: &str) -> Value {
    let about = json!({
        "id": message.id(), "name": message.name(), "from": message.from(), "to": message.to(), "by": by,
        "kind": message.kind().name(), "headers": message.headers(), "trace": message.trace(),
        "causes": message.causes(), "root": message.root(), "timestamp_us": message.timestamp_us(),
    });
    said(message, about)
}

fn payload(given: &Value) -> Result<Payload> {
    let Some(data) = given["data"].as_str() else { return given["value"].clone().into_payload() };
    Ok(Payload::data(text(given, "content_type"), BASE64_STANDARD.decode(data).expect("base64")))
}

/// Says that a handler that waited was withdrawn, if it did not end.
struct Waiting(Option<String>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(|id| tell("cancelled", json!({"id": id})));
    }
}

async fn handle(call: Call, given: Value, released: Arc<Notify>) -> Result<Payload, HandlerError> {
    tell("handling", seen(&call, "handle"));
    let with = &given["with"];
    let (name, code) = (text(with, "name"), Code::from_number(with["code"].as_i64().unwrap_or_default() as i32));
    match text(&given, "do") {
        "echo" => return Ok(call.payload().clone()),
        "see" => return Ok(seen(&call, "handle").into_payload()?),
        "fail" => Err(std::io::Error::other("secret"))?,
        "refuse" => return Err(Refused::new(text(with, "text")).code(code).reason(text(with, "reason")).into()),
        "wait" => {
            let mut waiting = Waiting(Some(call.id().into()));
            released.notified().await;
            waiting.0 = None;
            return Ok("released".into_payload()?);
        }
        "many" => {
            for value in with["values"].as_array().expect("a list") {
                call.reply(value).await?;
            }
        }
        "request" => return Ok(call.request(name, payload(with)?).await?.payload().clone()),
        "send" => drop(call.send(name, payload(with)?).await?),
        "publish" => drop(call.publish(name, payload(with)?).await?),
        _ => {}
    }
    Ok(().into_payload()?)
}

fn limits(given: &Value) -> Limits {
    let mut limits = Limits::default();
    for (name, value) in given.as_object().into_iter().flatten() {
        let seconds = Duration::from_secs_f64(value.as_f64().expect("a number"));
        match name.as_str() {
            "handshake_seconds" => limits.handshake = seconds,
            "heartbeat_seconds" => limits.heartbeat = seconds,
            "silence_seconds" => limits.silence = seconds,
            "away_seconds" => limits.away = seconds,
            "resume_seconds" => limits.resume = seconds,
            "reconnect_min_seconds" => limits.reconnect_min = seconds,
            "reconnect_max_seconds" => limits.reconnect_max = seconds,
            "credit_messages" => limits.credit_messages = seconds.as_secs(),
            "credit_bytes" => limits.credit_bytes = seconds.as_secs(),
            other => panic!("there is no limit {other}"),
        }
    }
    limits
}

/// What is sent, with all that is said of it.
macro_rules! how {
    ($emission:expr, $given:expr) => {{
        let mut emission = $emission.to(text($given, "to"));
        if let Some(via) = $given["via"].as_str() {
            emission = emission.via(via);
        }
        if let Some(seconds) = $given["timeout"].as_f64() {
            emission = emission.timeout(Duration::from_secs_f64(seconds));
        }
        let headers = $given["headers"].as_object().into_iter().flatten();
        headers.fold(emission, |emission, (key, value)| emission.header(key, value.as_str().expect("a text")))
    }};
}

#[derive(Default)]
struct Client {
    app: Mutex<Option<Exchange>>,
    handlers: Mutex<HashMap<String, Registered>>,
    released: Arc<Notify>,
}

impl Client {
    async fn start(&self, given: &Value) -> Result<Value> {
        let app = Exchange::builder(text(given, "id")).limits(limits(&given["limits"])).build()?;
        let mut events = app.events();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let event = json!(event);
                tell(text(&event, "event"), event.clone());
            }
        });
        *self.app.lock().unwrap() = Some(app.clone());
        Ok(json!({"agent": app.request("exchange.describe", ()).await?.value()["agent"]}))
    }

    async fn run(self: Arc<Self>, command: Command) -> Result<Value> {
        let (verb, given) = (command.verb.as_str(), &command.given);
        let Some(app) = self.app.lock().unwrap().clone() else { return self.start(given).await };
        let (name, pattern, url) = (text(given, "name"), text(given, "pattern"), text(given, "url"));
        let exchange = given["exchange"].as_str().unwrap_or(app.id());
        let state = app.state_of(exchange);
        match verb {
            "listen" => return Ok(json!({"url": app.listen(url).await?})),
            "connect" => {
                let retry = given["retry"].as_f64().map_or(Duration::MAX, Duration::from_secs_f64);
                return Ok(json!({"peer": app.connect_with(url, ConnectOptions::new().retry(retry)).await?.id()}));
            }
            "disconnect" => app.peer(text(given, "peer")).expect("it is linked").close().await,
            "close" => app.close().await,
            "handle" => {
                let (given, released) = (given.clone(), self.released.clone());
                let handler = app.handle(name, move |call| handle(call, given.clone(), released.clone()))?;
                self.handlers.lock().unwrap().insert(name.into(), handler);
            }
            "unhandle" => self.handlers.lock().unwrap().remove(name).expect("it is handled").remove(),
            "release" => self.released.notify_waiters(),
            "on" => drop(app.on(name, |call| async move { tell("heard", seen(&call, "on")) })?),
            "subscribe" => drop(app.subscribe(pattern, |call| async move { tell("heard", seen(&call, "subscribe")) })?),
            "observe" => drop(app.observe(pattern, |_, msg| async move { tell("heard", seen(&msg, "observe")) })?),
            "send" => return Ok(json!({"id": how!(app.send(name, payload(given)?), given).await?})),
            "publish" => return Ok(json!({"id": how!(app.publish(name, payload(given)?), given).await?})),
            "broadcast" => return Ok(json!({"id": how!(app.broadcast(name, payload(given)?), given).await?})),
            "request" => return Ok(said(&how!(app.request(name, payload(given)?), given).await?, json!({}))),
            "request_many" => {
                let mut replies = how!(app.request_many(name, payload(given)?), given);
                while let Some(msg) = replies.next().await? {
                    let error = msg.error().cloned().map(Error::Request);
                    command.more(said(&msg, json!({"from": msg.from()})), error.as_ref());
                }
                return Ok(json!({"lost": replies.lost()}));
            }
            "state.get" => return Ok(json!(state.get(name).await?)),
            "state.set" => {
                let set = given["expected"].as_u64().map(|seen| state.set_expecting(name, &given["value"], seen));
                return Ok(json!(if let Some(set) = set {
                    set.await
                } else {
                    state.set(name, &given["value"]).await
                }?));
            }
            "state.watch" => {
                let names = given["names"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let mut changes = state.watch(&names.collect::<Vec<_>>());
                loop {
                    command.more(json!(changes.next().await?), None);
                }
            }
            "trace" => return app.trace(text(given, "id")).await,
            "why" => return app.why(text(given, "key"), exchange).await,
            "peers" => return Ok(app.request("exchange.peers", ()).await?.value().clone()),
            other => panic!("there is no verb {other}"),
        }
        Ok(Value::Null)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let client = Arc::new(Client::default());
    drive(|command| client.clone().run(command)).await;
    let app = client.app.lock().unwrap().clone();
    if let Some(app) = app {
        app.close().await;
    }
}
