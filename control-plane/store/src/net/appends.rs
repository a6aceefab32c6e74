//! The stream of appends to one member: which of them may wait a moment, and which answers count.
//!
//! A leader tells each commit by an append without entries. While writes follow each other closely the next
//! entry says the same a moment later, so such an append waits for it: that halves the messages of a busy
//! leader. It does not wait if the commit concerns another member's writers, nor after a pause in the writing.
//!
//! openraft takes the answer to an append for the answer to all that end at the same entry, those that it
//! handed over after it included, and takes the time when the last of them was handed over for the time since
//! when the other member is known to follow. A linearizable read must not rely on that time: so an answer is
//! passed on only once the last append that ends there was answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use openraft::EntryPayload;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::raft::{AppendRequest, LogId};
use crate::types::MemberId;

/// A commit waits for an entry this long at most.
const HOLD: Duration = Duration::from_millis(1);
/// An entry follows a commit closely within this time: timers are late by up to a millisecond.
const CLOSE: Duration = Duration::from_millis(2);

/// What is known of the requests of one stream and their answers, which come in the same order.
pub(super) struct Flow {
    me: MemberId,
    /// Requests that were handed over.
    count: u64,
    /// Those that were sent and not answered.
    sent: VecDeque<u64>,
    /// Those without entries that were not answered, and where the log ended.
    echoes: VecDeque<(u64, Option<LogId>)>,
    last_commit: Option<Instant>,
    may_hold: bool,
}

impl Flow {
    pub fn new(me: MemberId) -> Self {
        Self {
            me,
            count: 0,
            sent: VecDeque::new(),
            echoes: VecDeque::new(),
            last_commit: None,
            may_hold: false,
        }
    }

    /// Numbers a request that was handed over, and says whether it may wait.
    fn arrived(&mut self, request: &AppendRequest, now: Instant) -> (u64, bool) {
        self.count += 1;
        if request.entries.is_empty() {
            self.echoes.push_back((self.count, request.prev_log_id));
            self.last_commit = Some(now);
            return (self.count, self.may_hold);
        }
        // Whether the last commit would have been right to wait, and so the next one may be.
        let close = self
            .last_commit
            .is_some_and(|last| now.duration_since(last) < CLOSE);
        self.may_hold = close
            && request.entries.iter().all(|entry| match &entry.payload {
                EntryPayload::Normal(pack) => pack.is_only_of(self.me),
                EntryPayload::Blank | EntryPayload::Membership(_) => false,
            });
        (self.count, false)
    }

    fn sent(&mut self, number: u64) {
        self.sent.push_back(number);
    }

    /// Whether the answer to the oldest request that is not answered counts: that the log matches up to there.
    pub fn answered(&mut self, matched: Option<LogId>) -> bool {
        let number = self.sent.pop_front().unwrap_or(self.count);
        while self.echoes.front().is_some_and(|(echo, _)| *echo <= number) {
            self.echoes.pop_front();
        }
        self.echoes.front().is_none_or(|(_, end)| *end > matched)
    }
}

struct Outbox<S> {
    requests: S,
    flow: Arc<Mutex<Flow>>,
    held: Option<Held>,
    next: Option<(u64, AppendRequest)>,
    ended: bool,
}

struct Held {
    number: u64,
    request: AppendRequest,
    until: Instant,
}

/// The requests as they are to be sent.
pub(super) fn outbox<S>(
    requests: S,
    flow: Arc<Mutex<Flow>>,
) -> impl Stream<Item = AppendRequest> + Send + 'static
where
    S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
{
    let outbox = Outbox {
        requests,
        flow,
        held: None,
        next: None,
        ended: false,
    };
    stream::unfold(outbox, |mut outbox| async move {
        let (number, request) = outbox.next().await?;
        outbox.flow.lock().sent(number);
        Some((request, outbox))
    })
}

impl<S: Stream<Item = AppendRequest> + Unpin> Outbox<S> {
    async fn next(&mut self) -> Option<(u64, AppendRequest)> {
        loop {
            if let Some(next) = self.next.take() {
                return Some(next);
            }
            let arrived = match &self.held {
                None if self.ended => return None,
                None => self.requests.next().await,
                Some(held) => tokio::select! {
                    biased;
                    arrived = self.requests.next() => arrived,
                    () = sleep_until(held.until) => return self.release(),
                },
            };
            let Some(request) = arrived else {
                self.ended = true;
                return self.release();
            };
            let now = Instant::now();
            let (number, hold) = self.flow.lock().arrived(&request, now);
            let before = self.held.take();
            let until = before.as_ref().map_or(now + HOLD, |held| held.until);
            if let Some(held) = before
                && !says_more(&request, &held.request)
            {
                self.next = Some((number, request));
                return Some((held.number, held.request));
            }
            if !hold {
                return Some((number, request));
            }
            self.held = Some(Held {
                number,
                request,
                until,
            });
        }
    }

