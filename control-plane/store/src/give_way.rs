//! A leader that cannot write to its own disk gives way.
//!
//! The others go on committing what it is sent, so nobody else would notice; but it refuses the writes of whoever works
//! beside the leader, and keeps in memory what its disk does not take.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::db::Disk;
use crate::members::Members;
use crate::types::{Leadership, MemberId};

const LOOK: Duration = Duration::from_millis(500);
/// A disk that is full for a moment only is waited for; and so is the answer to an earlier try.
const LONG: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct GiveWay {
    pub me: MemberId,
    pub disk: Arc<Disk>,
    pub members: Arc<Members>,
    pub leadership: watch::Receiver<Leadership>,
    pub stop: CancellationToken,
}

impl GiveWay {
    /// Runs until the stop.
    pub async fn run(self) {
        let mut since = None;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let leads = self.leadership.borrow().is_me;
            let problem = self.disk.problem().filter(|_| leads);
            let now = Instant::now();
            if !is_long(&mut since, problem.is_some(), now) || !self.has_others() {
                continue;
            }
            since = None;
            tracing::warn!(
                problem,
                "this member cannot write to its disk: another is to lead"
            );
            let handed_over = tokio::time::timeout(LONG, self.members.transfer(None)).await;
            if let Ok(Err(error)) = handed_over {
                tracing::warn!(%error, "no other member takes over");
            }
        }
    }

    fn has_others(&self) -> bool {
        let members = self.members.list();
        members
            .iter()
            .any(|member| member.voter && member.id != self.me)
    }
}

/// Whether there has been a problem at every look for long enough.
fn is_long(since: &mut Option<Instant>, problem: bool, now: Instant) -> bool {
    if !problem {
        *since = None;
        return false;
    }
    now.duration_since(*since.get_or_insert(now)) >= LONG
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_problem_that_lasts_is_long() {
        let (start, mut since) = (Instant::now(), None);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!is_long(&mut since, true, at(0)));
        assert!(!is_long(&mut since, true, at(4)));
        assert!(!is_long(&mut since, false, at(5)));
        assert!(!is_long(&mut since, true, at(6)));
        assert!(is_long(&mut since, true, at(11)));
    }
}
