//! Raft's log and vote on disk.
//!
//! Everything that is written goes through one queue to one thread ([`writer`]): it drains the queue into
//! one write, syncs once, and answers in order. Entries can be read from the moment they are queued: the
//! newest are kept in memory ([`tail`]), older ones are read back.

mod codec;
mod facts;
mod prime;
#[cfg(test)]
mod simulated;
mod tail;
#[cfg(test)]
mod tests;
pub(crate) mod wal;
mod writer;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::{Mutex, RwLock};
use rocksdb::{Cache, DB, Direction, IteratorMode};
use tokio::sync::oneshot;

use crate::config::Tuning;
use crate::db::{self, Disk, Reopening};
use crate::error::OpenError;
use crate::fault::{self, Break, Point};
use crate::metrics::Metrics;
use crate::raft::{Entry, LogId, Types, Vote};
use crate::types::Term;
use codec::Damaged;
use tail::Tail;
use writer::{Queue, Task, Writer};

pub(crate) use codec::{decode_entry, encode_entry};
pub(crate) use facts::{LogFacts, term};

/// Entries are read back for replication in parts of about this many bytes.
const READ_BYTES: usize = 1 << 20;
/// What the health calls a log that cannot be read.
const READING: &str = "(and read) Raft's log";

/// That the log cannot be read, as long as somebody tries to: whoever reads for a follower is let go of when the
/// follower is.
struct Complaint<'a>(&'a Disk);

impl Drop for Complaint<'_> {
    fn drop(&mut self) {
        self.0.note(READING, None);
    }
}
/// The pause before entries that could not be read are read again.
const REREAD: Duration = Duration::from_millis(100);

/// The log. A cheap handle.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    _thread: Arc<Writer>,
}

/// With what a log begins anew.
pub(crate) struct Rebirth {
    /// The last entry that the state has.
    pub applied: Option<LogId>,
    /// Of the last term that was known.
    pub vote: Vote,
}

struct Shared {
    pub db: Reopening,
    pub tail: RwLock<Tail>,
    pub vote: Mutex<Option<Vote>>,
    /// The last vote that is on disk.
    pub synced_vote: Mutex<Option<Vote>>,
    pub committed: Mutex<Option<LogId>>,
    pub queue: Queue,
    pub path: PathBuf,
    pub disk: Arc<Disk>,
    pub metrics: Arc<Metrics>,
}

impl Log {
    /// Opens the log and starts its writer.
    pub fn open(
        path: &Path,
        tuning: &Tuning,
        cache: &Cache,
        disk: Arc<Disk>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, OpenError> {
        let opened = {
            let (path, tuning, cache) = (path.to_owned(), tuning.clone(), cache.clone());
            Reopening::new(move || {
                wal::check(&path)?;
                db::open_log(&path, &tuning, &cache)
            })?
        };
        let damaged = |detail: String| OpenError::Damaged {
            path: path.to_owned(),
            detail,
        };
        let db = opened
            .get()
            .ok_or_else(|| damaged("it was closed".into()))?;
        let vote = read(&db, codec::VOTE).map_err(|error| damaged(error.to_string()))?;
        let committed = read(&db, codec::COMMITTED).map_err(|error| damaged(error.to_string()))?;
        let purged = read(&db, codec::PURGED).map_err(|error| damaged(error.to_string()))?;
        let last = last_entry(&db).map_err(|error| damaged(error.to_string()))?;
        drop(db);
        let shared = Arc::new(Shared {
            db: opened,
            tail: RwLock::new(Tail::new(purged, last)),
            vote: Mutex::new(vote),
            synced_vote: Mutex::new(vote),
            committed: Mutex::new(committed),
            queue: Queue::default(),
            path: path.to_owned(),
            disk,
            metrics,
        });
        let thread = Writer::start(shared.clone(), tuning).map_err(|source| OpenError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            shared,
            _thread: Arc::new(thread),
        })
    }

    /// Nothing was ever written: this member has no history and has voted for nobody.
    pub fn is_blank(&self) -> bool {
        let tail = self.shared.tail.read();
        tail.last().is_none() && tail.purged().is_none() && self.shared.vote.lock().is_none()
    }

    /// The index of the last entry, whether it is still here or in the state only; 0 if there is none.
    pub fn last_index(&self) -> u64 {
        let tail = self.shared.tail.read();
        tail.last()
            .or_else(|| tail.purged())
            .map_or(0, |last| last.index)
    }

