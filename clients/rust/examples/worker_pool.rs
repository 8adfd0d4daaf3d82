//! Two workers share a name behind one hub: the requests of a third exchange are balanced over them.

use std::collections::BTreeMap;

use exchange_grpc::{Exchange, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let url = std::env::var("EXCHANGE_URL").unwrap_or_else(|_| "grpc://127.0.0.1:50051".into());
    let mut workers = Vec::new();
    for name in ["worker-1", "worker-2"] {
        let worker = Exchange::new("")?;
        worker.handle("pool.work", move |_| async move { Ok(name) })?;
        worker.connect(&url).await?;
        workers.push(worker);
    }
    let boss = Exchange::new("")?;
    boss.connect(&url).await?;
    let mut done: BTreeMap<String, u32> = BTreeMap::new();
    for number in 1..=10 {
        let by: String = boss.request("pool.work", number).await?.json()?;
        *done.entry(by).or_default() += 1;
    }
    for (worker, count) in done {
        println!("{worker}: {count}");
    }
    for exchange in workers.into_iter().chain([boss]) {
        exchange.close().await;
    }
    Ok(())
}
