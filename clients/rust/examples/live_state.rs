//! Watches a value of another exchange, and sets it.

use exchange_grpc::{Exchange, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let url = std::env::var("EXCHANGE_URL").unwrap_or_else(|_| "grpc://127.0.0.1:50051".into());
    let me = Exchange::new("")?;
    let state = me.connect(&url).await?.state();
    let mut changes = state.watch(&["goal"]);
    let mut change = changes.next().await?;
    while change.snapshot {
        state.set("goal", if change.value == 50 { 100 } else { 50 }).await?;
        change = changes.next().await?;
    }
    println!("goal: {}", change.value);
    drop(changes);
    me.close().await;
    Ok(())
}
