//! Asks, and prints how the answer came about: one line for each message.

use exchange_grpc::{Exchange, Result};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let url = std::env::var("EXCHANGE_URL").unwrap_or_else(|_| "grpc://127.0.0.1:50051".into());
    let me = Exchange::new("")?;
    me.connect(&url).await?;
    let reply = me.request("compute.sum", json!({"a": 5, "b": 3})).await?;
    let trace = me.trace(reply.root()).await?;
    for span in trace["spans"].as_array().into_iter().flatten() {
        let hops: Vec<&str> =
            span["hops"].as_array().into_iter().flatten().filter_map(|hop| hop["exchange"].as_str()).collect();
        let way = hops.join(" -> ").replace(me.id(), "tracer");
        println!("{}: {way}", span["name"].as_str().unwrap_or_default());
    }
    assert_eq!(trace["missing"], Value::Array(vec![]));
    me.close().await;
    Ok(())
}
