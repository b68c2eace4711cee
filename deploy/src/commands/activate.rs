//! `watershed activate VIEW GENERATION`.

use clap::Args;
use serde_json::json;

use crate::cli::OutputFormat;
use crate::client::Client;
use crate::failure::Outcome;
use crate::table::Json;

#[derive(Debug, Args)]
pub(crate) struct ActivateArgs {
    view: String,
    /// The generation's number.
    generation: u64,
    /// Wait until it is active; exit status 1 unless it becomes so.
    #[arg(long)]
    wait: bool,
}

pub(crate) async fn run(args: &ActivateArgs, client: &Client, format: OutputFormat) -> Outcome {
    let generation = args.generation.to_string();
    let path = ["v1", "views", &args.view, "generations", &generation, "activate"];
    let answer = client.post(&path, &json!({})).await?;
    super::rebuild::follow(&answer, args.wait, client, format).await?;
    if args.wait {
        say_if_paused(&args.view, client).await;
    }
    Ok(())
}

/// A return to another definition pauses the schedules, which would leave it again.
async fn say_if_paused(view: &str, client: &Client) {
    let Ok(Ok(views)) = client.get(&["v1", "views"], &[]).await.map(|answer| answer.json()) else { return };
    let views = views.get("views").and_then(Json::list).unwrap_or_default();
    let is_it = |item: &&Json| item.get("name").and_then(Json::text) == Some(view);
    if views.iter().find(is_it).is_some_and(|view| view.get("paused") == Some(&Json::Boolean(true))) {
        eprintln!(
            "the schedules of {view} are paused; PUT /v1/views/{view}/schedule {{\"paused\": false}} resumes them"
        );
    }
}
