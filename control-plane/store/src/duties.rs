//! What happens by itself: who leads is followed, leases end, history and the log are cut.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::command::Command;
use crate::config::Tuning;
use crate::log::Log;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::net::Peers;
use crate::raft::{Raft, voted_for};
use crate::sequencer::Clock;
use crate::state::{Progress, State};
use crate::types::{Leadership, MemberId, Revision, Term};
use crate::write::Writer;

/// How often the leader looks at leases.
const LEASES: Duration = Duration::from_millis(250);
/// How often the leader notes a revision's time, and looks whether history may go.
const HISTORY: Duration = Duration::from_secs(10);
/// While there are leases, the clock is written to the log this often, so that a new leader goes on from it.
const CLOCK_MS: u64 = 30_000;
/// How often each member looks whether its log may be cut.
const LOG: Duration = Duration::from_secs(1);
/// The log is also cut when this many bytes were added, and this many are kept.
const CUT_BYTES: u64 = 64 << 20;
const KEEP_BYTES: u64 = 32 << 20;

/// Follows who leads until the stop.
pub(crate) struct Leaders {
    pub raft: Raft,
    pub peers: Arc<Peers>,
    pub progress: watch::Receiver<Progress>,
    pub leadership: watch::Sender<Leadership>,
    pub metrics: Arc<Metrics>,
    pub stop: CancellationToken,
}

impl Leaders {
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        let mut server = self.raft.server_metrics();
        loop {
            let (next, leading) = {
                let now = server.borrow_watched();
                for (id, node) in now.membership_config.nodes() {
                    if *id != self.peers.me() {
                        self.peers.learn(*id, &node.addr);
                    }
                }
                let leading = now.state == ServerState::Leader;
                let term = now.vote.leader_id().term;
                // The vote is what is on disk, and a leader of a later term may be known before it is.
                let of_term = |leader: &MemberId| voted_for(&now.vote) == Some(*leader);
                (
                    Leadership {
                        term,
                        leader: now.current_leader.filter(of_term),
                        is_me: leading && self.progress.borrow_and_update().term == term,
                    },
                    leading,
                )
            };
            self.announce(next);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = server.changed() => if changed.is_err() { return },
                // A new leader leads once it has applied what others acknowledged before it.
                _ = self.progress.changed(), if leading && !next.is_me => {}
            }
        }
    }

    fn announce(&self, next: Leadership) {
        let before = *self.leadership.borrow();
        self.leadership.send_if_modified(|now| {
            let changed = *now != next;
            *now = next;
            changed
        });
        self.metrics.is_leader.set(next.is_me.into());
        if before.leader != next.leader && next.leader.is_some() {
            self.metrics.leader_changes.inc();
            tracing::info!(
                leader = next.leader,
                term = next.term,
                "the store has a leader"
            );
        }
    }
}

/// What the leader does: ends leases and gives up history, through the log.
pub(crate) struct LeaderDuties {
    pub writer: Arc<Writer>,
    pub state: Arc<State>,
    pub clock: Arc<Clock>,
    pub leadership: watch::Receiver<Leadership>,
    pub tuning: Tuning,
    pub stop: CancellationToken,
}

impl LeaderDuties {
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.lead() => {}
        }
    }

    async fn lead(&mut self) {
        let mut looks = tokio::time::interval(LEASES);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ages = Ages::default();
        loop {
            looks.tick().await;
            let Leadership { term, is_me, .. } = *self.leadership.borrow();
            if !is_me {
                continue;
            }
            let now_ms = self.clock.now(term);
            let (written_ms, next_end) = self.state.clock();
            if next_end
                .is_some_and(|ends| ends <= now_ms || now_ms.saturating_sub(written_ms) > CLOCK_MS)
            {
                self.propose(Command::Tick).await;
            }
            let (revision, compacted) = (self.state.revision(), self.state.compacted());
            if let Some(to) = ages.note(term, now_ms, revision, &self.tuning)
                && to > compacted
            {
                self.propose(Command::Compact { to }).await;
            }
        }
    }

    async fn propose(&self, command: Command) {
        if let Err(error) = self.writer.propose(command, 0).await {
            tracing::debug!(%error, "a leader's duty is left for later");
        }
    }
}

/// When which revision was current, in a term, by the cluster's clock.
#[derive(Debug, Default)]
struct Ages {
    term: Term,
    noted: VecDeque<(u64, Revision)>,
}

