//! Between the store and those who use it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use balsa_store::{Observer, Reader, Term};
use tokio_util::sync::CancellationToken;

use super::seal::ENCRYPTED;
use super::{Encryption, State};
use crate::backend::{
    Backend, BackendError, Compare, Event, KeyValue, Lead, LeaseId, Op, Page, Revision, Txn,
    TxnOutcome, all_under,
};
use crate::cache::Cache;

/// Objects that are looked at in one go when they are written anew.
const PAGE: usize = 200;
/// Before another attempt to write objects anew.
const PAUSE: Duration = Duration::from_secs(30);

/// A store whose objects are encrypted.
pub struct Sealed {
    inner: Arc<dyn Backend>,
    encryption: Arc<Encryption>,
}

/// A cache that sees the objects of such a store as they are.
pub struct SealedCache {
    cache: Arc<Cache>,
    encryption: Arc<Encryption>,
}

impl SealedCache {
    /// Fills a cache.
    #[must_use]
    pub fn new(cache: Arc<Cache>, encryption: Arc<Encryption>) -> Self {
        Self { cache, encryption }
    }

    /// Only what can be read.
    fn opened(&self, event: &Event) -> Option<Event> {
        let mut event = event.clone();
        match &mut event {
            Event::Put { kv, .. } => {
                if let Err(error) = self.encryption.open_pair(kv) {
                    self.encryption.note(&kv.key, error);
                    return None;
                }
                self.encryption.forget(&kv.key);
            }
            Event::Delete { key, .. } => self.encryption.forget(key),
        }
        Some(event)
    }
}

impl Observer for SealedCache {
    fn applied(&self, revision: Revision, events: &[Event]) {
        let sealed = |event: &Event| match event {
            Event::Put { kv, .. } => kv.value.starts_with(ENCRYPTED),
            Event::Delete { .. } => false,
        };
        // Most batches have nothing that is encrypted, and are not copied.
        if !events.iter().any(sealed) && self.encryption.check().is_ok() {
            return self.cache.applied(revision, events);
        }
        let opened: Vec<Event> = events.iter().filter_map(|e| self.opened(e)).collect();
        self.cache.applied(revision, &opened);
    }

    fn reset(&self, reader: &Reader) {
        self.encryption.problems.lock().clear();
        self.cache.reset(reader.revision(), |prefix| {
            let mut kvs = all_under(reader, prefix);
            kvs.retain_mut(|kv| match self.encryption.open_pair(kv) {
                Ok(()) => true,
                Err(error) => {
                    self.encryption.note(&kv.key, error);
                    false
                }
            });
            kvs
        });
    }
}

impl Sealed {
    /// Over a store.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, encryption: Arc<Encryption>) -> Self {
        Self { inner, encryption }
    }

    fn open_all<'a>(
        &self,
        kvs: impl IntoIterator<Item = &'a mut KeyValue>,
    ) -> Result<(), BackendError> {
        for kv in kvs {
            self.encryption.open_pair(kv).map_err(|error| {
                let key = String::from_utf8_lossy(&kv.key);
                BackendError::Unavailable(format!("{key} cannot be decrypted: {error}"))
            })?;
        }
        Ok(())
    }

    /// Writes anew what lies in the store in another way than it would be written now; for the leader. Ends when that
    /// is done, or with `stop`.
    pub async fn renew(&self, term: Term, stop: CancellationToken) {
        if self.encryption.rules.is_empty() {
            return;
        }
        let work = async {
            loop {
                match self.renew_once(term).await {
                    Ok(0) => return tracing::info!("all objects are encrypted as configured"),
                    // Until nothing is found: what was written meanwhile is looked at too.
                    Ok(count) => tracing::info!(count, "objects were encrypted anew"),
                    Err(BackendError::Fenced) => return,
                    Err(error) => {
                        tracing::warn!(%error, "objects could not be encrypted anew; trying again");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(work).await;
    }

    /// Returns how many were written.
    async fn renew_once(&self, term: Term) -> Result<usize, BackendError> {
        let at = self.inner.read_barrier().await?;
        let mut count = 0;
        for prefix in self.encryption.rules.iter().flat_map(|r| r.prefixes()) {
            let mut start = Vec::new();
            loop {
                let page = self.inner.range(prefix.as_bytes(), &start, PAGE, at)?;
                for kv in &page.kvs {
                    count += usize::from(self.renew_one(kv, term).await?);
                }
                let Some(last) = page.kvs.last().filter(|_| page.more) else {
                    break;
                };
                start = [&last.key, &b"\0"[..]].concat();
            }
        }
        Ok(count)
    }

    async fn renew_one(&self, kv: &KeyValue, term: Term) -> Result<bool, BackendError> {
        let plain = match self.encryption.open(&kv.key, &kv.value) {
            Ok((plain, State::Stale)) => plain.into_owned(),
            // What cannot be read has been told already.
            Ok((_, State::Current)) | Err(_) => return Ok(false),
        };
        let txn = Txn {
            compares: vec![Compare::ModRevision(kv.key.clone(), kv.mod_revision)],
            ops: vec![Op::Put {
                key: kv.key.clone(),
                value: self.encryption.seal(&kv.key, plain),
                lease: kv.lease,
            }],
            fence: Some(term),
        };
        // Refused: somebody has written it since, in today's way.
        let outcome = self.inner.txn(txn).await?;
        Ok(matches!(outcome, TxnOutcome::Committed { .. }))
    }
}

#[async_trait]
impl Backend for Sealed {
    async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome, BackendError> {
        for op in &mut txn.ops {
            if let Op::Put { key, value, .. } = op {
                *value = self.encryption.seal(key, std::mem::take(value));
            }
        }
        let mut outcome = self.inner.txn(txn).await?;
        if let TxnOutcome::Refused { found, .. } = &mut outcome {
            self.open_all(found.iter_mut().flatten())?;
        }
        Ok(outcome)
    }

    async fn read_barrier(&self) -> Result<Revision, BackendError> {
        self.inner.read_barrier().await
    }

    fn range(
        &self,
        prefix: &[u8],
        start: &[u8],
        limit: usize,
        at: Revision,
    ) -> Result<Page, BackendError> {
        let mut page = self.inner.range(prefix, start, limit, at)?;
        self.open_all(&mut page.kvs)?;
        Ok(page)
    }

    fn changes(
        &self,
        prefix: &[u8],
        after: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, BackendError> {
        let mut events = self.inner.changes(prefix, after, to, limit)?;
        for event in &mut events {
            match event {
                Event::Put { kv, previous } => {
                    self.open_all([Some(kv), previous.as_mut()].into_iter().flatten())?;
                }
                Event::Delete { previous, .. } => self.open_all([previous])?,
            }
        }
        Ok(events)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, BackendError> {
        self.inner.lease_grant(ttl).await
    }

    fn lead(&self) -> Lead {
        self.inner.lead()
    }

    fn health(&self) -> Result<(), String> {
        self.inner.health()?;
        self.encryption.check()
    }
}