    fn release(&mut self) -> Option<(u64, AppendRequest)> {
        self.held.take().map(|held| (held.number, held.request))
    }
}

/// Whether a request makes an earlier one without entries superfluous.
fn says_more(request: &AppendRequest, earlier: &AppendRequest) -> bool {
    request.vote == earlier.vote
        && request.prev_log_id == earlier.prev_log_id
        && request.leader_commit >= earlier.leader_commit
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::command::{Batch, Command, Origin, Pack};
    use crate::raft::{Entry, Vote};

    fn id(index: u64) -> LogId {
        LogId::new(2.into(), index)
    }

    /// An append of one entry, of these members' batches.
    fn entry(index: u64, members: &[MemberId]) -> AppendRequest {
        let batch = |member: &MemberId| Batch {
            origin: Origin {
                member: *member,
                life: 1,
            },
            seq: 1,
            settled: 1,
            commands: vec![Command::Tick],
        };
        let batches: Vec<Bytes> = members
            .iter()
            .filter_map(|member| batch(member).encode().ok())
            .collect();
        let entry = Entry {
            log_id: id(index),
            payload: EntryPayload::Normal(Pack::new(1, &batches)),
        };
        AppendRequest {
            entries: vec![entry],
            ..commit(index - 1, index - 1)
        }
    }

    fn commit(end: u64, committed: u64) -> AppendRequest {
        AppendRequest {
            vote: Vote::new(2, 1),
            prev_log_id: Some(id(end)),
            entries: Vec::new(),
            leader_commit: Some(id(committed)),
        }
    }

    /// What is sent of requests that come after pauses: index of the last entry, or of the commit as negative.
    async fn sent(requests: Vec<(u64, AppendRequest)>) -> Vec<i64> {
        let flow = Arc::new(Mutex::new(Flow::new(1)));
        let requests = stream::iter(requests).then(|(pause_ms, request)| async move {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            request
        });
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index.cast_signed());
        outbox(Box::pin(requests), flow)
            .map(|request| match request.entries.last() {
                Some(entry) => index(Some(entry.log_id)),
                None => -index(request.leader_commit),
            })
            .collect()
            .await
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_rides_on_the_next_entry_when_writes_follow_closely() {
        let requests = vec![
            (0, entry(1, &[1])),
            (1, commit(1, 1)),
            (0, entry(2, &[1])),
            (1, commit(2, 2)),
            (0, entry(3, &[1])),
            (1, commit(3, 3)),
            (50, entry(4, &[1])),
            (1, commit(4, 4)),
        ];
        // After a pause nothing waits, and what waits goes when nothing comes.
        assert_eq!(sent(requests).await, [1, -1, 2, 3, -3, 4, -4]);
    }

    #[test]
    fn a_commit_waits_only_if_the_last_one_would_have_been_right_to() {
        let mut flow = Flow::new(1);
        let begun = Instant::now();
        let mut arrive = |request, ms| flow.arrived(&request, begun + Duration::from_millis(ms)).1;
        arrive(entry(1, &[1]), 0);
        assert!(!arrive(commit(1, 1), 1), "there was none before");
        arrive(entry(2, &[1]), 2);
        assert!(arrive(commit(2, 2), 3));
        arrive(entry(3, &[1]), 7);
        assert!(!arrive(commit(3, 3), 8), "it waited in vain");
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_others_wait_for_goes_at_once() {
        let requests = vec![
            (0, entry(1, &[1, 2])),
            (1, commit(1, 1)),
            (0, entry(2, &[1, 2])),
            (1, commit(2, 2)),
            (0, entry(3, &[1, 2])),
        ];
        assert_eq!(sent(requests).await, [1, -1, 2, -2, 3]);
    }

    #[test]
    fn an_answer_counts_only_for_what_was_sent_before_it_was_given() {
        let mut flow = Flow::new(1);
        let now = Instant::now();
        for request in [entry(1, &[1]), commit(1, 1)] {
            let (number, _) = flow.arrived(&request, now);
            flow.sent(number);
        }
        assert!(
            !flow.answered(Some(id(1))),
            "the commit is not answered yet"
        );
        assert!(flow.answered(Some(id(1))));
        // One that was left out in favour of the next is answered with that.
        let (first, _) = flow.arrived(&entry(2, &[1]), now);
        flow.sent(first);
        flow.arrived(&commit(2, 2), now);
        assert!(!flow.answered(Some(id(2))));
        let (second, _) = flow.arrived(&entry(3, &[1]), now);
        flow.sent(second);
        assert!(flow.answered(Some(id(3))));
    }
}
