use std::collections::BTreeSet;

use chrono::{Datelike, LocalResult, NaiveDate, Timelike};
use chrono_tz::America::New_York;
use chrono_tz::Europe::Madrid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().expect("a test's time")
}

/// The times after `from` are exactly `expected`, all in UTC.
#[track_caller]
fn check(expression: &str, zone: Tz, from: &str, expected: &[&str]) {
    let schedule = Schedule::parse(expression, zone).expect(expression);
    let mut at = utc(from);
    let mut found = Vec::new();
    for _ in expected {
        at = schedule.next_after(at).expect("a next time");
        found.push(at);
    }
    let expected: Vec<_> = expected.iter().map(|text| utc(text)).collect();
    assert_eq!(found, expected, "{expression} in {zone} after {from}");
}

#[track_caller]
fn check_error(expression: &str, message: &str) {
    let error = Schedule::parse(expression, Tz::UTC).expect_err(expression);
    assert_eq!(error.to_string(), message, "{expression}");
}

#[test]
fn plain_expressions() {
    check("0 3 * * *", Tz::UTC, "2024-05-01T03:00:00Z", &["2024-05-02T03:00:00Z", "2024-05-03T03:00:00Z"]);
    check(
        "*/5 * * * *",
        Tz::UTC,
        "2024-05-01T23:51:00.5Z",
        &["2024-05-01T23:55:00Z", "2024-05-02T00:00:00Z", "2024-05-02T00:05:00Z"],
    );
    check("59 23 31 12 *", Tz::UTC, "2024-05-01T00:00:00Z", &["2024-12-31T23:59:00Z", "2025-12-31T23:59:00Z"]);
    check("0 0 31 * *", Tz::UTC, "2024-01-31T00:00:00Z", &["2024-03-31T00:00:00Z", "2024-05-31T00:00:00Z"]);
    check(
        "15,45 8-10/2 * JAN,jul *",
        Tz::UTC,
        "2024-01-31T10:15:00Z",
        &["2024-01-31T10:45:00Z", "2024-07-01T08:15:00Z"],
    );
    check("  30   4 * * *  ", Tz::UTC, "2024-05-01T00:00:00Z", &["2024-05-01T04:30:00Z"]);
}

#[test]
fn seconds_come_first_where_there_are_six_fields() {
    check(
        "*/20 0 3 * * *",
        Tz::UTC,
        "2024-05-01T02:59:59.999Z",
        &["2024-05-01T03:00:00Z", "2024-05-01T03:00:20Z", "2024-05-01T03:00:40Z", "2024-05-02T03:00:00Z"],
    );
}

#[test]
fn weekdays_count_from_sunday_as_zero_and_seven() {
    // 2024-05-05 is a Sunday.
    for sunday in ["0", "7", "SUN", "sun"] {
        check(
            &format!("0 0 * * {sunday}"),
            Tz::UTC,
            "2024-05-01T00:00:00Z",
            &["2024-05-05T00:00:00Z", "2024-05-12T00:00:00Z"],
        );
    }
    check("0 0 * * 1", Tz::UTC, "2024-05-01T00:00:00Z", &["2024-05-06T00:00:00Z"]);
    check("0 0 * * 6", Tz::UTC, "2024-05-01T00:00:00Z", &["2024-05-04T00:00:00Z"]);
    check(
        "0 0 * * MON-FRI",
        Tz::UTC,
        "2024-05-02T00:00:00Z",
        &["2024-05-03T00:00:00Z", "2024-05-06T00:00:00Z", "2024-05-07T00:00:00Z"],
    );
    for weekend in ["5-7", "FRI-SUN", "0,5,6", "5-SUN"] {
        check(
            &format!("0 0 * * {weekend}"),
            Tz::UTC,
            "2024-05-01T00:00:00Z",
            &["2024-05-03T00:00:00Z", "2024-05-04T00:00:00Z", "2024-05-05T00:00:00Z", "2024-05-10T00:00:00Z"],
        );
    }
    check("0 0 * * 0-7", Tz::UTC, "2024-05-01T00:00:00Z", &["2024-05-02T00:00:00Z", "2024-05-03T00:00:00Z"]);
}

#[test]
fn day_of_month_or_weekday_where_both_are_restricted() {
    // The 13th, and every Friday: 3, 10, 13, 17 May 2024.
    check(
        "0 0 13 * FRI",
        Tz::UTC,
        "2024-05-01T00:00:00Z",
        &["2024-05-03T00:00:00Z", "2024-05-10T00:00:00Z", "2024-05-13T00:00:00Z", "2024-05-17T00:00:00Z"],
    );
    // The 30th of February never comes, the Fridays of February do.
    check("0 0 30 2 FRI", Tz::UTC, "2024-02-20T00:00:00Z", &["2024-02-23T00:00:00Z", "2025-02-07T00:00:00Z"]);
}

