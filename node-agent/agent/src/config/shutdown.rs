//! How long pods may take to end when the machine goes down (KEP-2000, by priority KEP-2712).

use std::time::Duration;

/// Priority of pods that the cluster can't do without, the least such (`system-cluster-critical`).
const CRITICAL: i32 = 2_000_000_000;

/// Time for the pods from a priority on, up to the next such entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownGrace {
    /// Least priority of these pods. Pods below all entries belong to the lowest.
    pub priority: i32,
    /// Time for them to end.
    pub period: Duration,
}

/// What kubelet's `shutdownGracePeriod` and `shutdownGracePeriodCriticalPods` mean: critical pods have the last part
/// of the whole time to themselves. Empty, which is off, for no time at all.
///
/// # Errors
/// When the part is longer than the whole; for people.
pub fn shutdown_grace(whole: Duration, critical: Duration) -> Result<Vec<ShutdownGrace>, String> {
    let Some(others) = whole.checked_sub(critical) else {
        return Err(
            "the shutdown grace period of critical pods is part of the whole, and cannot be longer"
                .to_owned(),
        );
    };
    if whole.is_zero() {
        return Ok(Vec::new());
    }
    let entry = |priority, period| ShutdownGrace { priority, period };
    Ok(vec![entry(0, others), entry(CRITICAL, critical)])
}

/// Reads `PRIORITY=DURATION,...`, for example `0=20s,1000=10s`: lower ones end first.
///
/// # Errors
/// When it cannot be read or names a priority twice; for people.
pub fn shutdown_grace_by_priority(text: &str) -> Result<Vec<ShutdownGrace>, String> {
    let mut all = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let wrong = || {
            format!(
                "{part:?} is no grace period of a priority: write PRIORITY=DURATION, as in 1000=30s"
            )
        };
        let (priority, period) = part.split_once('=').ok_or_else(wrong)?;
        all.push(ShutdownGrace {
            priority: priority.trim().parse().map_err(|_| wrong())?,
            period: duration(period.trim()).map_err(|_| wrong())?,
        });
    }
    all.sort_by_key(|entry| entry.priority);
    if all
        .windows(2)
        .any(|pair| pair[0].priority == pair[1].priority)
    {
        return Err(format!("{text:?} names a priority twice"));
    }
    Ok(all)
}

/// Reads a duration as kubelet's settings have it: `30s`, `1m30s`, `500ms`; `0` needs no unit.
///
/// # Errors
/// When it is none, or negative; for people.
pub fn duration(text: &str) -> Result<Duration, String> {
    let nanos = balsa_api::duration::parse_nanos(text).map_err(|error| error.to_string())?;
    let nanos = u64::try_from(nanos).map_err(|_| format!("{text:?} is less than nothing"))?;
    Ok(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn seconds(all: &[ShutdownGrace]) -> Vec<(i32, u64)> {
        all.iter()
            .map(|entry| (entry.priority, entry.period.as_secs()))
            .collect()
    }

    #[test]
    fn critical_pods_have_their_part_of_the_whole() {
        let of = |whole, critical| {
            shutdown_grace(Duration::from_secs(whole), Duration::from_secs(critical))
        };
        assert_eq!(seconds(&of(30, 10).unwrap()), [(0, 20), (CRITICAL, 10)]);
        assert!(of(0, 0).unwrap().is_empty());
        assert!(of(5, 10).is_err());
    }

    #[test]
    fn periods_by_priority_are_sorted_and_unique() {
        let all = shutdown_grace_by_priority("1000=1m30s, 0=10s,-5=500ms").unwrap();
        assert_eq!(seconds(&all), [(-5, 0), (0, 10), (1000, 90)]);
        assert!(shutdown_grace_by_priority("0=1s,0=2s").is_err());
        for wrong in ["0", "x=1s", "0=1", "0=s", "0=1y"] {
            assert!(shutdown_grace_by_priority(wrong).is_err(), "{wrong}");
        }
    }
}
