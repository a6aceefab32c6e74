//! A watch delivers every change of its keys, once, in order.

use crate::sim::clients::WATCHED;
use crate::sim::history::{Change, Record, Seen, truth};
use crate::types::Revision;

pub(super) fn check(record: &Record) -> Result<(), String> {
    let truth = truth(record);
    let watched = |changes: &[Change]| -> Vec<Change> {
        changes
            .iter()
            .filter(|change| change.key.starts_with(WATCHED))
            .cloned()
            .collect()
    };
    let none_between = |from: Revision, to: Revision| {
        let mut range = truth.range(from..to.max(from));
        range.find(|(_, (_, changes))| !watched(changes).is_empty())
    };
    for (member, seen) in &record.watched {
        let mut next = 0;
        for seen in seen {
            let (revision, after) = match seen {
                Seen::From(revision) => {
                    next = *revision;
                    continue;
                }
                Seen::Changes(revision, changes) => {
                    let expected = truth.get(revision).map(|(_, changes)| watched(changes));
                    if expected.as_ref() != Some(changes) {
                        return Err(format!(
                            "a watch on member {member} saw {changes:?} at revision {revision}, but {expected:?} was applied"
                        ));
                    }
                    (*revision, revision + 1)
                }
                Seen::UpTo(revision) => (revision + 1, revision + 1),
            };
            if revision < next && matches!(seen, Seen::Changes(..)) {
                return Err(format!(
                    "a watch on member {member} saw revision {revision} again or late"
                ));
            }
            if let Some((missed, _)) = none_between(next, revision) {
                return Err(format!(
                    "a watch on member {member} left out revision {missed}"
                ));
            }
            next = next.max(after);
        }
    }
    Ok(())
}
