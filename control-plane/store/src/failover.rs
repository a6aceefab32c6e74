//! Noticing that the leader's process has ended, without waiting for a timeout.
//!
//! A follower keeps a stream to the leader open. When it breaks, and the leader's machine refuses new
//! connections, the process is gone: its lease protects nobody any more. Then the followers stand for
//! election one after the other, the first at once. This is as safe as any election: nothing here counts on
//! the lease for correctness, only for peace.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::net::Peers;
use crate::patience::Standing;
use crate::raft::{Raft, TransferRequest, Vote, voted_for};
use crate::types::{MemberId, Term};

/// The second follower stands for election so much later than the first, and so on.
const STAGGER: Duration = Duration::from_millis(60);

/// The pauses before a leader's port is asked.
const PORT_CLOSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
];

/// When a leader was last heard.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Option<Instant>>);

impl Heard {
    /// A leader is heard now.
    pub fn now(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// How long ago; `None` if none was heard yet.
    pub fn silence(&self) -> Option<Duration> {
        self.0.lock().map(|heard| heard.elapsed())
    }

    fn since(&self, then: Instant) -> bool {
        self.0.lock().is_some_and(|heard| heard > then)
    }
}

/// See the module. A cheap handle.
#[derive(Clone)]
pub(crate) struct Failover {
    pub heard: Arc<Heard>,
    pub raft: Raft,
    pub peers: Arc<Peers>,
    pub standing: Standing,
    pub stop: CancellationToken,
}

impl Failover {
    /// After the stream to the leader of a term broke: looks whether it is gone and if so starts an election.
    /// Returns at once.
    pub fn suspect(&self, leader: MemberId, term: Term) {
        let (this, stop) = (self.clone(), self.stop.clone());
        tokio::spawn(
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = this.look(leader, term) => {}
                }
            }
            .instrument(tracing::info_span!("failover", leader, term)),
        );
    }

    async fn look(&self, leader: MemberId, term: Term) {
        let broke = Instant::now();
        if !self.is_gone(leader).await {
            return;
        }
        let me = self.peers.me();
        let Some(rank) = self.rank(leader, me) else {
            return;
        };
        tokio::time::sleep(STAGGER * rank).await;
        // It is not gone if it still makes itself heard: only its address has changed.
        if self.heard.since(broke) || !self.standing.allowed() {
            return;
        }
        let Some(vote) = self.still_led_by(leader, term) else {
            return;
        };
        tracing::info!("the leader's process is gone: standing for election");
        // What a leader says when it hands over, said on behalf of one that cannot any more.
        let request = TransferRequest::new(vote, me, None);
        if let Err(error) = self.raft.handle_transfer_leader(request).await {
            tracing::warn!(%error, "standing for election failed");
        }
    }

    /// A process that ends closes its connections before or after its port: so a port that answers is asked
    /// again.
    async fn is_gone(&self, leader: MemberId) -> bool {
        for pause in PORT_CLOSES {
            tokio::time::sleep(pause).await;
            if self.peers.is_gone(leader).await {
                return true;
            }
        }
        false
    }

    /// This member's place among the voters that are left; `None` if it has no vote.
    fn rank(&self, leader: MemberId, me: MemberId) -> Option<u32> {
        let mut voters: Vec<_> = self.raft.voter_ids().filter(|id| *id != leader).collect();
        voters.sort_unstable();
        u32::try_from(voters.iter().position(|id| *id == me)?).ok()
    }

    fn still_led_by(&self, leader: MemberId, term: Term) -> Option<Vote> {
        use openraft::async_runtime::WatchReceiver;
        let vote = self.raft.server_metrics().borrow_watched().vote;
        let same = vote.is_committed()
            && voted_for(&vote) == Some(leader)
            && vote.leader_id().term == term;
        same.then_some(vote)
    }
}
