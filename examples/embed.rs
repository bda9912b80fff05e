//! A service that embeds the agent in three lines; `curl localhost:9469/metrics` while it runs.

use axum::Router;
use axum::routing::get;
use headroom::agent::Agent;

headroom::profiled_jemalloc!();

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let agent = Agent::builder().service("embed").start()?;
    let app = Router::new().route("/", get(|| async { "hello" })).layer(agent.http_layer());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
    axum::serve(listener, app).await?;
    Ok(())
}
