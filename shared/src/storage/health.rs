//! Whether a storage takes calls, as its last ones found it.

use chrono::{DateTime, Utc};
use object_store::Error;
use parking_lot::Mutex;
use serde::Serialize;

use crate::clock;

/// How a storage does. Nothing is asked of it for this: what nobody calls is not known to be away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// `None` while reads and listings succeed.
    pub reads: Option<Trouble>,
    /// `None` while writes, renames and deletions succeed.
    pub writes: Option<Trouble>,
}

/// Calls of one kind that fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// Of the first after the last success.
    pub since: DateTime<Utc>,
    /// Of the last.
    pub error: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// Follows the calls of all clones of a storage.
#[derive(Debug, Default)]
pub(super) struct Watched(Mutex<Health>);

impl Watched {
    pub(super) fn health(&self) -> Health {
        self.0.lock().clone()
    }

    /// Takes note of how a call ended.
    pub(super) fn note<T>(&self, kind: Kind, result: &Result<T, Error>) {
        let sign = match result {
            Ok(_) => Sign::Answers,
            Err(error) => sign_of(kind, error),
        };
        let mut health = self.0.lock();
        let trouble = match kind {
            Kind::Read => &mut health.reads,
            Kind::Write => &mut health.writes,
        };
        match sign {
            Sign::None => {}
            Sign::Answers => *trouble = None,
            Sign::Fails(error) => {
                let since = trouble.as_ref().map_or_else(clock::now, |known| known.since);
                *trouble = Some(Trouble { since, error });
            }
        }
    }
}

/// What the end of a call says about the storage.
enum Sign {
    Answers,
    Fails(String),
    /// It was not asked, or by something that is refused anyway.
    None,
}

fn sign_of(kind: Kind, error: &Error) -> Sign {
    match error {
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => Sign::Answers,
        Error::NotFound { .. } if kind == Kind::Read => Sign::Answers,
        // Who may write nothing is told all the same that there is nothing to delete.
        Error::NotFound { .. }
        | Error::InvalidPath { .. }
        | Error::NotImplemented { .. }
        | Error::NotSupported { .. } => Sign::None,
        error => Sign::Fails(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_lasts_from_the_first_failure_to_the_next_success_of_its_kind() {
        let watched = Watched::default();
        let fails = |what: &str| Err::<(), _>(Error::Generic { store: "test", source: what.into() });
        watched.note(Kind::Write, &fails("safe mode"));
        let since = watched.health().writes.expect("it failed").since;
        watched.note(Kind::Read, &Ok(()));
        watched.note(Kind::Write, &fails("still in safe mode"));
        let health = watched.health();
        let writes = health.writes.expect("it failed");
        assert!(writes.since == since && writes.error.contains("still in safe mode"), "{writes:?}");
        assert_eq!(health.reads, None);
        let absent = Error::NotFound { path: "x".to_owned(), source: "x".into() };
        watched.note(Kind::Write, &Err::<(), _>(absent));
        assert!(watched.health().writes.is_some(), "nothing was written");
        let exists = Error::AlreadyExists { path: "x".to_owned(), source: "x".into() };
        watched.note(Kind::Write, &Err::<(), _>(exists));
        assert_eq!(watched.health(), Health::default(), "a lost race is an answer");
    }
}
