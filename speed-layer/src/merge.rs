//! Which runs to merge, so that their number stays logarithmic.

use std::sync::Arc;

use watershed_shared::delta::DeltaRun;
use watershed_shared::offsets::{Cut, Side};

use crate::segment::joined_coverage;

/// Runs of one level that are merged together.
const FAN_IN: usize = 4;
/// Sizes of level 0; each level is [`FAN_IN`] times the one below.
const LEVEL_0_BYTES: usize = 16 * 1024;

/// The next runs to merge; `None`: nothing to do.
///
/// Only runs on the same side of each boundary merge, neighbours among those. Two rules, both amortized by levels of size:
/// a run takes in the smaller ones before it, so that levels fall towards the newest; and [`FAN_IN`] neighbours of one
/// level become one. With neither to be applied a side holds fewer than `FAN_IN` runs of each level.
pub(crate) fn pick(runs: &[Arc<DeltaRun>], boundaries: &[Cut], max_run_bytes: usize) -> Option<Vec<Arc<DeltaRun>>> {
    if runs.len() < 2 {
        return None;
    }
    let mut classes: Vec<(Vec<Side>, Vec<&Arc<DeltaRun>>)> = Vec::new();
    for run in runs {
        let sides: Vec<Side> = boundaries.iter().map(|b| run.coverage.side(b)).collect();
        if sides.contains(&Side::Straddles) {
            // It is being read again, and split.
            continue;
        }
        match classes.iter_mut().find(|(s, _)| *s == sides) {
            Some((_, members)) => members.push(run),
            None => classes.push((sides, vec![run])),
        }
    }
    classes.iter().find_map(|(_, members)| pick_window(members, max_run_bytes))
}

fn pick_window(runs: &[&Arc<DeltaRun>], max_run_bytes: usize) -> Option<Vec<Arc<DeltaRun>>> {
    // A full run neither grows nor stands between others.
    runs.split(|run| run.memory_bytes * 2 > max_run_bytes).find_map(|runs| {
        let levels: Vec<u32> = runs.iter().map(|run| level(run.memory_bytes)).collect();
        let window = smaller_before(&levels).or_else(|| equals(&levels))?;
        let mut total = 0;
        let chosen: Vec<Arc<DeltaRun>> = runs[window]
            .iter()
            .take_while(|run| {
                total += run.memory_bytes;
                total <= max_run_bytes
            })
            .map(|run| Arc::clone(run))
            .collect();
        let whole = |chosen: &[Arc<DeltaRun>]| joined_coverage(chosen.iter().map(|r| &r.coverage)).is_some();
        if chosen.len() > 1 && whole(&chosen) {
            return Some(chosen);
        }
        // SUBTLE: neighbours follow each other, unless a boundary that lay between them has dissolved: runs of its two
        // sides then stand in the order in which they came. All of them together have no hole.
        let all: Vec<Arc<DeltaRun>> = runs.iter().map(|run| Arc::clone(run)).collect();
        (all.len() >= 2 * FAN_IN && whole(&all)).then_some(all)
    })
}

/// A run of a higher level than the one before it, with all smaller ones right before it.
fn smaller_before(levels: &[u32]) -> Option<std::ops::Range<usize>> {
    let last = (1..levels.len()).find(|i| levels[*i] > levels[*i - 1])?;
    let first = (0..last).rev().take_while(|i| levels[*i] < levels[last]).last()?;
    Some(first..last + 1)
}

/// [`FAN_IN`] or more neighbours of one level; the smallest level first.
fn equals(levels: &[u32]) -> Option<std::ops::Range<usize>> {
    let mut end = levels.len();
    while end > 0 {
        let start = (0..end).rev().take_while(|i| levels[*i] == levels[end - 1]).last()?;
        if end - start >= FAN_IN {
            return Some(start..end);
        }
        end = start;
    }
    None
}

fn level(bytes: usize) -> u32 {
    (bytes / LEVEL_0_BYTES).checked_ilog(FAN_IN).map_or(0, |l| l + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_fall_towards_the_newest() {
        assert_eq!(smaller_before(&[3, 1, 0, 2, 0]), Some(1..4));
        assert_eq!(smaller_before(&[2, 2, 1, 0]), None);
        assert_eq!(smaller_before(&[0, 1]), Some(0..2));
        assert_eq!(equals(&[2, 1, 1, 1, 1, 0, 0]), Some(1..5));
        assert_eq!(equals(&[2, 1, 1, 1, 0, 0, 0]), None);
        assert_eq!(equals(&[0, 0, 0, 0, 0]), Some(0..5));
        assert_eq!(equals(&[]), None);
        assert_eq!(level(0), 0);
        assert_eq!(level(LEVEL_0_BYTES), 1);
        assert_eq!(level(LEVEL_0_BYTES * 4), 2);
    }
}
