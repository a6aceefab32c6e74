//! Cron schedules: which minutes a text such as `*/5 8-18 * * mon-fri` means. Pure.
//!
//! Five fields as in Vixie cron, and `@hourly`, `@every 1h30m` and the like; a schedule may begin with `TZ=`. A day
//! matches when both day fields do, or, if neither of them begins with a star, when one of them does.

use std::time::Duration;

use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan};

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// Schedules for which no day is found in this time (30 February) never come.
const HORIZON_DAYS: u32 = 5 * 366;

/// When something is to happen.
#[derive(Debug, Clone)]
pub(super) enum Schedule {
    /// At all minutes that match, on the clocks of a time zone.
    Cron(Box<Fields>, TimeZone),
    /// Again and again after this time.
    Every(Duration),
}

/// Bits of the values that each field allows.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Neither day field begins with a star.
    either_day: bool,
}

/// Why a schedule cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Invalid(String);

/// Reads a schedule. `zone` is the zone for schedules that do not name their own; without it, UTC.
pub(super) fn parse(text: &str, zone: Option<&str>) -> Result<Schedule, Invalid> {
    let mut text = text.trim();
    let mut zone = zone;
    for prefix in ["TZ=", "CRON_TZ="] {
        if let Some(rest) = text.strip_prefix(prefix) {
            let (named, fields) = rest.split_once(' ').unwrap_or((rest, ""));
            (zone, text) = (Some(named), fields.trim());
        }
    }
    let zone = match zone {
        None => TimeZone::UTC,
        Some(name) => TimeZone::get(name)
            .map_err(|error| Invalid(format!("provided bad location {name}: {error}")))?,
    };
    let fields = match text.strip_prefix('@') {
        None => text,
        Some("yearly" | "annually") => "0 0 1 1 *",
        Some("monthly") => "0 0 1 * *",
        Some("weekly") => "0 0 * * 0",
        Some("daily" | "midnight") => "0 0 * * *",
        Some("hourly") => "0 * * * *",
        Some(other) => return every(other, text),
    };
    Ok(Schedule::Cron(Box::new(parse_fields(fields)?), zone))
}

fn every(descriptor: &str, text: &str) -> Result<Schedule, Invalid> {
    let Some(duration) = descriptor.strip_prefix("every ") else {
        return Err(Invalid(format!("unrecognized descriptor: {text}")));
    };
    let duration = balsa_api::duration::parse(duration)
        .map_err(|error| Invalid(format!("failed to parse duration {text}: {error}")))?;
    Ok(Schedule::Every(Duration::from_secs(
        duration.as_secs().max(1),
    )))
}

fn parse_fields(text: &str) -> Result<Fields, Invalid> {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [minutes, hours, days, months, weekdays] = parts.as_slice() else {
        return Err(Invalid(format!(
            "expected exactly 5 fields, found {}: [{}]",
            parts.len(),
            parts.join(" ")
        )));
    };
    let (days, any_day) = field(days, 1, 31, &[])?;
    let (weekdays, any_weekday) = field(weekdays, 0, 6, &DAYS)?;
    Ok(Fields {
        minutes: field(minutes, 0, 59, &[])?.0,
        hours: field(hours, 0, 23, &[])?.0,
        months: field(months, 1, 12, &MONTHS)?.0,
        days,
        weekdays,
        either_day: !any_day && !any_weekday,
    })
}

/// The bits of one field, and whether it has a plain star.
fn field(text: &str, low: u32, high: u32, names: &[&str]) -> Result<(u64, bool), Invalid> {
    let (mut bits, mut star) = (0, false);
    for part in text.split(',') {
        let (range, step) = part.split_once('/').unwrap_or((part, ""));
        let step = if step.is_empty() { 1 } else { number(step)? };
        let value = |text: &str| {
            let named = names
                .iter()
                .position(|name| text.eq_ignore_ascii_case(name));
            match named.and_then(|index| u32::try_from(index).ok()) {
                Some(index) => Ok(low + index),
                None => number(text),
            }
        };
        let (start, end) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => {
                star |= step == 1;
                (low, high)
            }
            Some((start, end)) => (value(start)?, value(end)?),
            None if part.contains('/') => (value(range)?, high),
            None => (value(range)?, value(range)?),
        };
        if start < low || end > high || start > end || step == 0 {
            return Err(Invalid(format!("not a range within {low}-{high}: {part}")));
        }
        let mut at = start;
        while at <= end {
            bits |= 1u64 << at;
            at = at.saturating_add(step);
        }
    }
    Ok((bits, star))
}

