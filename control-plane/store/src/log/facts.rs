//! What a log says of itself, for checking it offline.

use rocksdb::DB;

use super::codec::{self, Damaged};
use super::{decode_entry, read};
use crate::raft::{Entry, LogId, Vote, term_of};
use crate::types::Term;

/// A log's single values, and how far it has been looked at.
#[derive(Debug)]
pub(crate) struct LogFacts {
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
    pub vote_term: Term,
}

/// The term of an entry's id.
pub(crate) fn term(id: &LogId) -> Term {
    term_of(id)
}

impl LogFacts {
    pub fn read(db: &DB) -> Result<Self, Damaged> {
        let vote: Option<Vote> = read(db, codec::VOTE)?;
        let _: Option<LogId> = read(db, codec::COMMITTED)?;
        Ok(Self {
            purged: read(db, codec::PURGED)?,
            last: None,
            vote_term: vote.map_or(0, |vote| vote.leader_id().term),
        })
    }

    /// Looks at a record; returns the entry if it is one. Entries follow each other, terms never fall.
    pub fn entry(&mut self, key: &[u8], value: Vec<u8>) -> Result<Option<Entry>, String> {
        let Some(index) = codec::index(key) else {
            return Ok(None);
        };
        let entry = decode_entry(value.into()).map_err(|error| error.to_string())?;
        if entry.log_id.index != index {
            return Err(format!(
                "entry {index} says that it is entry {}",
                entry.log_id.index
            ));
        }
        if self.purged.is_some_and(|purged| index <= purged.index) {
            return Ok(Some(entry));
        }
        let before = self.last.or(self.purged);
        if let Some(before) = before {
            if index != before.index + 1 {
                return Err(format!("after entry {} comes entry {index}", before.index));
            }
            if term_of(&before) > term_of(&entry.log_id) {
                return Err(format!(
                    "entry {index} is of an earlier term than the one before"
                ));
            }
        }
        self.last = Some(entry.log_id);
        Ok(Some(entry))
    }
}
