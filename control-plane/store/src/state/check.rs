//! Whether the records of a state fit together, one after the other in key order.

use rocksdb::DB;

use super::schema::{self, Change, Damaged, Meta, Old, Record};
use crate::types::Revision;

/// What a sound state comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StateFacts {
    pub revision: Revision,
    /// Index of the last applied entry, 0 if none.
    pub applied: u64,
    pub keys: u64,
}

/// See the module.
pub(crate) struct StateChecker {
    meta: Meta,
    swept: Revision,
    keys: u64,
    /// The revision of the last change that was looked at.
    changed: Revision,
}

impl StateChecker {
    pub fn new(db: &DB) -> Result<Self, Damaged> {
        let get = |key: &[u8]| db.get(key).map_err(|error| Damaged(error.to_string()));
        let meta: Meta = match get(schema::META)? {
            Some(bytes) => schema::from_bytes(&bytes)?,
            None => Meta::default(),
        };
        let swept = match get(schema::SWEPT)? {
            Some(bytes) => schema::from_bytes(&bytes)?,
            None => 0,
        };
        Ok(Self {
            meta,
            swept,
            keys: 0,
            changed: 0,
        })
    }

    /// Looks at a record.
    pub fn record(&mut self, db: &DB, key: &[u8], value: &[u8]) -> Result<(), String> {
        let text = |error: Damaged| error.to_string();
        match key.first() {
            Some(&schema::CURRENT) => {
                self.keys += 1;
                let record = Record::decode(value).map_err(text)?;
                self.current(key, &record)
            }
            Some(&schema::VERSIONS) => {
                let old = Old::decode(value).map_err(text)?;
                if old.record.modified < old.until && old.until <= self.meta.revision {
                    return Ok(());
                }
                Err(format!(
                    "a version of {} lasts from revision {} to {}",
                    name(&schema::version_key(key).unwrap_or_default()),
                    old.record.modified,
                    old.until
                ))
            }
            Some(&schema::HISTORY) => {
                let change: Change = schema::from_bytes(value).map_err(text)?;
                self.change(db, key, &change)
            }
            Some(_) => Ok(()),
            None => Err("a key is empty".to_owned()),
        }
    }

    fn current(&self, key: &[u8], record: &Record) -> Result<(), String> {
        let sound = record.create <= record.modified
            && record.modified <= self.meta.revision
            && record.version >= 1;
        if sound {
            return Ok(());
        }
        Err(format!(
            "{} says that it was created at revision {} and changed at {}, of {}",
            name(&key[1..]),
            record.create,
            record.modified,
            self.meta.revision
        ))
    }

    /// Changes are there for every revision after what was given up, and name versions that are there.
    fn change(&mut self, db: &DB, key: &[u8], change: &Change) -> Result<(), String> {
        let revision = schema::history_revision(key).ok_or("a change's key is cut short")?;
        if revision > self.meta.revision {
            return Err(format!("a change is of revision {revision}, in the future"));
        }
        let gone = self.meta.compacted.max(self.swept);
        if revision > gone.saturating_add(1) && revision > self.changed + 1 && revision > 2 {
            return Err(format!("revision {} has no changes", revision - 1));
        }
        self.changed = revision;
        let Some(previous) = change.previous.filter(|_| revision > gone) else {
            return Ok(());
        };
        match db.get_pinned(schema::version(&change.key, previous)) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(format!(
                "{} as it was at revision {previous} is missing",
                name(&change.key)
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    pub fn facts(&self) -> StateFacts {
        StateFacts {
            revision: self.meta.revision,
            applied: self.meta.applied.map_or(0, |applied| applied.index),
            keys: self.keys,
        }
    }
}

fn name(key: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(key))
}
