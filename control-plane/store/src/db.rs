//! RocksDB as both databases use it, and what the disk last said.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBPinnableSlice, DEFAULT_COLUMN_FAMILY_NAME, Options,
};

use crate::config::Tuning;
use crate::error::OpenError;
use crate::fault::{self, Site};
use crate::threads;

/// How long a writer waits before it offers a failed write again.
pub(crate) const RETRY_WRITE: Duration = Duration::from_millis(500);

/// Options that both databases share: bounded memory, few files, few threads.
fn common(mut options: Options, tuning: &Tuning, cache: &Cache) -> (Options, BlockBasedOptions) {
    options.create_if_missing(true);
    options.set_write_buffer_size(tuning.write_buffer_bytes);
    options.set_max_write_buffer_number(3);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_max_manifest_file_size(4 << 20);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_bytes_per_sync(1 << 20);
    // Each database has one writer, which needs no others' leave.
    options.set_allow_concurrent_memtable_write(false);
    // Merging twice as many young files at once rewrites the older ones half as often.
    options.set_level_zero_file_num_compaction_trigger(8);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // In pieces of a few KiB: a large file's whole index or filter is more than a small cache keeps, and each look-up
    // would read all of it from the disk and sum it up anew.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_pin_top_level_index_and_filter(true);
    table.set_format_version(5);
    (options, table)
}

/// Where a memtable's search for a key's place starts: at the key before it of the same kind (a kind is a key's first
/// byte), which mostly is next to it. From the top it takes three times as long, and longer the fuller the memtable. Not
/// for a database that deletes ranges: RocksDB before 9.3 damaged memtables that way, and its own stress test of later
/// versions leaves the two together out.
const HINT: &str = "memtable_insert_with_hint_prefix_extractor=fixed:1";

/// Options with the hint, for which there is no setter. Without it everything is right, only slower.
fn hinted() -> Options {
    let mut plain = Options::default();
    plain.get_options_from_string(HINT).unwrap_or(plain)
}

/// How long a file of the log's newest writes becomes, about, before the next one is begun.
pub(crate) fn log_file_bytes(tuning: &Tuning) -> usize {
    tuning.write_buffer_bytes / 2
}

/// Opens the log's database: small synced writes, read back seldom, cut from the front.
pub(crate) fn open_log(path: &Path, tuning: &Tuning, cache: &Cache) -> Result<DB, OpenError> {
    // Its entries ascend: a plain memtable starts from where it was.
    let (mut options, table) = common(Options::default(), tuning, cache);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    // The newest entries are in memory anyway (`log::tail`).
    options.set_write_buffer_size(log_file_bytes(tuning));
    // A recycled file has its blocks already: a sync then writes data only, not metadata.
    options.set_recycle_log_file_num(2);
    // Most of what is merged late was cut before, so it is left out in place of being written once more. That many
    // files hold about what is kept of the log under load.
    options.set_level_zero_file_num_compaction_trigger(24);
    options.set_level_zero_slowdown_writes_trigger(40);
    options.set_level_zero_stop_writes_trigger(60);
    open(&options, path)
}

/// Opens the state's database: no log of its own (Raft's log replays it), point reads and ranges.
pub(crate) fn open_state(path: &Path, tuning: &Tuning, cache: &Cache) -> Result<DB, OpenError> {
    let (mut options, mut table) = common(hinted(), tuning, cache);
    table.set_bloom_filter(10.0, false);
    table.set_partition_filters(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(0.02);
    open(&options, path)
}

fn open(options: &Options, path: &Path) -> Result<DB, OpenError> {
    // Named, because reading many keys at once asks for the family's handle.
    let family = ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, options.clone());
    DB::open_cf_descriptors(options, path, [family]).map_err(|error| {
        let detail = error.to_string();
        if detail.contains("lock") || detail.contains("LOCK") {
            return OpenError::Locked {
                dir: path.to_owned(),
                detail,
            };
        }
        match error.kind() {
            rocksdb::ErrorKind::IOError => OpenError::Io {
                path: path.to_owned(),
                source: std::io::Error::other(detail),
            },
            _ => OpenError::Damaged {
                path: path.to_owned(),
                detail,
            },
        }
    })
}

/// Reads keys at once. They are in order.
pub(crate) fn get_many<'db>(
    db: &'db DB,
    keys: &[Vec<u8>],
) -> Vec<Result<Option<DBPinnableSlice<'db>>, rocksdb::Error>> {
    match db.cf_handle(DEFAULT_COLUMN_FAMILY_NAME) {
        Some(family) if keys.len() > 1 => db.batched_multi_get_cf(family, keys, true),
        _ => keys.iter().map(|key| db.get_pinned(key)).collect(),
    }
}

/// A database that can be opened again in place: RocksDB refuses all writes for good after some errors of the
/// disk (a failed sync, for one), whether or not the disk is well again.
pub(crate) struct Reopening {
    current: RwLock<Option<Arc<DB>>>,
    open: Box<dyn Fn() -> Result<DB, OpenError> + Send + Sync>,
}

/// Readers give a database back within this, or it is not opened again now.
const LET_GO: Duration = Duration::from_millis(500);

impl Reopening {
    pub fn new(
        open: impl Fn() -> Result<DB, OpenError> + Send + Sync + 'static,
    ) -> Result<Self, OpenError> {
        Ok(Self {
            current: RwLock::new(Some(Arc::new(open()?))),
            open: Box::new(open),
        })
    }