impl Ages {
    /// Notes a revision's time; every now and then returns up to where history is old enough to go.
    fn note(
        &mut self,
        term: Term,
        now_ms: u64,
        revision: Revision,
        tuning: &Tuning,
    ) -> Option<Revision> {
        if self.term != term {
            *self = Self {
                term,
                noted: VecDeque::new(),
            };
        }
        if self
            .noted
            .back()
            .is_some_and(|(at, _)| Duration::from_millis(now_ms.saturating_sub(*at)) < HISTORY)
        {
            return None;
        }
        self.noted.push_back((now_ms, revision));
        let mut old_enough = None;
        while let Some((at, revision)) = self.noted.front().copied()
            && Duration::from_millis(now_ms.saturating_sub(at)) >= tuning.history_age
        {
            old_enough = Some(revision);
            self.noted.pop_front();
        }
        old_enough.map(|old| old.min(revision.saturating_sub(tuning.history_revisions)))
    }
}

/// Cuts this member's log until the stop: takes a snapshot, which makes the state durable, then gives up
/// entries that it covers.
pub(crate) struct LogCutter {
    pub raft: Raft,
    pub log: Log,
    pub state: Arc<State>,
    pub metrics: Arc<Metrics>,
    pub tuning: Tuning,
    pub stop: CancellationToken,
}

impl LogCutter {
    pub async fn run(self) {
        let mut looks = tokio::time::interval(LOG);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = looks.tick() => {}
            }
            self.metrics.log_bytes.set(self.log.disk_bytes());
            self.metrics.state_bytes.set(self.state.disk_bytes());
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "the log is not cut now");
            }
        }
    }

    async fn look(&self) -> Result<(), openraft::errors::Fatal<crate::raft::Types>> {
        let (applied, snapshot, purged) = {
            let metrics = self.raft.metrics();
            let now = metrics.borrow_watched();
            let index = |id: &Option<crate::raft::LogId>| id.map_or(0, |id| id.index);
            (
                index(&now.last_applied),
                index(&now.snapshot),
                index(&now.purged),
            )
        };
        let since = applied.saturating_sub(snapshot);
        if since >= self.tuning.snapshot_entries
            || (since > 0 && self.log.bytes_after(snapshot) >= CUT_BYTES)
        {
            self.raft.trigger().snapshot().await?;
        }
        let keep = applied
            .saturating_sub(self.tuning.keep_entries)
            .max(self.log.index_before(KEEP_BYTES));
        let sending = self.state.sending().unwrap_or(u64::MAX);
        let upto = keep.min(snapshot).min(sending);
        // Cutting a little at a time costs more than it gains.
        if upto > purged && (upto - purged > 64 || self.log.bytes_after(purged) > 2 * CUT_BYTES) {
            self.raft.trigger().purge_log(upto).await?;
        }
        Ok(())
    }
}

/// Tells the cluster that this member has another address than it knows, until it knows.
pub(crate) async fn announce_address(
    members: Arc<Members>,
    me: MemberId,
    advertise: String,
    stop: CancellationToken,
) {
    const LOOK: Duration = Duration::from_secs(1);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        match members.list().iter().find(|member| member.id == me) {
            Some(member) if member.address == advertise => return,
            Some(_) => {
                if let Err(error) = members.announce(me, &advertise).await {
                    tracing::warn!(%error, advertise, "the cluster does not know this member's new address yet");
                }
            }
            // Not a member yet: whoever adds it says the address.
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_goes_when_it_is_old_and_enough_is_left() {
        let tuning = Tuning {
            history_age: Duration::from_secs(60),
            history_revisions: 10,
            ..Tuning::default()
        };
        let mut ages = Ages::default();
        assert_eq!(ages.note(1, 0, 100, &tuning), None);
        assert_eq!(ages.note(1, 5_000, 150, &tuning), None);
        assert_eq!(ages.note(1, 30_000, 200, &tuning), None);
        assert_eq!(ages.note(1, 60_000, 300, &tuning), Some(100));
        assert_eq!(ages.note(1, 90_000, 205, &tuning), Some(195));
    }

    #[test]
    fn ages_of_another_term_do_not_count() {
        let tuning = Tuning::default();
        let mut ages = Ages::default();
        assert_eq!(ages.note(1, 0, 5_000, &tuning), None);
        assert_eq!(ages.note(2, 400_000, 9_000, &tuning), None);
    }
}
