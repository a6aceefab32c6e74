//! Reading the state: now, at an old revision, and change by change.

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{Direction, IteratorMode, ReadOptions, Snapshot};

use super::State;
use super::schema::{self, Change, Damaged, Meta, Old, Record};
use crate::error::Error;
use crate::types::{Event, KeyValue, RangeOutcome, Revision};
use crate::watch::Changes;

/// Reads the local state. A cheap handle: clone it freely. While one is held, the data folder stays open.
#[derive(Clone)]
pub struct Reader {
    state: Arc<State>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader(revision {})", self.revision())
    }
}

impl Reader {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// The newest revision that is applied here.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.state.revision()
    }

    /// The last revision whose history is gone: reads from this revision and watches from the next one work.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.state.compacted()
    }

    /// One key, as it is here now.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, Error> {
        let generation = self.state.generation();
        match generation.db.get_pinned(schema::current(key))? {
            Some(bytes) => Ok(Some(
                Record::decode(&bytes)?.with_key(Bytes::copy_from_slice(key)),
            )),
            None => Ok(None),
        }
    }

    /// Keys with a prefix in order, from `start` (inclusive, `None` for the first), at most `limit` (0: all),
    /// as they are here now or as they were `at` a revision. To go on after a key, start at the key plus a
    /// zero byte.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::Future`], [`Error::Storage`].
    pub fn range(
        &self,
        prefix: &[u8],
        start: Option<&[u8]>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<RangeOutcome, Error> {
        let generation = self.state.generation();
        let snapshot = generation.db.snapshot();
        let meta = meta(&snapshot)?;
        let start = start.filter(|start| *start > prefix).unwrap_or(prefix);
        let limit = if limit == 0 { usize::MAX } else { limit };
        let revision = at.unwrap_or(meta.revision);
        if revision > meta.revision {
            return Err(Error::Future {
                requested: revision,
                current: meta.revision,
            });
        }
        if revision < meta.compacted {
            return Err(Error::Compacted {
                requested: revision,
                compacted: meta.compacted,
            });
        }
        let current = Currents::new(&snapshot, prefix, start);
        let mut kvs = if revision == meta.revision {
            current
                .take(limit.saturating_add(1))
                .collect::<Result<Vec<_>, _>>()?
        } else {
            let versions = Versions::new(&snapshot, prefix, start);
            merge(current, versions, revision, limit.saturating_add(1))?
        };
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        Ok(RangeOutcome {
            kvs,
            more,
            revision,
        })
    }

    /// Changes of keys with a prefix, of revisions from `from` on, about `limit` of them; and the last
    /// revision that was looked at.
    pub(crate) fn history(
        &self,
        prefix: &[u8],
        from: Revision,
        limit: usize,
    ) -> Result<(Vec<Changes>, Revision), Error> {
        let generation = self.state.generation();
        let snapshot = generation.db.snapshot();
        let meta = meta(&snapshot)?;
        if from <= meta.compacted {
            return Err(Error::Compacted {
                requested: from,
                compacted: meta.compacted,
            });
        }
        let (mut found, mut seen): (Vec<Changes>, _) = (Vec::new(), 0);
        let start = schema::history(from, 0);
        for item in snapshot.iterator(IteratorMode::From(&start, Direction::Forward)) {
            let (key, value) = item?;
            let Some(revision) = schema::history_revision(&key) else {
                break;
            };
            let continues = found.last().is_some_and(|last| last.revision == revision);
            // Keys of other prefixes count too, so that a step is short whatever it finds.
            seen += 1;
            if seen > limit && !continues {
                return Ok((found, revision - 1));
            }
            let change: Change = schema::from_bytes(&value)?;
            if !change.key.starts_with(prefix) {
                continue;
            }
            let event = event(&snapshot, revision, change)?;
            match found.last_mut() {
                Some(last) if continues => last.events.push(event),
                _ => found.push(Changes {
                    revision,
                    events: vec![event],
                }),
            }
        }
        Ok((found, meta.revision))
    }
}

fn meta(snapshot: &Snapshot<'_>) -> Result<Meta, Error> {
    match snapshot.get_pinned(schema::META)? {
        Some(bytes) => Ok(schema::from_bytes(&bytes)?),
        None => Ok(Meta::default()),
    }
}

