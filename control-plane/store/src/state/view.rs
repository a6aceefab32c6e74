//! Snapshots in transit: a consistent view that is streamed in bounded parts, and the folder that receives.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rocksdb::{Cache, DB, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use super::generation::Generation;
use super::schema::{self, Damaged};
use crate::config::Tuning;
use crate::db::{self, Disk};
use crate::error::OpenError;
use crate::fault::Site;
use crate::raft::SnapshotMeta;
use crate::threads;

/// A part of a snapshot has about this many bytes.
const PART_BYTES: usize = 256 << 10;
type Part = std::io::Result<Vec<u8>>;

/// Asks for the part after a key, or the first.
struct Wanted {
    after: Option<Vec<u8>>,
    answer: std::sync::mpsc::Sender<Part>,
}

/// The whole state as it was at one moment. Held by a thread of its own, because RocksDB's snapshots borrow
/// their database; dropping the last handle ends the thread. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// Tells this view from others, on any member.
    pub id: u64,
    holder: Arc<Holder>,
}

#[derive(Debug)]
struct Holder {
    requests: Option<std::sync::mpsc::Sender<Wanted>>,
    thread: Option<std::thread::JoinHandle<()>>,
    used: AtomicBool,
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.requests = None;
        // So that the database can be closed by whoever drops the view.
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a view panicked");
        }
    }
}

impl View {
    /// Takes the view: what is written after the return is not in it.
    pub fn open(generation: Arc<Generation>) -> std::io::Result<Self> {
        let (requests, wanted) = std::sync::mpsc::channel::<Wanted>();
        let (taken, ready) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store-view".into())
            .spawn(move || {
                let snapshot = generation.db.snapshot();
                if taken.send(()).is_err() {
                    return;
                }
                while let Ok(Wanted { after, answer }) = wanted.recv() {
                    // Whoever asked may have left.
                    let _ = answer.send(read_part(&snapshot, after.as_deref()));
                }
            })?;
        ready.recv().map_err(std::io::Error::other)?;
        let holder = Holder {
            requests: Some(requests),
            thread: Some(thread),
            used: AtomicBool::new(false),
        };
        Ok(Self {
            id: rand::random(),
            holder: Arc::new(holder),
        })
    }

    /// Somebody has begun to read it.
    pub fn is_used(&self) -> bool {
        self.holder.used.load(Ordering::Relaxed)
    }

    /// The part after a key, in key order: pairs of length-prefixed keys and values. It is empty after the
    /// last key.
    pub async fn part(&self, after: Option<Vec<u8>>) -> Part {
        self.holder.used.store(true, Ordering::Relaxed);
        let requests = self.holder.requests.clone();
        let asking = threads::blocking(move || {
            let (answer, answered) = std::sync::mpsc::channel();
            let requests = requests.ok_or_else(|| std::io::Error::other("the view is closed"))?;
            requests
                .send(Wanted { after, answer })
                .map_err(std::io::Error::other)?;
            answered.recv().map_err(std::io::Error::other)?
        });
        asking.await?
    }
}

fn read_part(snapshot: &rocksdb::Snapshot<'_>, after: Option<&[u8]>) -> Part {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    let start = after.unwrap_or_default();
    let items = snapshot.iterator_opt(IteratorMode::From(start, Direction::Forward), options);
    let mut part = Vec::with_capacity(PART_BYTES + 4096);
    for item in items {
        let (key, value) = item.map_err(std::io::Error::other)?;
        if after == Some(&*key) {
            continue;
        }
        push(&mut part, &key);
        push(&mut part, &value);
        if part.len() >= PART_BYTES {
            break;
        }
    }
    Ok(part)
}

/// How many pairs a part has.
pub(crate) fn count_pairs(mut part: &[u8]) -> u64 {
    let mut count = 0;
    while let (Some(_), Some(_)) = (pull(&mut part), pull(&mut part)) {
        count += 1;
    }
    count
}

