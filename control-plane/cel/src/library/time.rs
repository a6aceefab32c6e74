//! Timestamps and durations.

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::{Builtin, Outcome};
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
timestamp.getFullYear(): int
timestamp.getFullYear(string): int
timestamp.getMonth(): int
timestamp.getMonth(string): int
timestamp.getDate(): int
timestamp.getDate(string): int
timestamp.getDayOfMonth(): int
timestamp.getDayOfMonth(string): int
timestamp.getDayOfWeek(): int
timestamp.getDayOfWeek(string): int
timestamp.getDayOfYear(): int
timestamp.getDayOfYear(string): int
timestamp.getHours(): int
timestamp.getHours(string): int
timestamp.getMinutes(): int
timestamp.getMinutes(string): int
timestamp.getSeconds(): int
timestamp.getSeconds(string): int
timestamp.getMilliseconds(): int
timestamp.getMilliseconds(string): int
duration.getHours(): int
duration.getMinutes(): int
duration.getSeconds(): int
duration.getMilliseconds(): int
";

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "getFullYear" => |args, _| part(args, |t| i64::from(t.year()), None),
        "getMonth" => |args, _| part(args, |t| i64::from(t.month()) - 1, None),
        "getDate" => |args, _| part(args, |t| i64::from(t.day()), None),
        "getDayOfMonth" => |args, _| part(args, |t| i64::from(t.day()) - 1, None),
        "getDayOfWeek" => |args, _| {
            part(
                args,
                |t| i64::from(t.weekday().to_sunday_zero_offset()),
                None,
            )
        },
        "getDayOfYear" => |args, _| part(args, |t| i64::from(t.day_of_year()) - 1, None),
        "getHours" => |args, _| part(args, |t| i64::from(t.hour()), Some(3_600_000_000_000)),
        "getMinutes" => |args, _| part(args, |t| i64::from(t.minute()), Some(60_000_000_000)),
        "getSeconds" => |args, _| part(args, |t| i64::from(t.second()), Some(1_000_000_000)),
        "getMilliseconds" => |args, _| part(args, |t| i64::from(t.millisecond()), Some(1_000_000)),
        _ => return None,
    })
}

/// A part of a timestamp in its zone, or a duration in whole units of so many nanoseconds.
fn part<'a>(args: &[Val<'a>], of: fn(&Zoned) -> i64, unit: Option<i64>) -> Outcome<'a> {
    match (args.first(), args.get(1), unit) {
        (Some(Val::Duration(nanos)), None, Some(unit)) => Ok(Val::Int(nanos / unit)),
        (Some(Val::Timestamp(time)), zone, _) => {
            let zone = match zone {
                None => TimeZone::UTC,
                Some(zone) => time_zone(zone.as_str().ok_or(EvalError::NoSuchOverload)?)?,
            };
            Ok(Val::Int(of(&time.to_zoned(zone))))
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// A zone by name, or an offset such as `-08:00`.
fn time_zone(name: &str) -> Result<TimeZone, EvalError> {
    let unknown = || EvalError::failed(format!("unknown time zone {name}"));
    let offset = name.strip_prefix('-').map(|rest| (-1, rest));
    let offset = offset.or_else(|| name.strip_prefix('+').map(|rest| (1, rest)));
    let plain = name
        .starts_with(|c: char| c.is_ascii_digit())
        .then_some((1, name));
    let Some((sign, text)) = offset.or(plain) else {
        return TimeZone::get(name).map_err(|_| unknown());
    };
    let (hours, minutes) = text.split_once(':').ok_or_else(unknown)?;
    let hours: i32 = hours.parse().map_err(|_| unknown())?;
    let minutes: i32 = minutes.parse().map_err(|_| unknown())?;
    if !(0..24).contains(&hours) || !(0..60).contains(&minutes) {
        return Err(unknown());
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60))
        .map(TimeZone::fixed)
        .map_err(|_| unknown())
}

/// RFC 3339.
pub fn parse_timestamp(text: &str) -> Option<Timestamp> {
    // jiff reads more than RFC 3339; dates alone and zones in brackets are not times.
    if text.len() < 20 || text.contains('[') {
        return None;
    }
    text.parse().ok()
}

/// A duration as Go writes it (`1h30m`), in nanoseconds.
pub fn parse_duration(text: &str) -> Option<i64> {
    balsa_api::duration::parse_nanos(text).ok()
}

/// Seconds with an `s`, as protobuf's JSON has durations.
#[must_use]
pub fn format_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let magnitude = nanos.unsigned_abs();
    let (seconds, rest) = (magnitude / 1_000_000_000, magnitude % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{rest:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

/// `a + b` where one is a duration.
///
/// # Errors
/// Overflow; no such overload.
pub fn add<'a>(left: &Val<'a>, right: &Val<'a>) -> Outcome<'a> {
    match (left, right) {
        (Val::Duration(a), Val::Duration(b)) => a
            .checked_add(*b)
            .map(Val::Duration)
            .ok_or(EvalError::Overflow("duration")),
        (Val::Timestamp(time), Val::Duration(by)) | (Val::Duration(by), Val::Timestamp(time)) => {
            shift(*time, *by)
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// `a - b` of times and durations.
///
/// # Errors
/// Overflow; no such overload.
pub fn subtract<'a>(left: &Val<'a>, right: &Val<'a>) -> Outcome<'a> {
    let overflow = EvalError::Overflow("duration");
    match (left, right) {
        (Val::Duration(a), Val::Duration(b)) => {
            a.checked_sub(*b).map(Val::Duration).ok_or(overflow)
        }
        (Val::Timestamp(time), Val::Duration(by)) => {
            shift(*time, by.checked_neg().ok_or(overflow)?)
        }
        (Val::Timestamp(a), Val::Timestamp(b)) => {
            i64::try_from(a.as_nanosecond() - b.as_nanosecond())
                .map(Val::Duration)
                .map_err(|_| overflow)
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn shift<'a>(time: Timestamp, nanos: i64) -> Outcome<'a> {
    time.checked_add(SignedDuration::from_nanos(nanos))
        .map(Val::Timestamp)
        .map_err(|_| EvalError::Overflow("timestamp"))
}
