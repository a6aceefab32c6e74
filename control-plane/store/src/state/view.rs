//! Snapshots in transit: a consistent view that is streamed in bounded parts, and the folder that receives.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rocksdb::{Cache, DB, IteratorMode, ReadOptions, WriteBatch, WriteOptions};
use tokio::sync::mpsc;

use super::generation::Generation;
use super::schema::{self, Damaged};
use crate::config::Tuning;
use crate::db;
use crate::error::OpenError;
use crate::raft::SnapshotMeta;

/// A part of a snapshot has about this many bytes.
const PART_BYTES: usize = 256 << 10;
/// Parts that are read ahead of the network.
const PARTS_AHEAD: usize = 4;

type Parts = mpsc::Sender<std::io::Result<Vec<u8>>>;

/// The whole state as it was at one moment. Held by a thread of its own, because RocksDB's snapshots borrow
/// their database; dropping the view ends the thread.
#[derive(Debug)]
pub(crate) struct View {
    requests: std::sync::mpsc::Sender<Parts>,
}

impl View {
    /// Takes the view: what is written after the return is not in it.
    pub fn open(generation: Arc<Generation>) -> std::io::Result<Self> {
        let (requests, wanted) = std::sync::mpsc::channel::<Parts>();
        let (taken, ready) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("store-view".into())
            .spawn(move || {
                let snapshot = generation.db.snapshot();
                if taken.send(()).is_err() {
                    return;
                }
                while let Ok(parts) = wanted.recv() {
                    stream(&snapshot, &parts);
                }
            })?;
        ready.recv().map_err(std::io::Error::other)?;
        Ok(Self { requests })
    }

    /// Streams everything, in key order.
    pub fn parts(&self) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
        let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
        // If the thread is gone, the receiver sees the end of a stream without its last part.
        let _ = self.requests.send(sender);
        receiver
    }
}

/// Sends parts: pairs of length-prefixed keys and values. The last part is empty.
fn stream(snapshot: &rocksdb::Snapshot<'_>, parts: &Parts) {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    let mut part = Vec::with_capacity(PART_BYTES + 4096);
    for item in snapshot.iterator_opt(IteratorMode::Start, options) {
        match item {
            Ok((key, value)) => {
                push(&mut part, &key);
                push(&mut part, &value);
            }
            Err(error) => {
                let _ = parts.blocking_send(Err(std::io::Error::other(error)));
                return;
            }
        }
        if part.len() >= PART_BYTES && parts.blocking_send(Ok(std::mem::take(&mut part))).is_err() {
            return;
        }
    }
    if !part.is_empty() && parts.blocking_send(Ok(part)).is_err() {
        return;
    }
    let _ = parts.blocking_send(Ok(Vec::new()));
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
    complete: bool,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Incoming({})", self.path.display())
    }
}

impl Incoming {
    pub fn create(dir: &Path, tuning: &Tuning, cache: &Cache) -> Result<Self, OpenError> {
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
            complete: false,
        })
    }

    /// Writes a part. Blocks.
    pub fn write(&mut self, mut part: &[u8]) -> Result<(), Damaged> {
        if part.is_empty() {
            self.complete = true;
            return Ok(());
        }
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
            .map_err(|error| Damaged(error.to_string()))
    }

    /// The last part has been written.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Checks that the snapshot is whole and what its sender said, makes it durable and closes it.
    pub(super) fn finish(mut self, expected: &SnapshotMeta) -> Result<PathBuf, OpenError> {
        let damaged = |detail: &str| OpenError::Damaged {
            path: self.path.clone(),
            detail: detail.to_owned(),
        };
        let Some(db) = self.db.take() else {
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
        db.flush().map_err(|error| damaged(error.as_ref()))?;
        drop(db);
        Ok(std::mem::take(&mut self.path))
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