/// The last key of a part; `None` for the empty part after the last key.
pub(crate) fn last_key(mut part: &[u8]) -> Option<Vec<u8>> {
    let mut last = None;
    while let (Some(key), Some(_)) = (pull(&mut part), pull(&mut part)) {
        last = Some(key);
    }
    last.map(<[u8]>::to_vec)
}

fn push(part: &mut Vec<u8>, bytes: &[u8]) {
    part.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    part.extend_from_slice(bytes);
}

fn pull<'a>(part: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = part.split_first_chunk::<4>()?;
    let (bytes, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    *part = rest;
    Some(bytes)
}

/// A snapshot that is being received. Dropped before it is finished, it is deleted.
pub(crate) struct Incoming {
    db: Option<DB>,
    path: PathBuf,
    last: Option<Vec<u8>>,
    complete: bool,
    disk: Arc<Disk>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Incoming({})", self.path.display())
    }
}

impl Incoming {
    pub fn create(
        dir: &Path,
        tuning: &Tuning,
        cache: &Cache,
        disk: Arc<Disk>,
    ) -> Result<Self, OpenError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = dir.join(format!(
            "incoming-{}",
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(crate::folder::at(&path))?;
        }
        let db = db::open_state(&path, tuning, cache)?;
        Ok(Self {
            db: Some(db),
            path,
            last: None,
            complete: false,
            disk,
        })
    }

    /// Writes a part. Blocks.
    pub fn write(&mut self, mut part: &[u8]) -> Result<(), Damaged> {
        self.disk.plan.meet(Site::Receive).map_err(Damaged)?;
        if part.is_empty() {
            self.complete = true;
            return Ok(());
        }
        let last = last_key(part);
        let mut batch = WriteBatch::default();
        while !part.is_empty() {
            let (Some(key), Some(value)) = (pull(&mut part), pull(&mut part)) else {
                return Err(Damaged("a part of a snapshot is cut short".into()));
            };
            batch.put(key, value);
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        let Some(db) = &self.db else { return Ok(()) };
        db.write_opt(batch, &options)
            .map_err(|error| Damaged(error.to_string()))?;
        self.last = last;
        Ok(())
    }

    /// Copies everything of a generation. Blocks.
    pub(super) fn copy_of(mut self, generation: &Generation) -> Result<Self, Damaged> {
        let snapshot = generation.db.snapshot();
        while !self.complete {
            let part = read_part(&snapshot, self.last.as_deref());
            self.write(&part.map_err(|error| Damaged(error.to_string()))?)?;
        }
        Ok(self)
    }

    /// The last key that was written: go on after it.
    pub fn last(&self) -> Option<Vec<u8>> {
        self.last.clone()
    }

    /// The last part has been written.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Checks that the snapshot is whole and what its sender said.
    pub(super) fn check(&self, expected: &SnapshotMeta) -> Result<(), OpenError> {
        let damaged = |detail: &str| OpenError::Damaged {
            path: self.path.clone(),
            detail: detail.to_owned(),
        };
        let Some(db) = &self.db else {
            return Err(damaged("it was closed"));
        };
        if !self.complete {
            return Err(damaged("the snapshot is not complete"));
        }
        let bytes = db.get(schema::META).ok().flatten().unwrap_or_default();
        let applied = schema::from_bytes::<schema::Meta>(&bytes)
            .ok()
            .and_then(|meta| meta.applied);
        if applied != expected.last_log_id {
            return Err(damaged("the snapshot is not the one that was announced"));
        }
        Ok(())
    }

    /// Makes it durable. May be tried again.
    pub(super) fn flush(&self) -> Result<(), rocksdb::Error> {
        match &self.db {
            Some(db) => db.flush(),
            None => Ok(()),
        }
    }

    /// Closes it; the folder is the caller's now.
    pub(super) fn close(mut self) -> PathBuf {
        self.db = None;
        std::mem::take(&mut self.path)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.db = None;
        if !self.path.as_os_str().is_empty()
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "a partial snapshot is left for the next start to remove");
        }
    }
}
