//! What a build does, decided from the register's head alone.

use serde::Serialize;
use watershed_shared::catalog::{BuildMode, Definition, Generation, Rejected, ViewState};
use watershed_shared::names::{DefinitionHash, GenerationId};
use watershed_shared::offsets::{Cut, OffsetVector};
use watershed_shared::run::RunMeta;

/// What a build starts from.
#[derive(Debug, Clone)]
pub struct BuildPlan {
    pub mode: BuildMode,
    pub definition: Definition,
    pub base: Option<GenerationId>,
    pub base_cut: Cut,
    pub base_runs: Vec<RunMeta>,
}

/// What a build would do.
#[derive(Debug, Clone, Serialize)]
pub struct DryRun {
    pub mode: BuildMode,
    pub definition: DefinitionHash,
    pub base: Option<GenerationId>,
    pub base_cut: Cut,
    /// Where the cut would stand.
    pub cut: Cut,
    /// What is archived; the build waits until this has reached the cut.
    pub archived_until: OffsetVector,
    /// Offsets between base and cut: an upper bound of the events to read.
    pub offsets_to_read: u64,
}

/// Chooses definition and base.
///
/// | mode | definition | base |
/// |---|---|---|
/// | rebuild | the configured one | none |
/// | refresh | the configured one | its newest generation; none: it is a rebuild |
/// | activate | that of the generation asked for | that generation |
///
/// # Errors
/// When the generation to activate, or any definition, is missing.
pub(super) fn plan(head: &ViewState, mode: BuildMode, base: Option<GenerationId>) -> Result<BuildPlan, Rejected> {
    let configured = || {
        let hash = head.configured.clone().unwrap_or_else(|| DefinitionHash::new(""));
        head.definitions.get(&hash).cloned().ok_or(Rejected::UnknownDefinition(hash))
    };
    let (definition, base): (Definition, Option<&Generation>) = match mode {
        BuildMode::Rebuild => (configured()?, None),
        BuildMode::Refresh => {
            let definition = configured()?;
            let base = head.newest_generation(&definition.hash);
            (definition, base)
        }
        BuildMode::Activate => {
            let id = base.unwrap_or_default();
            let base = head.generation(id).ok_or(Rejected::UnknownGeneration(id))?;
            let definition = head.definitions.get(&base.definition).cloned();
            (definition.ok_or_else(|| Rejected::UnknownDefinition(base.definition.clone()))?, Some(base))
        }
    };
    let mode = if mode == BuildMode::Refresh && base.is_none() { BuildMode::Rebuild } else { mode };
    Ok(BuildPlan {
        mode,
        definition,
        base: base.map(|g| g.id),
        base_cut: base.map(|g| g.cut.clone()).unwrap_or_default(),
        base_runs: base.map(|g| g.runs.clone()).unwrap_or_default(),
    })
}

impl BuildPlan {
    /// `from`: the base's cut, with the origins of the partitions that it does not name.
    pub(super) fn dry_run(&self, from: &Cut, cut: Cut, archived_until: &OffsetVector) -> DryRun {
        DryRun {
            mode: self.mode,
            definition: self.definition.hash.clone(),
            base: self.base,
            base_cut: self.base_cut.clone(),
            offsets_to_read: offsets_between(from, &cut),
            cut,
            archived_until: archived_until.clone(),
        }
    }
}

/// How many offsets lie in `[from, until)`; a partition absent from `from` counts from 0.
pub(super) fn offsets_between(from: &Cut, until: &Cut) -> u64 {
    until.iter().map(|(p, end)| (end.0 - from.get(p).map_or(0, |o| o.0)).max(0) as u64).sum()
}

/// How many of the newest runs, the new one included, to merge into one, so that their number stays logarithmic: as
/// long as the sum of what comes behind is at least half of the run before it, that run joins. 1: nothing to merge.
pub(super) fn runs_to_merge(rows: &[u64]) -> usize {
    let Some(newest) = rows.last() else { return 0 };
    let mut sum = *newest;
    let mut count = 1;
    for size in rows.iter().rev().skip(1) {
        if sum.saturating_mul(2) < *size {
            break;
        }
        sum += size;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_refresh_leaves_the_large_run_alone() {
        assert_eq!(runs_to_merge(&[1_000_000, 10_000]), 1);
        assert_eq!(runs_to_merge(&[1_000_000, 10_000, 9_000]), 2);
        assert_eq!(runs_to_merge(&[10, 10, 10]), 3);
        assert_eq!(runs_to_merge(&[]), 0);
    }

    #[test]
    fn the_number_of_runs_stays_logarithmic() {
        let mut runs: Vec<u64> = Vec::new();
        let mut rewritten = 0;
        for _ in 0..10_000 {
            runs.push(1);
            let merged = runs_to_merge(&runs);
            if merged > 1 {
                let sum = runs.drain(runs.len() - merged..).sum();
                rewritten += sum;
                runs.push(sum);
            }
            assert!(runs.len() <= 15, "{runs:?}");
        }
        assert!(rewritten < 10_000 * 16, "each group is rewritten a logarithmic number of times: {rewritten}");
    }

    #[test]
    fn offsets_between_counts_partitions_that_the_base_lacks() {
        assert_eq!(offsets_between(&[(0, 5)].into(), &[(0, 7), (1, 3)].into()), 5);
    }
}
