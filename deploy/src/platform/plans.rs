//! What the speed layer is to keep, as the views' registers say it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;
use watershed_shared::catalog::ViewState;
use watershed_shared::definitions::Definitions;
use watershed_shared::names::DefinitionHash;
use watershed_shared::offsets::Cut;
use watershed_shared::{clock, task};
use watershed_speed_layer::ViewPlan;

use super::stages::Stage;
use super::view::View;

/// Before a definition that could not be loaded is tried again: its tables may lie in a storage that is away.
const LOAD_AGAIN: Duration = Duration::from_secs(5);

/// What the speed layer is to keep of one view.
#[derive(Debug, Default)]
struct Plans {
    plans: Vec<ViewPlan>,
    /// Definitions that cannot be kept up, and why.
    missing: BTreeMap<DefinitionHash, String>,
}

/// What the speed layer is to keep of all views of `stream`, as their registers move on.
pub(super) async fn follow_plans(
    stream: &str,
    views: &BTreeMap<String, View>,
    definitions: &Definitions,
    stage: &mut Stage,
) -> watch::Receiver<Arc<Vec<ViewPlan>>> {
    let of_stream = views.iter().filter(|(_, v)| v.stream == stream);
    let mut states: BTreeMap<String, _> = of_stream.map(|(name, v)| (name.clone(), v.state.clone())).collect();
    let definitions = definitions.clone();
    let mut known = BTreeMap::new();
    for (name, state) in &mut states {
        let current = Arc::clone(&state.borrow_and_update());
        known.insert(name.clone(), plans_of(name, &current, &definitions, &BTreeMap::new()).await);
    }
    let all = |known: &BTreeMap<String, Plans>| Arc::new(known.values().flat_map(|k| k.plans.clone()).collect());
    let (sender, receiver) = watch::channel(all(&known));
    let stop = stage.stop.clone();
    stage.tasks.push(task::spawn("follow plans", async move {
        while !states.is_empty() {
            let changes = states.iter_mut().map(|(name, state)| {
                Box::pin(async move {
                    let gone = state.changed().await.is_err();
                    (name.clone(), gone)
                })
            });
            let missing: Vec<String> =
                known.iter().filter(|(_, k)| !k.missing.is_empty()).map(|(name, _)| name.clone()).collect();
            let (due, mut moved) = tokio::select! {
                () = stop.cancelled() => return,
                ((name, gone), _, _) = futures::future::select_all(changes) => match gone {
                    true => return,
                    false => (vec![name], true),
                },
                () = clock::sleep(LOAD_AGAIN), if !missing.is_empty() => (missing, false),
            };
            for name in due {
                let state = Arc::clone(&states.get_mut(&name).expect("a view that is followed").borrow_and_update());
                let said = known.remove(&name).unwrap_or_default().missing;
                let Some(plans) = stop.run_until_cancelled(plans_of(&name, &state, &definitions, &said)).await else {
                    return;
                };
                moved |= plans.missing.len() != said.len();
                known.insert(name, plans);
            }
            if moved {
                sender.send_replace(all(&known));
            }
        }
    }));
    receiver
}

/// What the speed layer is to keep of `state`: every definition that answers, answered, or is being built. `said`: what
/// was missing before.
async fn plans_of(
    name: &str,
    state: &ViewState,
    definitions: &Definitions,
    said: &BTreeMap<DefinitionHash, String>,
) -> Plans {
    let mut all = Plans::default();
    for hash in state.needed_definitions() {
        let Some(definition) = state.definitions.get(&hash) else { continue };
        let boundaries = state.boundaries(&hash);
        let from = boundaries.iter().cloned().reduce(|a, b| a.meet(&b)).unwrap_or_else(Cut::new);
        match definitions.get(definition).await {
            Ok(compiled) => {
                all.plans.push(ViewPlan { name: name.to_owned(), definition: hash, compiled, boundaries, from });
            }
            Err(error) => {
                let error = error.to_string();
                // Once, not at each attempt.
                if said.get(&hash) != Some(&error) {
                    warn!(view = name, definition = %hash, error, "a recorded definition cannot be kept up, and is tried again");
                }
                all.missing.insert(hash, error);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use tokio_util::sync::CancellationToken;
    use watershed_shared::catalog::ViewEvent;
    use watershed_shared::config::Config;
    use watershed_shared::register::Register;
    use watershed_shared::storage::Storage;
    use watershed_shared::tables;

    use super::*;

    const CONFIG: &str = r#"
[stream.clicks]
columns = "page BIGINT"
[table.names]
url = "file:///names.csv"
[view.per_name]
sql = "SELECT name, count(*) AS n FROM clicks JOIN names ON page = id GROUP BY name"
"#;

    #[tokio::test]
    async fn a_definition_whose_table_cannot_be_read_is_kept_once_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("names.csv");
        std::fs::write(&file, "id,name\n1,one\n").unwrap();
        let url = format!("file://{}", file.display());
        let config = CONFIG.replace("file:///names.csv", &url);
        let config = Config::parse(&config, Path::new("/tmp"), &|_: &str| None).unwrap();
        let storage = Storage::open(&format!("file://{}/", folder.path().display()).parse().unwrap()).unwrap();
        let table = tables::read(&config.tables["names"]).await.unwrap();
        let recorded = Definitions::new(storage.clone(), config.streams.clone());
        let view = &config.views["per_name"];
        let (definition, _) = recorded.configured(view, &[("names".to_owned(), table.clone())].into()).unwrap();
        let event = ViewEvent::Defined { definition: Box::new(definition) };
        let (_sender, state) = watch::channel(Arc::new(ViewState::default().apply(&event).unwrap()));
        let register = Register::<ViewState>::open(&storage, "views", "per_name");
        let view = View { config: view.clone(), stream: "clicks".to_owned(), reads: BTreeSet::new(), register, state };
        let views = [("per_name".to_owned(), view)].into();

        // Another process has recorded it, and the copy of its table is not to be had now.
        let definitions = Definitions::new(storage.clone(), config.streams.clone());
        let mut stage = Stage { stop: CancellationToken::new(), tasks: Vec::new() };
        let mut plans = follow_plans("clicks", &views, &definitions, &mut stage).await;
        assert_eq!(plans.borrow().len(), 0);
        tables::store(&storage, &table).await.unwrap();
        let kept = plans.wait_for(|plans| plans.len() == 1);
        tokio::time::timeout(Duration::from_secs(120), kept).await.expect("it is tried again").unwrap();
        stage.stop.cancel();
        for task in stage.tasks {
            task.await.unwrap();
        }
    }
}
