//! Every member's side of writing: batches what its callers propose and gets it to whoever leads.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::failover::Failover;
use crate::metrics::Metrics;
use crate::net::{Forwarding, Peers};
use crate::pending::{Next, Pending};
use crate::sequencer::Sequencer;
use crate::types::{Leadership, MemberId};

/// Batches under way at once: to oneself one, so that it takes all that queued meanwhile; to another
/// member more, to make up for the way.
const LOCAL_BATCHES: usize = 1;
const REMOTE_BATCHES: usize = 2;
/// How long a batch waits at most for as many as the last ones had. An entry costs every member the same however much
/// is in it, and those who were answered together write again together: without the wait the first of them goes alone,
/// and two groups take turns, each waiting for the other's entry too.
const GATHER: Duration = Duration::from_millis(12);
/// The pause after a link to the leader broke.
const RELINK: Duration = Duration::from_millis(10);
/// A batch that is not heard of for so long is sent again, in case something lost it silently.
const RESEND: Duration = Duration::from_secs(3);

/// A link to the leader may be missing for so long while leaders change.
const SHORT_BREAK: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Proposer {
    pub pending: Arc<Pending>,
    pub peers: Arc<Peers>,
    pub sequencer: Sequencer,
    pub leadership: watch::Receiver<Leadership>,
    pub failover: Failover,
    pub metrics: Arc<Metrics>,
    pub linked: watch::Sender<Linked>,
    pub stop: CancellationToken,
}

/// Which leader there is a link to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Linked {
    to: Option<MemberId>,
    lost: Option<Instant>,
}

impl Linked {
    /// There is no link to this leader, and it is not just a short break.
    pub fn misses(&self, leader: MemberId) -> bool {
        self.to != Some(leader) && self.lost.is_none_or(|lost| lost.elapsed() > SHORT_BREAK)
    }
}

/// The way to the leader.
enum Link {
    Local {
        sequencer: Sequencer,
        broken: CancellationToken,
    },
    Remote(Box<Forwarding>),
}

impl Link {
    /// Sends a batch, or queues it to be sent while [`Self::broken`] is waited for; `false` if the link has ended.
    async fn send(&mut self, batch: Bytes) -> bool {
        match self {
            Self::Local { sequencer, .. } => sequencer.submit(batch).await,
            Self::Remote(forwarding) => forwarding.send(batch),
        }
    }

    async fn broken(&mut self) {
        match self {
            Self::Local { broken, .. } => broken.cancelled().await,
            Self::Remote(forwarding) => forwarding.ended().await,
        }
    }

    fn in_flight(&self) -> usize {
        match self {
            Self::Local { .. } => LOCAL_BATCHES,
            Self::Remote(_) => REMOTE_BATCHES,
        }
    }
}

impl Proposer {
    /// Runs until the stop.
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow_leaders() => {}
        }
    }

    async fn follow_leaders(&mut self) {
        loop {
            let Leadership { leader, term, .. } = *self.leadership.borrow_and_update();
            let Some(leader) = leader else {
                if self.leadership.changed().await.is_err() {
                    return;
                }
                continue;
            };
            match self.link(leader).await {
                Ok(mut link) => {
                    self.linked.send_replace(Linked {
                        to: Some(leader),
                        lost: None,
                    });
                    self.serve(&mut link, leader, term).await;
                    self.linked.send_replace(Linked {
                        to: None,
                        lost: Some(Instant::now()),
                    });
                }
                Err(error) => {
                    tracing::debug!(leader, %error, "no link to the leader");
                }
            }
            // A new leader ends the pause.
            tokio::select! {
                () = tokio::time::sleep(RELINK) => {}
                changed = self.leadership.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn link(&mut self, leader: MemberId) -> Result<Link, String> {
        if leader == self.peers.me() {
            let broken = self.sequencer.broken();
            return Ok(Link::Local {
                sequencer: self.sequencer.clone(),
                broken,
            });
        }
        let (peers, leadership) = (self.peers.clone(), &mut self.leadership);
        tokio::select! {
            forwarding = peers.forward(leader) => forwarding.map(|forwarding| Link::Remote(Box::new(forwarding))),
            _ = leadership.changed() => {
                leadership.mark_changed();
                Err("another leader".to_owned())
            }
        }
    }

    /// Sends batches over a link until it breaks or somebody else leads.
    async fn serve(&mut self, link: &mut Link, leader: MemberId, term: u64) {
        if !self.resend(link).await {
            return;
        }
        let mut resend = tokio::time::interval(RESEND);
        resend.reset();
        let mut gathering: Option<Instant> = None;
        loop {
            match self.pending.next(link.in_flight()) {
                Next::Send(batch) => {
                    gathering = None;
                    resend.reset();
                    if !link.send(batch).await {
                        return;
                    }
                    continue;
                }
                Next::Gather => {
                    gathering.get_or_insert_with(|| Instant::now() + GATHER);
                }
                Next::Wait => gathering = None,
            }
            tokio::select! {
                () = self.pending.wake.notified() => {}
                () = until(gathering) => self.pending.hurry(),
                () = link.broken() => {
                    if leader != self.peers.me() {
                        self.failover.suspect(leader, term);
                    }
                    return;
                }
                changed = self.leadership.changed() => {
                    let now = *self.leadership.borrow();
                    if changed.is_err() || now.leader != Some(leader) || now.term != term {
                        self.leadership.mark_changed();
                        return;
                    }
                }
                _ = resend.tick() => {
                    if !self.resend(link).await {
                        return;
                    }
                }
            }
        }
    }

    async fn resend(&self, link: &mut Link) -> bool {
        for batch in self.pending.again() {
            self.metrics.resent.inc();
            if !link.send(batch).await {
                return false;
            }
        }
        true
    }
}

/// Ends then, or never.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}
