//! The events of the benchmarks: generated, the same in every run.

use std::fmt::Write;

/// How long every record's value is.
pub(crate) const RECORD_BYTES: usize = 128;
/// How many types there are, and so groups a minute.
const TYPES: u64 = 20;
/// 2024-10-06T00:00:00Z
const START_MILLIS: u64 = 1_728_172_800_000;

/// The columns of the stream, as the configuration has them.
pub(crate) const COLUMNS: &str = "ts TIMESTAMP, type VARCHAR, user_id BIGINT, amount DOUBLE, note VARCHAR";

/// The view by minute and type, with every aggregate of the aims' table.
pub(crate) const BY_MINUTE: &str = "SELECT date_bin(INTERVAL '1 minute', ts) AS minute, type, count(*) AS events, \
     sum(amount) AS total, avg(amount) AS mean, min(amount) AS least, max(amount) AS most, \
     approx_distinct(user_id) AS users FROM events GROUP BY 1, 2";

/// The view with as many groups as there are users.
pub(crate) const BY_USER: &str = "SELECT user_id, count(*) AS events, sum(amount) AS total, avg(amount) AS mean, \
     min(amount) AS least, max(amount) AS most FROM events GROUP BY 1";

/// What the records of one load are like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Event times advance evenly over so many minutes.
    pub(crate) minutes: u64,
    /// Users are drawn evenly from `[first_user, first_user + users)`.
    pub(crate) first_user: u64,
    pub(crate) users: u64,
    /// So many of 100 records are no JSON.
    pub(crate) undecodable_percent: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { minutes: 60, first_user: 0, users: 1_000_000, undecodable_percent: 0 }
    }
}

impl Shape {
    /// Writes the value of record `i` of `count` to `value`, which is cleared first.
    pub(crate) fn write(&self, i: u64, count: u64, value: &mut String) {
        value.clear();
        let random = scramble(i);
        let at = START_MILLIS + i * self.minutes * 60_000 / count.max(1);
        let (day, millis) = (at / 86_400_000 - START_MILLIS / 86_400_000, at % 86_400_000);
        let (hour, minute, second) = (millis / 3_600_000, millis / 60_000 % 60, millis / 1000 % 60);
        let user = self.first_user + random % self.users.max(1);
        let kind = (random >> 32) % TYPES;
        let (whole, cents) = ((random >> 40) % 1000, (random >> 52) % 100);
        // What is undecodable breaks off within the record, where most of the work has been done.
        let broken = if scramble(!i) % 100 < self.undecodable_percent { "oops" } else { "" };
        let written = write!(
            value,
            r#"{{"ts":"2024-10-{:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z","type":"type-{kind:02}","user_id":{user},"amount":{broken}{whole}.{cents:02},"note":""#,
            6 + day,
            millis % 1000,
        );
        written.expect("a text takes everything");
        value.extend(std::iter::repeat_n('n', RECORD_BYTES.saturating_sub(value.len() + 2)));
        value.push_str("\"}");
    }

    /// How many of the records `0..count` can be decoded.
    pub(crate) fn decodable(&self, count: u64) -> u64 {
        match self.undecodable_percent {
            0 => count,
            percent => (0..count).filter(|i| scramble(!i) % 100 >= percent).count() as u64,
        }
    }
}

/// splitmix64: what follows from `i` alone, and looks random.
pub(crate) fn scramble(i: u64) -> u64 {
    let mut z = i.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_has_its_size_and_is_json_unless_it_is_not_to_be() {
        let shape = Shape { undecodable_percent: 50, ..Shape::default() };
        let mut value = String::new();
        let mut decoded = 0;
        for i in 0..1000 {
            shape.write(i, 1000, &mut value);
            assert_eq!(value.len(), RECORD_BYTES, "{value}");
            decoded += u64::from(serde_json::from_str::<serde_json::Value>(&value).is_ok());
        }
        assert_eq!(decoded, shape.decodable(1000));
        assert!((400..600).contains(&decoded), "{decoded}");
        assert_eq!(Shape::default().decodable(10), 10);
    }
}
