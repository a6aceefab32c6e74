//! The leader's side of writing: batches of all members become packs, and packs Raft entries.

use std::sync::Arc;

use bytes::Bytes;
use openraft::impls::ProgressResponder;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::command::Pack;
use crate::fault::{self, Break};
use crate::raft::Raft;
use crate::state::State;
use crate::types::{Leadership, Term};

/// Batches that wait to be packed.
const QUEUE: usize = 256;
/// A pack takes batches up to this many bytes.
const PACK_BYTES: usize = 1 << 20;

/// Takes batches. A cheap handle.
#[derive(Clone)]
pub(crate) struct Sequencer {
    batches: mpsc::Sender<Bytes>,
    /// Cancelled, and replaced, whenever batches may have been lost: whoever sent some sends them again.
    broken: Arc<Mutex<CancellationToken>>,
}

/// What [`Sequencer::run`] needs.
pub(crate) struct Work {
    pub raft: Raft,
    pub clock: Arc<Clock>,
    pub leadership: watch::Receiver<Leadership>,
    pub entries_in_flight: usize,
    pub stop: CancellationToken,
}

impl Sequencer {
    pub fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (batches, queue) = mpsc::channel(QUEUE);
        (
            Self {
                batches,
                broken: Arc::default(),
            },
            queue,
        )
    }

    /// Queues a batch; `false` if this member stops.
    pub async fn submit(&self, batch: Bytes) -> bool {
        self.batches.send(batch).await.is_ok()
    }

    /// Ends when batches that were submitted from now on may have been lost.
    pub fn broken(&self) -> CancellationToken {
        self.broken.lock().clone()
    }

    fn break_off(&self) {
        std::mem::take(&mut *self.broken.lock()).cancel();
    }

    /// Packs and proposes until the stop.
    pub async fn run(self, mut queue: mpsc::Receiver<Bytes>, work: Work) {
        let room = Arc::new(Semaphore::new(work.entries_in_flight));
        loop {
            let next = async {
                let turn = room.clone().acquire_owned().await.ok()?;
                let first = queue.recv().await?;
                Some((turn, first))
            };
            let (turn, first) = tokio::select! {
                () = work.stop.cancelled() => return,
                next = next => match next {
                    Some(next) => next,
                    None => return,
                },
            };
            let batches = fill(first, &mut queue);
            let term = work.leadership.borrow().term;
            let pack = Pack::new(work.clock.now(term), &batches);
            let (responder, outcome) = ProgressResponder::complete_only();
            if work
                .raft
                .client_write_ff(pack, Some(responder))
                .await
                .is_err()
            {
                self.break_off();
                continue;
            }
            let sequencer = self.clone();
            tokio::spawn(async move {
                // Refused, or discarded by a later leader: either way the senders must send again.
                if !matches!(outcome.await, Ok(Ok(_))) {
                    sequencer.break_off();
                }
                drop(turn);
            });
        }
    }
}

/// What is queued, up to a pack's size.
fn fill(first: Bytes, queue: &mut mpsc::Receiver<Bytes>) -> Vec<Bytes> {
    let mut bytes = first.len();
    let mut batches = vec![first];
    while bytes < PACK_BYTES
        && let Ok(batch) = queue.try_recv()
    {
        bytes += batch.len();
        batches.push(batch);
    }
    batches
}

/// The cluster's clock, as this member would read it as leader: it goes on from where the state is when a
/// term begins, by this machine's monotonic clock. Wall clocks do not matter, so a jump ends no lease.
pub(crate) struct Clock {
    state: Arc<State>,
    base: Mutex<(Term, u64, Instant)>,
}

impl Clock {
    pub fn new(state: Arc<State>) -> Self {
        Self {
            state,
            base: Mutex::new((0, 0, Instant::now())),
        }
    }

    /// Milliseconds.
    pub fn now(&self, term: Term) -> u64 {
        let mut base = self.base.lock();
        if base.0 != term {
            *base = (term, self.state.clock().0, Instant::now());
        }
        let elapsed = u64::try_from(base.2.elapsed().as_millis()).unwrap_or(u64::MAX);
        let elapsed = if fault::broken(Break::FastClock) {
            elapsed.saturating_mul(2)
        } else {
            elapsed
        };
        base.1.saturating_add(elapsed)
    }
}
