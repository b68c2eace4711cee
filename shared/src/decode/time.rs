//! Dates and timestamps from their text: one grammar for every format.

use chrono::{Datelike, NaiveDate};

use super::number::{Digits, NumberFault, parse_scaled};
use crate::config::EpochUnit;

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// Days from 0001-01-01 to 1970-01-01, and one, since `num_days_from_ce` counts from 1.
const EPOCH_FROM_CE: i32 = 719_163;
/// 0000-01-01T00:00:00Z and 10000-01-01T00:00:00Z: what RFC 3339 can write.
const LEAST_MICROS: i64 = -62_167_219_200 * MICROS_PER_SECOND;
const END_MICROS: i64 = 253_402_300_800 * MICROS_PER_SECOND;

/// Why a text or number is not a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeFault {
    /// It is not written like one, or names a day or time that does not exist.
    NotATime,
    /// Outside of the years 0000 to 9999.
    OutOfRange,
}

/// Days since 1970-01-01 of `YYYY-MM-DD`.
pub(super) fn parse_date(text: &str) -> Option<i32> {
    match text.as_bytes() {
        bytes @ [_, _, _, _, b'-', _, _, b'-', _, _] => {
            let year = two(bytes, 0)? * 100 + two(bytes, 2)?;
            let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, two(bytes, 5)?, two(bytes, 8)?)?;
            Some(date.num_days_from_ce() - EPOCH_FROM_CE)
        }
        _ => None,
    }
}

/// Microseconds since the epoch of
/// `YYYY-MM-DD[(T| )hh:mm[:ss[.f…]][[ ](Z|UTC|±hh[[:]mm])]]`.
///
/// RFC 3339, with a blank instead of the T, without seconds, without an offset (then it is UTC), or the date alone
/// (midnight). Digits behind the sixth of a fraction are cut off, toward the earlier time. 23:59:60 UTC, a leap second, is
/// the second that follows, as in POSIX. `T` and `Z` may be small.
pub(super) fn parse_timestamp(text: &str) -> Result<i64, TimeFault> {
    let micros = timestamp_micros(text).ok_or(TimeFault::NotATime)?;
    in_range(micros)
}

/// Microseconds since the epoch of a number of `unit`s; what is finer is cut off, toward the earlier time.
///
/// # Errors
/// `NotATime` if `text` is not a number.
pub(super) fn parse_epoch(text: &str, unit: EpochUnit) -> Result<i64, TimeFault> {
    let shift = match unit {
        EpochUnit::Seconds => 6,
        EpochUnit::Milliseconds => 3,
        EpochUnit::Microseconds => 0,
        EpochUnit::Nanoseconds => -3,
    };
    match parse_scaled(text, shift, Digits::Floor) {
        Ok(micros) => in_range(i64::try_from(micros).map_err(|_| TimeFault::OutOfRange)?),
        Err(NumberFault::NotANumber) => Err(TimeFault::NotATime),
        Err(NumberFault::Inexact | NumberFault::TooLarge) => Err(TimeFault::OutOfRange),
    }
}

/// Microseconds since the epoch of `number` units; what is finer is cut off, toward the earlier time.
pub(super) fn epoch_micros(number: i64, unit: EpochUnit) -> Result<i64, TimeFault> {
    let micros = match unit {
        EpochUnit::Seconds => number.checked_mul(MICROS_PER_SECOND),
        EpochUnit::Milliseconds => number.checked_mul(1_000),
        EpochUnit::Microseconds => Some(number),
        EpochUnit::Nanoseconds => Some(number.div_euclid(1_000)),
    };
    in_range(micros.ok_or(TimeFault::OutOfRange)?)
}

/// Whether the day, counted from 1970-01-01, is one of the years 0000 to 9999.
pub(super) fn is_date(days: i32) -> bool {
    let seconds = i64::from(days) * SECONDS_PER_DAY;
    (LEAST_MICROS / MICROS_PER_SECOND..END_MICROS / MICROS_PER_SECOND).contains(&seconds)
}

