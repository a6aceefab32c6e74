//! Rounds serve all who wait at once.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// Those who wait for the next round.
pub(crate) struct Waiters<T> {
    waiting: Mutex<Waiting<T>>,
    wake: Notify,
}

struct Waiting<T> {
    all: Vec<oneshot::Sender<T>>,
    /// From how many on whoever makes the rounds is woken: each wake costs more than a reader.
    wanted: usize,
}

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                all: Vec::new(),
                wanted: 1,
            }),
            wake: Notify::new(),
        }
    }
}

impl<T> Waiters<T> {
    /// Waits for a round that starts after this call; `None` if there are no more.
    pub async fn wait(&self) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let enough = {
            let mut waiting = self.waiting.lock();
            waiting.all.push(sender);
            waiting.all.len() >= waiting.wanted
        };
        if enough {
            self.wake.notify_one();
        }
        receiver.await.ok()
    }

    /// Waits until somebody waits. Cancel-safe.
    pub async fn come(&self) {
        while self.waiting.lock().all.is_empty() {
            self.wake.notified().await;
        }
    }

    /// Waits until so many wait, but not for longer than a pause; says whether they do.
    pub async fn gather(&self, wanted: usize, pause: Duration) -> bool {
        let enough = async {
            while !self.want(wanted) {
                self.wake.notified().await;
            }
        };
        let came = tokio::time::timeout(pause, enough).await.is_ok();
        self.want(1);
        came
    }

    /// Whether so many wait; if not, the one who makes it so many wakes the rounds.
    fn want(&self, wanted: usize) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.wanted = wanted;
        waiting.all.len() >= wanted
    }

    /// Takes all who wait now.
    pub fn take(&self) -> Vec<oneshot::Sender<T>> {
        std::mem::take(&mut self.waiting.lock().all)
    }
}

/// Tells all who took part in a round what came of it.
pub(crate) fn answer<T: Clone>(waiters: Vec<oneshot::Sender<T>>, outcome: &T) {
    for waiter in waiters {
        // Whoever asked may have left.
        let _ = waiter.send(outcome.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_wait_take_part_in_the_next_round() {
        let waiters = std::sync::Arc::new(Waiters::default());
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let waiters = waiters.clone();
                tokio::spawn(async move { waiters.wait().await })
            })
            .collect();
        let mut round = Vec::new();
        while round.len() < 3 {
            waiters.come().await;
            round.extend(waiters.take());
        }
        answer(round, &7);
        for task in tasks {
            assert_eq!(task.await.ok().flatten(), Some(7));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_waited_for_until_it_is_there_and_for_a_pause_at_most() {
        let waiters = std::sync::Arc::new(Waiters::<()>::default());
        for _ in 0..3 {
            let waiters = waiters.clone();
            tokio::spawn(async move { waiters.wait().await });
        }
        let begun = tokio::time::Instant::now();
        assert!(waiters.gather(3, Duration::from_millis(10)).await);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(waiters.take().len(), 3);
        let late = waiters.clone();
        tokio::spawn(async move { late.wait().await });
        assert!(!waiters.gather(3, Duration::from_millis(10)).await);
        assert!(begun.elapsed() >= Duration::from_millis(10));
        waiters.come().await;
        assert_eq!(waiters.take().len(), 1);
    }
}
