//! A view's register: its configured definition stands there, and it is followed.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use tokio::sync::watch;
use tracing::warn;
use watershed_shared::catalog::{Definition, Rejected, ViewEvent, ViewState};
use watershed_shared::config::{Config, ViewConfig};
use watershed_shared::definitions::Definitions;
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::names::DefinitionHash;
use watershed_shared::register::Register;
use watershed_shared::storage::Storage;
use watershed_shared::view::CompiledView;

use super::register::follow;
use super::stages::Stage;
use super::tables::Tables;
use crate::commands::up::Role;

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

/// What becomes of a definition that its view's register knows as superseded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Superseded {
    /// Nothing, or two processes with different configurations would take turns.
    StaysAway,
    /// Somebody asked for it: it is built as a new one is.
    Returns,
}

/// What the register made of the configured definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It was the configured one before.
    Unchanged,
    /// It is from now on.
    Recorded,
    /// It is not: another one has replaced it earlier.
    Superseded,
}

/// A view as it is configured. Nothing of that is recorded yet: what keeps the process from starting leaves no trace.
#[derive(Debug)]
pub(super) struct Configured {
    config: ViewConfig,
    register: Register<ViewState>,
    definition: Definition,
    compiled: Arc<CompiledView>,
}

impl Configured {
    /// Opens the view's register and compiles the configured definition.
    pub(super) async fn compile(
        storage: &Storage,
        definitions: &Definitions,
        config: &ViewConfig,
        tables: &mut Tables<'_>,
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
        Ok(Self { config: config.clone(), register, definition, compiled })
    }

    /// Appends the definition to the view's register unless it ever stood there.
    async fn define(&self, superseded: Superseded) -> Result<Outcome> {
        let mut outcome = Outcome::Unchanged;
        let hash = &self.definition.hash;
        self.register
            .update(|state: &ViewState| {
                outcome = match (state.knows(hash), state.is_superseded(hash)) {
                    (false, _) => Outcome::Recorded,
                    (true, false) => Outcome::Unchanged,
                    (true, true) if superseded == Superseded::Returns => Outcome::Recorded,
                    (true, true) => Outcome::Superseded,
                };
                let event = ViewEvent::Defined { definition: Box::new(self.definition.clone()) };
                Ok::<_, Rejected>((outcome == Outcome::Recorded).then_some(event))
            })
            .await
            .with_context(|| format!("record the definition of view `{}`", self.config.name))?;
        Ok(outcome)
    }

    /// Appends the definition to the view's register unless it ever stood there, and follows that.
    pub(super) async fn follow(self, stage: &mut Stage) -> Result<View> {
        let superseded = match mutant::is(Mutant::DefinitionReturns) {
            true => Superseded::Returns,
            false => Superseded::StaysAway,
        };
        let outcome = self.define(superseded).await?;
        let Self { config, register, compiled, .. } = self;
        let name = &config.name;
        if outcome == Outcome::Superseded {
            warn!(
                view = %name,
                definition = %compiled.definition(),
                "the configured definition was superseded earlier and does not come back by itself: activate one of its \
                 generations, or `watershed reload --apply {name}`"
            );
        }
        let state = follow(&register, stage).await.with_context(|| format!("follow view `{name}`"))?;
        let (stream, reads) = (compiled.stream().to_owned(), compiled.tables());
        Ok(View { config, stream, reads, register, state })
    }
}

