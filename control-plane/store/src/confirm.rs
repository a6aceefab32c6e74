//! ReadIndex on the leader: whether it still leads, one question to each other voter for all who want to know.
//!
//! The index that a linearizable read must wait for is what the leader has committed when it is asked, if a majority
//! of voters has promised nothing to a later term when *they* are asked, which is after that. Then nobody could have
//! committed anything in a later term before the read began: an elected leader needs a promise of one of them.
//!
//! openraft asks by heartbeats, each of which goes through its core on both sides; a promise is known beside it, as
//! the log keeps it (it is there before its vote is answered).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::fault::{self, Break};
use crate::net::{Line, Peers, Purpose};
use crate::raft::{Raft, term_of};
use crate::rounds::{Waiters, answer};
use crate::types::{MemberId, Term};

/// A round takes at most this long.
const ROUND: Duration = Duration::from_millis(500);
/// The pause before a member that could not be asked is asked again.
const RETRY: Duration = Duration::from_millis(20);

/// Who waits for the next round.
#[derive(Default)]
pub(crate) struct Confirm {
    waiters: Waiters<Result<u64, String>>,
}

impl Confirm {
    /// The index that a read which begins now must wait for.
    ///
    /// # Errors
    /// In words: this member does not lead, or no majority confirms that it does.
    pub async fn index(&self) -> Result<u64, String> {
        let told = self.waiters.wait().await;
        told.unwrap_or_else(|| Err("this member stops".to_owned()))
    }
}

/// What [`Confirming::run`] needs.
pub(crate) struct Confirming {
    pub confirm: Arc<Confirm>,
    pub raft: Raft,
    pub peers: Arc<Peers>,
    pub stop: CancellationToken,
}

/// What the other voters are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question {
    round: u64,
    term: Term,
}

/// The last round that each voter confirmed, and the last that somebody denied.
#[derive(Default)]
struct Answers {
    given: Mutex<Given>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Given {
    confirmed: BTreeMap<MemberId, u64>,
    denied: u64,
}

impl Answers {
    fn note(&self, member: MemberId, question: Question, promised: Term) {
        let mut given = self.given.lock();
        if promised <= question.term {
            given.confirmed.insert(member, question.round);
        } else {
            given.denied = question.round;
        }
        drop(given);
        self.changed.notify_one();
    }
}

impl Given {
    /// What came of a round, if that is clear already.
    fn outcome(&self, round: u64, me: MemberId, configs: &[BTreeSet<MemberId>]) -> Option<bool> {
        if self.denied >= round {
            return Some(false);
        }
        let confirms = |member: &&MemberId| {
            **member == me
                || self
                    .confirmed
                    .get(member)
                    .is_some_and(|last| *last >= round)
        };
        let majority =
            |config: &BTreeSet<MemberId>| config.iter().filter(confirms).count() * 2 > config.len();
        configs.iter().all(majority).then_some(true)
    }
}

/// What a leader knows when a round begins.
struct Lead {
    term: Term,
    index: u64,
    /// The voters; two sets while they change (Raft, section 6).
    configs: Vec<BTreeSet<MemberId>>,
}

impl Confirming {
    /// Makes rounds until the stop.
    pub async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.rounds() => {}
        }
        // Senders that are dropped say that the member stops.
        drop(self.confirm.waiters.take());
    }

    async fn rounds(&self) {
        let answers = Arc::new(Answers::default());
        let (question, _) = watch::channel(Question { round: 0, term: 0 });
        let (mut tasks, mut asking) = (JoinSet::new(), HashMap::new());
        loop {
            self.confirm.waiters.come().await;
            let waiters = self.confirm.waiters.take();
            if waiters.is_empty() {
                continue;
            }
            let outcome = match self.lead().await {
                Ok(lead) => {
                    self.ask_all(&lead, &question, &answers, &mut tasks, &mut asking);
                    self.round(&lead, &question, &answers).await
                }
                Err(error) => Err(error),
            };
            answer(waiters, &outcome);
        }
    }

    /// What this member knows if it leads.
    async fn lead(&self) -> Result<Lead, String> {
        let me = self.peers.me();
        let lead = self.raft.with_raft_state(move |state| {
            let vote = state.vote_ref();
            let leads = vote.is_committed() && crate::raft::voted_for(vote) == Some(me);
            if !leads {
                return Err("this member does not lead");
            }
            let term = vote.leader_id().term;
            // Until an entry of this term is committed, what is committed of earlier ones is not known for sure
            // (Raft, section 8).
            let committed = state
                .local_committed()
                .filter(|committed| term_of(committed) == term)
                .ok_or("this member has only just become the leader")?;
            let membership = state.membership_state.effective();
            Ok(Lead {
                term,
                index: committed.index,
                configs: membership.membership().get_joint_config().clone(),
            })
        });
        match lead.await {
            Ok(lead) => lead.map_err(str::to_owned),
            Err(fatal) => Err(fatal.to_string()),
        }
    }

    /// Sees to it that all other voters are asked whatever the question is, and nobody else.
    fn ask_all(
        &self,
        lead: &Lead,
        question: &watch::Sender<Question>,
        answers: &Arc<Answers>,
        tasks: &mut JoinSet<()>,
        asking: &mut HashMap<MemberId, AbortHandle>,
    ) {
        let me = self.peers.me();
        let is_voter =
            |id: &MemberId| *id != me && lead.configs.iter().any(|config| config.contains(id));
        asking.retain(|id, task| {
            let stays = is_voter(id);
            if !stays {
                task.abort();
            }
            stays
        });
        // Takes the ends of those that were aborted.
        while tasks.try_join_next().is_some() {}
        for id in lead.configs.iter().flatten().filter(|id| is_voter(id)) {
            asking.entry(*id).or_insert_with(|| {
                let (peers, answers, member) = (self.peers.clone(), answers.clone(), *id);
                let asker = ask(peers, member, question.subscribe(), answers);
                tasks.spawn(asker.instrument(tracing::info_span!("confirm", member)))
            });
        }
    }

    async fn round(
        &self,
        lead: &Lead,
        question: &watch::Sender<Question>,
        answers: &Answers,
    ) -> Result<u64, String> {
        if fault::broken(Break::ConfirmUnasked) {
            return Ok(lead.index);
        }
        let me = self.peers.me();
        let round = question.borrow().round + 1;
        let confirmed = async {
            loop {
                let outcome = answers.given.lock().outcome(round, me, &lead.configs);
                match outcome {
                    Some(outcome) => return outcome,
                    None => answers.changed.notified().await,
                }
            }
        };
        question.send_replace(Question {
            round,
            term: lead.term,
        });
        match tokio::time::timeout(ROUND, confirmed).await {
            Ok(true) => Ok(lead.index),
            Ok(false) => Err("another member leads".to_owned()),
            Err(_) => Err("no majority confirms that this member leads".to_owned()),
        }
    }
}

