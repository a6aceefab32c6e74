//! Pods that fail again and again on a node are replaced more and more slowly. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Waits by set and node.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    waits: HashMap<String, (Instant, Duration)>,
}

impl Backoff {
    /// How long the failed pod must stay; zero when it may go now, which doubles the next wait.
    pub(super) fn wait(&mut self, key: &str, now: Instant) -> Duration {
        let Some((since, wait)) = self.waits.get_mut(key) else {
            self.waits.insert(key.to_owned(), (now, FIRST));
            return Duration::ZERO;
        };
        let waited = now.saturating_duration_since(*since);
        if waited < *wait {
            return *wait - waited;
        }
        // Long without a failure: as if it were the first.
        let next = if waited > *wait + LONGEST {
            FIRST
        } else {
            (*wait * 2).min(LONGEST)
        };
        (*since, *wait) = (now, next);
        Duration::ZERO
    }

    /// Drops what has not been asked about for long.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.waits
            .retain(|_, (since, wait)| now.saturating_duration_since(*since) < *wait + LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_while_pods_keep_failing() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(backoff.wait("a", at(0)), Duration::ZERO);
        assert_eq!(backoff.wait("a", at(0)), Duration::from_secs(1));
        assert_eq!(backoff.wait("a", at(1)), Duration::ZERO);
        assert_eq!(backoff.wait("a", at(2)), Duration::from_secs(1));
        assert_eq!(backoff.wait("b", at(2)), Duration::ZERO);
        backoff.tidy(at(10_000));
        assert_eq!(backoff.wait("a", at(10_000)), Duration::ZERO);
    }
}
