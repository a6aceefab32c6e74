//! The crash-loop backoff: 10 s doubling to 5 min, forgotten after 10 min of peace.

use std::time::Duration;

use jiff::Timestamp;

use crate::spec::after;

/// First pause.
pub const INITIAL: Duration = Duration::from_secs(10);

/// Longest pause.
pub const MAX: Duration = Duration::from_secs(300);

/// How long a container must not have been restarted for its backoff to begin anew.
pub const FORGET: Duration = Duration::from_secs(600);

/// State of one container's backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    pause: Duration,
    updated: Option<Timestamp>,
}

impl Backoff {
    /// Since something failed at `failed_at`: when may it be tried again? `None` if at once.
    pub fn until(&self, failed_at: Timestamp, now: Timestamp) -> Option<Timestamp> {
        // What has failed in the future did so before the clock was set back: nobody knows how long ago.
        if self.stale(failed_at) || failed_at > now {
            return None;
        }
        let until = after(failed_at, self.pause);
        (now < until).then_some(until)
    }

    /// The pause in force.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Notes a retry at `now` and lengthens the next pause.
    pub fn next(&mut self, now: Timestamp) {
        self.pause = if self.stale(now) {
            INITIAL
        } else {
            (self.pause * 2).clamp(INITIAL, MAX)
        };
        self.updated = Some(now);
    }

    fn stale(&self, at: Timestamp) -> bool {
        self.updated
            .is_none_or(|updated| at > after(updated, FORGET))
    }
}

/// A pause in Go's notation of durations, as messages have it: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_first_restart_is_immediate_and_later_ones_wait_longer_and_longer() {
        let mut backoff = Backoff::default();
        let mut now = 1000;
        assert_eq!(backoff.until(at(now), at(now)), None);
        for pause in [10, 20, 40, 80, 160, 300, 300] {
            backoff.next(at(now));
            assert_eq!(
                backoff.until(at(now + 1), at(now + 1)),
                Some(at(now + 1 + pause))
            );
            now += 1 + pause;
            assert_eq!(backoff.until(at(now - pause), at(now)), None);
        }
    }

    #[test]
    fn ten_quiet_minutes_reset_it() {
        let mut backoff = Backoff::default();
        backoff.next(at(0));
        backoff.next(at(1));
        assert_eq!(backoff.until(at(700), at(700)), None);
        backoff.next(at(700));
        assert_eq!(backoff.pause(), INITIAL);
    }

    #[test]
    fn a_clock_that_was_set_back_puts_nothing_off() {
        let mut backoff = Backoff::default();
        backoff.next(at(5000));
        assert_eq!(backoff.until(at(5001), at(5002)), Some(at(5011)));
        assert_eq!(backoff.until(at(5001), at(1400)), None);
        backoff.next(at(1400));
        assert_eq!(backoff.until(at(1401), at(1402)), Some(at(1421)));
    }

    #[test]
    fn durations_read_as_in_go() {
        let texts = [10, 80, 300, 3700].map(|seconds| go_duration(Duration::from_secs(seconds)));
        assert_eq!(texts, ["10s", "1m20s", "5m0s", "1h1m40s"]);
    }
}
