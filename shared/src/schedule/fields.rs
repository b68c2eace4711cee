//! The fields of a cron expression, as Unix reads them.

use std::collections::BTreeSet;

use super::Error;

/// What a field may hold.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    least: u32,
    most: u32,
    /// Names, standing for `first_name`, `first_name + 1`, …
    names: &'static [&'static str],
    first_name: u32,
}

const SECOND: Kind = Kind { name: "second", least: 0, most: 59, names: &[], first_name: 0 };
const MINUTE: Kind = Kind { name: "minute", least: 0, most: 59, names: &[], first_name: 0 };
const HOUR: Kind = Kind { name: "hour", least: 0, most: 23, names: &[], first_name: 0 };
const DAY: Kind = Kind { name: "day of month", least: 1, most: 31, names: &[], first_name: 0 };
const MONTH: Kind = Kind {
    name: "month",
    least: 1,
    most: 12,
    names: &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    first_name: 1,
};
const WEEKDAY: Kind = Kind {
    name: "weekday",
    least: 0,
    most: 7,
    names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
    first_name: 0,
};

/// One field: the values that match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) values: BTreeSet<u32>,
    /// Whether it begins with `*`, which Unix takes as 'not restricted'.
    pub(super) wild: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) second: Field,
    pub(super) minute: Field,
    pub(super) hour: Field,
    pub(super) day: Field,
    pub(super) month: Field,
    /// 0–6, 0 is Sunday.
    pub(super) weekday: Field,
}

impl Fields {
    pub(super) fn parse(expression: &str) -> Result<Self, Error> {
        let text = match expression.trim() {
            nickname if nickname.starts_with('@') => match nickname.to_ascii_lowercase().as_str() {
                "@yearly" | "@annually" => "0 0 1 1 *",
                "@monthly" => "0 0 1 * *",
                "@weekly" => "0 0 * * 0",
                "@daily" | "@midnight" => "0 0 * * *",
                "@hourly" => "0 * * * *",
                _ => return Err(Error::UnknownNickname(nickname.to_owned())),
            },
            text => text,
        };
        let texts: Vec<&str> = text.split_whitespace().collect();
        let (second, texts) = match texts.as_slice() {
            [second, rest @ ..] if rest.len() == 5 => (*second, rest),
            rest if rest.len() == 5 => ("0", rest),
            other => return Err(Error::FieldCount { expression: expression.to_owned(), count: other.len() }),
        };
        let mut weekday = field(&WEEKDAY, texts[4])?;
        if weekday.values.remove(&7) {
            weekday.values.insert(0);
        }
        Ok(Self {
            second: field(&SECOND, second)?,
            minute: field(&MINUTE, texts[0])?,
            hour: field(&HOUR, texts[1])?,
            day: field(&DAY, texts[2])?,
            month: field(&MONTH, texts[3])?,
            weekday,
        })
    }

    pub(super) fn hour_or_minute_is_wild(&self) -> bool {
        self.hour.wild || self.minute.wild
    }

    /// Expressions of the `cron` crate whose times together are these; none if no day ever matches.
    ///
    /// As in Unix cron a day matches if day of month *or* weekday does when neither begins with `*`, else if both do.
    pub(super) fn translations(&self) -> Vec<String> {
        let every_day: BTreeSet<u32> = (DAY.least..=DAY.most).collect();
        let every_weekday: BTreeSet<u32> = (0..=6).collect();
        let pairs = match self.day.wild || self.weekday.wild {
            true => vec![(&self.day.values, &self.weekday.values)],
            false => vec![(&self.day.values, &every_weekday), (&every_day, &self.weekday.values)],
        };
        let possible =
            |days: &BTreeSet<u32>| self.month.values.iter().any(|month| days.iter().any(|day| *day <= longest(*month)));
        let list = |values: &BTreeSet<u32>, add: u32| {
            values.iter().map(|value| (value + add).to_string()).collect::<Vec<_>>().join(",")
        };
        let all_or_list = |values: &BTreeSet<u32>, all: &BTreeSet<u32>, add: u32| {
            if values == all { "*".to_owned() } else { list(values, add) }
        };
        pairs
            .into_iter()
            .filter(|(days, _)| possible(days))
            .map(|(days, weekdays)| {
                [
                    list(&self.second.values, 0),
                    list(&self.minute.values, 0),
                    list(&self.hour.values, 0),
                    all_or_list(days, &every_day, 0),
                    list(&self.month.values, 0),
                    // That crate's Sunday is 1.
                    all_or_list(weekdays, &every_weekday, 1),
                ]
                .join(" ")
            })
            .collect()
    }

    /// For the message of a schedule that has no day: its first.
    pub(super) fn impossible_day(&self) -> String {
        let month = self.month.values.first().copied().unwrap_or_default();
        let name = MONTH.names.get((month as usize).wrapping_sub(1)).copied().unwrap_or_default();
        format!("{} {name}", self.day.values.first().copied().unwrap_or_default())
    }
}

/// The most days that the month can have.
fn longest(month: u32) -> u32 {
    match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn field(kind: &Kind, text: &str) -> Result<Field, Error> {
    let mut values = BTreeSet::new();
    for item in text.split(',') {
        let problem = |problem: String| Error::Field { field: kind.name, problem };
        let (range, step) = match item.split_once('/') {
            None => (item, 1),
            Some((range, step)) => match step.parse::<u32>() {
                Ok(number) if number > 0 => (range, number),
                _ => return Err(problem(format!("the step `{step}` in `{item}` is not a number from 1"))),
            },
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (kind.least, if kind.name == WEEKDAY.name { 6 } else { kind.most }),
            Some((first, last)) => {
                let bounds = (value(kind, first)?, value(kind, last)?);
                // `FRI-SUN`: at a range's end Sunday is 7.
                let last_is_sunday = kind.name == WEEKDAY.name && bounds.1 == 0 && bounds.0 > 0;
                (bounds.0, if last_is_sunday { 7 } else { bounds.1 })
            }
            None if item.contains('/') => {
                let most = kind.most;
                return Err(problem(format!("`{item}` steps from a single value; write `{range}-{most}/{step}`")));
            }
            None => {
                let value = value(kind, range)?;
                (value, value)
            }
        };
        if first > last {
            return Err(problem(format!(
                "the range `{range}` begins after its end; write it as two, separated by a comma"
            )));
        }
        values.extend((first..=last).step_by(step as usize));
    }
    Ok(Field { values, wild: text.starts_with('*') })
}

/// A number within the field's bounds or one of its names.
fn value(kind: &Kind, text: &str) -> Result<u32, Error> {
    let problem = |problem: String| Error::Field { field: kind.name, problem };
    if let Some(index) = kind.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
        return Ok(kind.first_name + u32::try_from(index).expect("twelve names at most"));
    }
    let or_name = match kind.names {
        [first, .., last] => format!(" or {first}-{last}"),
        _ => String::new(),
    };
    let expected = format!("{}-{}{or_name}", kind.least, kind.most);
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_digit()) {
        let hint = match text {
            "?" => "; write `*`",
            _ if text.contains(['L', 'W', '#']) => "; L, W and # are not Unix cron",
            _ => "",
        };
        return Err(problem(format!("`{text}` is not {expected}{hint}")));
    }
    match text.parse::<u32>() {
        Ok(number) if (kind.least..=kind.most).contains(&number) => Ok(number),
        _ => Err(problem(format!("{text} is not within {expected}"))),
    }
}
