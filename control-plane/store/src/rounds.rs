//! What serves all who wait at once: who they are, and whether more are worth waiting for.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// Those who wait for the next round.
pub(crate) struct Waiters<T> {
    waiting: Mutex<Vec<oneshot::Sender<T>>>,
    wake: Notify,
}

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            wake: Notify::new(),
        }
    }
}

impl<T> Waiters<T> {
    /// Waits for a round that starts after this call; `None` if there are no more.
    pub async fn wait(&self) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().push(sender);
        self.wake.notify_one();
        receiver.await.ok()
    }

    /// Waits until somebody may wait. Cancel-safe.
    pub async fn come(&self) {
        self.wake.notified().await;
    }

    pub fn count(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Takes all who wait now.
    pub fn take(&self) -> Vec<oneshot::Sender<T>> {
        std::mem::take(&mut *self.waiting.lock())
    }
}

/// Tells all who took part in a round what came of it.
pub(crate) fn answer<T: Clone>(waiters: Vec<oneshot::Sender<T>>, outcome: &T) {
    for waiter in waiters {
        // Whoever asked may have left.
        let _ = waiter.send(outcome.clone());
    }
}

/// From how many on who would take part a round may be held back.
const CROWD: usize = 4;
/// How long a round is held back so that more take part.
pub(crate) const HOLD: Duration = Duration::from_millis(1);
/// How many rounds begin at once after one was held back in vain, at first and at most.
const SKIP: (u32, u32) = (8, 512);

/// Whether to hold rounds back.
///
/// A round costs all members about the same for one as for many. When much besides rounds keeps the machine busy,
/// callers come one by one, and rounds that begin at once take few of them each and the time that the others need:
/// holding a round back then makes everything faster. When all callers wait for rounds and do nothing else, nobody
/// comes meanwhile. Which of the two it is shows when a round is held back.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    skip: u32,
    left: u32,
}

impl Gather {
    /// Whether to hold back a round in which so many would take part, while the last one took so long. Few never wait,
    /// and nobody does while rounds are short.
    pub fn holds(&mut self, waiting: usize, last: Duration) -> bool {
        if waiting < CROWD || last < HOLD / 2 {
            return false;
        }
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        true
    }

    /// A round was held back, and so many took part in place of so many.
    pub fn learn(&mut self, before: usize, after: usize) {
        let gained = after >= before + before.div_ceil(2);
        self.skip = match self.skip {
            _ if gained => 0,
            0 => SKIP.0,
            skip => (skip * 2).min(SKIP.1),
        };
        self.left = self.skip;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_never_wait_for_more() {
        let mut gather = Gather::default();
        assert!(!gather.holds(CROWD - 1, HOLD));
        assert!(gather.holds(CROWD, HOLD));
    }

    #[test]
    fn short_rounds_are_not_held_back() {
        assert!(!Gather::default().holds(64, HOLD / 10));
    }

    #[test]
    fn rounds_are_held_back_as_long_as_others_join() {
        let mut gather = Gather::default();
        for _ in 0..100 {
            assert!(gather.holds(4, HOLD));
            gather.learn(4, 6);
        }
    }

    #[test]
    fn rounds_that_nobody_joins_are_held_back_ever_more_seldom() {
        let mut gather = Gather::default();
        let held = (0..10_000).filter(|_| {
            let holds = gather.holds(64, HOLD);
            if holds {
                gather.learn(64, 64);
            }
            holds
        });
        assert!(held.count() < 30);
        while !gather.holds(64, HOLD) {}
        gather.learn(64, 100);
        assert!(gather.holds(64, HOLD), "and again once others join");
    }

    #[tokio::test]
    async fn all_who_wait_take_part_in_the_next_round() {
        let waiters = std::sync::Arc::new(Waiters::default());
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let waiters = waiters.clone();
                tokio::spawn(async move { waiters.wait().await })
            })
            .collect();
        while waiters.count() < 3 {
            waiters.come().await;
        }
        answer(waiters.take(), &7);
        for task in tasks {
            assert_eq!(task.await.ok().flatten(), Some(7));
        }
    }
}
