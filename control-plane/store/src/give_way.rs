//! A leader that cannot write to its own disk gives way.
//!
//! The others go on committing what it is sent, so nobody else would notice; but it refuses the writes of whoever works
//! beside the leader, and keeps in memory what its disk does not take.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::db::Disk;
use crate::members::{Answering, Members};
use crate::types::{Leadership, MemberId};

const LOOK: Duration = Duration::from_millis(500);
/// A disk that is full for a moment only is waited for; and so is the answer to an earlier try.
const LONG: Duration = Duration::from_secs(5);
/// A member that answered within this is there.
const HEARD: Duration = Duration::from_secs(2);

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
            if !is_long(&mut since, problem.is_some(), now) {
                continue;
            }
            since = None;
            let Some(to) = self.successor().await else {
                continue;
            };
            tracing::warn!(
                problem,
                to,
                "this member cannot write to its disk: another is to lead"
            );
            let handed_over = tokio::time::timeout(LONG, self.members.transfer(Some(to))).await;
            if let Ok(Err(error)) = handed_over {
                tracing::warn!(%error, "no other member takes over");
            }
        }
    }

    /// Who is to lead. Nobody if the others cannot elect one of them by themselves (a vote of this member would have to
    /// be written to its disk), or none of them may lead: a leader that can't write still serves reads, and one that
    /// has begun to hand over never comes back in its term.
    async fn successor(&self) -> Option<MemberId> {
        for candidate in successors(self.me, &self.members.answering(HEARD)) {
            if self.members.may_lead(candidate).await {
                return Some(candidate);
            }
        }
        None
    }
}

/// The voters that answer, those with the most entries first, if they are a majority without this member.
fn successors(me: MemberId, answering: &Answering) -> Vec<MemberId> {
    let answers = |voter: &&MemberId| **voter != me && answering.matched.contains_key(voter);
    let majority = |voters: &BTreeSet<MemberId>| {
        let there = voters.iter().filter(answers).count();
        there * 2 > voters.len()
    };
    if !answering.configs.iter().all(majority) {
        return Vec::new();
    }
    let voters: BTreeSet<&MemberId> = answering.configs.iter().flatten().collect();
    let mut found: Vec<MemberId> = voters.into_iter().filter(answers).copied().collect();
    found.sort_by_key(|voter| std::cmp::Reverse(answering.matched.get(voter).copied()));
    found
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

    #[test]
    fn leadership_goes_to_one_that_others_can_elect_alone() {
        let answering = |configs: &[&[MemberId]], matched: &[(MemberId, u64)]| Answering {
            configs: configs
                .iter()
                .map(|voters| voters.iter().copied().collect())
                .collect(),
            matched: matched.iter().copied().collect(),
        };
        let found = |configs: &[&[MemberId]], matched: &[(MemberId, u64)]| {
            successors(1, &answering(configs, matched))
        };
        assert_eq!(found(&[&[1, 2, 3]], &[(2, 5), (3, 7)]), [3, 2]);
        // The learner 4 has the most, but no vote.
        assert_eq!(found(&[&[1, 2, 3]], &[(2, 5), (3, 4), (4, 9)]), [2, 3]);
        for (configs, matched) in [
            (vec![&[1, 2, 3][..]], vec![(3, 7)]),
            (vec![&[1, 2][..]], vec![(2, 7)]),
            (vec![&[1][..]], vec![]),
            // Half-way through a change of voters, both sides have to agree.
            (vec![&[1, 2, 3][..], &[1, 4][..]], vec![(2, 7), (3, 7)]),
        ] {
            assert!(found(&configs, &matched).is_empty(), "{configs:?}");
        }
    }
}