#[test]
fn a_field_that_begins_with_a_star_is_not_restricted() {
    // As in Unix: odd days that are Mondays.
    check("0 0 */2 * MON", Tz::UTC, "2024-05-01T00:00:00Z", &["2024-05-13T00:00:00Z", "2024-05-27T00:00:00Z"]);
}

#[test]
fn nicknames() {
    check("@daily", Tz::UTC, "2024-05-01T00:00:00Z", &["2024-05-02T00:00:00Z"]);
    check("@midnight", Madrid, "2024-05-01T00:00:00Z", &["2024-05-01T22:00:00Z"]);
    check("@hourly", Tz::UTC, "2024-05-01T00:00:00Z", &["2024-05-01T01:00:00Z"]);
    check("@weekly", Tz::UTC, "2024-05-01T00:00:00Z", &["2024-05-05T00:00:00Z"]);
    check("@monthly", Tz::UTC, "2024-05-01T00:00:00Z", &["2024-06-01T00:00:00Z"]);
    check("@Yearly", Tz::UTC, "2024-05-01T00:00:00Z", &["2025-01-01T00:00:00Z"]);
    check_error("@reboot", "unknown `@reboot`; there are @yearly, @monthly, @weekly, @daily, @midnight and @hourly");
}

#[test]
fn leap_days() {
    check("0 12 29 2 *", Tz::UTC, "2023-01-01T00:00:00Z", &["2024-02-29T12:00:00Z", "2028-02-29T12:00:00Z"]);
    // 2100 is none.
    let schedule = Schedule::parse("0 12 29 2 *", Tz::UTC).expect("a schedule");
    assert_eq!(schedule.next_after(utc("2096-02-29T12:00:00Z")), None);
    // A Sunday on the 29th of February, through `*/29`: 2032, and then 2060.
    check("* * */28 2 SUN", Tz::UTC, "2024-03-01T00:00:00Z", &["2026-02-01T00:00:00Z"]);
}

#[test]
fn days_that_never_come_are_refused() {
    check_error("0 0 30 2 *", "`0 0 30 2 *` never runs: no such day as 30 FEB");
    check_error("0 0 31 4,6,9,11 *", "`0 0 31 4,6,9,11 *` never runs: no such day as 31 APR");
    check_error("0 0 30,31 FEB */2", "`0 0 30,31 FEB */2` never runs: no such day as 30 FEB");
    Schedule::parse("0 0 31 2,3 *", Tz::UTC).expect("31 March comes");
}

#[test]
fn errors_name_the_field() {
    check_error("60 * * * *", "the minute field: 60 is not within 0-59");
    check_error("0 24 * * *", "the hour field: 24 is not within 0-23");
    check_error("0 0 0 * *", "the day of month field: 0 is not within 1-31");
    check_error("0 0 * 13 *", "the month field: 13 is not within 1-12 or JAN-DEC");
    check_error("0 0 * * 8", "the weekday field: 8 is not within 0-7 or SUN-SAT");
    check_error("0 0 * * MOON", "the weekday field: `MOON` is not 0-7 or SUN-SAT");
    check_error("99999999999 * * * *", "the minute field: 99999999999 is not within 0-59");
    check_error("61 0 0 * * *", "the second field: 61 is not within 0-59");
    check_error("*/0 * * * *", "the minute field: the step `0` in `*/0` is not a number from 1");
    check_error("*/x * * * *", "the minute field: the step `x` in `*/x` is not a number from 1");
    check_error("5/15 * * * *", "the minute field: `5/15` steps from a single value; write `5-59/15`");
    check_error(
        "0 22-2 * * *",
        "the hour field: the range `22-2` begins after its end; write it as two, separated by a comma",
    );
    check_error("0,, * * * *", "the minute field: `` is not 0-59");
    check_error("-5 * * * *", "the minute field: `` is not 0-59");
    check_error("0 0 ? * 1", "the day of month field: `?` is not 1-31; write `*`");
    check_error("0 0 L * *", "the day of month field: `L` is not 1-31; L, W and # are not Unix cron");
    check_error(
        "0 3 * *",
        "a cron expression has five fields (minute hour day month weekday), or six with seconds first; `0 3 * *` has 4",
    );
    check_error(
        "",
        "a cron expression has five fields (minute hour day month weekday), or six with seconds first; `` has 0",
    );
    check_error(
        "0 0 3 * * * 2024",
        "a cron expression has five fields (minute hour day month weekday), or six with seconds first; `0 0 3 * * * 2024` has 7",
    );
}

