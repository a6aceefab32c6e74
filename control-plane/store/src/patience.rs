//! What this member's own standstills say of the leader's silence: nothing.
//!
//! On a machine that has no processor to spare (or is suspended, or moved), Raft's thread may stand still for longer
//! than an election timeout. When it goes on, the timeout is over before the heartbeats that wait in its sockets are
//! read; and if the leader lives on the same machine, or one that is as busy, it was silent for the same reason.
//! Elections make that worse: each costs writes on all disks, and the next leader is no faster. So a member that was
//! late itself does not stand for election for a while. A leader whose process ended is replaced all the same, by
//! [`Failover`](crate::failover::Failover), which does not wait for timeouts.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::failover::Heard;
use crate::metrics::Metrics;
use crate::raft::Raft;

/// How often this member looks whether it is late.
const BEAT: Duration = Duration::from_millis(50);
/// From here on it counts: two heartbeats.
const LATE: Duration = Duration::from_millis(100);
/// A member that was late is patient for so many times as long,
const FACTOR: u32 = 8;
/// but not for longer than this after it was late,
const LONGEST: Duration = Duration::from_secs(2);
/// nor with a leader that it has not heard for so long, however busy the machine is.
const SILENCE: Duration = Duration::from_secs(4);

/// See the module.
pub(crate) struct Patience {
    pub raft: Raft,
    pub heard: Arc<Heard>,
    pub metrics: Arc<Metrics>,
    pub stop: CancellationToken,
}

impl Patience {
    /// Runs until the stop.
    pub async fn run(self) {
        let (mut until, mut standing) = (Instant::now(), true);
        loop {
            let due = Instant::now() + BEAT;
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep_until(due) => {}
            }
            let now = Instant::now();
            let late = now.saturating_duration_since(due);
            if late >= LATE {
                self.metrics.standstill.observe(late.as_secs_f64());
                until = until.max(now + patience(late));
            }
            let stand = now >= until || !recent(self.heard.silence());
            if stand != standing {
                self.raft.runtime_config().elect(stand);
                standing = stand;
            }
        }
    }
}

/// How long not to stand for election after having been late.
fn patience(late: Duration) -> Duration {
    (late * FACTOR).min(LONGEST)
}

/// Whether a leader was heard lately; one that never was is not waited for.
fn recent(silence: Option<Duration>) -> bool {
    silence.is_some_and(|silence| silence < SILENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_lateness_but_is_bounded() {
        assert_eq!(patience(LATE), Duration::from_millis(800));
        assert_eq!(patience(Duration::from_secs(3600)), LONGEST);
    }

    #[test]
    fn a_leader_that_is_silent_for_long_or_was_never_heard_is_not_waited_for() {
        assert!(recent(Some(Duration::from_millis(500))));
        assert!(!recent(Some(SILENCE)));
        assert!(!recent(None));
    }
}
