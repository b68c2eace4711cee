//! A view's register: definitions, claims of builds, publications, activations, in one sequence.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Rejected;
use crate::builds::Trigger;
use crate::config::Late;
use crate::mutant::{self, Mutant};
use crate::names::{BuildId, DefinitionHash, GenerationId};
use crate::offsets::Cut;
use crate::run::RunMeta;

/// All that is needed to compile a definition again, in any process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    pub hash: DefinitionHash,
    pub stream: String,
    pub sql: String,
    pub late: Late,
    pub retain: Option<Duration>,
    pub materialize: bool,
    /// The dimension tables that its SQL names, with the content hash under which their copy lies in the storage.
    pub tables: BTreeMap<String, String>,
    pub appended_at: DateTime<Utc>,
}

/// One published build of a view. Immutable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    pub id: GenerationId,
    pub definition: DefinitionHash,
    /// Every event below it is counted, none at or past it is.
    pub cut: Cut,
    /// Their coverages follow each other without hole or overlap up to `cut`. Those of a row view that does
    /// not store its rows have no rows, only the events that fail; there are none if no event can.
    pub runs: Vec<RunMeta>,
    pub build: BuildId,
    pub mode: BuildMode,
    pub base: Option<GenerationId>,
    /// Version of the master dataset that the build read.
    pub delta_version: u64,
    /// Events that this build read.
    pub events: u64,
    /// How many losses the stream's register named then: it may lack those events, so who serves it has to know as many.
    #[serde(default)]
    pub losses: usize,
    pub published_at: DateTime<Utc>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildMode {
    /// From the whole master dataset.
    Rebuild,
    /// One more run on top of the base.
    Refresh,
    /// A refresh whose base is an older generation: it makes its definition the active one.
    Activate,
}

/// A claim: a build that is under way. Its cut is open until it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub id: BuildId,
    pub mode: BuildMode,
    pub definition: DefinitionHash,
    pub base: Option<GenerationId>,
    pub cut: Cut,
    /// The process that runs it.
    pub holder: String,
    pub claimed_at: DateTime<Utc>,
}

/// A build that was asked for through the storage, until a process claims it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub id: BuildId,
    pub mode: BuildMode,
    /// Of an activation: the generation to return to.
    pub base: Option<GenerationId>,
    pub requested_at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Trigger::is_manual")]
    pub trigger: Trigger,
    /// The process that has taken it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
}

/// How a build ended without publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildOutcome {
    Failed,
    Cancelled,
    Interrupted,
    Skipped,
}

/// What a record of a view's register decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ViewEvent {
    /// The first definition is active at once with generation 0; a later one is built in the shadow.
    Defined {
        definition: Box<Definition>,
    },
    Claimed {
        build: Box<Build>,
    },
    /// Ends the claim and makes the generation the active one of its definition. If the definition is the configured
    /// one, or the claim was an activation, it becomes the view's active definition in the same step.
    Published {
        generation: Box<Generation>,
    },
    /// Asks whichever process builds for a build. One of a view at a time.
    Requested {
        request: Request,
    },
    /// A process takes a requested build on.
    Taken {
        build: BuildId,
        holder: String,
    },
    /// Ends a claim, or a request, without a generation. Whoever held it can't publish any more.
    Ended {
        build: BuildId,
        outcome: BuildOutcome,
    },
    Paused {
        paused: bool,
    },
    /// These generations are no longer listed; their files may be collected a grace time later.
    Retired {
        generations: Vec<GenerationId>,
    },
}

/// What a view's register says, after its head.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewState {
    pub definitions: BTreeMap<DefinitionHash, Definition>,
    /// Definitions that stood above until their last generation was retired: they are still not new, and return only to
    /// who asks for them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub forgotten: BTreeSet<DefinitionHash>,
    /// The definition appended last: the one that the configuration asks for.
    pub configured: Option<DefinitionHash>,
    /// The one that answers.
    pub active: Option<DefinitionHash>,
    /// Its generation; 0 before the first.
    pub generation: GenerationId,
    /// What answered before the active pair; its delta is kept until it is replaced.
    pub previous: Option<(DefinitionHash, GenerationId)>,
    /// In the order of publication.
    pub generations: Vec<Generation>,
    /// One build at a time per definition.
    pub builds: BTreeMap<DefinitionHash, Build>,
    /// Asked for and not yet claimed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<Request>,
    pub paused: bool,
    /// The greatest number ever given.
    pub last_generation: GenerationId,
}

