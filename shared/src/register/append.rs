//! Appending: create head + 1, settle what became of it, prune.

use std::sync::Arc;

use uuid::Uuid;

use super::{Error, Known, Record, Register, RegisterState, record};
use crate::storage::CreateOutcome;
use crate::{abort_point, clock};

/// `kept_from` is raised by at least so many numbers at a time.
const PRUNE_STEP: u64 = 100;

/// What became of a conditional append.
#[derive(Debug, Clone)]
pub enum AppendOutcome<S: RegisterState> {
    /// The event is decided, and durable.
    Appended(Arc<Record<S>>),
    /// Another writer was first; the event is not in the register. Read the head and decide again.
    Lost,
}

#[derive(Debug, thiserror::Error)]
pub enum AppendError<R: std::error::Error + 'static> {
    /// The event does not apply to the head's state. Nothing was written.
    #[error(transparent)]
    Rejected(R),
    #[error(transparent)]
    Register(#[from] Error),
}

/// What [`Register::update`] did.
#[derive(Debug, Clone)]
pub enum Update<S: RegisterState> {
    /// The event is decided, and durable.
    Appended(Arc<Record<S>>),
    /// There was nothing to decide at this head.
    Unchanged(Option<Arc<Record<S>>>),
}

#[derive(Debug, thiserror::Error)]
pub enum UpdateError<R: std::error::Error + 'static, E> {
    /// The caller's own reason not to decide. Nothing was written.
    #[error("{0}")]
    Decision(E),
    /// The event does not apply to the very state that it was decided for. Nothing was written.
    #[error(transparent)]
    Rejected(R),
    #[error(transparent)]
    Register(#[from] Error),
}

impl<S: RegisterState> Update<S> {
    /// The record that was appended, else the head.
    pub fn record(&self) -> Option<&Arc<Record<S>>> {
        match self {
            Self::Appended(record) => Some(record),
            Self::Unchanged(head) => head.as_ref(),
        }
    }
}

impl<S: RegisterState> Register<S> {
    /// Appends `event` if the head still is number `expected`; 0 stands for no record at all.
    ///
    /// Not cancel safe: a dropped call may have appended.
    ///
    /// # Errors
    /// [`AppendError::Rejected`] by the state; [`Error::Indeterminate`] and an indeterminate storage error if the
    /// event may be in the register: decide again from its state.
    pub async fn append(&self, expected: u64, event: S::Event) -> Result<AppendOutcome<S>, AppendError<S::Rejected>> {
        let head = self.find_head().await?;
        if head.as_ref().map_or(0, |h| h.record.number) != expected {
            return Ok(AppendOutcome::Lost);
        }
        self.append_to(head, event).await
    }

    /// Reads the head, lets `decide` choose an event from its state, appends it; again from the new head if another
    /// writer was first, until the event is appended or `decide` finds nothing to do.
    ///
    /// Not cancel safe: a dropped call may have appended.
    ///
    /// # Errors
    /// What `decide` returns; else as [`append`](Self::append).
    pub async fn update<E>(
        &self,
        mut decide: impl FnMut(&S) -> Result<Option<S::Event>, E>,
    ) -> Result<Update<S>, UpdateError<S::Rejected, E>> {
        loop {
            let head = self.find_head().await?;
            let event = match &head {
                Some(head) => decide(&head.record.state),
                None => decide(&S::default()),
            };
            let Some(event) = event.map_err(UpdateError::Decision)? else {
                return Ok(Update::Unchanged(head.map(|h| h.record)));
            };
            match self.append_to(head, event).await {
                Ok(AppendOutcome::Appended(record)) => return Ok(Update::Appended(record)),
                Ok(AppendOutcome::Lost) => {}
                Err(AppendError::Rejected(rejected)) => return Err(UpdateError::Rejected(rejected)),
                Err(AppendError::Register(error)) => return Err(error.into()),
            }
        }
    }

