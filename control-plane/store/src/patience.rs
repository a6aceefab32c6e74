//! What this member's own standstills say of the leader's silence: nothing.
//!
//! On a machine that has no processor to spare (or is suspended, or moved), Raft's thread may stand still for longer
//! than an election timeout. When it goes on, the timeout is over before the heartbeats that wait in its sockets are
//! read; and if the leader lives on the same machine, or one that is as busy, it was silent for the same reason.
//! Elections make that worse: each costs writes on all disks, and the next leader is no faster. So a member that was
//! late itself does not stand for election for a while. A leader whose process ended is replaced all the same, by
//! [`Failover`](crate::failover::Failover), which does not wait for timeouts.
//!
//! And a member that was admitted to a cluster does not stand before its log has come to where that was
//! ([`Standing`]). A first server that came back without its data is sent the log from its beginning, which says that
//! it is the only member: it would elect itself, and take back what the others have acknowledged.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::db::Disk;
use crate::failover::Heard;
use crate::folder::Folder;
use crate::log::Log;
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

/// Whether this member may stand for election at all.
#[derive(Clone)]
pub(crate) struct Standing {
    pub folder: Arc<Folder>,
    pub log: Log,
    pub disk: Arc<Disk>,
}

impl Standing {
    /// Its log has come to where it was admitted, and its disk takes writes.
    pub fn allowed(&self) -> bool {
        self.log.last_index() >= self.folder.stands_from() && self.disk.problem().is_none()
    }
}

/// See the module. Raft starts with elections off; this allows them.
pub(crate) struct Patience {
    pub raft: Raft,
    pub standing: Standing,
    pub heard: Arc<Heard>,
    pub metrics: Arc<Metrics>,
    pub stop: CancellationToken,
}

impl Patience {
    /// Runs until the stop.
    pub async fn run(self) {
        let mut until = Instant::now();
        loop {
            let patient = Instant::now() < until && recent(self.heard.silence());
            let stand = self.standing.allowed() && !patient;
            self.raft.runtime_config().elect(stand);
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
    #![allow(clippy::unwrap_used)]
    use rocksdb::Cache;

    use super::*;
    use crate::config::Config;
    use crate::log::Rebirth;
    use crate::raft::{LogId, Vote};

    #[test]
    fn a_member_does_not_stand_before_its_log_has_come_to_where_it_was_admitted() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path(), 1, "a:1", ([127, 0, 0, 1], 0).into(), None);
        let folder = Arc::new(Folder::open(&config).unwrap());
        let standing = || {
            let cache = Cache::new_lru_cache(1 << 20);
            let (disk, metrics) = (Arc::<Disk>::default(), Arc::default());
            Standing {
                folder: folder.clone(),
                log: Log::open(&folder.log(), &config.tuning, &cache, disk.clone(), metrics)
                    .unwrap(),
                disk,
            }
        };
        let new = standing();
        assert!(new.allowed());
        folder.join("c", 7).unwrap();
        assert!(!new.allowed());
        let rebirth = |index| Rebirth {
            applied: Some(LogId::new(1.into(), index)),
            vote: Vote::new(1, 2),
        };
        new.log.rebear(rebirth(6)).unwrap();
        drop(new);
        let behind = standing();
        assert!(!behind.allowed());
        behind.log.rebear(rebirth(7)).unwrap();
        drop(behind);
        assert!(standing().allowed());
    }

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
