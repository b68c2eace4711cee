//! What the speed layer is to keep, as the views' registers say it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::warn;
use watershed_shared::catalog::ViewState;
use watershed_shared::definitions::Definitions;
use watershed_shared::offsets::Cut;
use watershed_shared::task;
use watershed_speed_layer::ViewPlan;

use super::stages::Stage;
use super::view::View;

/// What the speed layer is to keep of all views of `stream`, as their registers move on.
pub(super) async fn follow_plans(
    stream: &str,
    views: &BTreeMap<String, View>,
    definitions: &Definitions,
    stage: &mut Stage,
) -> watch::Receiver<Arc<Vec<ViewPlan>>> {
    let of_stream = views.iter().filter(|(_, v)| v.stream == stream);
    let mut states: Vec<_> = of_stream.map(|(name, v)| (name.clone(), v.state.clone())).collect();
    let definitions = definitions.clone();
    let mut known = BTreeMap::new();
    for (name, state) in &mut states {
        let current = Arc::clone(&state.borrow_and_update());
        known.insert(name.clone(), plans_of(name, &current, &definitions).await);
    }
    let (sender, receiver) = watch::channel(Arc::new(known.values().flatten().cloned().collect::<Vec<_>>()));
    let stop = stage.stop.clone();
    stage.tasks.push(task::spawn("follow plans", async move {
        while !states.is_empty() {
            let changes = states.iter_mut().map(|(name, state)| {
                Box::pin(async move {
                    let gone = state.changed().await.is_err();
                    (name.clone(), Arc::clone(&state.borrow_and_update()), gone)
                })
            });
            let changed = stop.run_until_cancelled(futures::future::select_all(changes)).await;
            let Some(((name, state, gone), _, _)) = changed else { return };
            if gone {
                return;
            }
            let plans = plans_of(&name, &state, &definitions).await;
            known.insert(name, plans);
            sender.send_replace(Arc::new(known.values().flatten().cloned().collect()));
        }
    }));
    receiver
}

/// What the speed layer is to keep of `state`: every definition that answers, answered, or is being built.
async fn plans_of(name: &str, state: &ViewState, definitions: &Definitions) -> Vec<ViewPlan> {
    let mut plans = Vec::new();
    for hash in state.needed_definitions() {
        let Some(definition) = state.definitions.get(&hash) else { continue };
        let boundaries = state.boundaries(&hash);
        let from = boundaries.iter().cloned().reduce(|a, b| a.meet(&b)).unwrap_or_else(Cut::new);
        match definitions.get(definition).await {
            Ok(compiled) => {
                plans.push(ViewPlan { name: name.to_owned(), definition: hash, compiled, boundaries, from });
            }
            Err(error) => warn!(view = name, definition = %hash, %error, "a recorded definition cannot be kept up"),
        }
    }
    plans
}