#[test]
fn fixed_times_keep_the_local_clock() {
    // Madrid: +1 until 2024-03-31 01:00Z, +2 until 2024-10-27 01:00Z.
    check(
        "0 3 * * *",
        Madrid,
        "2024-03-30T00:00:00Z",
        &["2024-03-30T02:00:00Z", "2024-03-31T01:00:00Z", "2024-04-01T01:00:00Z"],
    );
    check(
        "0 3 * * *",
        Madrid,
        "2024-10-26T00:00:00Z",
        &["2024-10-26T01:00:00Z", "2024-10-27T02:00:00Z", "2024-10-28T02:00:00Z"],
    );
}

#[test]
fn missing_fixed_times_are_shifted() {
    // 02:30 is missing on 2024-03-31, 2025-03-30, 2026-03-29: it runs at 03:30 summer time.
    for (before, missing, after) in [
        ("2024-03-30T01:30:00Z", "2024-03-31T01:30:00Z", "2024-04-01T00:30:00Z"),
        ("2025-03-29T01:30:00Z", "2025-03-30T01:30:00Z", "2025-03-31T00:30:00Z"),
        ("2026-03-28T01:30:00Z", "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"),
    ] {
        check("30 2 * * *", Madrid, before, &[missing, after]);
    }
    // New York, 2025-03-09 07:00Z: 02:15 is missing and runs at 03:15 EDT.
    check("15 2 * * *", New_York, "2025-03-08T07:15:00Z", &["2025-03-09T07:15:00Z", "2025-03-10T06:15:00Z"]);
    check("15 2 * * *", New_York, "2024-03-09T07:15:00Z", &["2024-03-10T07:15:00Z"]);
    check("15 2 * * *", New_York, "2026-03-07T07:15:00Z", &["2026-03-08T07:15:00Z"]);
    // A time behind the jump comes before a shifted one; two that fall together run once.
    check("30 2 * * *", Madrid, "2024-03-31T01:00:00Z", &["2024-03-31T01:30:00Z", "2024-04-01T00:30:00Z"]);
    check(
        "0,30 2,3 * * *",
        Madrid,
        "2024-03-31T00:59:59Z",
        &["2024-03-31T01:00:00Z", "2024-03-31T01:30:00Z", "2024-04-01T00:00:00Z"],
    );
    check("0 3 31 3 *", Madrid, "2024-01-01T00:00:00Z", &["2024-03-31T01:00:00Z", "2025-03-31T01:00:00Z"]);
}

#[test]
fn doubled_fixed_times_run_once() {
    // 02:30 comes twice on 2024-10-27: at 00:30Z and 01:30Z.
    check("30 2 * * *", Madrid, "2024-10-26T12:00:00Z", &["2024-10-27T00:30:00Z", "2024-10-28T01:30:00Z"]);
    check("30 2 * * *", Madrid, "2024-10-27T00:30:00Z", &["2024-10-28T01:30:00Z"]);
    check("30 2 * * *", Madrid, "2025-10-25T12:00:00Z", &["2025-10-26T00:30:00Z", "2025-10-27T01:30:00Z"]);
    // 01:30 comes twice on 2026-11-01 in New York: 05:30Z and 06:30Z.
    check("30 1 * * *", New_York, "2026-10-31T12:00:00Z", &["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"]);
    // Between the two passes.
    check("45 2 * * *", Madrid, "2024-10-27T00:59:00Z", &["2024-10-28T01:45:00Z"]);
}

#[test]
fn wild_expressions_run_by_elapsed_time() {
    check(
        "*/30 * * * *",
        Madrid,
        "2024-03-31T00:30:00Z",
        &["2024-03-31T01:00:00Z", "2024-03-31T01:30:00Z", "2024-03-31T02:00:00Z"],
    );
    check(
        "*/30 * * * *",
        Madrid,
        "2024-10-27T00:00:00Z",
        &["2024-10-27T00:30:00Z", "2024-10-27T01:00:00Z", "2024-10-27T01:30:00Z", "2024-10-27T02:00:00Z"],
    );
    check(
        "15 * * * *",
        New_York,
        "2024-11-03T05:00:00Z",
        &["2024-11-03T05:15:00Z", "2024-11-03T06:15:00Z", "2024-11-03T07:15:00Z"],
    );
    // Lord Howe Island jumps by half an hour: 02:00 to 02:30 on 2024-10-06, at 2024-10-05 15:30Z.
    check(
        "0 * * * *",
        chrono_tz::Australia::Lord_Howe,
        "2024-10-05T14:30:00Z",
        &["2024-10-05T16:00:00Z", "2024-10-05T17:00:00Z"],
    );
    check(
        "30 */2 * * *",
        chrono_tz::Australia::Lord_Howe,
        "2024-10-05T14:30:00Z",
        &["2024-10-05T15:30:00Z", "2024-10-05T17:30:00Z"],
    );
}

