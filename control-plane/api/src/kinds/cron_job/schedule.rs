//! Syntax of cron schedules, as robfig/cron's standard parser reads it.

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// The range of one of the five fields, and the names of its values.
struct Field {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        low: 0,
        high: 59,
        names: &[],
    },
    Field {
        low: 0,
        high: 23,
        names: &[],
    },
    Field {
        low: 1,
        high: 31,
        names: &[],
    },
    Field {
        low: 1,
        high: 12,
        names: &MONTHS,
    },
    Field {
        low: 0,
        high: 6,
        names: &DAYS,
    },
];

/// What is wrong with a schedule.
pub(super) fn check(text: &str) -> Result<(), String> {
    if let Some(descriptor) = text.strip_prefix('@') {
        return check_descriptor(descriptor, text);
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    for (value, field) in fields.into_iter().zip(&FIELDS) {
        for part in value.split(',') {
            field.check(part)?;
        }
    }
    Ok(())
}

fn check_descriptor(descriptor: &str, text: &str) -> Result<(), String> {
    match descriptor {
        "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly" => Ok(()),
        _ => match descriptor.strip_prefix("every ") {
            Some(duration) => crate::duration::parse(duration)
                .map(|_| ())
                .map_err(|problem| format!("failed to parse duration {text}: {problem}")),
            None => Err(format!("unrecognized descriptor: {text}")),
        },
    }
}

impl Field {
    /// A value, a range or a star, possibly with a step.
    fn check(&self, part: &str) -> Result<(), String> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (part, None),
        };
        let (start, end) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (self.low, self.high),
            Some((start, end)) => (self.value(start)?, self.value(end)?),
            None => {
                let value = self.value(range)?;
                (value, if step.is_some() { self.high } else { value })
            }
        };
        if start < self.low {
            return Err(format!(
                "beginning of range ({start}) below minimum ({}): {part}",
                self.low
            ));
        }
        if end > self.high {
            return Err(format!(
                "end of range ({end}) above maximum ({}): {part}",
                self.high
            ));
        }
        if start > end {
            return Err(format!(
                "beginning of range ({start}) beyond end of range ({end}): {part}"
            ));
        }
        match step.map(number).transpose()? {
            Some(0) => Err(format!("step of range should be a positive number: {part}")),
            _ => Ok(()),
        }
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        match self
            .names
            .iter()
            .position(|name| text.eq_ignore_ascii_case(name))
        {
            Some(index) => Ok(self.low + u32::try_from(index).unwrap_or_default()),
            None => number(text),
        }
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| {
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_schedules_pass() {
        for text in [
            "* * * * *",
            "*/15 0-6,8 1 jan-mar MON",
            "5/10 ? * * 0",
            "@hourly",
            "@every 1h30m",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn values_stay_in_range() {
        assert_eq!(
            check("60 * * * *"),
            Err("end of range (60) above maximum (59): 60".into())
        );
        assert_eq!(
            check("* * 0 * *"),
            Err("beginning of range (0) below minimum (1): 0".into())
        );
        assert_eq!(
            check("5-1 * * * *"),
            Err("beginning of range (5) beyond end of range (1): 5-1".into())
        );
        assert_eq!(
            check("*/0 * * * *"),
            Err("step of range should be a positive number: */0".into())
        );
        assert!(check("a * * * *").is_err());
        assert_eq!(check("@soon"), Err("unrecognized descriptor: @soon".into()));
    }
}
