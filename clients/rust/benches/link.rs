//! How fast one link is: sends a second, requests one after another, and requests side by side.
//!
//! `cargo bench`, between two exchanges of this process over loopback; with `EXCHANGE_URL`, to the `echo` of that one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use exchange_grpc::{Exchange, Result};

const SENDS: u64 = 500_000;
const REQUESTS: usize = 5_000;
const SIDE_BY_SIDE: usize = 64;

#[tokio::main]
async fn main() -> Result<()> {
    let taken = Arc::new(AtomicU64::new(0));
    let there = Exchange::new("there")?;
    let count = taken.clone();
    there.handle("take", move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }
    })?;
    there.handle("echo", |call| async move { Ok(call.payload().clone()) })?;
    let here = Exchange::new(format!("bench-{}", std::process::id()))?;
    let url = std::env::var("EXCHANGE_URL").ok();
    let peer = match &url {
        Some(url) => here.connect(url).await?,
        None => here.connect(&there.listen("grpc://127.0.0.1:0").await?).await?,
    };
    if url.is_none() {
        let began = Instant::now();
        for _ in 0..SENDS {
            peer.send("take", "0123456789").await?;
        }
        while taken.load(Ordering::Relaxed) < SENDS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        println!("{:.0} sends a second", SENDS as f64 / began.elapsed().as_secs_f64());
    }

    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let began = Instant::now();
        peer.request("echo", "0123456789").await?;
        times.push(began.elapsed());
    }
    times.sort();
    println!("{:?} for a request (median), {:?} (99 of 100)", times[REQUESTS / 2], times[REQUESTS * 99 / 100]);

    let began = Instant::now();
    let tasks = (0..SIDE_BY_SIDE).map(|_| {
        let peer = peer.clone();
        tokio::spawn(async move {
            for _ in 0..REQUESTS / 10 {
                peer.request("echo", "0123456789").await?;
            }
            Ok::<_, exchange_grpc::Error>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("it does not panic")?;
    }
    let all = (SIDE_BY_SIDE * REQUESTS / 10) as f64;
    println!("{:.0} requests a second, {SIDE_BY_SIDE} side by side", all / began.elapsed().as_secs_f64());
    here.close().await;
    there.close().await;
    Ok(())
}