fn in_range(micros: i64) -> Result<i64, TimeFault> {
    if (LEAST_MICROS..END_MICROS).contains(&micros) { Ok(micros) } else { Err(TimeFault::OutOfRange) }
}

fn timestamp_micros(text: &str) -> Option<i64> {
    let days = i64::from(parse_date(text.get(..10)?)?);
    let bytes = &text.as_bytes()[10..];
    if bytes.is_empty() {
        return Some(days * SECONDS_PER_DAY * MICROS_PER_SECOND);
    }
    if !matches!(bytes.first(), Some(b'T' | b't' | b' ')) || bytes.get(3) != Some(&b':') {
        return None;
    }
    let (hour, minute) = (i64::from(two(bytes, 1)?), i64::from(two(bytes, 4)?));
    let mut rest = &bytes[6..];
    let (mut second, mut micros) = (0, 0);
    if rest.first() == Some(&b':') {
        second = i64::from(two(rest, 1)?);
        rest = &rest[3..];
        if rest.first() == Some(&b'.') {
            let digits = rest[1..].iter().take_while(|b| b.is_ascii_digit()).count();
            if digits == 0 {
                return None;
            }
            let fraction = &rest[1..=digits];
            micros = (0..6).fold(0, |n, i| n * 10 + i64::from(fraction.get(i).map_or(0, |b| b - b'0')));
            rest = &rest[1 + digits..];
        }
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second - offset_seconds(rest)?;
    if second == 60 && seconds.rem_euclid(SECONDS_PER_DAY) != 0 {
        return None;
    }
    Some(seconds * MICROS_PER_SECOND + micros)
}

/// How far local time is ahead of UTC; nothing is UTC.
fn offset_seconds(text: &[u8]) -> Option<i64> {
    let text = match text {
        [] => return Some(0),
        [b' ', after @ ..] if !after.is_empty() => after,
        text => text,
    };
    let (sign, digits) = match text {
        b"Z" | b"z" | b"UTC" => return Some(0),
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return None,
    };
    let minutes = match digits {
        [_, _] => 0,
        [_, _, _, _] => two(digits, 2)?,
        [_, _, b':', _, _] => two(digits, 3)?,
        _ => return None,
    };
    let hours = two(digits, 0)?;
    (hours <= 23 && minutes <= 59).then(|| sign * i64::from(hours * 3600 + minutes * 60))
}

/// The number of the two digits at `at`.
fn two(bytes: &[u8], at: usize) -> Option<u32> {
    match bytes.get(at..at + 2)? {
        [a @ b'0'..=b'9', b @ b'0'..=b'9'] => Some(u32::from(a - b'0') * 10 + u32::from(b - b'0')),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;

    fn check(text: &str, rfc3339: &str) {
        let want: DateTime<Utc> = rfc3339.parse().unwrap();
        assert_eq!(parse_timestamp(text), Ok(want.timestamp_micros()), "{text}");
    }

    #[test]
    fn every_way_to_write_a_timestamp_means_the_same_instant() {
        check("2015-01-01T00:00:00Z", "2015-01-01T00:00:00Z");
        check("2015-01-01t00:00:00z", "2015-01-01T00:00:00Z");
        check("2015-01-01 00:00:00", "2015-01-01T00:00:00Z");
        check("2015-01-01 00:00:00 UTC", "2015-01-01T00:00:00Z");
        check("2015-01-01", "2015-01-01T00:00:00Z");
        check("2015-01-01T10:20", "2015-01-01T10:20:00Z");
        check("2015-01-01T10:20Z", "2015-01-01T10:20:00Z");
        check("2015-01-01T10:20:30+02:00", "2015-01-01T08:20:30Z");
        check("2015-01-01T10:20:30+0200", "2015-01-01T08:20:30Z");
        check("2015-01-01T10:20:30+02", "2015-01-01T08:20:30Z");
        check("2015-01-01 10:20:30.5 -05:30", "2015-01-01T15:50:30.5Z");
        check("2015-01-01T10:20:30-00:00", "2015-01-01T10:20:30Z");
        check("2015-09-12T00:46:58.771Z", "2015-09-12T00:46:58.771Z");
        check("2015-09-12T00:46:58.123456Z", "2015-09-12T00:46:58.123456Z");
        check("2024-02-29T23:59:59Z", "2024-02-29T23:59:59Z");
        check("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z");
        check("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z");
        check("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z");
        check("2017-01-01T00:59:60+01:00", "2017-01-01T00:00:00Z");
    }

    #[test]
    fn finer_digits_are_cut_off_toward_the_earlier_time() {
        check("2015-01-01T00:00:00.1234569Z", "2015-01-01T00:00:00.123456Z");
        check("2015-01-01T00:00:00.999999999999999999999Z", "2015-01-01T00:00:00.999999Z");
        check("1969-12-31T23:59:59.9999999Z", "1969-12-31T23:59:59.999999Z");
        check("1969-12-31T23:59:59.0000001Z", "1969-12-31T23:59:59Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "now",
            "2015",
            "2015-01",
            "2015-1-1",
            "2015-13-01",
            "2015-02-29",
            "2015-01-00",
            "15-01-01",
            "20150101",
            "2015/01/01",
            "2015-01-01T",
            "2015-01-01T1",
            "2015-01-01T10",
            "2015-01-01T24:00:00Z",
            "2015-01-01T10:60:00Z",
            "2015-01-01T10:00:60Z",
            "2015-01-01T23:59:61Z",
            "2015-01-01T10:00:00.Z",
            "2015-01-01T10:00:00,5Z",
            "2015-01-01T10:00:00ZZ",
            "2015-01-01T10:00:00 ",
            "2015-01-01T10:00:00+24:00",
            "2015-01-01T10:00:00+02:60",
            "2015-01-01T10:00:00+2",
            "2015-01-01T10:00:00+02:0",
            "2015-01-01T10:00:00 PST",
            " 2015-01-01",
            "2015-01-01 ",
            "2015-01-01Z",
            "+2015-01-01",
            "-015-01-01",
            "２０１５-01-01",
            "2015-01-0é",
            "1420070400",
        ] {
            assert_eq!(parse_timestamp(text), Err(TimeFault::NotATime), "{text}");
        }
        assert_eq!(parse_timestamp("9999-12-31T23:59:59-00:01"), Err(TimeFault::OutOfRange));
        assert_eq!(parse_timestamp("0000-01-01T00:00:00+00:01"), Err(TimeFault::OutOfRange));
    }

    #[test]
    fn numbers_are_counted_in_their_unit() {
        for (text, unit, micros) in [
            ("1420070400", EpochUnit::Seconds, 1_420_070_400_000_000),
            ("1420070400.1234567", EpochUnit::Seconds, 1_420_070_400_123_456),
            ("1.4200704e9", EpochUnit::Seconds, 1_420_070_400_000_000),
            ("1420070400123", EpochUnit::Milliseconds, 1_420_070_400_123_000),
            ("1420070400123456", EpochUnit::Microseconds, 1_420_070_400_123_456),
            ("1420070400123456789", EpochUnit::Nanoseconds, 1_420_070_400_123_456),
            ("-1", EpochUnit::Nanoseconds, -1),
            ("-0.5", EpochUnit::Seconds, -500_000),
        ] {
            assert_eq!(parse_epoch(text, unit), Ok(micros), "{text}");
        }
        for text in ["1e400", "253402300800", "9223372036854775807", "-62167219201"] {
            assert_eq!(parse_epoch(text, EpochUnit::Seconds), Err(TimeFault::OutOfRange), "{text}");
        }
        assert_eq!(parse_epoch("2015-01-01", EpochUnit::Seconds), Err(TimeFault::NotATime));
    }

    #[test]
    fn dates_are_days() {
        assert_eq!(parse_date("1970-01-01"), Some(0));
        assert_eq!(parse_date("1969-12-31"), Some(-1));
        assert_eq!(parse_date("2024-02-29"), Some(19_782));
        assert_eq!(parse_date("2023-02-29"), None);
        assert_eq!(parse_date("2024-02-29T00:00:00Z"), None);
    }
}
