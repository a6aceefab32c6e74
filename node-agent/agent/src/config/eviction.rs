//! When the node calls itself short of something: upstream's eviction thresholds, and how people write them.

use std::collections::BTreeMap;
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

/// What of the node is watched. The order is that in which shortages are seen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory.
    Memory,
    /// Bytes of the file system that pods write to.
    Disk,
    /// Inodes of that file system.
    Inodes,
    /// Bytes of the images' file system, where they have one of their own.
    ImageDisk,
    /// Inodes of that file system.
    ImageInodes,
    /// Process ids.
    Pids,
}

impl Signal {
    const ALL: [Self; 6] = [
        Self::Memory,
        Self::Disk,
        Self::Inodes,
        Self::ImageDisk,
        Self::ImageInodes,
        Self::Pids,
    ];

    /// The name in kubelet's settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::Disk => "nodefs.available",
            Self::Inodes => "nodefs.inodesFree",
            Self::ImageDisk => "imagefs.available",
            Self::ImageInodes => "imagefs.inodesFree",
            Self::Pids => "pid.available",
        }
    }

    /// Is it about a disk?
    #[must_use]
    pub fn is_of_disk(self) -> bool {
        !matches!(self, Self::Memory | Self::Pids)
    }

    fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|signal| signal.name() == name);
        found.ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|signal| signal.name()).collect();
            format!(
                "the eviction signal {name:?} is not known: those are {}",
                known.join(", ")
            )
        })
    }
}

/// Less than which a signal may be for some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Soft {
    /// Least of it.
    pub threshold: Threshold,
    /// How long it may be less before pods are thrown out.
    pub grace: Duration,
}

/// When the node calls itself short of something, and throws pods out (upstream's signals and defaults).
#[derive(Debug, Clone, PartialEq)]
pub struct Eviction {
    /// Least of each signal: pods are thrown out at once when there is less.
    pub hard: BTreeMap<Signal, Threshold>,
    /// The same, but with time to recover and for pods to end.
    pub soft: BTreeMap<Signal, Soft>,
    /// How much more than its threshold a signal must come to before a shortage of it is over.
    pub minimum_reclaim: BTreeMap<Signal, Threshold>,
    /// Most time that pods get to end that are thrown out for a soft threshold.
    pub max_pod_grace: Duration,
    /// How long the node goes on calling itself short of something after it has enough again.
    pub transition: Duration,
}

impl Default for Eviction {
    fn default() -> Self {
        let hard = [
            (Signal::Memory, Threshold::Amount(100 << 20)),
            (Signal::Disk, Threshold::Percent(10.0)),
            (Signal::Inodes, Threshold::Percent(5.0)),
            (Signal::ImageDisk, Threshold::Percent(15.0)),
            (Signal::ImageInodes, Threshold::Percent(5.0)),
            (Signal::Pids, Threshold::Percent(5.0)),
        ];
        Self {
            hard: hard.into(),
            soft: BTreeMap::new(),
            minimum_reclaim: BTreeMap::new(),
            max_pod_grace: Duration::ZERO,
            transition: Duration::from_secs(300),
        }
    }
}

impl Eviction {
    /// The hard threshold of a signal.
    #[must_use]
    pub fn hard(&self, signal: Signal) -> Threshold {
        let known = self.hard.get(&signal).copied();
        known.unwrap_or(Threshold::Amount(0))
    }

    /// Sets the hard thresholds as kubelet's `evictionHard` is written: `memory.available<1Gi,nodefs.available<10%`.
    /// As there, signals that are not named have no threshold then.
    ///
    /// # Errors
    /// When a signal is not known or a threshold cannot be read; for people.
    pub fn set_hard(&mut self, text: &str) -> Result<(), String> {
        self.hard = thresholds(text)?;
        Ok(())
    }