impl ViewState {
    /// The state after `event`.
    ///
    /// # Errors
    /// Why the event does not apply; the state has then moved on since the event was decided.
    pub fn apply(&self, event: &ViewEvent) -> Result<Self, Rejected> {
        let mut next = self.clone();
        match event {
            ViewEvent::Defined { definition } => {
                let hash = definition.hash.clone();
                next.forgotten.remove(&hash);
                next.definitions.insert(hash.clone(), (**definition).clone());
                next.configured = Some(hash.clone());
                if next.active.is_none() {
                    next.active = Some(hash);
                }
            }
            ViewEvent::Claimed { build } => {
                if !self.definitions.contains_key(&build.definition) {
                    return Err(Rejected::UnknownDefinition(build.definition.clone()));
                }
                if let Some(running) = self.builds.get(&build.definition) {
                    return Err(Rejected::AlreadyRunning(running.id.clone()));
                }
                if let Some(base) = build.base {
                    let base = self.generation(base).ok_or(Rejected::UnknownGeneration(base))?;
                    if !build.cut.covers(&base.cut) {
                        return Err(Rejected::CutBelowBase { cut: build.cut.clone(), base: base.cut.clone() });
                    }
                }
                if let Some(request) = self.requests.iter().find(|r| r.id == build.id)
                    && request.holder.as_ref() != Some(&build.holder)
                {
                    return Err(Rejected::ClaimLost(build.id.clone()));
                }
                next.requests.retain(|r| r.id != build.id);
                next.builds.insert(build.definition.clone(), (**build).clone());
            }
            ViewEvent::Published { generation } => {
                let build = self
                    .builds
                    .get(&generation.definition)
                    .filter(|b| b.id == generation.build && b.cut == generation.cut && b.base == generation.base)
                    .ok_or_else(|| Rejected::ClaimLost(generation.build.clone()))?;
                if let Some(base) = build.base
                    && self.generation(base).is_none()
                {
                    return Err(Rejected::UnknownGeneration(base));
                }
                if generation.id != self.next_generation() {
                    return Err(Rejected::ClaimLost(generation.build.clone()));
                }
                let activates = build.mode == BuildMode::Activate
                    || self.configured.as_ref() == Some(&generation.definition)
                    || self.active.as_ref() == Some(&generation.definition);
                next.builds.remove(&generation.definition);
                next.last_generation = generation.id;
                next.generations.push((**generation).clone());
                if activates {
                    next.previous = self.active.clone().map(|d| (d, self.generation));
                    next.active = Some(generation.definition.clone());
                    next.generation = generation.id;
                    if build.mode == BuildMode::Activate {
                        next.configured = Some(generation.definition.clone());
                        next.paused = self.paused || self.active.as_ref() != Some(&generation.definition);
                        // SUBTLE: builds of other definitions started from a head that this record replaces.
                        next.builds.clear();
                    }
                }
            }
            ViewEvent::Requested { request } => {
                let running = self.builds.values().map(|b| &b.id).chain(self.requests.iter().map(|r| &r.id)).next();
                if let Some(running) = running {
                    return Err(Rejected::AlreadyRunning(running.clone()));
                }
                if let Some(base) = request.base.filter(|base| self.generation(*base).is_none()) {
                    return Err(Rejected::UnknownGeneration(base));
                }
                next.requests.push(request.clone());
            }
            ViewEvent::Taken { build, holder } => {
                let request = next.requests.iter_mut().find(|r| r.id == *build && r.holder.is_none());
                request.ok_or_else(|| Rejected::ClaimLost(build.clone()))?.holder = Some(holder.clone());
            }
            ViewEvent::Ended { build, .. } => {
                if !self.is_open(build) {
                    return Err(Rejected::ClaimLost(build.clone()));
                }
                next.builds.retain(|_, b| b.id != *build);
                next.requests.retain(|r| r.id != *build);
            }
            ViewEvent::Paused { paused } => next.paused = *paused,
            ViewEvent::Retired { generations } => {
                for id in generations {
                    if self.needed_generations().contains(id) {
                        return Err(Rejected::InUse(*id));
                    }
                }
                next.generations.retain(|g| !generations.contains(&g.id));
                let kept = next.needed_definitions();
                let listed: Vec<_> = next.generations.iter().map(|g| g.definition.clone()).collect();
                let (kept, forgotten): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut next.definitions)
                    .into_iter()
                    .partition(|(hash, _)| kept.contains(hash) || listed.contains(hash));
                next.definitions = kept;
                next.forgotten.extend(forgotten.into_keys());
            }
        }
        Ok(next)
    }

    /// Whether the definition was ever appended.
    pub fn knows(&self, definition: &DefinitionHash) -> bool {
        self.definitions.contains_key(definition) || self.forgotten.contains(definition)
    }

    /// Whether the definition was replaced by the one that is configured now: it does not come back by itself, or two
    /// processes with different configurations would take turns.
    pub fn is_superseded(&self, definition: &DefinitionHash) -> bool {
        self.knows(definition) && self.configured.as_ref() != Some(definition)
    }

    /// Whether the build is asked for or claimed, and has not ended.
    pub fn is_open(&self, build: &BuildId) -> bool {
        self.builds.values().any(|b| b.id == *build) || self.requests.iter().any(|r| r.id == *build)
    }

    pub fn generation(&self, id: GenerationId) -> Option<&Generation> {
        self.generations.iter().find(|g| g.id == id)
    }

    /// The generation that answers; `None` before the first: then the answer is the delta from the origin.
    pub fn active_generation(&self) -> Option<&Generation> {
        self.generation(self.generation)
    }

    /// The newest generation of `definition`: the base of its next refresh.
    pub fn newest_generation(&self, definition: &DefinitionHash) -> Option<&Generation> {
        let own = self.active.as_ref() == Some(definition) || mutant::is(Mutant::OtherDefinition);
        if own && self.active_generation().is_some() {
            return self.active_generation();
        }
        self.generations.iter().rev().find(|g| g.definition == *definition)
    }

    /// The number that the next publication takes.
    pub fn next_generation(&self) -> GenerationId {
        GenerationId(self.last_generation.0 + 1)
    }

    /// Generations that answer, answered before, or that a build starts from.
    pub fn needed_generations(&self) -> Vec<GenerationId> {
        let mut needed = vec![self.generation];
        needed.extend(self.previous.as_ref().map(|(_, g)| *g));
        needed.extend(self.builds.values().filter_map(|b| b.base));
        needed
    }

    /// Definitions whose delta workers keep: the active, the previous, the configured, those with an open cut.
    pub fn needed_definitions(&self) -> Vec<DefinitionHash> {
        let mut needed: Vec<_> = self.active.iter().chain(&self.configured).cloned().collect();
        needed.extend(self.previous.as_ref().map(|(d, _)| d.clone()));
        needed.extend(self.builds.keys().cloned());
        needed.sort();
        needed.dedup();
        needed
    }

    /// The cuts of `definition` whose boundaries merges may not cross: active, previous, open, and the bases of open
    /// builds. `None` in the list is the origin.
    pub fn boundaries(&self, definition: &DefinitionHash) -> Vec<Cut> {
        let mut cuts = Vec::new();
        let mut add = |id: GenerationId| {
            cuts.push(self.generation(id).map(|g| g.cut.clone()).unwrap_or_default());
        };
        if self.active.as_ref() == Some(definition) {
            add(self.generation);
        }
        if let Some((previous, id)) = &self.previous
            && previous == definition
        {
            add(*id);
        }
        if let Some(build) = self.builds.get(definition) {
            cuts.push(build.cut.clone());
            if let Some(base) = build.base {
                cuts.push(self.generation(base).map(|g| g.cut.clone()).unwrap_or_default());
            }
        }
        if cuts.is_empty() {
            // A definition in the shadow without a build: its newest generation if it has one, else its origin.
            cuts.push(self.newest_generation(definition).map(|g| g.cut.clone()).unwrap_or_default());
        }
        cuts.sort_by_key(|c| c.iter().collect::<Vec<_>>());
        cuts.dedup();
        cuts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(events: &[ViewEvent]) -> Result<ViewState, Rejected> {
        events.iter().try_fold(ViewState::default(), |state, event| state.apply(event))
    }

    fn defined() -> ViewEvent {
        defined_as("d")
    }

    fn defined_as(hash: &str) -> ViewEvent {
        let definition = Definition {
            hash: DefinitionHash::new(hash),
            stream: "s".to_owned(),
            sql: String::new(),
            late: Late::Include,
            retain: None,
            materialize: false,
            tables: BTreeMap::new(),
            appended_at: DateTime::UNIX_EPOCH,
        };
        ViewEvent::Defined { definition: Box::new(definition) }
    }

    fn requested(id: &str) -> ViewEvent {
        let (id, mode) = (BuildId::new(id), BuildMode::Rebuild);
        let request = Request {
            id,
            mode,
            base: None,
            requested_at: DateTime::UNIX_EPOCH,
            trigger: Trigger::Manual,
            holder: None,
        };
        ViewEvent::Requested { request }
    }

    fn taken(id: &str, holder: &str) -> ViewEvent {
        ViewEvent::Taken { build: BuildId::new(id), holder: holder.to_owned() }
    }

    fn claimed(id: &str, holder: &str) -> ViewEvent {
        claimed_for("d", id, holder)
    }

    fn claimed_for(definition: &str, id: &str, holder: &str) -> ViewEvent {
        let build = Build {
            id: BuildId::new(id),
            mode: BuildMode::Rebuild,
            definition: DefinitionHash::new(definition),
            base: None,
            cut: Cut::new(),
            holder: holder.to_owned(),
            claimed_at: DateTime::UNIX_EPOCH,
        };
        ViewEvent::Claimed { build: Box::new(build) }
    }

    /// A build of `definition` publishes generation `id`.
    fn built(definition: &str, id: u64) -> [ViewEvent; 2] {
        let build = id.to_string();
        let generation = Generation {
            id: GenerationId(id),
            definition: DefinitionHash::new(definition),
            cut: Cut::new(),
            runs: Vec::new(),
            build: BuildId::new(&*build),
            mode: BuildMode::Rebuild,
            base: None,
            delta_version: 0,
            events: 0,
            losses: 0,
            published_at: DateTime::UNIX_EPOCH,
        };
        [claimed_for(definition, &build, "a"), ViewEvent::Published { generation: Box::new(generation) }]
    }

    fn retired(generations: &[u64]) -> ViewEvent {
        ViewEvent::Retired { generations: generations.iter().copied().map(GenerationId).collect() }
    }

    fn ended(id: &str) -> ViewEvent {
        ViewEvent::Ended { build: BuildId::new(id), outcome: BuildOutcome::Cancelled }
    }

    #[test]
    fn of_those_who_take_a_request_on_one_claims_it() {
        let lost = Err(Rejected::ClaimLost(BuildId::new("1")));
        assert_eq!(state(&[defined(), requested("1"), taken("1", "a"), taken("1", "b")]), lost);
        assert_eq!(state(&[defined(), requested("1"), taken("1", "a"), claimed("1", "b")]), lost);
        assert_eq!(state(&[defined(), requested("1"), claimed("1", "a")]), lost, "it was not taken on");
        let claimed = state(&[defined(), requested("1"), taken("1", "a"), claimed("1", "a")]).unwrap();
        assert!(claimed.requests.is_empty() && claimed.is_open(&BuildId::new("1")));
    }

    #[test]
    fn a_view_has_one_request_or_build_and_whoever_ends_it_has_the_last_word() {
        let running = Err(Rejected::AlreadyRunning(BuildId::new("1")));
        assert_eq!(state(&[defined(), requested("1"), requested("2")]), running);
        assert_eq!(state(&[defined(), claimed("1", "a"), requested("2")]), running);
        let lost = Err(Rejected::ClaimLost(BuildId::new("1")));
        assert_eq!(state(&[defined(), requested("1"), ended("1"), taken("1", "a")]), lost);
        assert_eq!(state(&[defined(), claimed("1", "a"), ended("1"), ended("1")]), lost);
        assert!(state(&[defined(), requested("1"), ended("1"), requested("2")]).is_ok());
    }

    #[test]
    fn a_superseded_definition_is_known_after_its_last_generation_was_retired() {
        let (a, b) = (DefinitionHash::new("a"), DefinitionHash::new("b"));
        let first = [defined_as("a")].into_iter().chain(built("a", 1)).chain([defined_as("b")]);
        let events: Vec<_> = first.chain(built("b", 2)).chain(built("b", 3)).chain([retired(&[1])]).collect();
        let state = state(&events).unwrap();
        assert_eq!(state.definitions.keys().collect::<Vec<_>>(), [&b], "nobody needs the other");
        assert!(state.is_superseded(&a) && !state.is_superseded(&b) && !state.knows(&DefinitionHash::new("c")));

        // To who asks for it, it comes back, and is then as any other.
        let back = state.apply(&defined_as("a")).unwrap();
        assert!(!back.is_superseded(&a) && back.is_superseded(&b));
        assert!(back.definitions.contains_key(&a) && back.forgotten.is_empty());
    }

    #[test]
    fn a_state_recorded_before_definitions_were_remembered_is_read() {
        let state = state(&[defined()]).unwrap();
        let json = serde_json::to_value(&state).unwrap();
        assert!(json.get("forgotten").is_none(), "written as before while there is none: {json}");
        assert_eq!(serde_json::from_value::<ViewState>(json).unwrap(), state);
    }
}