    /// `head` was the head when it was read; since then it may have been overtaken or even pruned.
    pub(super) async fn append_to(
        &self,
        head: Option<Known<S>>,
        event: S::Event,
    ) -> Result<AppendOutcome<S>, AppendError<S::Rejected>> {
        let previous = head.as_ref().map(|h| &h.record);
        let state = match previous {
            Some(previous) => previous.state.apply(&event),
            None => S::default().apply(&event),
        }
        .map_err(AppendError::Rejected)?;
        let number = previous.map_or(0, |p| p.number) + 1;
        let was_kept_from = previous.map_or(1, |p| p.kept_from);
        let mine = Record {
            number,
            id: Uuid::new_v4(),
            at: clock::now(),
            writer: self.0.options.writer.clone(),
            kept_from: kept_from(number, was_kept_from, self.0.options.keep),
            event,
            state,
        };
        let path = self.path(number);
        let bytes = record::encode(&path, &mine)?;
        let mine = Known { record: Arc::new(mine), start: record::start(&bytes) };
        let created = match self.0.storage.create(&path, bytes).await.map_err(Error::from)? {
            CreateOutcome::Created => true,
            CreateOutcome::Exists(_) => false,
        };
        abort_point!(process "register.created");
        if !self.settle(head.as_ref(), &mine, created).await? {
            return Ok(AppendOutcome::Lost);
        }
        let mine = self.remember(mine);
        self.0.appended.notify_waiters();
        if mine.record.kept_from > was_kept_from {
            self.prune(mine.record.kept_from).await;
        }
        Ok(AppendOutcome::Appended(mine.record))
    }

    /// Whether `mine` is the register's record of its number, given what the storage said of its creation.
    ///
    /// | `head`, the predecessor | the number | answer |
    /// |---|---|---|
    /// | is still there | was never pruned | what the storage said |
    /// | pruned | is kept | whether the record there is mine |
    /// | pruned | lies below `kept_from` | [`Error::Indeterminate`] |
    ///
    /// In the last case over a thousand records were appended during this call. What stands at the number may have
    /// been created after its first record was pruned, and that first record may have been mine: nobody can tell.
    pub(super) async fn settle(&self, head: Option<&Known<S>>, mine: &Known<S>, created: bool) -> Result<bool, Error> {
        let number = mine.record.number;
        let in_place = match head {
            Some(head) => self.is_there(head).await?,
            // Number 1 has no predecessor: it has not been pruned if the lowest number is still 1 and the head says so.
            None => false,
        };
        if in_place {
            return Ok(created);
        }
        let now = self.find_head_anew().await?;
        if now.kept_from <= number
            && let Some(found) = self.read(number).await?
        {
            // SUBTLE: `kept_from` may have been raised and the number pruned after `now` was read, and then be taken
            // by a paused writer. Only a head read after the record proves that this was not so.
            if self.find_head_anew().await?.kept_from <= number {
                return Ok(found.record.id == mine.record.id);
            }
        }
        Err(Error::Indeterminate { path: self.path(number) })
    }

    /// The head, found without what is known of earlier ones.
    async fn find_head_anew(&self) -> Result<Arc<Record<S>>, Error> {
        self.find_head()
            .await?
            .map(|h| h.record)
            .ok_or_else(|| Error::Vanished { folder: crate::paths::register(&self.0.kind, &self.0.name) })
    }

    /// Deletes the records below `kept_from`, which a record of the register already names.
    ///
    /// In ascending order, one after the other, and not beyond one that can't be deleted: readers rely on it. What is
    /// left is deleted after the next raise.
    async fn prune(&self, kept_from: u64) {
        let numbers = match self.numbers().await {
            Ok(numbers) => numbers,
            Err(error) => {
                tracing::warn!(register = ?self, %error, "cannot prune a register now");
                return;
            }
        };
        for number in numbers.into_iter().take_while(|n| *n < kept_from) {
            if let Err(error) = self.0.storage.delete(&self.path(number)).await {
                tracing::warn!(register = ?self, number, %error, "cannot prune a record now");
                return;
            }
        }
    }
}

/// The `kept_from` of record `number` whose predecessor had `was`.
fn kept_from(number: u64, was: u64, keep: u64) -> u64 {
    let wanted = (number + 1).saturating_sub(keep).max(1);
    if wanted >= was + PRUNE_STEP { wanted } else { was }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_so_many_are_kept_and_few_more() {
        let mut was = 1;
        for number in 1..5_000 {
            let now = kept_from(number, was, 1_000);
            assert!(now >= was && now <= number);
            let kept = number + 1 - now;
            assert!(kept >= number.min(1_000), "{number}: {kept}");
            assert!(kept <= 1_000 + PRUNE_STEP, "{number}: {kept}");
            was = now;
        }
    }
}
