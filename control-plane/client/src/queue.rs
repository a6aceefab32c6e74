//! A queue of keys with the semantics of client-go's rate-limited work queue.
//!
//! A key is in the queue at most once. A key that is being worked on is not handed out a second time;
//! when it is added meanwhile, it comes again after [`WorkQueue::done`]. Memory is bounded by the number of
//! different keys.

mod core;

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use self::core::Backoff;
use self::core::{Core, Pop};

struct Inner<K> {
    core: Mutex<Core<K>>,
    changed: Notify,
}

/// A deduplicating, delaying, rate-limited queue of keys. Cheap to clone.
pub struct WorkQueue<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K: Hash + Eq + Clone> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new(Backoff::default())
    }
}

impl<K: Hash + Eq + Clone> WorkQueue<K> {
    /// An empty queue.
    #[must_use]
    pub fn new(backoff: Backoff) -> Self {
        Self {
            inner: Arc::new(Inner {
                core: Mutex::new(Core::new(backoff)),
                changed: Notify::new(),
            }),
        }
    }

    /// Queues a key, unless it is queued already.
    pub fn add(&self, key: K) {
        let added = self.inner.core.lock().add(key);
        if added {
            self.inner.changed.notify_one();
        }
    }

    /// Queues a key after a delay; of several delays for one key the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.inner.core.lock().add_at(key, Instant::now() + delay);
        self.inner.changed.notify_one();
    }

    /// Queues a key after its backoff, which doubles with each call until [`WorkQueue::forget`].
    pub fn add_rate_limited(&self, key: K) {
        self.inner.core.lock().add_rate_limited(key, Instant::now());
        self.inner.changed.notify_one();
    }

    /// Resets a key's backoff, after success.
    pub fn forget(&self, key: &K) {
        self.inner.core.lock().forget(key);
    }

    /// How often the key has failed in a row.
    #[must_use]
    pub fn failures(&self, key: &K) -> u32 {
        self.inner.core.lock().failures(key)
    }

    /// The next key, marked as being worked on until [`WorkQueue::done`]. `None` after
    /// [`WorkQueue::shut_down`]. Cancel-safe.
    pub async fn get(&self) -> Option<K> {
        loop {
            let changed = self.inner.changed.notified();
            let pop = self.inner.core.lock().pop(Instant::now());
            match pop {
                Pop::Key { key, more } => {
                    if more {
                        self.inner.changed.notify_one();
                    }
                    return Some(key);
                }
                Pop::ShutDown => {
                    self.inner.changed.notify_waiters();
                    return None;
                }
                Pop::Empty => changed.await,
                Pop::Wait(until) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    /// The key is no longer worked on; it is queued again if it was added meanwhile.
    pub fn done(&self, key: &K) {
        let requeued = self.inner.core.lock().done(key);
        if requeued {
            self.inner.changed.notify_one();
        }
    }

    /// How many keys are ready.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.core.lock().len()
    }

    /// True when no key is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands out nothing more and takes nothing more; keys being worked on may finish.
    pub fn shut_down(&self) {
        self.inner.core.lock().shut_down();
        self.inner.changed.notify_waiters();
        self.inner.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
