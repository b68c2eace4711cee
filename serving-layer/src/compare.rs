//! Comparing answers: `verify` with a recount from the master dataset, `diff` of two generations.

mod side_by_side;

use std::sync::Arc;
use std::time::Duration;

use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use serde::Serialize;
use serde_json::Value;
use watershed_shared::clock;
use watershed_shared::master::MasterSnapshot;
use watershed_shared::names::GenerationId;
use watershed_shared::offsets::{OffsetVector, Position};
use watershed_shared::view::{ErrorSink, Kind};

use self::side_by_side::Compared;
use crate::ask::view_failure;
use crate::engine::{Failure, Rows, gone};
use crate::error::{Code, Error, Result};
use crate::front::ViewAnswer;
use crate::merged::MergedStates;
use crate::serving::Serving;
use crate::sql::{Named, Query};

/// How long until the master dataset is looked at again.
const ARCHIVE_POLL: Duration = Duration::from_millis(100);

/// What `verify` answers.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    pub view: String,
    /// At which both sides were counted.
    pub position: Position,
    pub equal: bool,
    /// Rows of the recount.
    pub groups: usize,
    pub differences: Vec<Difference>,
    pub difference_count: usize,
    /// Events on which the SQL failed: as served, and as recounted.
    pub errors: (u64, u64),
}

/// What `diff` answers.
#[derive(Debug, Clone, Serialize)]
pub struct Diff {
    pub view: String,
    pub a: Side,
    pub b: Side,
    pub equal: bool,
    pub groups: usize,
    pub differences: Vec<Difference>,
    pub difference_count: usize,
}

/// One side of a [`Diff`].
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    pub generation: GenerationId,
    pub definition: watershed_shared::names::DefinitionHash,
    /// At which it was compared.
    pub position: Position,
}

/// One row that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    pub key: Value,
    /// As served, or of the first generation; null: there is none.
    pub left: Value,
    /// As recounted, or of the second generation; null: there is none.
    pub right: Value,
}

impl Serving {
    /// Recounts a view from the master dataset up to the position that is served now, and compares.
    ///
    /// # Errors
    /// `timeout` when the archiver does not reach the position in time.
    pub async fn verify(&self, view: &str, deadline: clock::Instant) -> Result<Verified> {
        let stream = self.view(view)?.stream.clone();
        let answer = self.at_one_position(&stream, &[view], None, deadline).await?.remove(0);
        let snapshot = self.archived(&stream, &answer.position, &answer.origins, deadline).await?;
        let served = self.view_table(&answer).await.map_err(answered)?;
        let (states, sink) = recounted(&snapshot, &answer, &answer.origins, &answer.position)?;
        let states = MergedStates::new(answer.compiled.state_schema(), vec![states]);
        let truth = self.view_over(&answer, Arc::new(states)).await.map_err(answered)?;
        let compared = self.compared(&answer, [served, truth], deadline).await?;
        let recounted_errors = match answer.compiled.kind() {
            Kind::Aggregate => sink.take().len() as u64,
            // What stands above the rows (LIMIT) may have ended before all were read.
            Kind::Rows => self.failing(&snapshot, &answer, deadline).await?,
        };
        Ok(Verified {
            view: view.to_owned(),
            position: answer.position.clone(),
            equal: compared.difference_count == 0 && answer.errors() == recounted_errors,
            groups: compared.right_rows,
            differences: compared.differences,
            difference_count: compared.difference_count,
            errors: (answer.errors(), recounted_errors),
        })
    }

    /// How many events below the answer's position the SQL fails on, counted anew.
    async fn failing(&self, snapshot: &MasterSnapshot, answer: &ViewAnswer, deadline: clock::Instant) -> Result<u64> {
        let (rows, sink) = recounted(snapshot, answer, &answer.origins, &answer.position)?;
        self.rows("recounted", rows, "SELECT count(*) FROM recounted", deadline).await?;
        Ok(sink.take().len() as u64)
    }

