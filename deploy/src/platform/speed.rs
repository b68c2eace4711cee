//! The process that has nothing but the speed layer: it owns shards, and serves their deltas.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use watershed_shared::delta::Peers;
use watershed_shared::task;
use watershed_speed_layer::DeltaServer;

use super::Parts;
use super::health::{Gauge, Health, bind, serve_health};
use super::shards::{advertised, start_shards};
use super::stages::Shutdown;
use super::stream::Stream;
use super::view::View;

/// Starts a process that keeps the deltas of the shards that it claims.
pub(super) async fn start(
    parts: &Parts<'_>,
    streams: BTreeMap<String, Stream>,
    views: BTreeMap<String, View>,
    shutdown: &mut Shutdown,
) -> Result<SocketAddr> {
    let speed = &parts.config.speed;
    let listener = bind(speed.listen, "speed").await?;
    let address = listener.local_addr()?;
    let advertised = advertised(speed, address)?;
    let peers = Peers::new(speed.token.clone())?;
    // Before the workers, so that it ends after them: they are asked until they end.
    let stage = shutdown.stage();
    let server = DeltaServer::new(speed.token.clone(), stage.stop.clone());
    let health = Arc::new(Speed { server: server.clone() });
    let http = serve_health(listener, health, Some(server.routes()), stage.stop.clone());
    stage.tasks.push(task::spawn("http", http));
    for stream in streams.into_values() {
        let me = (parts.holder.clone(), advertised.clone());
        start_shards(parts, stream, &views, &server, me, peers.clone(), shutdown).await?;
    }
    Ok(address)
}

#[derive(Debug)]
struct Speed {
    server: DeltaServer,
}

impl Health for Speed {
    fn ready(&self) -> Result<(), String> {
        let behind = self.server.offered().into_iter().filter(|(_, delta)| !delta.progress().joined);
        let behind: Vec<String> = behind
            .map(|((stream, shard), _)| format!("shard {shard} of stream `{stream}` is being replayed"))
            .collect();
        if behind.is_empty() { Ok(()) } else { Err(behind.join("; ")) }
    }

    fn status(&self) -> Value {
        let shards = self.server.offered().into_iter().map(|((stream, shard), delta)| {
            let progress = delta.progress();
            json!({
                "stream": stream,
                "shard": shard,
                "position": progress.position,
                "joined": progress.joined,
                "reasons": delta.reasons,
            })
        });
        json!({ "role": "speed", "shards": shards.collect::<Vec<_>>() })
    }

    fn gauges(&self) -> Vec<Gauge> {
        let mut positions = Vec::new();
        for ((stream, shard), delta) in self.server.offered() {
            for (partition, offset) in delta.position.iter() {
                let labels = format!("stream=\"{stream}\",shard=\"{shard}\",partition=\"{partition}\"");
                positions.push((labels, offset.0 as f64));
            }
        }
        let help = "The next offset that the deltas of this worker do not include.";
        vec![Gauge { name: "watershed_speed_position", help, values: positions }]
    }
}
