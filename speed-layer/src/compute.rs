//! The computing side: reading micro-batches, and states and merges of one view, without touching the board.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::RecordBatch;
use futures::FutureExt;
use watershed_shared::delta::DeltaRun;
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::offsets::{Cut, OffsetRange, OffsetVector};
use watershed_shared::record::DecodedBatch;

use crate::micro_batch::{Discontinuity, MicroBatch, Part, split};
use crate::segment::{joined_coverage, new_run};
use crate::source::{EventReader, SourceError};
use crate::states::StateMaker;

/// Why reading has to start again from the position.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Discontinuity(#[from] Discontinuity),
}

/// How large a micro-batch grows while the log is ahead. It takes what is there, and waits for nothing but its first
/// batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

/// Reads the next micro-batch behind `position`; it may be empty, when what came was redelivered or lies past `until`.
///
/// `each` sees what is added. Cancel safe only at the first batch: what was read before an error is still returned, the
/// error with it.
pub(crate) async fn read(
    reader: &mut dyn EventReader,
    position: OffsetVector,
    until: Option<&OffsetVector>,
    limits: Limits,
    mut each: impl FnMut(&DecodedBatch, OffsetRange),
) -> (MicroBatch, Option<ReadError>) {
    let mut micro = MicroBatch::at(position);
    let mut next = reader.next().await;
    loop {
        match next.map_err(ReadError::from).and_then(|b| {
            let added = micro.push(&b, until)?;
            Ok((b, added))
        }) {
            Ok((batch, Some(range))) => each(&batch, range),
            Ok((_, None)) => {}
            Err(error) => return (micro, Some(error)),
        }
        if micro.rows >= limits.rows || micro.bytes >= limits.bytes {
            return (micro, None);
        }
        match reader.next().now_or_never() {
            Some(more) => next = more,
            None => return (micro, None),
        }
    }
}

/// Runs `work` on a thread of its own: what takes long must not keep a thread from what is at the end of the log.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl Future<Output = Result<T, String>> + Send + 'static,
) -> Result<T, String> {
    let runtime = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || runtime.block_on(work)).await;
    done.unwrap_or_else(|error| Err(format!("it was not done: {error}")))
}

/// The runs of `parts`, above `from`, split at `boundaries`.
///
/// # Errors
/// Why the view's SQL could not be run.
pub(crate) async fn runs(
    maker: &dyn StateMaker,
    parts: &[Part],
    from: &OffsetVector,
    boundaries: &[Cut],
) -> Result<Vec<Arc<DeltaRun>>, String> {
    let mut runs = Vec::new();
    for piece in split(parts, from, boundaries) {
        let (states, errors) = if piece.events.is_empty() {
            (RecordBatch::new_empty(maker.state_schema()), vec![])
        } else {
            guarded(async { maker.states(&piece.events).await.map_err(|e| e.to_string()) }).await?
        };
        check_schema(maker, &states)?;
        runs.push(new_run(piece.coverage, states, errors));
    }
    Ok(runs)
}

/// One run of `inputs`, whose coverages follow each other; made [`apart`].
///
/// # Errors
/// Why they could not be merged.
pub(crate) async fn merge(maker: Arc<dyn StateMaker>, inputs: Vec<Arc<DeltaRun>>) -> Result<Arc<DeltaRun>, String> {
    apart(async move { merge_here(maker.as_ref(), &inputs).await }).await
}

async fn merge_here(maker: &dyn StateMaker, inputs: &[Arc<DeltaRun>]) -> Result<Arc<DeltaRun>, String> {
    let coverage =
        joined_coverage(inputs.iter().map(|r| &r.coverage)).ok_or("the runs to be merged do not follow each other")?;
    let mut states: Vec<RecordBatch> =
        inputs.iter().filter(|r| r.states.num_rows() > 0).map(|r| r.states.clone()).collect();
    if mutant::is(Mutant::MergedTwice) {
        states.extend(states.first().cloned());
    }
    let merged = match states.len() {
        0 => RecordBatch::new_empty(maker.state_schema()),
        1 => states[0].clone(),
        _ => guarded(async { maker.merge(&states).await.map_err(|e| e.to_string()) }).await?,
    };
    check_schema(maker, &merged)?;
    let mut errors: Vec<_> = inputs.iter().flat_map(|r| r.errors.iter().cloned()).collect();
    errors.sort_by_key(|e| (e.partition, e.offset));
    Ok(new_run(coverage, merged, errors))
}

fn check_schema(maker: &dyn StateMaker, states: &RecordBatch) -> Result<(), String> {
    let expected = maker.state_schema();
    if states.schema().fields() == expected.fields() {
        return Ok(());
    }
    Err(format!("states come in another schema than the view's. expected=`{expected}`, got=`{}`", states.schema()))
}

/// A panic of the engine is an error of the view that it happened in, and of no other.
async fn guarded<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    AssertUnwindSafe(future).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("the engine panicked: {}", text.unwrap_or("no message")))
    })
}
