//! A leased key lives at least as long as its lease, however leaders and clocks change, and not for ever.

use std::collections::BTreeMap;

use crate::sim::history::{Record, truth};

/// After the faults an ended lease is noticed within this.
const NOTICED_MS: u64 = 6_000;

pub(super) fn check(record: &Record) -> Result<(), String> {
    let (mut put, mut deleted) = (BTreeMap::new(), BTreeMap::new());
    for (at_ms, changes) in truth(record).into_values() {
        for change in changes {
            match change.value {
                Some(_) => put.insert(change.key, at_ms),
                None => deleted.insert(change.key, at_ms),
            };
        }
    }
    for lease in &record.leases {
        let name = String::from_utf8_lossy(&lease.key);
        match deleted.get(&lease.key) {
            Some(at) if *at < lease.asked_ms + lease.ttl_ms => {
                return Err(format!(
                    "{name} was deleted at {at} ms, but lives for {} ms from {} ms on",
                    lease.ttl_ms, lease.asked_ms
                ));
            }
            None if put.contains_key(&lease.key)
                && lease.asked_ms.max(record.healed_ms) + lease.ttl_ms + NOTICED_MS
                    < record.ended_ms =>
            {
                return Err(format!(
                    "{name} is still there, though its lease of {} ms was made at {} ms",
                    lease.ttl_ms, lease.asked_ms
                ));
            }
            _ => {}
        }
    }
    Ok(())
}
