//! Cron expressions with their Unix meaning, in a time zone.
//!
//! The `cron` crate counts weekdays from 1 and always combines day of month and weekday with AND. So each expression is
//! read here, field by field, and translated: into one schedule of that crate, or two, of which the earlier time counts.
//! They run over *local* time without a zone; what daylight saving does to it is decided here.

mod fields;
#[cfg(test)]
mod tests;

use std::str::FromStr;

use chrono::{DateTime, Duration, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;

use self::fields::Fields;

/// More than any offset from UTC and any jump of a clock.
const MORE_THAN_A_JUMP: Duration = Duration::hours(26);
/// Less than the time between two changes of a zone's offset.
const LESS_THAN_A_SEASON: Duration = Duration::hours(36);

/// When something runs.
///
/// | expression | where the clock jumps forward | where it is set back |
/// |---|---|---|
/// | hour or minute field begins with `*` | runs at what the clock shows: missing times don't come | both times |
/// | else: fixed local times | a missing time is shifted by the jump: 02:30 runs at 03:30 | once, the first time |
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Over local time; the earliest of their times counts.
    parts: Vec<cron::Schedule>,
    zone: Tz,
    /// Whether it follows the clock through a change.
    by_elapsed_time: bool,
}

/// Why an expression is no schedule. The message names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "a cron expression has five fields (minute hour day month weekday), or six with seconds first; `{expression}` has {count}"
    )]
    FieldCount { expression: String, count: usize },
    #[error("unknown `{0}`; there are @yearly, @monthly, @weekly, @daily, @midnight and @hourly")]
    UnknownNickname(String),
    #[error("the {field} field: {problem}")]
    Field { field: &'static str, problem: String },
    #[error("`{expression}` never runs: no such day as {day}")]
    Never { expression: String, day: String },
    /// The translation is wrong; a bug.
    #[error("cannot translate `{expression}`: {problem}")]
    Translation { expression: String, problem: String },
}

impl Schedule {
    /// `expression`: five fields, or six with seconds first, or `@daily` and the like.
    pub fn parse(expression: &str, zone: Tz) -> Result<Self, Error> {
        let fields = Fields::parse(expression)?;
        let translate = |part: String| {
            cron::Schedule::from_str(&part)
                .map_err(|error| Error::Translation { expression: expression.to_owned(), problem: error.to_string() })
        };
        let parts = fields.translations().into_iter().map(translate).collect::<Result<Vec<_>, _>>()?;
        if parts.is_empty() {
            return Err(Error::Never { expression: expression.to_owned(), day: fields.impossible_day() });
        }
        Ok(Self { parts, zone, by_elapsed_time: fields.hour_or_minute_is_wild() })
    }

    pub fn zone(&self) -> Tz {
        self.zone
    }

    /// The first time strictly after `after`; `None` beyond the year 2100.
    pub fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self.by_elapsed_time {
            true => self.next_on_the_clock(after),
            false => self.next_fixed(after),
        }
    }

    /// The first instant after `after` at which the clock on the wall shows a matching time.
    fn next_on_the_clock(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut after = after;
        loop {
            let offset = self.offset(after);
            let candidate = (self.next_local(after.naive_utc() + offset)? - offset).and_utc();
            // The offset holds until the next change; there the clock jumps and is read anew.
            let Some(change) = self.first_change(after, candidate) else { return Some(candidate) };
            let shown = change.naive_utc() + self.offset(change);
            if self.next_local(shown - Duration::seconds(1)) == Some(shown) {
                return Some(change);
            }
            after = change;
        }
    }

    /// The first of the instants that belong to the matching local times, one each.
    fn next_fixed(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // SUBTLE: right behind a jump, times that it skipped are still to come; they are below what the clock shows.
        let offset = self.offset(after).min(self.offset(after - MORE_THAN_A_JUMP));
        let mut local = after.naive_utc() + offset;
        let mut first: Option<DateTime<Utc>> = None;
        loop {
            let Some(candidate) = self.next_local(local) else { return first };
            local = candidate;
            let (instant, skipped) = match self.zone.offset_from_local_datetime(&candidate) {
                chrono::LocalResult::Single(offset) => (candidate - offset.fix(), false),
                chrono::LocalResult::Ambiguous(a, b) => ((candidate - a.fix()).min(candidate - b.fix()), false),
                chrono::LocalResult::None => (candidate - self.offset((candidate - MORE_THAN_A_JUMP).and_utc()), true),
            };
            let instant = instant.and_utc();
            if instant > after {
                first = Some(first.map_or(instant, |first| first.min(instant)));
                // SUBTLE: a time behind the jump may come before the shifted one: 03:00 before 02:30. All others ascend.
                if !skipped {
                    return first;
                }
            }
        }
    }

    /// The first matching local time strictly after `local`.
    fn next_local(&self, local: NaiveDateTime) -> Option<NaiveDateTime> {
        let after = local.and_utc();
        self.parts.iter().filter_map(|part| part.after(&after).next()).min().map(|next| next.naive_utc())
    }

    fn offset(&self, at: DateTime<Utc>) -> Duration {
        let offset = self.zone.offset_from_utc_datetime(&at.naive_utc()).fix();
        Duration::seconds(i64::from(offset.local_minus_utc()))
    }

    /// The first instant in `(after, until]` with another offset than `after` has.
    fn first_change(&self, after: DateTime<Utc>, until: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let offset = self.offset(after);
        let mut same = after;
        while same < until {
            let sample = (same + LESS_THAN_A_SEASON).min(until);
            if self.offset(sample) != offset {
                let mut changed = sample;
                // Offsets change at whole seconds.
                while (changed - same) > Duration::seconds(1) {
                    let middle = same + Duration::seconds((changed - same).num_seconds() / 2);
                    if self.offset(middle) == offset { same = middle } else { changed = middle }
                }
                let whole = DateTime::from_timestamp(changed.timestamp(), 0).unwrap_or(changed);
                return Some(if whole > same { whole } else { changed });
            }
            same = sample;
        }
        None
    }
}
