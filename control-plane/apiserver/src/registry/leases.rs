//! Events live for an hour after their last write. One lease of the store serves all Events that are written
//! within a minute.

use std::time::{Duration, Instant};

use balsa_api::status::Status;
use parking_lot::Mutex;

use super::Target;
use crate::backend::{Backend, LeaseId};

const TTL: Duration = Duration::from_secs(3600);
const SHARED_FOR: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub struct MinuteLeases {
    current: Mutex<Option<(Instant, LeaseId)>>,
}

impl MinuteLeases {
    /// The lease for a write; `None` for what lives until it is deleted.
    pub(super) async fn lease_for(
        &self,
        target: &Target,
        backend: &dyn Backend,
    ) -> Result<Option<LeaseId>, Status> {
        if target.kind.plural != "events" {
            return Ok(None);
        }
        if let Some((since, lease)) = *self.current.lock()
            && since.elapsed() < SHARED_FOR
        {
            return Ok(Some(lease));
        }
        // Two writers may both make one at the turn of the minute; both work.
        let lease = backend.lease_grant(TTL + SHARED_FOR).await?;
        *self.current.lock() = Some((Instant::now(), lease));
        Ok(Some(lease))
    }

    /// The store does not know a lease any more.
    pub(super) fn forget(&self, lease: Option<LeaseId>) {
        let mut current = self.current.lock();
        if current.map(|(_, l)| l) == lease {
            *current = None;
        }
    }
}
