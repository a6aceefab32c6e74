//! Linearizable reads on any member: ReadIndex, one round shared by all who wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::confirm::Confirm;
use crate::crowd::Crowd;
use crate::error::Error;
use crate::fault::{self, Break};
use crate::metrics::Metrics;
use crate::net::{Line, Peers, Purpose};
use crate::rounds::{Waiters, answer};
use crate::state::Progress;
use crate::types::{Leadership, MemberId, Revision};

/// One question to the leader takes at most this long: a little more than what it takes at most to answer.
const ROUND: Duration = Duration::from_millis(600);
/// How long a round of many readers waits at most for as many as the last ones had. A round costs each member some
/// messages: without the pause busy members make one for every reader or two, and spend more on rounds than on what is
/// read (the API of three servers on two processors answers 6,000 reads a second in place of 11,000, and later). Readers
/// who come back at once, as those of a store that has nothing else to do, wait for nothing, nor does a reader alone.
const PACE: Duration = Duration::from_millis(4);
/// The pause after a round failed.
const RETRY: Duration = Duration::from_millis(15);

type Outcome = Result<Revision, Error>;

/// Who waits for the next round.
#[derive(Default)]
pub(crate) struct Barrier {
    waiters: Waiters<Outcome>,
}

/// What [`Barrier::run`] needs.
pub(crate) struct Rounds {
    pub confirm: Arc<Confirm>,
    pub peers: Arc<Peers>,
    pub leadership: watch::Receiver<Leadership>,
    pub progress: watch::Receiver<Progress>,
    pub patience: Duration,
    pub metrics: Arc<Metrics>,
    pub stop: CancellationToken,
    /// To the leader.
    pub line: Line,
}

impl Barrier {
    /// Waits for a round that starts after this call.
    pub async fn wait(&self) -> Result<Revision, Error> {
        if fault::broken(Break::ReadWithoutIndex) {
            return Ok(0);
        }
        self.waiters.wait().await.unwrap_or(Err(Error::Closed))
    }

    /// Makes rounds until the stop.
    pub async fn run(self: Arc<Self>, mut rounds: Rounds) {
        let stop = rounds.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.rounds(&mut rounds) => {}
        }
        // Senders that are dropped say that the store is closed.
        drop(self.waiters.take());
    }

    async fn rounds(&self, rounds: &mut Rounds) {
        let mut crowd = Crowd::default();
        loop {
            rounds.line.keep_until(self.waiters.come()).await;
            let waiters = self.waiters.take();
            crowd.came(waiters.len());
            rounds.round(waiters).await;
            crowd.served();
            if crowd.wanted() > 1 && !self.waiters.gather(crowd.wanted(), PACE).await {
                crowd.hurry();
            }
        }
    }
}

impl Rounds {
    async fn round(&mut self, waiters: Vec<oneshot::Sender<Outcome>>) {
        let started = Instant::now();
        let index = match tokio::time::timeout(self.patience, self.index()).await {
            Ok(index) => index,
            Err(_) => {
                let error = Error::unavailable("no leader confirmed a linearizable read in time");
                return answer(waiters, &Err(error));
            }
        };
        let now = *self.progress.borrow();
        if now.index >= index {
            let took = started.elapsed().as_secs_f64();
            self.metrics.read_barrier.observe(took);
            return answer(waiters, &Ok(now.revision));
        }
        let (mut progress, metrics, patience) =
            (self.progress.clone(), self.metrics.clone(), self.patience);
        // Waiting for the state must not keep the next round waiting.
        tokio::spawn(async move {
            let reached = progress.wait_for(|progress| progress.index >= index);
            let result = match tokio::time::timeout(patience, reached).await {
                Ok(Ok(progress)) => Ok(progress.revision),
                Ok(Err(_)) => Err(Error::Closed),
                Err(_) => Err(Error::unavailable("this member lags behind")),
            };
            metrics
                .read_barrier
                .observe(started.elapsed().as_secs_f64());
            answer(waiters, &result);
        });
    }

    async fn index(&mut self) -> u64 {
        loop {
            let leader = self.leadership.borrow_and_update().leader;
            let asked = match leader {
                Some(leader) => self.ask(leader).await,
                None => Err("no leader is known".to_owned()),
            };
            match asked {
                Ok(index) => return index,
                Err(error) => tracing::debug!(?leader, %error, "a read index could not be had"),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                // Raft has ended if nobody follows leaders any more.
                changed = self.leadership.changed() => if changed.is_err() {
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn ask(&mut self, leader: MemberId) -> Result<u64, String> {
        if leader == self.peers.me() {
            return self.confirm.index().await;
        }
        let asked = self.peers.call(leader, Purpose::Read, &mut self.line);
        let answer = tokio::time::timeout(ROUND, asked).await;
        // The leader may answer that it has no index to give.
        let index: Result<u64, String> = answer.unwrap_or_else(|_| Err("no answer".to_owned()))?;
        index
    }
}
