//! The queue's rules, without a clock or a lock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Exponential backoff per key.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Delay after the first failure.
    pub base: Duration,
    /// Longest delay.
    pub max: Duration,
}

impl Default for Backoff {
    /// 5 ms doubling to 60 s. (client-go goes to 1,000 s; a minute costs little and heals sooner.)
    fn default() -> Self {
        Self {
            base: Duration::from_millis(5),
            max: Duration::from_secs(60),
        }
    }
}

impl Backoff {
    /// The delay after so many failures in a row, of which this is number `failures` (from 1).
    #[must_use]
    pub fn delay(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max)
    }
}

pub(super) enum Pop<K> {
    Key { key: K, more: bool },
    Wait(Instant),
    Empty,
    ShutDown,
}

struct Delayed<K> {
    at: Instant,
    sequence: u64,
    key: K,
}

impl<K> PartialEq for Delayed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl<K> Eq for Delayed<K> {}
impl<K> PartialOrd for Delayed<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Delayed<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

pub(super) struct Core<K> {
    /// Ready keys in order; all of them are in `dirty` and none in `processing`.
    queue: VecDeque<K>,
    /// Keys that need work.
    dirty: HashSet<K>,
    /// Keys handed out and not yet done.
    processing: HashSet<K>,
    /// When delayed keys become ready; entries of `delayed` that disagree with this map are stale.
    due: HashMap<K, Instant>,
    delayed: BinaryHeap<Reverse<Delayed<K>>>,
    failures: HashMap<K, u32>,
    backoff: Backoff,
    sequence: u64,
    shut_down: bool,
}

impl<K: Hash + Eq + Clone> Core<K> {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self {
            queue: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            due: HashMap::new(),
            delayed: BinaryHeap::new(),
            failures: HashMap::new(),
            backoff,
            sequence: 0,
            shut_down: false,
        }
    }

    /// True when the key became ready by this.
    pub(super) fn add(&mut self, key: K) -> bool {
        if self.shut_down || !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return false;
        }
        self.queue.push_back(key);
        true
    }

    pub(super) fn add_at(&mut self, key: K, at: Instant) {
        if self.shut_down || self.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        self.due.insert(key.clone(), at);
        self.sequence += 1;
        self.delayed.push(Reverse(Delayed {
            at,
            sequence: self.sequence,
            key,
        }));
    }

    pub(super) fn add_rate_limited(&mut self, key: K, now: Instant) {
        let failures = self.failures.entry(key.clone()).or_default();
        *failures = failures.saturating_add(1);
        let delay = self.backoff.delay(*failures);
        self.add_at(key, now + delay);
    }

    pub(super) fn forget(&mut self, key: &K) {
        self.failures.remove(key);
    }

    pub(super) fn failures(&self, key: &K) -> u32 {
        self.failures.get(key).copied().unwrap_or_default()
    }

    pub(super) fn pop(&mut self, now: Instant) -> Pop<K> {
        if self.shut_down {
            return Pop::ShutDown;
        }
        self.release(now);
        if let Some(key) = self.queue.pop_front() {
            self.dirty.remove(&key);
            self.processing.insert(key.clone());
            return Pop::Key {
                key,
                more: !self.queue.is_empty() || !self.delayed.is_empty(),
            };
        }
        match self.delayed.peek() {
            Some(Reverse(next)) => Pop::Wait(next.at),
            None => Pop::Empty,
        }
    }

    fn release(&mut self, now: Instant) {
        while let Some(Reverse(next)) = self.delayed.peek() {
            if next.at > now {
                return;
            }
            let Some(Reverse(next)) = self.delayed.pop() else {
                return;
            };
            if self.due.get(&next.key) == Some(&next.at) {
                self.due.remove(&next.key);
                self.add(next.key);
            }
        }
    }

    /// True when the key became ready by this.
    pub(super) fn done(&mut self, key: &K) -> bool {
        if !self.processing.remove(key) || self.shut_down || !self.dirty.contains(key) {
            return false;
        }
        self.queue.push_back(key.clone());
        true
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn shut_down(&mut self) {
        self.shut_down = true;
        self.queue.clear();
        self.delayed.clear();
        self.due.clear();
    }
}
