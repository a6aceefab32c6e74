//! What this member's callers have proposed: waiting to be batched, or sent and not answered yet.
//!
//! A batch that was sent is kept until its outcome is applied here, and is sent again whenever it may have
//! been lost. It is applied once, because the state remembers batches by number.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use crate::command::{Batch, Command, Origin};
use crate::crowd::Crowd;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::state::{Answer, OriginState, Remembered, Settled};
use crate::types::TxnOutcome;

/// A batch takes proposals up to this many bytes.
const BATCH_BYTES: usize = 1 << 20;
/// And up to this many.
const BATCH_COMMANDS: usize = 4_096;

const WAITING: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

/// What the proposer is to do next.
pub(crate) enum Next {
    /// Send this.
    Send(Bytes),
    /// Wait for [`Pending::wake`].
    Wait,
    /// Wait for it for a moment only, then [`Pending::hurry`].
    Gather,
}

#[cfg(test)]
impl Next {
    /// What is to be sent, if anything.
    pub fn batch(self) -> Option<Bytes> {
        match self {
            Self::Send(batch) => Some(batch),
            Self::Wait | Self::Gather => None,
        }
    }
}

/// One proposal, as its caller sees it.
pub(crate) struct Ticket {
    fate: Arc<AtomicU8>,
    pub answer: oneshot::Receiver<Result<Answer, Error>>,
}

impl Ticket {
    /// Withdraws the proposal; `false` if it was sent already.
    pub fn give_up(&self) -> bool {
        self.fate
            .compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire)
            != Err(SENT)
    }
}

struct Proposal {
    command: Command,
    bytes: usize,
    fate: Arc<AtomicU8>,
    answer: oneshot::Sender<Result<Answer, Error>>,
    _room: OwnedSemaphorePermit,
}

struct Sent {
    encoded: Bytes,
    answers: Vec<oneshot::Sender<Result<Answer, Error>>>,
    since: Instant,
    _room: Vec<OwnedSemaphorePermit>,
}

struct Inner {
    me: Origin,
    next: u64,
    waiting: VecDeque<Proposal>,
    sent: BTreeMap<u64, Sent>,
    /// How many batches the proposer last wanted under way at most.
    in_flight: usize,
    /// How many proposals a batch waits for.
    crowd: Crowd,
    closed: bool,
}

impl Inner {
    fn has_room(&self) -> bool {
        self.sent.len() < self.in_flight
    }

    fn has_enough(&self) -> bool {
        self.waiting.len() >= self.crowd.wanted()
    }
}

/// See the module.
pub(crate) struct Pending {
    inner: Mutex<Inner>,
    metrics: Arc<Metrics>,
    /// Something to do for the proposer: new proposals, or room for a batch.
    pub wake: Notify,
}

impl Pending {
    pub fn new(me: Origin, metrics: Arc<Metrics>) -> Self {
        let inner = Inner {
            me,
            next: 1,
            waiting: VecDeque::new(),
            sent: BTreeMap::new(),
            in_flight: usize::MAX,
            crowd: Crowd::default(),
            closed: false,
        };
        Self {
            inner: Mutex::new(inner),
            metrics,
            wake: Notify::new(),
        }
    }

    /// This member in its present life.
    pub fn me(&self) -> Origin {
        self.inner.lock().me
    }

    /// Queues a proposal of about so many bytes.
    pub fn propose(&self, command: Command, bytes: usize, room: OwnedSemaphorePermit) -> Ticket {
        let fate = Arc::new(AtomicU8::new(WAITING));
        let (sender, answer) = oneshot::channel();
        let mut inner = self.inner.lock();
        if inner.closed {
            // The receiver may be gone already.
            let _ = sender.send(Err(Error::Closed));
        } else {
            inner.waiting.push_back(Proposal {
                command,
                bytes,
                fate: fate.clone(),
                answer: sender,
                _room: room,
            });
        }
        // While no batch can be made, the proposer is woken by the next one that is settled: to wake it for each
        // proposal would take Raft's thread from those who bring more.
        let ready = inner.has_room() && inner.has_enough();
        drop(inner);
        if ready {
            self.wake.notify_one();
        }
        Ticket { fate, answer }
    }

    /// What to do while so many batches may be under way.
    pub fn next(&self, in_flight: usize) -> Next {
        let mut inner = self.inner.lock();
        inner.in_flight = in_flight;
        if !inner.has_room() {
            return Next::Wait;
        }
        if !inner.has_enough() {
            return if inner.crowd.wanted() > 1 {
                Next::Gather
            } else {
                Next::Wait
            };
        }
        drop(inner);
        self.next_batch().map_or(Next::Wait, Next::Send)
    }

    /// Waits no longer for as many as came before.
    pub fn hurry(&self) {
        self.inner.lock().crowd.hurry();
    }

