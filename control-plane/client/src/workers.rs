//! Workers: call a reconcile function for each key of a queue.

use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::queue::WorkQueue;

/// What a reconcile wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Outcome {
    /// Nothing, until something changes.
    #[default]
    Done,
    /// To be called again after this time.
    After(Duration),
    /// To be called again with backoff, without an error being logged (a conflict, a stale cache).
    Retry,
}

/// How to work on a queue.
#[derive(Debug, Clone)]
pub struct Workers {
    /// For logs and spans, for example `replicaset`.
    pub name: &'static str,
    /// How many keys are worked on at once.
    pub count: usize,
    /// Longest time for one key; afterwards the key is retried.
    pub deadline: Duration,
}

impl Workers {
    /// Workers with a 60 s deadline for each key.
    #[must_use]
    pub fn new(name: &'static str, count: usize) -> Self {
        Self {
            name,
            count: count.max(1),
            deadline: Duration::from_secs(60),
        }
    }

    /// Works until `stop`, then lets running reconciles finish at their next await point by dropping them:
    /// reconciles are idempotent and their writes are fenced.
    ///
    /// Errors are logged and retried with backoff.
    pub async fn run<K, E, F, R>(self, queue: WorkQueue<K>, stop: CancellationToken, reconcile: F)
    where
        K: Hash + Eq + Clone + Display + Send + Sync + 'static,
        E: Display + Send + 'static,
        F: Fn(K) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Outcome, E>> + Send + 'static,
    {
        let reconcile = Arc::new(reconcile);
        let mut tasks = JoinSet::new();
        for _ in 0..self.count {
            let (queue, reconcile, this) = (queue.clone(), Arc::clone(&reconcile), self.clone());
            tasks.spawn(async move {
                while let Some(key) = queue.get().await {
                    let span = tracing::info_span!("reconcile", controller = this.name, %key);
                    this.work(&queue, key, &*reconcile).instrument(span).await;
                }
            });
        }
        stop.cancelled().await;
        queue.shut_down();
        tasks.shutdown().await;
    }

    async fn work<K, E, F, R>(&self, queue: &WorkQueue<K>, key: K, reconcile: &F)
    where
        K: Hash + Eq + Clone,
        E: Display,
        F: Fn(K) -> R,
        R: Future<Output = Result<Outcome, E>>,
    {
        // Boxed: reconciles are large futures and there are few of them.
        let call = Box::pin(reconcile(key.clone()));
        match tokio::time::timeout(self.deadline, call).await {
            Ok(Ok(Outcome::Done)) => queue.forget(&key),
            Ok(Ok(Outcome::After(delay))) => {
                queue.forget(&key);
                queue.add_after(key.clone(), delay);
            }
            Ok(Ok(Outcome::Retry)) => queue.add_rate_limited(key.clone()),
            Ok(Err(error)) => {
                let failures = queue.failures(&key) + 1;
                if failures > 3 {
                    tracing::warn!(%error, failures, "reconcile failed; trying again");
                } else {
                    tracing::debug!(%error, failures, "reconcile failed; trying again");
                }
                queue.add_rate_limited(key.clone());
            }
            Err(_) => {
                tracing::warn!(deadline = ?self.deadline, "reconcile took too long; trying again");
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}
