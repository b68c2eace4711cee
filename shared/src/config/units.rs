//! Durations and sizes as people write them.

use std::time::Duration;

/// "10 seconds", "250 ms", "1h 30m", "90 days": whole numbers or decimal fractions, each with a unit, added up.
///
/// A day has 24 hours and a week seven days; there are no months, since they differ.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let nanos = sum(text, "a duration such as \"10 seconds\", \"5 minutes\", \"250 ms\" or \"90 days\"", |unit| {
        Some(match unit {
            "us" | "µs" | "microsecond" | "microseconds" => 1_000,
            "ms" | "millis" | "millisecond" | "milliseconds" => 1_000_000,
            "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000_000,
            "m" | "min" | "mins" | "minute" | "minutes" => 60 * 1_000_000_000,
            "h" | "hour" | "hours" => 3_600 * 1_000_000_000,
            "d" | "day" | "days" => 86_400 * 1_000_000_000,
            "w" | "week" | "weeks" => 7 * 86_400 * 1_000_000_000,
            _ => return None,
        })
    })?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| format!("`{text}` is longer than 584 years"))
}

/// "128 MiB", "4 GiB", "64 kB", "500 bytes": powers of 1024 with an `i`, of 1000 without.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = sum(text, "a size such as \"128 MiB\" or \"4 GiB\"", |unit| {
        Some(match unit {
            "b" | "byte" | "bytes" => 1,
            "kb" => 1_000,
            "kib" => 1 << 10,
            "mb" => 1_000_000,
            "mib" => 1 << 20,
            "gb" => 1_000_000_000,
            "gib" => 1 << 30,
            "tb" => 1_000_000_000_000,
            "tib" => 1 << 40,
            _ => return None,
        })
    })?;
    u64::try_from(bytes).map_err(|_| format!("`{text}` is more than 16 EiB"))
}

/// The sum of `number unit` pairs in the smallest unit; `expected` says what should stand there.
fn sum(text: &str, expected: &str, unit_value: impl Fn(&str) -> Option<u128>) -> Result<u128, String> {
    let wrong = || format!("`{text}` is not {expected}");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_end);
        let after = after.trim_start();
        let unit_end = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        if unit.is_empty() && !number.is_empty() && after.is_empty() {
            return Err(format!("`{text}` has no unit; write {expected}"));
        }
        let unit = unit_value(&unit.to_lowercase()).ok_or_else(wrong)?;
        let part = scaled(&number.replace('_', ""), unit).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = after.trim_start();
    }
    Ok(total)
}

/// `number` × `unit`, exactly; a fraction must come out whole.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || fraction.len() > 18 {
        return None;
    }
    let whole = whole.parse::<u128>().ok()?.checked_mul(unit)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().ok()?.checked_mul(unit)?;
    (part % scale == 0).then(|| whole.checked_add(part / scale))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("10 seconds", 10_000),
            ("1 second", 1_000),
            ("5 minutes", 300_000),
            ("1 day", 86_400_000),
            ("90 days", 90 * 86_400_000),
            ("250 ms", 250),
            ("250ms", 250),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("1.5 hours", 5_400_000),
            ("2 Weeks", 14 * 86_400_000),
            ("1_000 s", 1_000_000),
            ("0 s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn wrong_durations_are_refused() {
        for (text, message) in [
            ("10", "`10` has no unit; write a duration such as"),
            ("", "`` is not a duration"),
            ("ten seconds", "`ten seconds` is not a duration"),
            ("10 fortnights", "`10 fortnights` is not a duration"),
            ("-5 s", "`-5 s` is not a duration"),
            ("5. s", "`5. s` is not a duration"),
            ("1 month", "`1 month` is not a duration"),
            ("99999999 days", "`99999999 days` is longer than"),
        ] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.starts_with(message), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("128 MiB", 128 << 20), ("4GiB", 4 << 30), ("64 kB", 64_000), ("1.5 GiB", 3 << 29), ("500 bytes", 500)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert!(parse_size("4 GHz").is_err());
        assert!(parse_size("4").expect_err("no unit").contains("has no unit"));
    }
}