    /// Makes a batch of what waits; returns it encoded.
    fn next_batch(&self) -> Option<Bytes> {
        let mut inner = self.inner.lock();
        let (mut commands, mut answers, mut room, mut bytes) =
            (Vec::new(), Vec::new(), Vec::new(), 0);
        while bytes < BATCH_BYTES && commands.len() < BATCH_COMMANDS {
            let Some(proposal) = inner.waiting.pop_front() else {
                break;
            };
            let wanted = proposal
                .fate
                .compare_exchange(WAITING, SENT, Ordering::AcqRel, Ordering::Acquire)
                .is_ok();
            if !wanted || proposal.answer.is_closed() {
                continue;
            }
            bytes += proposal.bytes;
            commands.push(proposal.command);
            answers.push(proposal.answer);
            room.push(proposal._room);
        }
        if commands.is_empty() {
            return None;
        }
        let seq = inner.next;
        inner.next += 1;
        inner.crowd.came(commands.len());
        let settled = inner
            .sent
            .first_key_value()
            .map_or(seq, |(first, _)| *first);
        self.metrics
            .batch_commands
            .observe(u32::try_from(commands.len()).unwrap_or(u32::MAX).into());
        match (Batch {
            origin: inner.me,
            seq,
            settled,
            commands,
        })
        .encode()
        {
            Ok(encoded) => {
                let sent = Sent {
                    encoded: encoded.clone(),
                    answers,
                    since: Instant::now(),
                    _room: room,
                };
                inner.sent.insert(seq, sent);
                Some(encoded)
            }
            Err(error) => {
                drop(inner);
                answer_all(
                    answers,
                    &Error::Invalid(format!("cannot be encoded: {error}")),
                );
                None
            }
        }
    }

    /// Everything that is under way, to be sent again; what nobody waits for any more is given up.
    pub fn again(&self) -> Vec<Bytes> {
        let mut inner = self.inner.lock();
        inner
            .sent
            .retain(|_, sent| sent.answers.iter().any(|answer| !answer.is_closed()));
        inner
            .sent
            .values()
            .map(|sent| sent.encoded.clone())
            .collect()
    }

    /// The outcome of a batch has been applied here.
    pub fn settle(&self, settled: Settled) {
        match settled {
            Settled::Applied { seq, answers } => {
                let mut inner = self.inner.lock();
                let Some(sent) = inner.sent.remove(&seq) else {
                    return;
                };
                inner.crowd.served();
                drop(inner);
                self.wake.notify_one();
                self.metrics
                    .proposal
                    .observe(sent.since.elapsed().as_secs_f64());
                for (sender, answer) in sent.answers.into_iter().zip(answers) {
                    // Whoever asked may have left.
                    let _ = sender.send(answer);
                }
            }
            Settled::Void { seq, life } => self.restart(seq, life),
        }
    }

    /// The state was replaced by a snapshot: answers what it remembers.
    pub fn recover(&self, origin: &OriginState) {
        let me = self.me();
        if origin.life > me.life {
            return self.restart(0, origin.life);
        }
        if origin.life < me.life {
            return;
        }
        for (seq, remembered) in &origin.batches {
            let answers = remembered.iter().map(recall).collect();
            self.settle(Settled::Applied { seq: *seq, answers });
        }
    }

    /// Another life of this member was seen: goes on in one after it. Nothing of what was sent has been
    /// carried out.
    fn restart(&self, seq: u64, life: u64) {
        let mut inner = self.inner.lock();
        if inner.me.life > life {
            return;
        }
        tracing::warn!(
            seq,
            mine = inner.me.life,
            seen = life,
            "a later life of this member was seen: going on after it"
        );
        inner.me.life = life.saturating_add(1);
        inner.next = 1;
        let sent = std::mem::take(&mut inner.sent);
        drop(inner);
        for (_, sent) in sent {
            answer_all(sent.answers, &Error::unavailable("this member restarted"));
        }
        self.wake.notify_one();
    }

    /// Answers everybody that the store is closed.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        let (waiting, sent) = (
            std::mem::take(&mut inner.waiting),
            std::mem::take(&mut inner.sent),
        );
        drop(inner);
        answer_all(
            waiting.into_iter().map(|proposal| proposal.answer),
            &Error::Closed,
        );
        for (_, sent) in sent {
            answer_all(sent.answers, &Error::Closed);
        }
    }
}

fn answer_all(
    answers: impl IntoIterator<Item = oneshot::Sender<Result<Answer, Error>>>,
    error: &Error,
) {
    for answer in answers {
        let _ = answer.send(Err(error.clone()));
    }
}

