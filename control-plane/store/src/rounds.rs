//! Rounds serve all who wait at once.

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
}
