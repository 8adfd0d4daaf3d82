//! Watches a value of another exchange, sets it, and prints each change.

use exchange_grpc::{Exchange, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let url = std::env::var("EXCHANGE_URL").unwrap_or_else(|_| "grpc://127.0.0.1:50051".into());
    let me = Exchange::new(format!("watcher-{}", std::process::id()))?;
    let state = me.connect(&url).await?.state();
    let mut changes = state.watch(&["goal"]);
    let now = changes.next().await?; // as it is; then comes every change
    let wanted = if now.value == 50 { 60 } else { 50 };
    state.set("goal", wanted).await?;
    println!("goal: {}", changes.next().await?.value);
    drop(changes);
    me.close().await;
    Ok(())
}
