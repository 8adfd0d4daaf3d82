//! Commands on stdin, answers and events on stdout: protobuf messages, each after its length.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use exchange_grpc::{Code, Delivered, Error, Result};
use exchange_proto::exchange::v1 as proto;
use exchange_proto::google::rpc::{ErrorInfo, Status};
use prost::Message as _;
use proto::message::Payload::Json;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, BufReader, Stdin};
use tokio::sync::Notify;

/// What is to be done.
pub struct Command {
    id: String,
    pub verb: String,
    pub given: Value,
}

impl Command {
    /// One of several answers.
    pub fn more(&self, value: Value, error: Option<&Error>) {
        write(proto::Kind::Reply, "", &self.id, &value, false, error.map(status));
    }
}

/// Something happened.
pub fn tell(event: &str, value: Value) {
    write(proto::Kind::Send, event, "", &value, false, None);
}

fn write(kind: proto::Kind, name: &str, reply_to: &str, value: &Value, last: bool, error: Option<Status>) {
    let (name, reply_to, payload) = (name.into(), reply_to.into(), Some(Json(value.to_string().into())));
    let said = proto::Message { kind: kind.into(), name, reply_to, last, payload, error, ..Default::default() };
    let mut out = std::io::stdout().lock();
    out.write_all(&said.encode_length_delimited_to_vec())
        .and_then(|()| out.flush())
        .expect("whoever drives this reads");
}

fn status(error: &Error) -> Status {
    let mut info = ErrorInfo { reason: error.reason().into(), domain: "exchange".into(), ..Default::default() };
    if let Some(error) = error.request() {
        info.metadata.insert("at".into(), error.at.clone());
        let delivered = if error.delivered == Delivered::No { "no" } else { "unknown" };
        info.metadata.extend((error.code == Code::Unavailable).then(|| ("delivered".into(), delivered.into())));
    }
    let type_url = "type.googleapis.com/google.rpc.ErrorInfo".into();
    let details = vec![prost_types::Any { type_url, value: info.encode_to_vec() }];
    Status { code: error.code() as i32, message: error.to_string(), details }
}

/// A text that was given, or an empty one.
pub fn text<'a>(given: &'a Value, key: &str) -> &'a str {
    given[key].as_str().unwrap_or_default()
}

/// Do what is asked, all of it side by side, until nothing more is.
pub async fn drive<F: Future<Output = Result<Value>> + 'static>(run: impl Fn(Command) -> F) {
    let mut running: HashMap<String, Arc<Notify>> = HashMap::new();
    let mut stdin = BufReader::new(tokio::io::stdin());
    let tasks = tokio::task::LocalSet::new();
    let reading = async {
        while let Some(command) = read(&mut stdin).await {
            if command.kind() == proto::Kind::Cancel {
                running.get(&command.reply_to).inspect(|withdrawn| withdrawn.notify_one());
                continue;
            }
            let withdrawn = running.entry(command.id.clone()).or_default().clone();
            let given = match &command.payload {
                Some(Json(given)) => serde_json::from_slice(given).expect("JSON"),
                _ => json!({}),
            };
            let done = run(Command { id: command.id.clone(), verb: command.name, given });
            tokio::task::spawn_local(obey(command.id, done, withdrawn));
        }
    };
    tasks.run_until(reading).await;
}

async fn obey(id: String, done: impl Future<Output = Result<Value>>, withdrawn: Arc<Notify>) {
    let reply = |value, error| write(proto::Kind::Reply, "", &id, &value, true, error);
    tokio::select! {
        done = done => match done {
            Ok(value) => reply(value, None),
            Err(error) => reply(Value::Null, Some(status(&error))),
        },
        () = withdrawn.notified() => {
            let status = Status { code: Code::Cancelled as i32, message: "it was withdrawn".into(), details: vec![] };
            reply(Value::Null, Some(status));
        }
    }
}

async fn read(stdin: &mut BufReader<Stdin>) -> Option<proto::Message> {
    let mut byte = stdin.read_u8().await.ok()?;
    let (mut size, mut shift) = (usize::from(byte & 127), 7);
    while byte > 127 {
        byte = stdin.read_u8().await.ok()?;
        size |= usize::from(byte & 127) << shift;
        shift += 7;
    }
    let mut data = vec![0; size];
    stdin.read_exact(&mut data).await.ok()?;
    proto::Message::decode(&*data).ok()
}