    /// Bytes of the database's files.
    pub fn disk_bytes(&self) -> u64 {
        let size = |db: Arc<DB>| db.property_int_value("rocksdb.total-sst-files-size");
        let size = self.shared.db.get().map(size);
        size.and_then(|size| size.ok().flatten())
            .unwrap_or_default()
    }

    /// See [`Tail::bytes_after`].
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.shared.tail.read().bytes_after(index)
    }

    /// See [`Tail::index_before`].
    pub fn index_before(&self, bytes: u64) -> u64 {
        self.shared.tail.read().index_before(bytes)
    }

    /// Reads as [`Self::read_range`] does, and again while the disk fails: an error would end Raft.
    async fn read(&self, start: u64, end: u64, limit: usize) -> io::Result<Vec<Entry>> {
        let mut complaint: Option<Complaint<'_>> = None;
        loop {
            match self.read_range(start, end, limit) {
                Err(Unreadable::Disk(error)) => {
                    if complaint.is_none() {
                        tracing::error!(%error, "Raft's log cannot be read; trying again");
                    }
                    self.shared.disk.note(READING, Some(error));
                    complaint.get_or_insert(Complaint(&self.shared.disk));
                    if self.shared.queue.is_stopped() {
                        return Err(stopped());
                    }
                    tokio::time::sleep(REREAD).await;
                }
                Err(Unreadable::Damaged(error)) => return Err(io::Error::other(error)),
                Ok(entries) => return Ok(entries),
            }
        }
    }

    /// Some entries from an index on, without Raft; none after the last.
    pub fn read_part(&self, start: u64) -> Result<Vec<Entry>, OpenError> {
        self.read_range(start, u64::MAX, READ_BYTES)
            .map_err(|error| match error {
                Unreadable::Disk(detail) => OpenError::Io {
                    path: self.shared.path.clone(),
                    source: io::Error::other(detail),
                },
                Unreadable::Damaged(detail) => OpenError::Damaged {
                    path: self.shared.path.clone(),
                    detail,
                },
            })
    }

    /// The term of the last vote, 0 if there was none.
    pub fn vote_term(&self) -> Term {
        let vote = *self.shared.vote.lock();
        vote.map_or(0, |vote| vote.leader_id().term)
    }

    /// Whether this member is known, on disk, to follow the leader of this vote, and has its log up to an entry that
    /// it has confirmed before.
    pub fn follows(&self, vote: &Vote, confirmed: Option<LogId>) -> bool {
        let tail = self.shared.tail.read();
        let last = tail.last().or_else(|| tail.purged());
        *self.shared.synced_vote.lock() == Some(*vote) && confirmed <= last
    }

    /// Gives up all entries, whose effect is in the state, and begins anew after them.
    pub fn rebear(&self, rebirth: Rebirth) -> Result<(), rocksdb::Error> {
        let Some(db) = self.shared.db.get() else {
            return Ok(());
        };
        let mut batch = rocksdb::WriteBatch::default();
        let (first, end) = (codec::key(0), codec::after_entries());
        batch.delete_range(&first[..], &end[..]);
        batch.delete(codec::COMMITTED);
        if let Some(applied) = rebirth.applied {
            batch.put(codec::PURGED, codec::to_bytes(&applied));
        }
        batch.put(codec::VOTE, codec::to_bytes(&rebirth.vote));
        let mut options = rocksdb::WriteOptions::default();
        options.set_sync(true);
        db.write_opt(batch, &options)
    }

    fn read_range(&self, start: u64, end: u64, limit: usize) -> Result<Vec<Entry>, Unreadable> {
        // The tail first: what leaves it meanwhile is on disk by then.
        let (start, end, tail_start, recent) = {
            let tail = self.shared.tail.read();
            // What was just cut may still be on disk.
            let start = start.max(tail.purged().map_or(0, |purged| purged.index + 1));
            let end = end.min(tail.last().map_or(0, |last| last.index + 1));
            (start, end, tail.start(), tail.read(start, end))
        };
        if start >= end {
            return Ok(Vec::new());
        }
        let mut entries = if start < tail_start {
            self.read_disk(start, end.min(tail_start), limit)?
        } else {
            Vec::new()
        };
        let mut bytes = entries.iter().map(codec::size).sum::<usize>();
        let complete = start >= tail_start
            || entries
                .last()
                .is_some_and(|last| last.log_id.index + 1 == tail_start);
        if complete || entries.is_empty() {
            for entry in recent {
                if bytes >= limit && !entries.is_empty() {
                    break;
                }
                bytes = bytes.saturating_add(codec::size(&entry));
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn read_disk(&self, start: u64, end: u64, limit: usize) -> Result<Vec<Entry>, Unreadable> {
        let db = self.shared.db.get();
        let db = db.ok_or_else(|| Unreadable::Disk("it is being opened again".to_owned()))?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for item in db.iterator(IteratorMode::From(&codec::key(start), Direction::Forward)) {
            let (key, value) = item.map_err(|error| self.unreadable(&error))?;
            match codec::index(&key) {
                Some(index) if index < end && bytes < limit => {}
                _ => break,
            }
            bytes += value.len();
            let entry = decode_entry(value.into_vec().into());
            entries.push(entry.map_err(|error| self.damaged(&error.to_string()))?);
        }
        Ok(entries)
    }

    /// What a restart would find, whatever is in memory.
    #[cfg(test)]
    pub fn on_disk(&self) -> Vec<Entry> {
        self.read_disk(0, u64::MAX, usize::MAX).unwrap_or_default()
    }

    fn unreadable(&self, error: &rocksdb::Error) -> Unreadable {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => self.damaged(error.as_ref()),
            _ => Unreadable::Disk(error.to_string()),
        }
    }

    /// What Raft ends with: it says where, and what to do.
    fn damaged(&self, detail: &str) -> Unreadable {
        Unreadable::Damaged(
            OpenError::Damaged {
                path: self.shared.path.clone(),
                detail: detail.to_owned(),
            }
            .to_string(),
        )
    }
}

/// Why entries cannot be read back.
#[derive(Debug)]
enum Unreadable {
    /// The disk failed; it may come back.
    Disk(String),
    /// The entries are not what was written.
    Damaged(String),
}

fn read<T: serde::de::DeserializeOwned>(db: &DB, key: &[u8]) -> Result<Option<T>, Damaged> {
    let Some(bytes) = db.get(key).map_err(|error| Damaged(error.to_string()))? else {
        return Ok(None);
    };
    codec::from_bytes(&bytes).map(Some)
}

fn last_entry(db: &DB) -> Result<Option<LogId>, Damaged> {
    let after_all = codec::after_entries();
    let Some(item) = db
        .iterator(IteratorMode::From(&after_all, Direction::Reverse))
        .next()
    else {
        return Ok(None);
    };
    let (key, value) = item.map_err(|error| Damaged(error.to_string()))?;
    if codec::index(&key).is_none() {
        return Ok(None);
    }
    decode_entry(value.into_vec().into()).map(|entry| Some(entry.log_id))
}

/// The half-open range of indices that some bounds mean.
fn indices(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = indices(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES).await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = indices(&range);
        let log = self.clone();
        let parts = stream::unfold(start, move |next| {
            let log = log.clone();
            async move {
                let part = if next < end {
                    log.read(next, end, READ_BYTES).await
                } else {
                    Ok(Vec::new())
                };
                match part {
                    Ok(entries) => {
                        let after = entries.last()?.log_id.index + 1;
                        Some((entries.into_iter().map(Ok).collect(), after))
                    }
                    Err(error) => Some((vec![Err(error)], u64::MAX)),
                }
            }
        });
        Box::pin(futures::StreamExt::flat_map(parts, stream::iter::<Vec<_>>))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(*self.shared.vote.lock())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let tail = self.shared.tail.read();
        Ok(LogState {
            last_purged_log_id: tail.purged(),
            last_log_id: tail.last().or_else(|| tail.purged()),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        *self.shared.vote.lock() = Some(*vote);
        let (done, saved) = oneshot::channel();
        if fault::broken(Break::ForgetVote) {
            return Ok(());
        }
        self.shared.queue.push(Task::Vote { vote: *vote, done });
        fault::point(Point::VoteQueued);
        saved.await.map_err(|_| stopped())?;
        fault::point(Point::VoteSynced);
        *self.shared.synced_vote.lock() = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        *self.shared.committed.lock() = committed;
        if let Some(committed) = committed {
            self.shared.queue.push(Task::Committed(committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(*self.shared.committed.lock())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let bytes = entries.iter().map(codec::size).sum();
        self.shared.queue.room(bytes).await;
        let era = {
            let mut tail = self.shared.tail.write();
            tail.append(&entries);
            tail.era()
        };
        self.shared.queue.push(Task::Append {
            entries,
            bytes,
            era,
            queued: std::time::Instant::now(),
            callback,
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        self.shared.tail.write().truncate(last);
        let (done, cut) = oneshot::channel();
        self.shared.queue.push(Task::Truncate { from, done });
        cut.await.map_err(|_| stopped())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.shared.tail.write().purge(upto);
        self.shared.queue.push(Task::Purge(upto));
        Ok(())
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log's writer has stopped")
}