/// Records the definition of `view` as it is configured, for the processes that run.
///
/// # Errors
/// What is wrong with the view or its tables; what cannot be read or written.
pub(crate) async fn reload(
    config: &Config,
    view: &ViewConfig,
    superseded: Superseded,
) -> Result<(DefinitionHash, Outcome)> {
    let storage = Storage::open(&config.storage_url).context("open the storage")?;
    let definitions = Definitions::new(storage.clone(), config.streams.clone());
    let mut tables = Tables::open(config, &storage, Role::Batch).await?;
    let configured = Configured::compile(&storage, &definitions, view, &mut tables).await?;
    let outcome = configured.define(superseded).await?;
    Ok((configured.definition.hash, outcome))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio_util::sync::CancellationToken;
    use watershed_shared::catalog::{Build, BuildMode, Generation};
    use watershed_shared::clock;
    use watershed_shared::names::{BuildId, GenerationId};
    use watershed_shared::offsets::Cut;

    use super::*;

    /// A configuration whose view counts, or sums.
    fn config(dir: &Path, call: &str) -> Config {
        let text = format!(
            "data_dir = \"data\"\n[stream.s]\ncolumns = \"x BIGINT\"\n\
             [view.v]\nsql = \"SELECT {call} AS n FROM s\"\n"
        );
        Config::parse(&text, dir, &|_: &str| None).unwrap()
    }

    /// A process with this configuration starts; answers what the register says then.
    async fn start(config: &Config, role: Role) -> ViewState {
        let storage = Storage::open(&config.storage_url).unwrap();
        let definitions = Definitions::new(storage.clone(), config.streams.clone());
        let mut stage = Stage { stop: CancellationToken::new(), tasks: Vec::new() };
        let mut tables = Tables::open(config, &storage, role).await.unwrap();
        let view = &config.views["v"];
        let configured = Configured::compile(&storage, &definitions, view, &mut tables).await.unwrap();
        configured.follow(&mut stage).await.unwrap();
        stage.stop.cancel();
        state(config).await
    }

    async fn state(config: &Config) -> ViewState {
        let storage = Storage::open(&config.storage_url).unwrap();
        Register::<ViewState>::open(&storage, VIEWS, "v").state().await.unwrap()
    }

    /// Builds the configured definition `times` times, and retires all that nobody needs.
    async fn build(config: &Config, times: u64) {
        let storage = Storage::open(&config.storage_url).unwrap();
        let register = Register::<ViewState>::open(&storage, VIEWS, "v");
        for _ in 0..times {
            let state = register.state().await.unwrap();
            let (id, definition) = (BuildId::unique(), state.configured.clone().unwrap());
            let build = Build {
                id: id.clone(),
                mode: BuildMode::Rebuild,
                definition: definition.clone(),
                base: None,
                cut: Cut::new(),
                holder: "me".to_owned(),
                claimed_at: clock::now(),
            };
            let generation = Generation {
                id: GenerationId(state.last_generation.0 + 1),
                definition,
                cut: Cut::new(),
                runs: Vec::new(),
                build: id,
                mode: BuildMode::Rebuild,
                base: None,
                delta_version: 0,
                events: 0,
                losses: 0,
                published_at: clock::now(),
            };
            let published = ViewEvent::Published { generation: Box::new(generation) };
            for event in [ViewEvent::Claimed { build: Box::new(build) }, published] {
                register.update(|_| Ok::<_, Rejected>(Some(event.clone()))).await.unwrap();
            }
        }
        let retire = |state: &ViewState| {
            let needed = state.needed_generations();
            let old = state.generations.iter().map(|g| g.id).filter(|id| !needed.contains(id)).collect();
            Ok::<_, Rejected>(Some(ViewEvent::Retired { generations: old }))
        };
        register.update(retire).await.unwrap();
    }

    #[tokio::test]
    async fn a_superseded_definition_comes_back_only_if_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (config(dir.path(), "count(*)"), config(dir.path(), "sum(x)"));
        let a = start(&first, Role::All).await.configured.unwrap();
        build(&first, 2).await;
        let b = start(&second, Role::All).await.configured.unwrap();
        build(&second, 3).await;
        assert!(!state(&second).await.definitions.contains_key(&a), "its generations are gone, and so is it");

        for role in [Role::Serving, Role::Speed, Role::Batch, Role::All] {
            let state = start(&first, role).await;
            assert_eq!((state.configured.as_ref(), state.definitions.contains_key(&a)), (Some(&b), false), "{role}");
        }
        let again = reload(&first, &first.views["v"], Superseded::StaysAway).await.unwrap();
        assert_eq!(again, (a.clone(), Outcome::Superseded));
        assert_eq!(state(&first).await.configured.as_ref(), Some(&b));
        let asked = reload(&first, &first.views["v"], Superseded::Returns).await.unwrap();
        assert_eq!(asked, (a.clone(), Outcome::Recorded));
        assert_eq!(start(&second, Role::All).await.configured.as_ref(), Some(&a), "now the other one is superseded");
        let known = reload(&first, &first.views["v"], Superseded::StaysAway).await.unwrap();
        assert_eq!(known, (a, Outcome::Unchanged));
    }
}
