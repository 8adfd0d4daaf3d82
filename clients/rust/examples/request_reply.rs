//! Asks whoever handles `compute.sum`.

use exchange_grpc::{Exchange, Result};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let url = std::env::var("EXCHANGE_URL").unwrap_or_else(|_| "grpc://127.0.0.1:50051".into());
    let me = Exchange::new("")?;
    me.connect(&url).await?;
    let sum = me.request("compute.sum", json!({"a": 5, "b": 3})).await?;
    println!("compute.sum: {}", sum.value());
    me.close().await;
    Ok(())
}
