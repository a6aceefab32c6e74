//! Revisions go up by one, without gaps, and mean the same on every member; and what clients are told agrees
//! with the order in which they were told it.

use crate::sim::history::{Heard, Record, Told, disagreement};

pub(super) fn check(record: &Record) -> Result<(), String> {
    for (member, heard) in &record.heard {
        let mut last = None;
        for (_, heard) in heard {
            match heard {
                Heard::Reset(revision) => last = Some(*revision),
                Heard::Applied(revision, _) => {
                    if last.is_none_or(|last| *revision != last + 1) {
                        return Err(format!(
                            "member {member} applied revision {revision} after {last:?}"
                        ));
                    }
                    last = Some(*revision);
                }
            }
        }
    }
    if let Some(error) = disagreement(record) {
        return Err(error);
    }
    // An operation that began after another ended has a later revision.
    let mut done: Vec<_> = record
        .operations
        .iter()
        .filter_map(|operation| match operation.told {
            Told::Done(revision) => Some((operation.from, operation.to?, revision)),
            _ => None,
        })
        .collect();
    done.sort_unstable_by_key(|(from, _, _)| *from);
    let mut ended: Vec<_> = done
        .iter()
        .map(|(_, to, revision)| (*to, *revision))
        .collect();
    ended.sort_unstable();
    let (mut next, mut highest) = (0, 0);
    for (from, _, revision) in &done {
        while let Some((to, earlier)) = ended.get(next)
            && to < from
        {
            highest = highest.max(*earlier);
            next += 1;
        }
        if *revision <= highest {
            return Err(format!(
                "a write got revision {revision} after one with {highest} had been acknowledged"
            ));
        }
    }
    Ok(())
}
