//! A store in memory, for tests: one member, no Raft, the same rules of transactions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::backend::{
    Backend, BackendError, Event, KeyValue, Lead, LeaseId, Op, Page, Revision, Txn, TxnOutcome,
};
use crate::cache::Cache;

#[derive(Default)]
struct State {
    revision: Revision,
    compacted: Revision,
    /// All versions of each key.
    history: BTreeMap<Bytes, Vec<(Revision, Option<KeyValue>)>>,
}

impl State {
    fn at(&self, key: &[u8], revision: Revision) -> Option<&KeyValue> {
        self.history
            .get(key)?
            .iter()
            .rev()
            .find(|(r, _)| *r <= revision)?
            .1
            .as_ref()
    }
}

/// See the module.
pub struct MemoryBackend {
    cache: Arc<Cache>,
    state: Mutex<State>,
    leases: AtomicU64,
    /// Terms below are deposed.
    pub term: AtomicU64,
    /// Makes the next transactions fail.
    pub down: Mutex<Option<String>>,
    /// Nobody else is heard: not even reads are answered.
    pub cut_off: AtomicBool,
}

impl MemoryBackend {
    /// An empty store that feeds a cache.
    pub fn new(cache: Arc<Cache>) -> Arc<Self> {
        let state = State {
            revision: 1,
            ..State::default()
        };
        cache.reset(1, |_| Vec::new());
        Arc::new(Self {
            cache,
            state: Mutex::new(state),
            leases: AtomicU64::new(1),
            term: AtomicU64::new(1),
            down: Mutex::default(),
            cut_off: AtomicBool::new(false),
        })
    }

    /// Forgets what was before now.
    pub fn compact(&self) {
        let mut state = self.state.lock();
        state.compacted = state.revision;
    }

    /// Value of a key.
    pub fn value(&self, key: &str) -> Option<KeyValue> {
        let state = self.state.lock();
        state.at(key.as_bytes(), state.revision).cloned()
    }

    /// Keys with a prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let state = self.state.lock();
        let live = state
            .history
            .keys()
            .filter(|k| state.at(k, state.revision).is_some());
        live.filter_map(|k| std::str::from_utf8(k).ok())
            .filter(|k| k.starts_with(prefix))
            .map(str::to_owned)
            .collect()
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, BackendError> {
        if let Some(why) = self.down.lock().clone() {
            return Err(BackendError::Unavailable(why));
        }
        if txn
            .fence
            .is_some_and(|term| term != self.term.load(Ordering::Relaxed))
        {
            return Err(BackendError::Fenced);
        }
        let mut state = self.state.lock();
        let now = state.revision;
        let found: Vec<Option<KeyValue>> = txn
            .compares
            .iter()
            .map(|c| state.at(c.key(), now).cloned())
            .collect();
        let holds = txn
            .compares
            .iter()
            .zip(&found)
            .all(|(c, f)| c.holds(f.as_ref().map(|kv| kv.mod_revision)));
        if !holds {
            return Ok(TxnOutcome::Refused {
                revision: now,
                found,
            });
        }
        let revision = now + 1;
        let mut events = Vec::new();
        for op in txn.ops {
            let previous = state.at(op.key(), now).cloned();
            let (key, new) = match op {
                Op::Put { key, value, lease } => {
                    let create_revision = previous.as_ref().map_or(revision, |p| p.create_revision);
                    let version = previous.as_ref().map_or(1, |p| p.version + 1);
                    let kv = KeyValue {
                        key: key.clone(),
                        value,
                        create_revision,
                        mod_revision: revision,
                        version,
                        lease,
                    };
                    events.push(Event::Put {
                        kv: kv.clone(),
                        previous,
                    });
                    (key, Some(kv))
                }
                Op::Delete { key } => {
                    let Some(previous) = previous else { continue };
                    events.push(Event::Delete {
                        key: key.clone(),
                        revision,
                        previous,
                    });
                    (key, None)
                }
            };
            state.history.entry(key).or_default().push((revision, new));
        }
        if events.is_empty() {
            return Ok(TxnOutcome::Committed { revision: now });
        }
        state.revision = revision;
        self.cache.applied(revision, &events);
        Ok(TxnOutcome::Committed { revision })
    }

    async fn read_barrier(&self) -> Result<Revision, BackendError> {
        if self.cut_off.load(Ordering::Relaxed) {
            return Err(BackendError::Unavailable("no leader".to_owned()));
        }
        Ok(self.state.lock().revision)
    }

    fn range(
        &self,
        prefix: &[u8],
        start: &[u8],
        limit: usize,
        at: Revision,
    ) -> Result<Page, BackendError> {
        let state = self.state.lock();
        if at < state.compacted {
            return Err(BackendError::Compacted);
        }
        let from = if start.is_empty() { prefix } else { start };
        let mut kvs: Vec<KeyValue> = state
            .history
            .range(Bytes::copy_from_slice(from)..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter_map(|(key, _)| state.at(key, at).cloned())
            .take(limit.saturating_add(1))
            .collect();
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        Ok(Page { kvs, more })
    }

    fn changes(
        &self,
        prefix: &[u8],
        after: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, BackendError> {
        let state = self.state.lock();
        if after < state.compacted {
            return Err(BackendError::Compacted);
        }
        let mut found = Vec::new();
        for (key, versions) in &state.history {
            let mut previous: Option<&KeyValue> = None;
            for (revision, now) in versions.iter().filter(|_| key.starts_with(prefix)) {
                if *revision > after && *revision <= to {
                    found.push(match (now, previous) {
                        (Some(kv), previous) => Event::Put {
                            kv: kv.clone(),
                            previous: previous.cloned(),
                        },
                        (None, Some(previous)) => Event::Delete {
                            key: key.clone(),
                            revision: *revision,
                            previous: previous.clone(),
                        },
                        (None, None) => continue,
                    });
                }
                previous = now.as_ref();
            }
        }
        found.sort_by_key(Event::revision);
        if found.len() > limit {
            return Err(BackendError::Compacted);
        }
        Ok(found)
    }

    async fn lease_grant(&self, _ttl: Duration) -> Result<LeaseId, BackendError> {
        Ok(self.leases.fetch_add(1, Ordering::Relaxed))
    }

    fn lead(&self) -> Lead {
        Lead {
            term: self.term.load(Ordering::Relaxed),
            is_me: true,
        }
    }

    fn health(&self) -> Result<(), String> {
        if self.cut_off.load(Ordering::Relaxed) {
            return Err("no leader is known".to_owned());
        }
        self.down.lock().clone().map_or(Ok(()), Err)
    }
}