fn number(text: &str) -> Result<u32, Invalid> {
    text.parse()
        .map_err(|_| Invalid(format!("failed to parse int from {text}")))
}

impl Fields {
    fn has_day(&self, date: Date) -> bool {
        let bit = |bits: u64, value: i8| bits & (1u64 << u32::try_from(value).unwrap_or(63)) != 0;
        let day = bit(self.days, date.day());
        let weekday = bit(self.weekdays, weekday(date.weekday()));
        bit(self.months, date.month())
            && if self.either_day {
                day || weekday
            } else {
                day && weekday
            }
    }

    /// All minutes of a day that match, from `from` (in minutes since midnight) on.
    fn minutes_from(&self, from: u32) -> impl Iterator<Item = u32> + '_ {
        (from..24 * 60).filter(|minute| {
            self.hours & (1 << (minute / 60)) != 0 && self.minutes & (1 << (minute % 60)) != 0
        })
    }

    fn next(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        let local = after.to_zoned(zone.clone()).datetime();
        let mut date = local.date();
        // Clocks may have been set back since then: an hour's minutes come twice.
        let mut from = (u32::try_from(local.hour()).ok()? * 60).saturating_sub(180);
        for _ in 0..HORIZON_DAYS {
            if self.has_day(date) {
                let found = self
                    .minutes_from(from)
                    .flat_map(|minute| instants(zone, date, minute));
                if let Some(first) = found.filter(|found| *found > after).min() {
                    return Some(first);
                }
            }
            from = 0;
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }
}

/// The instants at which a zone's clocks show a time: one, two when they are set back, none when set forward.
fn instants(zone: &TimeZone, date: Date, minute: u32) -> Vec<Timestamp> {
    let (Ok(hour), Ok(minute)) = (i8::try_from(minute / 60), i8::try_from(minute % 60)) else {
        return Vec::new();
    };
    let shown: DateTime = date.at(hour, minute, 0, 0);
    let offsets = match zone.to_ambiguous_timestamp(shown).offset() {
        AmbiguousOffset::Unambiguous { offset } => vec![offset],
        AmbiguousOffset::Gap { .. } => Vec::new(),
        AmbiguousOffset::Fold { before, after } => vec![before, after],
    };
    offsets
        .into_iter()
        .filter_map(|offset| offset.to_timestamp(shown).ok())
        .collect()
}

fn weekday(day: Weekday) -> i8 {
    day.to_sunday_zero_offset()
}

impl Schedule {
    /// The first time after `after`; `None` if there is none.
    pub(super) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::Cron(fields, zone) => fields.next(zone, after),
            Schedule::Every(period) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole
                    .checked_add(SignedDuration::try_from(*period).ok()?)
                    .ok()
            }
        }
    }

    /// The last time in `(after, until]`, and whether more than one was passed over to get there.
    pub(super) fn last(&self, after: Timestamp, until: Timestamp) -> Option<Last> {
        let first = self.next(after).filter(|first| *first <= until)?;
        let Some(second) = self.next(first).filter(|second| *second <= until) else {
            return Some(Last {
                at: first,
                missed: 0,
            });
        };
        // Regular gaps: jump close to the end instead of walking through years of minutes.
        let gap = second
            .duration_since(first)
            .max(SignedDuration::from_secs(1));
        let whole = until.duration_since(first).as_secs() / gap.as_secs().max(1);
        let (mut at, mut missed) = (second, whole.max(1));
        if whole > 2 * MANY_MISSED {
            let back = gap.checked_mul(2).unwrap_or(gap);
            if let Some(near) = until
                .checked_sub(back)
                .ok()
                .and_then(|near| self.next(near))
            {
                at = near;
            }
        }
        let mut walked = 1;
        while let Some(next) = self.next(at).filter(|next| *next <= until) {
            at = next;
            walked += 1;
        }
        if whole <= 2 * MANY_MISSED {
            missed = walked;
        }
        if at > until {
            return Some(Last { at: first, missed });
        }
        Some(Last { at, missed })
    }
}