    /// Sets the least amounts to reclaim as kubelet's `evictionMinimumReclaim` is written:
    /// `memory.available=500Mi,nodefs.available=5%`.
    ///
    /// # Errors
    /// When a signal is not known or an amount cannot be read; for people.
    pub fn set_minimum_reclaim(&mut self, text: &str) -> Result<(), String> {
        const WRITE: &str = "no amount to reclaim: write SIGNAL=AMOUNT, as in memory.available=500Mi or nodefs.available=5%";
        self.minimum_reclaim = by_signal(text, '=', WRITE, threshold)?;
        Ok(())
    }

    /// Sets the soft thresholds as kubelet's `evictionSoft` is written, and their times as `evictionSoftGracePeriod`
    /// is: `memory.available=1m30s,nodefs.available=2m`.
    ///
    /// # Errors
    /// When either cannot be read, or a threshold has no time; for people.
    pub fn set_soft(&mut self, text: &str, graces: &str) -> Result<(), String> {
        const WRITE: &str = "no grace period: write SIGNAL=TIME, as in memory.available=1m30s";
        let times = by_signal(graces, '=', WRITE, |time, _| super::duration(time))?;
        let soft = thresholds(text)?.into_iter().map(|(signal, threshold)| {
            let grace = times.get(&signal).copied().ok_or_else(|| {
                format!(
                    "grace period must be specified for the soft eviction threshold {}",
                    signal.name()
                )
            })?;
            Ok((signal, Soft { threshold, grace }))
        });
        self.soft = soft.collect::<Result<_, String>>()?;
        Ok(())
    }
}

fn thresholds(text: &str) -> Result<BTreeMap<Signal, Threshold>, String> {
    const WRITE: &str =
        "no threshold: write SIGNAL<AMOUNT, as in memory.available<500Mi or nodefs.available<10%";
    by_signal(text, '<', WRITE, threshold)
}

fn threshold(text: &str, wrong: &str) -> Result<Threshold, String> {
    Threshold::parse(text).ok_or_else(|| wrong.to_owned())
}

/// Reads a list of signals, each with `sign` and a value after it. `write` says how a part is written; `read` is
/// given a value, and what to say when it is not written so.
fn by_signal<T>(
    text: &str,
    sign: char,
    write: &str,
    read: impl Fn(&str, &str) -> Result<T, String>,
) -> Result<BTreeMap<Signal, T>, String> {
    let parts = text.split(',').map(str::trim);
    let parts = parts.filter(|part| !part.is_empty());
    let entries = parts.map(|part| {
        let wrong = format!("{part:?} is {write}");
        let (signal, value) = part.split_once(sign).ok_or_else(|| wrong.clone())?;
        let value = read(value.trim(), &wrong)?;
        Ok((Signal::named(signal.trim())?, value))
    });
    entries.collect()
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
        assert_eq!(eviction.hard(Signal::Memory).of(1 << 40), 1 << 30);
        assert_eq!(eviction.hard(Signal::Disk).of(800), 100);
        assert_eq!(eviction.hard(Signal::Inodes).of(800), 0);
        assert_eq!(eviction.transition, Duration::from_secs(300));
        assert_eq!(eviction.hard(Signal::Memory).to_string(), "1024Mi");
    }

    #[test]
    fn a_soft_threshold_needs_a_time() {
        let mut eviction = Eviction::default();
        eviction
            .set_soft("imagefs.available<20%", "imagefs.available=1m30s")
            .unwrap();
        let soft = eviction.soft[&Signal::ImageDisk];
        assert_eq!(soft.threshold.of(100), 20);
        assert_eq!(soft.grace, Duration::from_secs(90));
        let error = eviction.set_soft("pid.available<9", "").unwrap_err();
        assert_eq!(
            error,
            "grace period must be specified for the soft eviction threshold pid.available"
        );
        assert!(eviction.set_soft("", "memory.available").is_err());
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
        let reclaim = eviction.set_minimum_reclaim("memory.available<1Gi");
        assert!(reclaim.unwrap_err().contains("is no amount to reclaim"));
        let unknown = eviction.set_hard("disk<1Gi").unwrap_err();
        assert!(unknown.contains("\"disk\" is not known"), "{unknown}");
        assert_eq!(eviction, Eviction::default());
    }
}
