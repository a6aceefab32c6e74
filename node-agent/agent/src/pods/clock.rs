//! Notices when the machine's clock is set, or when the machine has slept: what was to happen at a time of the old clock
//! must not wait until the new one shows it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// By how much the clock may go wrong between two looks without having been set.
const SLACK: Duration = Duration::from_secs(5);

/// The clock as it was last looked at.
pub(crate) struct Clock {
    wall: Timestamp,
    steady: Instant,
}

impl Clock {
    /// A first look.
    pub(crate) fn new(wall: Timestamp, steady: Instant) -> Self {
        Self { wall, steady }
    }

    /// Looks again. By how much was the clock set since, if it was: forwards or backwards?
    pub(crate) fn look(&mut self, wall: Timestamp, steady: Instant) -> Option<Set> {
        let passed = steady.duration_since(self.steady);
        let expected = balsa_pod::spec::after(self.wall, passed);
        (self.wall, self.steady) = (wall, steady);
        let forwards = balsa_pod::spec::between(expected, wall);
        let backwards = balsa_pod::spec::between(wall, expected);
        if forwards > SLACK {
            Some(Set::Forwards(forwards))
        } else if backwards > SLACK {
            Some(Set::Backwards(backwards))
        } else {
            None
        }
    }
}

/// How a clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    Forwards(Duration),
    Backwards(Duration),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_told_from_one_that_goes_a_little_wrong() {
        let wall = |second| Timestamp::from_second(second).unwrap();
        let begin = Instant::now();
        let steady = |seconds| begin + Duration::from_secs(seconds);
        let mut clock = Clock::new(wall(10_000), steady(0));
        assert_eq!(clock.look(wall(10_032), steady(30)), None);
        let hour = Duration::from_secs(3600);
        assert_eq!(
            clock.look(wall(6_462), steady(60)),
            Some(Set::Backwards(hour))
        );
        assert_eq!(clock.look(wall(6_492), steady(90)), None);
        assert_eq!(
            clock.look(wall(10_122), steady(120)),
            Some(Set::Forwards(hour))
        );
    }
}