#[test]
fn a_wild_expression_far_ahead_crosses_many_changes() {
    check("* * 29 2 *", Madrid, "2024-03-01T00:00:00Z", &["2028-02-28T23:00:00Z", "2028-02-28T23:01:00Z"]);
}

/// All times of a schedule within some days, found by looking at every minute.
fn by_brute_force(fields: &Fields, zone: Tz, from: DateTime<Utc>, until: DateTime<Utc>) -> BTreeSet<DateTime<Utc>> {
    let matches = |local: NaiveDateTime| {
        let day = fields.day.values.contains(&local.day());
        let weekday = fields.weekday.values.contains(&local.weekday().num_days_from_sunday());
        let days = match fields.day.wild || fields.weekday.wild {
            true => day && weekday,
            false => day || weekday,
        };
        days && fields.month.values.contains(&local.month())
            && fields.hour.values.contains(&local.hour())
            && fields.minute.values.contains(&local.minute())
    };
    let mut found = BTreeSet::new();
    if fields.hour_or_minute_is_wild() {
        let mut at = from;
        while at < until {
            at += Duration::minutes(1);
            if matches(at.with_timezone(&zone).naive_local()) {
                found.insert(at);
            }
        }
        return found;
    }
    let mut local = from.naive_utc() - Duration::days(2);
    while local < until.naive_utc() + Duration::days(2) {
        local += Duration::minutes(1);
        if matches(local) {
            let instant = match zone.from_local_datetime(&local) {
                LocalResult::Single(at) | LocalResult::Ambiguous(at, _) => at.to_utc(),
                // Before the jump there was this much less to subtract.
                LocalResult::None => {
                    (zone.from_local_datetime(&(local - Duration::hours(3))).unwrap() + Duration::hours(3)).to_utc()
                }
            };
            found.insert(instant);
        }
    }
    found.retain(|at| *at > from && *at <= until);
    found
}

#[test]
fn random_schedules_agree_with_a_look_at_every_minute() {
    let seed = std::env::var("WATERSHED_SEEDS").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let changes = [
        (Madrid, NaiveDate::from_ymd_opt(2024, 3, 31)),
        (Madrid, NaiveDate::from_ymd_opt(2026, 10, 25)),
        (New_York, NaiveDate::from_ymd_opt(2025, 3, 9)),
        (New_York, NaiveDate::from_ymd_opt(2025, 11, 2)),
        (chrono_tz::Australia::Lord_Howe, NaiveDate::from_ymd_opt(2025, 4, 6)),
        (chrono_tz::Australia::Lord_Howe, NaiveDate::from_ymd_opt(2025, 10, 5)),
        (chrono_tz::America::Sao_Paulo, NaiveDate::from_ymd_opt(2018, 11, 4)),
        (chrono_tz::Asia::Kolkata, NaiveDate::from_ymd_opt(2024, 2, 28)),
    ];
    for round in 0..400 {
        let (zone, day) = changes[random.random_range(0..changes.len())];
        let day = day.expect("a day").and_hms_opt(0, 0, 0).expect("midnight").and_utc();
        let (from, until) = (day - Duration::days(1), day + Duration::days(2));
        let minute = ["*", "*/7", "30", "0,15,45", "0-59/20"][random.random_range(0..5)];
        let hour = ["*", "*/2", "0", "1", "2", "1-3", "0,2,23"][random.random_range(0..7)];
        let day_of_month = ["*", "*", "*/2", "31", "1-9", "25"][random.random_range(0..6)];
        let weekday = ["*", "*", "SUN", "1-5", "7", "*/3"][random.random_range(0..6)];
        let expression = format!("{minute} {hour} {day_of_month} * {weekday}");
        let expected = by_brute_force(&Fields::parse(&expression).expect("fields"), zone, from, until);
        let schedule = Schedule::parse(&expression, zone).expect("a schedule");
        let mut found = BTreeSet::new();
        let mut at = from;
        while let Some(next) = schedule.next_after(at).filter(|next| *next <= until) {
            assert!(next > at, "seed {seed}, round {round}: {expression} in {zone} does not advance at {at}");
            found.insert(next);
            at = next;
        }
        assert_eq!(found, expected, "seed {seed}, round {round}: {expression} in {zone} from {from}");
        // From any instant, not only from a time of the schedule.
        for _ in 0..20 {
            let at = from + Duration::seconds(random.random_range(0..3 * 86_400));
            let next = expected.range(at + Duration::nanoseconds(1)..).next();
            let found = schedule.next_after(at).filter(|next| *next <= until);
            assert_eq!(found.as_ref(), next, "seed {seed}, round {round}: {expression} in {zone} after {at}");
        }
    }
}
