//! openraft's own suite for log stores and state machines, and what it leaves out.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, RaftLogReader};
use rocksdb::Cache;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::Log;
use crate::command::{Origin, Pack};
use crate::config::Tuning;
use crate::pending::Pending;
use crate::raft::{Entry, LogId, Types, Vote};
use crate::state::{Context, Machine, State};

struct Builder;

impl StoreBuilder<Types, Log, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Machine), openraft::StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir);
        let context = Context {
            tuning: Tuning::default(),
            cache: Cache::new_lru_cache(1 << 20),
            disk: Arc::default(),
            metrics: Arc::default(),
            pending: Arc::new(Pending::new(Origin { member: 1, life: 1 }, Arc::default())),
            stop: CancellationToken::new(),
        };
        let state = State::open(&dir.path().join("state"), context, Arc::new(())).unwrap();
        Ok((dir, log, Machine::new(state)))
    }
}

fn open(dir: &TempDir) -> Log {
    let cache = Cache::new_lru_cache(1 << 20);
    Log::open(
        &dir.path().join("log"),
        &Tuning::default(),
        &cache,
        Arc::default(),
        Arc::default(),
    )
    .unwrap()
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let pack = Pack(Bytes::from(vec![u8::try_from(index % 256).unwrap(); bytes]));
    Entry {
        log_id: id(term, index),
        payload: EntryPayload::Normal(pack),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

#[tokio::test]
async fn reopening_finds_log_vote_and_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    assert!(log.is_blank());
    log.save_vote(&Vote::new(3, 1)).await.unwrap();
    log.blocking_append((1..=20).map(|index| entry(3, index, 10)))
        .await
        .unwrap();
    log.save_committed(Some(id(3, 9))).await.unwrap();
    log.truncate_after(Some(id(3, 15))).await.unwrap();
    log.purge(id(3, 4)).await.unwrap();
    drop(log);
    let mut log = open(&dir);
    assert!(!log.is_blank());
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(id(3, 4)), Some(id(3, 15)))
    );
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 1)));
    assert_eq!(log.read_committed().await.unwrap(), Some(id(3, 9)));
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(
        entries,
        (5..=15)
            .map(|index| entry(3, index, 10))
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn entries_are_read_across_disk_and_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    // 10 MiB: more than stays in memory.
    for index in 1..=20 {
        log.blocking_append([entry(1, index, 512 << 10)])
            .await
            .unwrap();
    }
    assert!(log.shared.tail.read().start() > 1);
    let all = log.try_get_log_entries(1..21).await.unwrap();
    assert_eq!(
        all.iter()
            .map(|entry| entry.log_id.index)
            .collect::<Vec<_>>(),
        (1..=20).collect::<Vec<_>>()
    );
    let some = log.limited_get_log_entries(1, 21).await.unwrap();
    assert!(!some.is_empty() && some.len() < 5, "{}", some.len());
    let stream = log.entries_stream(1..21).await;
    let streamed: Vec<_> = futures::StreamExt::collect(stream).await;
    assert_eq!(streamed.len(), 20);
}

#[tokio::test]
async fn entries_written_after_a_cut_replace_the_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    log.blocking_append((1..=9).map(|index| entry(1, index, 10)))
        .await
        .unwrap();
    log.truncate_after(Some(id(1, 4))).await.unwrap();
    assert_eq!(
        log.try_get_log_entries(4..).await.unwrap(),
        [entry(1, 4, 10)]
    );
    log.blocking_append([entry(2, 5, 20)]).await.unwrap();
    drop(log);
    let mut log = open(&dir);
    assert_eq!(
        log.try_get_log_entries(4..).await.unwrap(),
        [entry(1, 4, 10), entry(2, 5, 20)]
    );
}

#[test]
fn a_primed_log_writes_into_a_file_that_is_long_already() {
    let dir = tempfile::tempdir().unwrap();
    let (tuning, cache) = (Tuning::default(), Cache::new_lru_cache(1 << 20));
    let bytes = crate::db::log_file_bytes(&tuning);
    let open = || crate::db::open_log(dir.path(), &tuning, &cache).unwrap();
    let db = open();
    super::prime::prime(&db, tuning.log_files, bytes, || false).unwrap();
    db.put(b"a", b"1").unwrap();
    let newest = newest_file(dir.path());
    assert!(newest.metadata().unwrap().len() > bytes as u64);
    drop(db);
    super::wal::check(dir.path()).unwrap();
    assert_eq!(open().get(b"a").unwrap().unwrap(), b"1");
}

/// The file that is written to.
fn newest_file(dir: &std::path::Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir).unwrap().flatten();
    let logs = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"));
    logs.max().unwrap()
}

#[test]
fn a_loss_of_power_while_a_log_is_primed_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (tuning, cache) = (Tuning::default(), Cache::new_lru_cache(1 << 20));
    let bytes = crate::db::log_file_bytes(&tuning);
    let db = crate::db::open_log(dir.path(), &tuning, &cache).unwrap();
    // The filler of a file, as it is before it is synced and flushed.
    super::prime::fill(&db, bytes).unwrap();
    let newest = newest_file(dir.path());
    let whole = std::fs::read(&newest).unwrap();
    drop(db);
    assert!(whole.len() > bytes);
    for lost in [0, 1 << 20, bytes / 2, bytes - 4096] {
        let mut torn = whole.clone();
        torn[lost..lost + 4096].fill(0);
        std::fs::write(&newest, &torn).unwrap();
        super::wal::check(dir.path()).unwrap();
    }
}
