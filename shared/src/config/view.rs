//! `[view.NAME]`.

use std::time::Duration;

use chrono_tz::Tz;

use super::reader::{Reader, nearest};
use super::source::TextPlaces;
use super::{Late, ViewConfig};
use crate::schedule::Schedule;

pub(super) fn view(reader: &Reader<'_, '_, '_>, name: &str) -> Option<(ViewConfig, TextPlaces)> {
    let sql = reader.text("sql").and_then(|sql| {
        if sql.value.trim().is_empty() {
            reader.error(sql.span.start, "`sql` is empty");
            return None;
        }
        Some(sql)
    });
    let timezone = reader.parsed("timezone", time_zone);
    let zone = timezone.as_ref().map_or(Tz::UTC, |zone| zone.value);
    let rebuild = schedule(reader, "rebuild", zone);
    let refresh = schedule(reader, "refresh", zone);
    let late = reader.choice("late", &[("include", Late::Include), ("exclude", Late::Exclude)]);
    let retain = match reader.is_given("retain") {
        true => Some(reader.duration("retain", Duration::from_micros(1))?),
        false => None,
    };
    let materialize = reader.boolean("materialize");
    let sql = sql?;
    let view = ViewConfig {
        name: name.to_owned(),
        place: sql.places.place(1, 1),
        sql: sql.value,
        rebuild: rebuild?,
        refresh: refresh?,
        timezone: timezone?.value,
        late: late?.value,
        retain,
        materialize: materialize?,
    };
    Some((view, sql.places))
}

fn time_zone(text: &str) -> Result<Tz, String> {
    text.parse().map_err(|_| {
        let nearest = nearest(text, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name())).unwrap_or("UTC");
        format!("`{text}` is not an IANA time zone; did you mean `{nearest}`?")
    })
}

/// `None` after an error, `Some(None)` if there is no such schedule.
fn schedule(reader: &Reader<'_, '_, '_>, key: &str, zone: Tz) -> Option<Option<String>> {
    if !reader.is_given(key) {
        return Some(None);
    }
    let parse = |text: &str| Schedule::parse(text, zone).map(|_| text.to_owned());
    reader.parsed(key, parse).map(|found| Some(found.value))
}
