//! The store as the API server sees it. [`balsa_store::Store`] is the real one; tests have one in memory.

use std::time::Duration;

use async_trait::async_trait;
pub use balsa_store::{Compare, Event, KeyValue, LeaseId, Op, Revision, Txn, TxnOutcome};

use balsa_api::status::Status;
use bytes::Bytes;
use futures::FutureExt;

/// What one page of a range is.
pub struct Page {
    /// In key order.
    pub kvs: Vec<KeyValue>,
    /// There is more behind the last one.
    pub more: bool,
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The revision asked for has been compacted.
    #[error("the revision has been compacted")]
    Compacted,
    /// The writer's term has passed.
    #[error("the caller is no longer the leader of the cluster")]
    Fenced,
    /// It is not known whether a write happened.
    #[error("the cluster did not answer in time; the change may or may not have been made: {0}")]
    Unknown(String),
    /// The lease of a put is gone. Nothing was written.
    #[error("the lease has expired")]
    LeaseNotFound,
    /// The write can never work, for example because it is too large.
    #[error("{0}")]
    Invalid(String),
    /// Not now: no quorum, no leader, disk full. Nothing was written.
    #[error("the store cannot serve this now: {0}")]
    Unavailable(String),
}

impl From<BackendError> for Status {
    fn from(error: BackendError) -> Self {
        let text = error.to_string();
        let (code, reason) = match error {
            BackendError::Compacted => (410, "Expired"),
            BackendError::Fenced => (409, "Conflict"),
            BackendError::Unknown(_) => (504, "Timeout"),
            BackendError::Invalid(_) => (413, "RequestEntityTooLarge"),
            BackendError::LeaseNotFound | BackendError::Unavailable(_) => {
                (503, "ServiceUnavailable")
            }
        };
        let mut status = Self::new(code, reason, text);
        if matches!(code, 503 | 504) {
            status.details = Some(balsa_api::status::Details {
                retry_after_seconds: Some(1),
                ..Default::default()
            });
        }
        status
    }
}

/// Who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lead {
    /// Current term.
    pub term: u64,
    /// This server leads in it.
    pub is_me: bool,
}

/// A replicated, versioned key-value store. All calls may be made on any member.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Runs a transaction; answers once this member has applied it.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, BackendError>;
    /// A revision that includes everything acknowledged before the call, anywhere; this member has applied it.
    async fn read_barrier(&self) -> Result<Revision, BackendError>;
    /// Keys under `prefix` from `start` (inclusive) as they were at revision `at`.
    fn range(
        &self,
        prefix: &[u8],
        start: &[u8],
        limit: usize,
        at: Revision,
    ) -> Result<Page, BackendError>;
    /// The changes of keys under `prefix` after revision `after`, up to and including revision `to`, which this
    /// member has applied. At most `limit`: [`BackendError::Compacted`] when there are more, as when they are
    /// not all known any more.
    fn changes(
        &self,
        prefix: &[u8],
        after: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, BackendError>;
    /// Makes a lease; keys put with it are deleted after `ttl`.
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, BackendError>;
    /// Who leads now.
    fn lead(&self) -> Lead;
    /// `Err` says why the store cannot serve writes.
    fn health(&self) -> Result<(), String>;
}

#[async_trait]
impl Backend for balsa_store::Store {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, BackendError> {
        Ok(Self::txn(self, txn).await?)
    }

    async fn read_barrier(&self) -> Result<Revision, BackendError> {
        Ok(Self::read_barrier(self).await?)
    }

    fn range(
        &self,
        prefix: &[u8],
        start: &[u8],
        limit: usize,
        at: Revision,
    ) -> Result<Page, BackendError> {
        let start = (!start.is_empty()).then_some(start);
        let outcome = Self::range(self, prefix, start, limit, Some(at))?;
        Ok(Page {
            kvs: outcome.kvs,
            more: outcome.more,
        })
    }

    fn changes(
        &self,
        prefix: &[u8],
        after: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, BackendError> {
        let mut watch = self.watch(Bytes::copy_from_slice(prefix), after + 1)?;
        let mut found = Vec::new();
        // It waits only once everything that has been applied was told.
        while let Some(changes) = watch.next().now_or_never() {
            let changes = changes?;
            if changes.revision > to {
                break;
            }
            found.extend(changes.events);
            if found.len() > limit {
                return Err(BackendError::Compacted);
            }
        }
        Ok(found)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, BackendError> {
        Ok(Self::lease_grant(self, ttl).await?)
    }

    fn lead(&self) -> Lead {
        let leadership = *self.leadership().borrow();
        Lead {
            term: leadership.term,
            is_me: leadership.is_me,
        }
    }

    fn health(&self) -> Result<(), String> {
        let health = Self::health(self);
        if health.is_ready() {
            return Ok(());
        }
        if !health.problems.is_empty() {
            return Err(health.problems.join("; "));
        }
        Err(if health.member {
            "no leader is known"
        } else {
            "not yet a member of a cluster"
        }
        .to_owned())
    }
}

impl From<balsa_store::Error> for BackendError {
    fn from(error: balsa_store::Error) -> Self {
        use balsa_store::Error;
        match error {
            Error::Compacted { .. } => Self::Compacted,
            Error::Fenced { .. } => Self::Fenced,
            Error::Unknown { .. } => Self::Unknown(error.to_string()),
            Error::LeaseNotFound(_) => Self::LeaseNotFound,
            Error::Invalid(why) => Self::Invalid(why),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl balsa_store::Observer for crate::cache::Cache {
    fn applied(&self, revision: Revision, events: &[Event]) {
        Self::applied(self, revision, events);
    }

    fn reset(&self, reader: &balsa_store::Reader) {
        Self::reset(self, reader.revision(), |prefix| all_under(reader, prefix));
    }
}

/// Everything under a prefix, for a cache that begins anew; nothing, and a message, where it cannot be read.
pub(crate) fn all_under(reader: &balsa_store::Reader, prefix: &str) -> Vec<KeyValue> {
    match reader.range(prefix.as_bytes(), None, 0, None) {
        Ok(outcome) => outcome.kvs,
        Err(error) => {
            tracing::error!(prefix, %error, "the store's state could not be read; this resource looks empty");
            Vec::new()
        }
    }
}
