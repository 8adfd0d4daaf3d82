//! The Rust program of benchmarks.languages; program.py says what it is told and what it says.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use exchange_grpc::Exchange;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin};

const AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(20);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Clone, Deserialize, Serialize)]
struct Order {
    order: u32,
    customer: String,
    items: Vec<u32>,
    paid: bool,
    note: String,
}

fn value() -> Order {
    Order { order: 4711, customer: "c-20230513".into(), items: vec![3, 1, 4, 1, 5], paid: true, note: "x".repeat(22) }
}

#[derive(Deserialize)]
struct Wanted {
    load: String,
    seconds: f64,
}

fn say(what: &Value) {
    println!("{what}");
}

async fn until_the_end() -> Result<()> {
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// One side of a benchmark: how to send, to ask, and to hear how many were taken.
#[derive(Clone)]
enum Client {
    Exchange(Exchange),
    Nats(async_nats::Client),
}

impl Client {
    async fn send(&self, value: &Order) -> Result<()> {
        match self {
            Self::Exchange(app) => {
                app.send("bench.take", value).await?;
            }
            Self::Nats(client) => client.publish("bench.take", serde_json::to_vec(value)?.into()).await?,
        }
        Ok(())
    }

    async fn ask(&self, value: &Order) -> Result<()> {
        match self {
            Self::Exchange(app) => {
                let _: Order = app.request("bench.echo", value).await?.json()?;
            }
            Self::Nats(client) => {
                let answer = client.request("bench.echo", serde_json::to_vec(value)?.into()).await?;
                let _: Order = serde_json::from_slice(&answer.payload)?;
            }
        }
        Ok(())
    }

    async fn count(&self) -> Result<u64> {
        Ok(match self {
            Self::Exchange(app) => app.request("bench.count", ()).await?.json()?,
            Self::Nats(client) => serde_json::from_slice(&client.request("bench.count", "null".into()).await?.payload)?,
        })
    }

    async fn measure(&self, load: &str, last: Duration) -> Result<f64> {
        match load {
            "one way" => self.one_way(last).await,
            "at once" => self.at_once(last).await,
            _ => self.p50(last).await,
        }
    }

    async fn one_way(&self, last: Duration) -> Result<f64> {
        let (before, value) = (self.count().await?, value());
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < last {
            self.send(&value).await?;
            sent += 1;
        }
        while self.count().await? < before + sent {
            if start.elapsed() > last + PATIENCE {
                return Err("not all have arrived".into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(sent as f64 / start.elapsed().as_secs_f64())
    }

    async fn at_once(&self, last: Duration) -> Result<f64> {
        let (start, answered) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..AT_ONCE {
            let (client, answered, value) = (self.clone(), answered.clone(), value());
            tasks.spawn(async move {
                while start.elapsed() < last {
                    client.ask(&value).await?;
                    answered.fetch_add(1, Relaxed);
                }
                Result::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(answered.load(Relaxed) as f64 / start.elapsed().as_secs_f64())
    }

    async fn p50(&self, last: Duration) -> Result<f64> {
        let (start, value, mut took) = (Instant::now(), value(), Vec::new());
        while start.elapsed() < last {
            let begin = Instant::now();
            self.ask(&value).await?;
            took.push(begin.elapsed());
        }
        took.sort();
        Ok(took[took.len() / 2].as_secs_f64() * 1e6)
    }

    async fn obey(self) -> Result<()> {
        say(&Value::Null);
        let mut lines = BufReader::new(stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            let wanted: Wanted = serde_json::from_str(&line)?;
            match self.measure(&wanted.load, Duration::from_secs_f64(wanted.seconds)).await {
                Ok(figure) => say(&json!({ "figure": figure })),
                Err(error) => say(&json!({ "error": error.to_string() })),
            }
        }
        Ok(())
    }
}

async fn exchange_sink(url: &str) -> Result<()> {
    let (app, taken) = (Exchange::new("sink")?, Arc::new(AtomicU64::new(0)));
    let takes = taken.clone();
    app.handle("bench.take", move |_| {
        takes.fetch_add(1, Relaxed);
        async { Ok(()) }
    })?;
    app.handle("bench.count", move |_| {
        let taken = taken.load(Relaxed);
        async move { Ok(taken) }
    })?;
    app.handle("bench.echo", |call| async move { Ok(json!(call.json::<Order>()?)) })?;
    if url.ends_with(":0") {
        say(&json!(app.listen(url).await?));
    } else {
        app.connect(url).await?;
        say(&Value::Null);
    }
    until_the_end().await?;
    app.close().await;
    Ok(())
}

async fn exchange_source(url: &str) -> Result<()> {
    let app = Exchange::new("source")?;
    app.connect(url).await?;
    Client::Exchange(app.clone()).obey().await?;
    app.close().await;
    Ok(())
}

async fn nats_sink(url: &str) -> Result<()> {
    // By default what waits for a subscriber is bounded, and the rest is dropped.
    let client = async_nats::ConnectOptions::new().subscription_capacity(1 << 24).connect(url).await?;
    let mut takes = client.subscribe("bench.take").await?;
    let mut counts = client.subscribe("bench.count").await?;
    let mut echoes = client.subscribe("bench.echo").await?;
    client.flush().await?;
    say(&Value::Null);
    let taken = Arc::new(AtomicU64::new(0));
    let (counted, answering, counting) = (taken.clone(), client.clone(), client.clone());
    tokio::spawn(async move {
        while takes.next().await.is_some() {
            taken.fetch_add(1, Relaxed);
        }
    });
    tokio::spawn(async move {
        while let Some(message) = counts.next().await {
            let answer = counted.load(Relaxed).to_string();
            counting.publish(message.reply.expect("a request"), answer.into()).await.expect("a connection");
        }
    });
    tokio::spawn(async move {
        while let Some(message) = echoes.next().await {
            let asked: Order = serde_json::from_slice(&message.payload).expect("an order");
            let answer = serde_json::to_vec(&asked).expect("JSON");
            answering.publish(message.reply.expect("a request"), answer.into()).await.expect("a connection");
        }
    });
    until_the_end().await
}

async fn nats_source(url: &str) -> Result<()> {
    Client::Nats(async_nats::connect(url).await?).obey().await
}

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let url = args[2].as_str();
    match (args[0].as_str(), args[1].as_str()) {
        ("exchange", "sink") => exchange_sink(url).await,
        ("exchange", _) => exchange_source(url).await,
        ("nats", "sink") => nats_sink(url).await,
        _ => nats_source(url).await,
    }
}
