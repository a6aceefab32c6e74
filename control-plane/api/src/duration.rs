//! Durations: Go's text form (`1m30s`), as `metav1.Duration` fields use it, and the short human forms of
//! `kubectl get` (`5d4h`).

use std::fmt::Write as _;
use std::time::Duration;

/// Why a text is not a duration, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not a sequence of numbers and units.
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    /// A number without unit.
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    /// A unit that Go does not know.
    #[error("time: unknown unit {1:?} in duration {0:?}")]
    UnknownUnit(String, String),
}

/// Reads Go's form into nanoseconds: signed numbers with optional fraction and unit `ns us µs ms s m h`.
///
/// # Errors
/// In Go's words, when the text is malformed or over 292 years.
pub fn parse_nanos(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 19 {
            return Err(invalid());
        }
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        if unit.is_empty() {
            return Err(DurationError::MissingUnit(text.to_owned()));
        }
        let scale = unit_nanos(unit)
            .ok_or_else(|| DurationError::UnknownUnit(text.to_owned(), unit.to_owned()))?;
        total += whole.parse::<i128>().unwrap_or(0) * scale;
        let digits: String = fraction.chars().take(18).collect();
        if !digits.is_empty() {
            let part = digits.parse::<i128>().map_err(|_| invalid())?;
            total += part * scale / 10_i128.pow(digits.len() as u32);
        }
        rest = next;
    }
    let total = if negative { -total } else { total };
    i64::try_from(total).map_err(|_| invalid())
}

fn unit_nanos(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Reads Go's form into a [`Duration`].
///
/// # Errors
/// As [`parse_nanos`]; negative durations are invalid too.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let nanos = parse_nanos(text)?;
    u64::try_from(nanos)
        .map(Duration::from_nanos)
        .map_err(|_| DurationError::Invalid(text.to_owned()))
}

/// Writes Go's form: `1h0m0s`, `1.5s`, `20ms`, `0s`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < 1_000_000_000 {
        let (scale, unit) = match nanos {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            _ => (1_000_000, "ms"),
        };
        return format!("{}{unit}", decimal(nanos, scale));
    }
    let seconds = nanos / 1_000_000_000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let mut out = String::new();
    // Writing to a String cannot fail.
    if hours > 0 {
        let _ = write!(out, "{hours}h");
    }
    if hours > 0 || minutes > 0 {
        let _ = write!(out, "{minutes}m");
    }
    let _ = write!(out, "{}s", decimal(nanos % 60_000_000_000, 1_000_000_000));
    out
}

fn decimal(value: u128, scale: u128) -> String {
    let fraction = value % scale;
    if fraction == 0 {
        return (value / scale).to_string();
    }
    let width = scale.ilog10() as usize;
    let digits = format!("{fraction:0width$}");
    format!("{}.{}", value / scale, digits.trim_end_matches('0'))
}

/// An age as kubectl prints it: two units at most, coarser with age (`59s`, `3m5s`, `7h30m`, `2d4h`, `3y10d`).
/// Below -1 s it says `<invalid>`, between -1 s and 0 `0s`, as clocks differ.
///
/// Source: apimachinery `duration.HumanDuration`.
#[must_use]
pub fn human(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{big}{unit}")
        } else {
            format!("{big}{unit}{small}{small_unit}")
        }
    };
    if seconds < 120 {
        return format!("{seconds}s");
    }
    let minutes = seconds / 60;
    if minutes < 10 {
        return two(minutes, "m", seconds % 60, "s");
    }
    if minutes < 180 {
        return format!("{minutes}m");
    }
    let hours = minutes / 60;
    if hours < 8 {
        return two(hours, "h", minutes % 60, "m");
    }
    if hours < 48 {
        return format!("{hours}h");
    }
    let days = hours / 24;
    if hours < 192 {
        return two(days, "d", hours % 24, "h");
    }
    if hours < 24 * 365 * 2 {
        return format!("{days}d");
    }
    let years = days / 365;
    if hours < 24 * 365 * 8 {
        return two(years, "y", days % 365, "d");
    }
    format!("{years}y")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn go_durations_read_and_print() {
        for (text, nanos, canonical) in [
            ("1h", 3_600_000_000_000_i64, "1h0m0s"),
            ("90s", 90_000_000_000, "1m30s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("20ms", 20_000_000, "20ms"),
            ("0", 0, "0s"),
            ("1m0.25s", 60_250_000_000, "1m0.25s"),
        ] {
            assert_eq!(parse_nanos(text).unwrap(), nanos);
            assert_eq!(format(parse(text).unwrap()), canonical);
        }
        assert_eq!(
            parse_nanos("5").unwrap_err().to_string(),
            "time: missing unit in duration \"5\""
        );
        assert_eq!(
            parse_nanos("5d").unwrap_err().to_string(),
            "time: unknown unit \"d\" in duration \"5d\""
        );
        assert!(parse("").is_err());
        assert!(parse("-1s").is_err());
    }

    #[test]
    fn ages_get_coarser() {
        for (seconds, text) in [
            (-2, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600 + 60, "8h"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (365 * 86400 * 3 + 86400, "3y1d"),
        ] {
            assert_eq!(human(seconds), text);
        }
    }
}