/// The change as it was announced when it was applied.
fn event(snapshot: &Snapshot<'_>, revision: Revision, change: Change) -> Result<Event, Error> {
    let missing = || Error::Storage(format!("the history of revision {revision} is incomplete"));
    let previous = match change.previous {
        Some(modified) => Some(version(snapshot, &change.key, modified)?.ok_or_else(missing)?),
        None => None,
    };
    if change.deleted {
        return Ok(Event::Delete {
            key: change.key,
            revision,
            previous: previous.ok_or_else(missing)?,
        });
    }
    let current = match snapshot.get_pinned(schema::current(&change.key))? {
        Some(bytes) => Some(Record::decode(&bytes)?).filter(|record| record.modified == revision),
        None => None,
    };
    let kv = match current {
        Some(record) => record.with_key(change.key),
        None => version(snapshot, &change.key, revision)?.ok_or_else(missing)?,
    };
    Ok(Event::Put { kv, previous })
}

fn version(
    snapshot: &Snapshot<'_>,
    key: &Bytes,
    modified: Revision,
) -> Result<Option<KeyValue>, Error> {
    match snapshot.get_pinned(schema::version(key, modified))? {
        Some(bytes) => Ok(Some(Old::decode(&bytes)?.record.with_key(key.clone()))),
        None => Ok(None),
    }
}

/// Every key as it is, in order.
struct Currents<'a> {
    items: rocksdb::DBIterator<'a>,
}

impl<'a> Currents<'a> {
    fn new(snapshot: &'a Snapshot<'_>, prefix: &[u8], start: &[u8]) -> Self {
        Self {
            items: within(snapshot, &schema::current(prefix), &schema::current(start)),
        }
    }
}

impl Iterator for Currents<'_> {
    type Item = Result<KeyValue, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(
            self.items
                .next()?
                .map_err(Error::from)
                .and_then(|(key, value)| {
                    Ok(Record::decode(&value)?.with_key(Bytes::copy_from_slice(&key[1..])))
                }),
        )
    }
}

/// Every replaced or deleted version, by key and then by revision.
struct Versions<'a> {
    items: rocksdb::DBIterator<'a>,
}

impl<'a> Versions<'a> {
    fn new(snapshot: &'a Snapshot<'_>, prefix: &[u8], start: &[u8]) -> Self {
        Self {
            items: within(
                snapshot,
                &schema::versions_from(prefix),
                &schema::versions_from(start),
            ),
        }
    }
}

impl Iterator for Versions<'_> {
    type Item = Result<(KeyValue, Revision), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(
            self.items
                .next()?
                .map_err(Error::from)
                .and_then(|(key, value)| {
                    let key = schema::version_key(&key)
                        .ok_or_else(|| Damaged("a version's key is cut short".into()))?;
                    let old = Old::decode(&value)?;
                    Ok((old.record.with_key(key.into()), old.until))
                }),
        )
    }
}

fn within<'a>(snapshot: &'a Snapshot<'_>, prefix: &[u8], start: &[u8]) -> rocksdb::DBIterator<'a> {
    let mut options = ReadOptions::default();
    if let Some(end) = schema::after_prefix(prefix) {
        options.set_iterate_upper_bound(end);
    }
    snapshot.iterator_opt(IteratorMode::From(start, Direction::Forward), options)
}

/// The keys as they were at a revision: those that have not changed since, and the versions that were
/// current then, in key order. A key has at most one of the two.
fn merge(
    current: impl Iterator<Item = Result<KeyValue, Error>>,
    versions: impl Iterator<Item = Result<(KeyValue, Revision), Error>>,
    at: Revision,
    limit: usize,
) -> Result<Vec<KeyValue>, Error> {
    let mut current = current
        .filter(|kv| kv.as_ref().map_or(true, |kv| kv.mod_revision <= at))
        .peekable();
    let mut versions = versions
        .filter(|item| {
            item.as_ref()
                .map_or(true, |(kv, until)| kv.mod_revision <= at && at < *until)
        })
        .map(|item| item.map(|(kv, _)| kv))
        .peekable();
    let mut kvs = Vec::new();
    while kvs.len() < limit {
        let version_first = match (current.peek(), versions.peek()) {
            (Some(Ok(current)), Some(Ok(version))) => version.key < current.key,
            (Some(Err(_)), _) | (Some(_), None) => false,
            (_, Some(_)) => true,
            (None, None) => break,
        };
        let next = if version_first {
            versions.next()
        } else {
            current.next()
        };
        kvs.extend(next.transpose()?);
    }
    Ok(kvs)
}
