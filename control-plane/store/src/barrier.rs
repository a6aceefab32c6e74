//! Linearizable reads on any member: ReadIndex, one round shared by all who wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::confirm::Confirm;
use crate::error::Error;
use crate::fault::{self, Break};
use crate::metrics::Metrics;
use crate::net::{Peers, Pipe, Purpose};
use crate::state::Progress;
use crate::types::{Leadership, MemberId, Revision};

/// One question to the leader takes at most this long: a little more than what it takes at most to answer.
const ROUND: Duration = Duration::from_millis(600);
/// What rounds keep between them when many readers come. A round costs each member some messages: without the pause
/// busy members spend as much on rounds as on what is read, and the API of three servers answers 5,000 reads a second
/// in place of 8,600. A reader alone never waits for it.
const PACE: Duration = Duration::from_millis(1);
/// From how many readers in one round on the next one is held back.
const CROWD: usize = 4;
/// The pause after a round failed.
const RETRY: Duration = Duration::from_millis(15);

type Waiter = oneshot::Sender<Result<Revision, Error>>;

/// Who waits for the next round.
#[derive(Default)]
pub(crate) struct Barrier {
    waiting: Mutex<Vec<Waiter>>,
    wake: Notify,
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
    /// None at first.
    pub line: Option<Line>,
}

impl Barrier {
    /// Waits for a round that starts after this call.
    pub async fn wait(&self) -> Result<Revision, Error> {
        if fault::broken(Break::ReadWithoutIndex) {
            return Ok(0);
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().push(sender);
        self.wake.notify_one();
        receiver.await.map_err(|_| Error::Closed)?
    }

    /// Makes rounds until the stop.
    pub async fn run(self: Arc<Self>, mut rounds: Rounds) {
        let stop = rounds.stop.clone();
        let working = async {
            loop {
                rounds.until(&self.wake).await;
                let waiters = std::mem::take(&mut *self.waiting.lock());
                if waiters.is_empty() {
                    continue;
                }
                let crowded = waiters.len() >= CROWD;
                rounds.round(waiters).await;
                if crowded {
                    tokio::time::sleep(PACE).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = working => {}
        }
        // Senders that are dropped say that the store is closed.
        self.waiting.lock().clear();
    }
}

/// An open way to the leader.
pub(crate) struct Line {
    leader: MemberId,
    pipe: Option<Pipe>,
}

impl Rounds {
    /// Waits for somebody to wake it, and keeps the way to the leader open meanwhile.
    async fn until(&mut self, wake: &Notify) {
        let Some(pipe) = self.line.as_mut().and_then(|line| line.pipe.as_mut()) else {
            return wake.notified().await;
        };
        tokio::select! {
            biased;
            () = wake.notified() => {}
            // It says nothing unasked, so this is its end.
            _ = pipe.next() => {
                self.line = None;
                wake.notified().await;
            }
        }
    }

    async fn round(&mut self, waiters: Vec<Waiter>) {
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
        let line = self.line.take().filter(|line| line.leader == leader);
        let mut line = line.unwrap_or(Line { leader, pipe: None });
        let asked = self.peers.call(leader, Purpose::Read, &mut line.pipe);
        let index: Result<u64, String> = tokio::time::timeout(ROUND, asked)
            .await
            .unwrap_or_else(|_| Err("no answer".to_owned()))?;
        self.line = Some(line);
        index
    }
}

fn answer(waiters: Vec<Waiter>, result: &Result<Revision, Error>) {
    for waiter in waiters {
        // Whoever asked may have left.
        let _ = waiter.send(result.clone());
    }
}