    /// Compares two generations at the higher cut (the side behind is brought there), or each as it was stored.
    ///
    /// # Errors
    /// `unknown_generation`; `timeout`.
    pub async fn diff(
        &self,
        view: &str,
        a: GenerationId,
        b: GenerationId,
        as_stored: bool,
        deadline: clock::Instant,
    ) -> Result<Diff> {
        let (left, right) = (self.generation(view, a).await?, self.generation(view, b).await?);
        if left.compiled.output_schema() != right.compiled.output_schema() {
            let message = format!("generations {a} and {b} of view `{view}` have other columns and cannot be compared");
            return Err(Error::new(Code::BadRequest, message));
        }
        let higher = left.cut.join(&right.cut);
        let mut tables = Vec::new();
        let mut sides = Vec::new();
        for answer in [&left, &right] {
            let position = if as_stored { answer.cut.clone() } else { higher.clone() };
            let at = ViewAnswer { position: position.clone(), ..answer.as_ref().clone() };
            let table = if position == answer.cut {
                self.view_table(answer).await
            } else {
                let snapshot = self.archived(&answer.stream, &position, &answer.origins, deadline).await?;
                let from = if answer.reads_master() { &answer.origins } else { &answer.cut };
                let (missing, _) = recounted(&snapshot, answer, from, &position)?;
                let mut parts: Vec<Arc<dyn TableProvider>> = answer.generation_states().into_iter().collect();
                parts.push(missing);
                self.view_over(&at, Arc::new(MergedStates::new(answer.compiled.state_schema(), parts))).await
            };
            tables.push(table.map_err(answered)?);
            sides.push(Side {
                generation: answer.generation_id(),
                definition: answer.compiled.definition().clone(),
                position,
            });
        }
        let tables = tables.try_into().expect("two sides");
        let compared = self.compared(&left, tables, deadline).await?;
        let (b, a) = (sides.pop().expect("two sides"), sides.pop().expect("two sides"));
        Ok(Diff {
            view: view.to_owned(),
            a,
            b,
            equal: compared.difference_count == 0,
            groups: compared.right_rows,
            differences: compared.differences,
            difference_count: compared.difference_count,
        })
    }

    /// A snapshot of the master dataset that has reached `position`.
    pub(crate) async fn archived(
        &self,
        stream: &str,
        position: &Position,
        origins: &OffsetVector,
        deadline: clock::Instant,
    ) -> Result<MasterSnapshot> {
        loop {
            let snapshot = self.stream(stream)?.master.snapshot().await.map_err(Error::read)?;
            let archived = origins.join(snapshot.archived_until());
            if archived.covers(position) {
                return Ok(snapshot);
            }
            if clock::Instant::now() >= deadline {
                let message = format!("stream `{stream}` is archived up to {archived}, not yet up to {position}");
                return Err(Error::new(Code::Timeout, message).at(archived));
            }
            clock::sleep(ARCHIVE_POLL).await;
        }
    }

    /// Compares the rows of two tables of the answer's view, in one turn among the queries and on their threads.
    async fn compared(
        &self,
        answer: &ViewAnswer,
        tables: [Arc<dyn TableProvider>; 2],
        deadline: clock::Instant,
    ) -> Result<Compared> {
        let engine = &self.inner.engine;
        let (state, compiled) = (engine.session(Vec::new()), Arc::clone(&answer.compiled));
        let work = async {
            let turn = engine.turn().await?;
            let comparing = engine.on_threads("compare", async move {
                let _turn = turn;
                let keys: Vec<&str> = compiled.key_columns().iter().map(|(name, _)| name.as_str()).collect();
                side_by_side::compare(&state, tables, &keys, compiled.sketched_columns()).await
            });
            comparing.await.map_err(answered)
        };
        tokio::time::timeout_at(deadline, work).await.map_err(|_| late())?
    }

    /// What `sql` gives over the one table `name`, in its turn among the queries.
    async fn rows(
        &self,
        name: &str,
        table: Arc<dyn TableProvider>,
        sql: &str,
        deadline: clock::Instant,
    ) -> Result<Rows> {
        let engine = &self.inner.engine;
        let state = engine.session(vec![(Named::Plain(name.to_owned()), table)]);
        let plan = Query::parse(sql)?.plan(&state).await?;
        let rows = async {
            let turn = engine.turn().await?;
            engine.collect(turn, state, plan).await.map_err(answered)
        };
        tokio::time::timeout_at(deadline, rows).await.map_err(|_| late())?
    }
}

fn late() -> Error {
    Error::new(Code::Timeout, "the comparison took longer than its timeout_ms")
}

fn answered(failure: Failure) -> Error {
    match failure {
        Failure::Answer(error) => error,
        Failure::FileGone(error) => gone(&error),
    }
}

/// The states of the events in `[from, until)`, read anew.
fn recounted(
    snapshot: &MasterSnapshot,
    answer: &ViewAnswer,
    from: &OffsetVector,
    until: &OffsetVector,
) -> Result<(Arc<dyn TableProvider>, ErrorSink)> {
    let events = snapshot.scan(Some(from), until).map_err(Error::internal)?;
    let planned = answer.compiled.rows_plan(events).map_err(view_failure);
    let (plan, sink) = planned.map_err(|failure| match failure {
        Failure::Answer(error) => error,
        Failure::FileGone(error) => gone(&error),
    })?;
    Ok((Arc::new(ViewTable::new(plan, None)), sink))
}
