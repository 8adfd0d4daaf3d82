//! Links to an exchange, and says hello to it.

use exchange_grpc::{Exchange, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let url = std::env::var("EXCHANGE_URL").unwrap_or_else(|_| "grpc://127.0.0.1:50051".into());
    let me = Exchange::new("")?;
    let peer = me.connect(&url).await?;
    me.send("echo", "hello").await?;
    println!("hello from {}", peer.id());
    me.close().await;
    Ok(())
}
