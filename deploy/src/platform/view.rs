//! A view's register: its configured definition stands there, and it is followed.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use tokio::sync::watch;
use tracing::warn;
use watershed_shared::catalog::{Rejected, ViewEvent, ViewState};
use watershed_shared::config::ViewConfig;
use watershed_shared::definitions::Definitions;
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::register::Register;
use watershed_shared::storage::Storage;

use super::register::follow;
use super::stages::Stage;
use super::tables::Tables;

/// The kind of register.
const VIEWS: &str = "views";

/// What a view's register says, as it moves on.
#[derive(Debug)]
pub(super) struct View {
    pub(super) config: ViewConfig,
    pub(super) stream: String,
    /// The dimension tables that it reads, as it is configured.
    pub(super) reads: BTreeSet<String>,
    pub(super) register: Register<ViewState>,
    pub(super) state: watch::Receiver<Arc<ViewState>>,
}

impl View {
    /// Opens the view's register, appends the configured definition unless it stands there, and follows it.
    pub(super) async fn open(
        storage: &Storage,
        definitions: &Definitions,
        config: &ViewConfig,
        tables: &mut Tables<'_>,
        stage: &mut Stage,
    ) -> Result<Self> {
        let name = &config.name;
        let register = Register::<ViewState>::open(storage, VIEWS, name);
        let state = register.state().await.with_context(|| format!("read the register of view `{name}`"))?;
        let (definition, compiled) = match tables.recorded(config, &state, definitions).await? {
            Some(found) => found,
            None => definitions.configured(config, &tables.of_view(config).await?).map_err(|e| {
                anyhow!("view `{name}`, line {} of its SQL: {e}; `watershed check` shows the place", e.line)
            })?,
        };
        let mut superseded = false;
        register
            .update(|state: &ViewState| {
                let known = state.definitions.contains_key(&definition.hash);
                superseded = known && state.configured.as_ref() != Some(&definition.hash);
                let event = ViewEvent::Defined { definition: Box::new(definition.clone()) };
                let appended = !known || superseded && mutant::is(Mutant::DefinitionReturns);
                Ok::<_, Rejected>(appended.then_some(event))
            })
            .await
            .with_context(|| format!("record the definition of view `{name}`"))?;
        if superseded {
            warn!(
                view = %name,
                definition = %definition.hash,
                "the configured definition was superseded earlier and does not come back by itself: activate one of its generations"
            );
        }
        let state = follow(&register, stage).await.with_context(|| format!("follow view `{name}`"))?;
        let reads = compiled.tables();
        Ok(Self { config: config.clone(), stream: definition.stream, reads, register, state })
    }
}
