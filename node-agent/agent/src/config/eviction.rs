//! When the node calls itself short of something: upstream's hard eviction thresholds, and how people write them.

use std::time::Duration;

use balsa_api::quantity::Quantity;

/// Least of something that is to be available.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// So many bytes, inodes or process ids.
    Amount(u64),
    /// A part of all there is, in percent.
    Percent(f64),
}

impl Threshold {
    /// The amount, when there is `whole` in all.
    #[must_use]
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Percent(percent) => (whole as f64 * percent / 100.0) as u64,
        }
    }

    /// Reads `10%`, or a quantity like `500Mi`.
    fn parse(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().ok()?;
            return (0.0..=100.0)
                .contains(&percent)
                .then_some(Self::Percent(percent));
        }
        let amount: Quantity = text.parse().ok()?;
        u64::try_from(amount.value()).ok().map(Self::Amount)
    }
}

impl std::fmt::Display for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Amount(amount) if amount % (1 << 20) == 0 && *amount > 0 => {
                write!(f, "{}Mi", amount >> 20)
            }
            Self::Amount(amount) => write!(f, "{amount}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// When the node calls itself short of something, and throws pods out (upstream's hard thresholds and defaults).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Eviction {
    /// Least available memory.
    pub memory_available: Threshold,
    /// Least free part of the file systems that pods and images are on.
    pub disk_available: Threshold,
    /// Least free part of their inodes.
    pub inodes_free: Threshold,
    /// Least free process ids.
    pub pids_available: Threshold,
    /// How long the node goes on calling itself short of something after it has enough again.
    pub transition: Duration,
}

impl Default for Eviction {
    fn default() -> Self {
        Self {
            memory_available: Threshold::Amount(100 << 20),
            disk_available: Threshold::Percent(10.0),
            inodes_free: Threshold::Percent(5.0),
            pids_available: Threshold::Percent(5.0),
            transition: Duration::from_secs(300),
        }
    }
}

impl Eviction {
    /// Sets the hard thresholds as kubelet's `evictionHard` is written: `memory.available<1Gi,nodefs.available<10%`.
    /// As there, signals that are not named have no threshold then.
    ///
    /// # Errors
    /// When a signal is not known or a threshold cannot be read; for people.
    pub fn set_hard(&mut self, text: &str) -> Result<(), String> {
        let none = Threshold::Amount(0);
        let mut next = Self {
            memory_available: none,
            disk_available: none,
            inodes_free: none,
            pids_available: none,
            transition: self.transition,
        };
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let wrong = || {
                format!(
                    "{part:?} is no threshold: write SIGNAL<AMOUNT, as in memory.available<500Mi or nodefs.available<10%"
                )
            };
            let (signal, value) = part.split_once('<').ok_or_else(wrong)?;
            let value = Threshold::parse(value.trim()).ok_or_else(wrong)?;
            let place = match signal.trim() {
                "memory.available" => &mut next.memory_available,
                "nodefs.available" => &mut next.disk_available,
                "nodefs.inodesFree" => &mut next.inodes_free,
                "pid.available" => &mut next.pids_available,
                other => {
                    return Err(format!(
                        "the eviction signal {other:?} is not known: those are memory.available, nodefs.available, \
                         nodefs.inodesFree and pid.available"
                    ));
                }
            };
            *place = value;
        }
        *self = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn thresholds_are_amounts_or_parts_and_those_not_named_are_off() {
        let mut eviction = Eviction::default();
        eviction
            .set_hard("memory.available<1Gi, nodefs.available<12.5%")
            .unwrap();
        assert_eq!(eviction.memory_available.of(1 << 40), 1 << 30);
        assert_eq!(eviction.disk_available.of(800), 100);
        assert_eq!(eviction.inodes_free.of(800), 0);
        assert_eq!(eviction.transition, Duration::from_secs(300));
        assert_eq!(eviction.memory_available.to_string(), "1024Mi");
    }

    #[test]
    fn nonsense_is_refused_and_changes_nothing() {
        let mut eviction = Eviction::default();
        for wrong in [
            "memory.available",
            "memory.available<lots",
            "nodefs.available<101%",
        ] {
            assert!(
                eviction
                    .set_hard(wrong)
                    .unwrap_err()
                    .contains("is no threshold")
            );
        }
        let unknown = eviction.set_hard("disk<1Gi").unwrap_err();
        assert!(unknown.contains("\"disk\" is not known"), "{unknown}");
        assert_eq!(eviction, Eviction::default());
    }
}