    /// The database, to be let go of soon; `None` while it could not be opened again.
    pub fn get(&self) -> Option<Arc<DB>> {
        self.current.read().clone()
    }

    /// Closes the database and opens it again. Blocks. What was synced is there again.
    pub fn reopen(&self) -> Result<(), OpenError> {
        let mut current = self.current.write();
        let since = Instant::now();
        while current.as_ref().is_some_and(|db| Arc::strong_count(db) > 1) {
            if since.elapsed() > LET_GO {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Its files are locked until it is closed.
        *current = None;
        *current = Some(Arc::new((self.open)()?));
        Ok(())
    }
}

/// A write that takes longer than this is told in the health.
const SLOW: Duration = Duration::from_secs(1);

/// What the disk last said. Writers that fail keep trying; meanwhile nothing new is accepted.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    problems: Mutex<BTreeMap<&'static str, String>>,
    busy: Mutex<BTreeMap<&'static str, Instant>>,
    /// What tests make it do.
    pub plan: fault::Plan,
}

impl Disk {
    /// What keeps new writes from being accepted, if anything.
    pub fn problem(&self) -> Option<String> {
        self.problems.lock().values().next().cloned()
    }

    /// Everything that is wrong, in words: failed writes, and writes that hang.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints: Vec<String> = self.problems.lock().values().cloned().collect();
        let busy = self.busy.lock();
        let slow = busy.iter().filter(|(_, since)| since.elapsed() > SLOW);
        complaints.extend(slow.map(|(what, since)| {
            format!(
                "the disk has not finished writing {what} for {} s: check the disk and what else uses it",
                since.elapsed().as_secs()
            )
        }));
        complaints
    }

    /// Notes that a write failed, or that it works again.
    pub fn note(&self, what: &'static str, failure: Option<String>) {
        match failure {
            Some(error) => {
                let text = format!("cannot write {what}: {error}");
                self.problems.lock().insert(what, text);
            }
            None => drop(self.problems.lock().remove(what)),
        }
    }

    /// Does something to the disk once. While it lasts it counts among what a disk that hangs keeps from ending.
    pub fn attempt<T>(&self, what: &'static str, work: impl FnOnce() -> T) -> T {
        self.busy.lock().insert(what, Instant::now());
        let outcome = work();
        self.busy.lock().remove(what);
        outcome
    }

    /// Runs a write until it succeeds or `stopped`; returns whether it did. The write is told how often it
    /// has failed.
    pub fn insist<E: std::fmt::Display>(
        &self,
        site: Site,
        what: &'static str,
        stopped: impl Fn() -> bool,
        mut write: impl FnMut(u32) -> Result<(), E>,
    ) -> bool {
        let mut failed = 0;
        loop {
            self.busy.lock().insert(what, Instant::now());
            let result = self
                .plan
                .meet(site)
                .and_then(|()| write(failed).map_err(|error| error.to_string()));
            self.busy.lock().remove(what);
            let Err(error) = result else {
                if failed > 0 {
                    tracing::info!(what, "the disk takes writes again");
                    self.note(what, None);
                }
                return true;
            };
            if failed == 0 {
                tracing::error!(what, %error, "a write failed; no new writes are accepted until it succeeds");
            }
            failed += 1;
            self.note(what, Some(error));
            if stopped() {
                return false;
            }
            threads::aside(|| std::thread::sleep(RETRY_WRITE));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rocksdb_knows_the_hint() {
        let hinted = Options::default().get_options_from_string(HINT);
        assert!(hinted.is_ok(), "{:?}", hinted.err());
    }

    fn failure() -> rocksdb::Error {
        let dir = tempfile::tempdir().unwrap();
        DB::open(&Options::default(), dir.path().join("absent")).unwrap_err()
    }

    #[test]
    fn keys_that_are_read_at_once_are_found_as_if_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new_lru_cache(1 << 20);
        let db = open_state(dir.path(), &Tuning::default(), &cache).unwrap();
        let key = |n: u32| n.to_be_bytes().to_vec();
        for n in (0..1_000).step_by(2) {
            db.put(key(n), n.to_string()).unwrap();
            if n == 600 {
                db.flush().unwrap();
            }
        }
        for some in [vec![], vec![key(4)], (590..620).map(key).collect()] {
            let found = get_many(&db, &some).into_iter().map(|found| found.unwrap());
            let found: Vec<_> = found.map(|found| found.map(|f| f.to_vec())).collect();
            let alone: Vec<_> = some.iter().map(|key| db.get(key).unwrap()).collect();
            assert_eq!(found, alone);
        }
    }

    #[test]
    fn a_failing_disk_is_reported_until_a_write_succeeds() {
        let (disk, mut left) = (Disk::default(), 2);
        let mut seen = Vec::new();
        let error = failure();
        let done = disk.insist(
            Site::Log,
            "log",
            || false,
            |_| {
                seen.push(disk.problem().is_some());
                left -= 1;
                if left > 0 { Err(error.clone()) } else { Ok(()) }
            },
        );
        assert_eq!(
            (done, seen, disk.problem()),
            (true, vec![false, true], None)
        );
    }

    #[test]
    fn a_failing_write_is_given_up_at_shutdown() {
        let disk = Disk::default();
        assert!(!disk.insist(Site::Log, "log", || true, |_| Err(failure())));
        assert!(disk.problem().is_some());
    }
}
