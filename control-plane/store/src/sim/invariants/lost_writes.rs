//! An acknowledged write is there, at the revision that was told; one that was said not to be carried out is
//! not; and none is carried out twice.

use std::collections::BTreeMap;

use crate::sim::clients::{name, parse};
use crate::sim::history::{Ask, Key, Record, Told, Value, truth};
use crate::types::Revision;

pub(super) fn check(record: &Record) -> Result<(), String> {
    let mut written = BTreeMap::<(Key, Value), Revision>::new();
    for (revision, (_, changes)) in truth(record) {
        for change in changes {
            let Some(found) = parse(&change) else {
                continue;
            };
            if let Some(before) = written.insert(found, revision) {
                return Err(format!(
                    "{} was written with {} twice, at revisions {before} and {revision}",
                    name(found.0),
                    found.1
                ));
            }
        }
    }
    for operation in &record.operations {
        let Ask::Write { values, .. } = &operation.ask else {
            continue;
        };
        for (key, value) in values {
            let found = written.get(&(*key, *value));
            let wrong = match operation.told {
                Told::Done(revision) => found != Some(&revision),
                Told::Refused | Told::NotDone => found.is_some(),
                Told::Read(_) | Told::Unknown => false,
            };
            if wrong {
                return Err(format!(
                    "{operation:?} of value {value} is found at {found:?}"
                ));
            }
        }
    }
    Ok(())
}