/// Asks one member the newest question, again and again.
async fn ask(
    peers: Arc<Peers>,
    member: MemberId,
    mut question: watch::Receiver<Question>,
    answers: Arc<Answers>,
) {
    let mut line = Line::default();
    loop {
        let changed = line.keep_until(question.changed()).await;
        if changed.is_err() {
            return;
        }
        let asked = *question.borrow_and_update();
        match peers.call(member, Purpose::Confirm, &mut line).await {
            Ok(promised) => answers.note(member, asked, promised),
            Err(error) => {
                tracing::debug!(%error, "the question failed");
                tokio::time::sleep(RETRY).await;
                question.mark_changed();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(promises: &[(MemberId, Term)]) -> Given {
        let answers = Answers::default();
        for (member, promised) in promises {
            let question = Question { round: 7, term: 3 };
            answers.note(*member, question, *promised);
        }
        answers.given.into_inner()
    }

    #[test]
    fn a_majority_that_promised_nothing_later_confirms_a_round() {
        let five = [BTreeSet::from([1, 2, 3, 4, 5])];
        assert_eq!(answers(&[(2, 3)]).outcome(7, 1, &five), None);
        assert_eq!(answers(&[(2, 3), (3, 2)]).outcome(7, 1, &five), Some(true));
        let given = answers(&[(2, 3), (3, 2)]);
        assert_eq!(given.outcome(8, 1, &five), None, "the next round is open");
        assert_eq!(
            answers(&[(2, 3), (9, 3)]).outcome(7, 1, &five),
            None,
            "only voters count"
        );
    }

    #[test]
    fn one_that_promised_a_later_term_ends_the_round() {
        let three = [BTreeSet::from([1, 2, 3])];
        assert_eq!(answers(&[(2, 4)]).outcome(7, 1, &three), Some(false));
    }

    #[test]
    fn both_majorities_are_needed_while_the_voters_change() {
        let joint = [BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])];
        assert_eq!(answers(&[(2, 3), (3, 3)]).outcome(7, 1, &joint), None);
        let given = answers(&[(2, 3), (3, 3), (4, 3)]);
        assert_eq!(given.outcome(7, 1, &joint), Some(true));
        // A leader that leaves is no voter any more.
        let left = [BTreeSet::from([2, 3])];
        assert_eq!(answers(&[(2, 3)]).outcome(7, 1, &left), None);
    }
}
