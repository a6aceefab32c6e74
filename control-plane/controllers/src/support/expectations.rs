//! What a controller has asked for and not seen yet, so that a lagging cache does not make it ask again.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use balsa_client::Key;
use parking_lot::Mutex;

/// A watch event lost to a relist must not block an owner for long; what is asked for is seen in milliseconds.
const EXPIRY: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Pending {
    creations: usize,
    /// Uids of objects asked to be deleted.
    deletions: HashSet<String>,
    since: Instant,
}

/// Pending creations and deletions by owner.
#[derive(Debug, Default)]
pub(crate) struct Expectations {
    pending: Mutex<HashMap<Key, Pending>>,
}

impl Expectations {
    /// Announces work; call before doing it.
    pub(crate) fn expect(&self, owner: &Key, creations: usize, deletions: HashSet<String>) {
        let pending = Pending {
            creations,
            deletions,
            since: Instant::now(),
        };
        self.pending.lock().insert(owner.clone(), pending);
    }

    /// Announces one more creation.
    pub(crate) fn expect_creation(&self, owner: &Key) {
        let mut all = self.pending.lock();
        let pending = all.entry(owner.clone()).or_insert_with(|| Pending {
            creations: 0,
            deletions: HashSet::new(),
            since: Instant::now(),
        });
        pending.creations += 1;
    }

    /// Announces one more deletion.
    pub(crate) fn expect_deletion(&self, owner: &Key, uid: &str) {
        let mut all = self.pending.lock();
        let pending = all.entry(owner.clone()).or_insert_with(|| Pending {
            creations: 0,
            deletions: HashSet::new(),
            since: Instant::now(),
        });
        pending.deletions.insert(uid.to_owned());
    }

    /// Creations were seen, or failed and will not be.
    pub(crate) fn created(&self, owner: &Key, count: usize) {
        if let Some(pending) = self.pending.lock().get_mut(owner) {
            pending.creations = pending.creations.saturating_sub(count);
        }
    }

    /// A deletion was seen, or failed.
    pub(crate) fn deleted(&self, owner: &Key, uid: &str) {
        if let Some(pending) = self.pending.lock().get_mut(owner) {
            pending.deletions.remove(uid);
        }
    }

    /// True when all was seen, or is not going to be.
    pub(crate) fn satisfied(&self, owner: &Key) -> bool {
        let mut all = self.pending.lock();
        let Some(pending) = all.get(owner) else {
            return true;
        };
        let done = pending.creations == 0 && pending.deletions.is_empty();
        if done || pending.since.elapsed() > EXPIRY {
            all.remove(owner);
            return true;
        }
        false
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &Key) {
        self.pending.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_waits_for_all_it_asked_for() {
        let expectations = Expectations::default();
        let owner = Key::new("default", "web");
        assert!(expectations.satisfied(&owner));
        expectations.expect(&owner, 2, HashSet::from(["gone".to_owned()]));
        expectations.created(&owner, 1);
        expectations.deleted(&owner, "gone");
        assert!(!expectations.satisfied(&owner));
        expectations.created(&owner, 1);
        assert!(expectations.satisfied(&owner));
    }

    #[test]
    fn seeing_more_than_expected_is_no_credit() {
        let expectations = Expectations::default();
        let owner = Key::new("default", "web");
        expectations.expect(&owner, 1, HashSet::new());
        expectations.created(&owner, 5);
        expectations.expect_deletion(&owner, "a");
        assert!(!expectations.satisfied(&owner));
    }
}