/// Missing more than this many starts is worth a warning.
pub(super) const MANY_MISSED: i64 = 100;

/// The latest start that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) at: Timestamp,
    /// Starts before it that were not used; an estimate when there are many.
    pub(super) missed: i64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(schedule: &str, zone: Option<&str>, after: &str) -> String {
        let found = parse(schedule, zone).unwrap().next(at(after));
        found.map(|found| found.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_next_minute_that_matches() {
        let after = "2024-02-28T23:59:30Z";
        assert_eq!(next("* * * * *", None, after), "2024-02-29T00:00:00Z");
        assert_eq!(
            next("*/15 8-18 * * mon-fri", None, after),
            "2024-02-29T08:00:00Z"
        );
        assert_eq!(next("0 0 1 * ?", None, after), "2024-03-01T00:00:00Z");
        assert_eq!(
            next("@hourly", None, "2024-01-01T10:00:00Z"),
            "2024-01-01T11:00:00Z"
        );
        assert_eq!(
            next("@every 90m", None, "2024-01-01T10:00:00Z"),
            "2024-01-01T11:30:00Z"
        );
        assert_eq!(next("0 0 30 2 *", None, after), "");
    }

    #[test]
    fn two_day_fields_without_stars_are_alternatives() {
        // The 13th, or any Friday.
        assert_eq!(
            next("0 0 13 * fri", None, "2024-01-10T00:00:00Z"),
            "2024-01-12T00:00:00Z"
        );
        assert_eq!(
            next("0 0 13 * fri", None, "2024-01-12T00:00:00Z"),
            "2024-01-13T00:00:00Z"
        );
        // A Friday within the first seven days.
        assert_eq!(
            next("0 0 1-7 * *", None, "2024-01-10T00:00:00Z"),
            "2024-02-01T00:00:00Z"
        );
    }

    #[test]
    fn clocks_of_the_zone_count_also_when_they_change() {
        let zone = Some("Europe/Berlin");
        assert_eq!(
            next("0 8 * * *", zone, "2024-01-01T00:00:00Z"),
            "2024-01-01T07:00:00Z"
        );
        assert_eq!(
            next("TZ=Asia/Tokyo 0 8 * * *", zone, "2024-01-01T00:00:00Z"),
            "2024-01-01T23:00:00Z"
        );
        // 02:30 does not exist on 31 March; the job waits for the next day.
        assert_eq!(
            next("30 2 * * *", zone, "2024-03-30T12:00:00Z"),
            "2024-04-01T00:30:00Z"
        );
        // On 27 October, 02:00 to 03:00 comes twice: nothing is left out.
        assert_eq!(
            next("*/30 * * * *", zone, "2024-10-27T00:30:00Z"),
            "2024-10-27T01:00:00Z"
        );
    }

    #[test]
    fn the_last_start_is_found_without_walking_through_all() {
        let schedule = parse("* * * * *", None).unwrap();
        let last = schedule
            .last(at("2020-01-01T00:00:00Z"), at("2024-01-01T00:00:30Z"))
            .unwrap();
        assert_eq!(last.at, at("2024-01-01T00:00:00Z"));
        assert!(last.missed > 1_000_000);
        let one = schedule
            .last(at("2024-01-01T00:00:00Z"), at("2024-01-01T00:01:30Z"))
            .unwrap();
        assert_eq!((one.at, one.missed), (at("2024-01-01T00:01:00Z"), 0));
        assert_eq!(
            schedule.last(at("2024-01-01T00:00:00Z"), at("2024-01-01T00:00:59Z")),
            None
        );
        let days = parse("0 9 * * mon-fri", None).unwrap();
        let last = days
            .last(at("2024-01-05T08:00:00Z"), at("2024-01-09T12:00:00Z"))
            .unwrap();
        assert_eq!((last.at, last.missed), (at("2024-01-09T09:00:00Z"), 2));
    }

    #[test]
    fn what_cannot_be_read_is_explained() {
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "@never",
            "x * * * *",
        ] {
            assert!(parse(bad, None).is_err(), "{bad}");
        }
        assert!(parse("* * * * *", Some("Mars/Phobos")).is_err());
    }
}