fn recall(remembered: &Remembered) -> Result<Answer, Error> {
    match remembered {
        Remembered::Committed(revision) => Ok(Answer::Txn(TxnOutcome::Committed {
            revision: *revision,
        })),
        Remembered::Lease(lease) => Ok(Answer::Lease(*lease)),
        Remembered::Done => Ok(Answer::Done),
        Remembered::Nothing => Err(Error::unavailable(
            "the answer was lost; nothing was changed",
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::FutureExt;
    use tokio::sync::Semaphore;

    use super::*;

    fn pending() -> Pending {
        Pending::new(Origin { member: 1, life: 5 }, Arc::default())
    }

    fn propose(pending: &Pending) -> Ticket {
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        pending.propose(Command::Tick, 1, room)
    }

    fn settle(pending: &Pending, seq: u64, count: usize) {
        let answers = vec![Ok(Answer::Done); count];
        pending.settle(Settled::Applied { seq, answers });
    }

    fn seq_and_settled(encoded: &Bytes) -> (u64, u64) {
        let batch = Batch::decode(encoded).unwrap();
        (batch.seq, batch.settled)
    }

    #[test]
    fn batches_are_numbered_and_say_what_is_settled() {
        let pending = pending();
        let mut first = propose(&pending);
        assert_eq!(seq_and_settled(&pending.next(2).batch().unwrap()), (1, 1));
        let _second = propose(&pending);
        assert_eq!(seq_and_settled(&pending.next(2).batch().unwrap()), (2, 1));
        let _third = propose(&pending);
        assert!(pending.next(2).batch().is_none());
        settle(&pending, 1, 1);
        assert_eq!(first.answer.try_recv().unwrap(), Ok(Answer::Done));
        assert_eq!(seq_and_settled(&pending.next(2).batch().unwrap()), (3, 2));
    }

    #[tokio::test]
    async fn the_proposer_is_woken_when_a_batch_can_be_made() {
        let pending = pending();
        let woken = || pending.wake.notified().now_or_never().is_some();
        let _first = propose(&pending);
        assert!(woken());
        pending.next(1).batch().unwrap();
        let _second = propose(&pending);
        assert!(!woken(), "one is under way");
        settle(&pending, 1, 1);
        assert!(woken());
        pending.next(2).batch().unwrap();
        let _third = propose(&pending);
        assert!(woken());
    }

    #[test]
    fn those_who_were_answered_together_are_batched_together_again() {
        let pending = pending();
        let woken = || pending.wake.notified().now_or_never().is_some();
        let first: Vec<_> = (0..8).map(|_| propose(&pending)).collect();
        pending.next(1).batch().unwrap();
        settle(&pending, 1, first.len());
        assert!(woken());
        let mut again: Vec<_> = (0..7).map(|_| propose(&pending)).collect();
        assert!(!woken(), "one is missing");
        assert!(matches!(pending.next(1), Next::Gather));
        again.push(propose(&pending));
        assert!(woken());
        pending.next(1).batch().unwrap();
        settle(&pending, 2, again.len());
        let _late = propose(&pending);
        assert!(matches!(pending.next(1), Next::Gather));
        pending.hurry();
        assert!(
            pending.next(1).batch().is_some(),
            "the others did not come in time"
        );
    }

    #[test]
    fn a_proposal_is_withdrawn_only_while_it_waits() {
        let pending = pending();
        let ticket = propose(&pending);
        assert!(ticket.give_up());
        assert!(pending.next(1).batch().is_none());
        let ticket = propose(&pending);
        pending.next(1).batch().unwrap();
        assert!(!ticket.give_up());
    }

    #[test]
    fn only_what_somebody_waits_for_is_sent_again() {
        let pending = pending();
        let (kept, dropped) = (propose(&pending), ());
        pending.next(9).batch().unwrap();
        drop(propose(&pending));
        assert!(pending.next(9).batch().is_none(), "{dropped:?}");
        let lost = propose(&pending);
        pending.next(9).batch().unwrap();
        drop(lost);
        assert_eq!(
            pending
                .again()
                .iter()
                .map(seq_and_settled)
                .collect::<Vec<_>>(),
            [(1, 1)]
        );
        drop(kept);
    }

    #[test]
    fn a_snapshot_answers_what_it_remembers() {
        let pending = pending();
        let (mut done, mut refused) = (propose(&pending), propose(&pending));
        pending.next(9).batch().unwrap();
        let mut lost = propose(&pending);
        pending.next(9).batch().unwrap();
        let remembered = vec![Remembered::Committed(7), Remembered::Nothing];
        let origin = OriginState {
            life: 5,
            batches: BTreeMap::from([(1, remembered)]),
            ..OriginState::default()
        };
        pending.recover(&origin);
        let committed = Answer::Txn(TxnOutcome::Committed { revision: 7 });
        assert_eq!(done.answer.try_recv().unwrap(), Ok(committed));
        assert!(
            refused
                .answer
                .try_recv()
                .unwrap()
                .unwrap_err()
                .is_retriable()
        );
        assert!(lost.answer.try_recv().is_err());
    }

    #[test]
    fn a_later_life_voids_what_was_sent() {
        let pending = pending();
        let mut ticket = propose(&pending);
        pending.next(9).batch().unwrap();
        pending.settle(Settled::Void { seq: 1, life: 8 });
        assert!(
            ticket
                .answer
                .try_recv()
                .unwrap()
                .unwrap_err()
                .is_retriable()
        );
        assert_eq!(pending.me(), Origin { member: 1, life: 9 });
    }
}
