//! Leases in memory, mirrored from the `L` and `A` records.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::types::LeaseId;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Lease {
    ends_ms: u64,
    keys: BTreeSet<Bytes>,
}

/// All leases and their keys, in the order in which they end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Leases {
    by_id: BTreeMap<LeaseId, Lease>,
    by_end: BTreeSet<(u64, LeaseId)>,
}

impl Leases {
    pub fn grant(&mut self, id: LeaseId, ends_ms: u64) {
        self.by_id.insert(
            id,
            Lease {
                ends_ms,
                keys: BTreeSet::new(),
            },
        );
        self.by_end.insert((ends_ms, id));
    }

    pub fn exists(&self, id: LeaseId) -> bool {
        self.by_id.contains_key(&id)
    }

    pub fn attach(&mut self, id: LeaseId, key: Bytes) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.insert(key);
        }
    }

    pub fn detach(&mut self, id: LeaseId, key: &[u8]) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// Some keys of a lease, in order, and whether these are all.
    pub fn keys(&self, id: LeaseId, limit: usize) -> (Vec<Bytes>, bool) {
        let Some(lease) = self.by_id.get(&id) else {
            return (Vec::new(), true);
        };
        (
            lease.keys.iter().take(limit).cloned().collect(),
            lease.keys.len() <= limit,
        )
    }

    pub fn remove(&mut self, id: LeaseId) {
        if let Some(lease) = self.by_id.remove(&id) {
            self.by_end.remove(&(lease.ends_ms, id));
        }
    }

    /// The lease that ends first, if it has ended by now.
    pub fn due(&self, now_ms: u64) -> Option<LeaseId> {
        self.by_end
            .first()
            .filter(|(ends, _)| *ends <= now_ms)
            .map(|(_, id)| *id)
    }

    /// When the next lease ends.
    pub fn next_end(&self) -> Option<u64> {
        self.by_end.first().map(|(ends, _)| *ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_due_in_the_order_of_their_ends() {
        let mut leases = Leases::default();
        leases.grant(1, 300);
        leases.grant(2, 100);
        assert_eq!(
            (leases.due(99), leases.due(100), leases.next_end()),
            (None, Some(2), Some(100))
        );
        leases.remove(2);
        assert_eq!((leases.due(299), leases.due(301)), (None, Some(1)));
    }

    #[test]
    fn a_lease_knows_its_keys() {
        let mut leases = Leases::default();
        leases.grant(1, 1);
        for key in ["a", "b", "c"] {
            leases.attach(1, Bytes::from(key));
        }
        leases.detach(1, b"b");
        assert_eq!(leases.keys(1, 1), (vec![Bytes::from("a")], false));
        assert_eq!(
            leases.keys(1, 2),
            (vec![Bytes::from("a"), Bytes::from("c")], true)
        );
        assert_eq!(leases.keys(9, 2), (Vec::new(), true));
    }
}
