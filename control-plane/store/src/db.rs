//! RocksDB as both databases use it, and what the disk last said.

use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, Options};

use crate::config::Tuning;
use crate::error::OpenError;

/// How long a writer waits before it offers a failed write again.
pub(crate) const RETRY_WRITE: Duration = Duration::from_millis(500);

/// Options that both databases share: bounded memory, few files, few threads.
fn common(tuning: &Tuning, cache: &Cache) -> (Options, BlockBasedOptions) {
    let mut options = Options::default();
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
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);
    (options, table)
}

/// Opens the log's database: small synced writes, read back seldom, cut from the front.
pub(crate) fn open_log(path: &Path, tuning: &Tuning, cache: &Cache) -> Result<DB, OpenError> {
    let (mut options, table) = common(tuning, cache);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    // A recycled file has its blocks already: a sync then writes data only, not metadata.
    options.set_recycle_log_file_num(2);
    open(&options, path)
}

/// Opens the state's database: no log of its own (Raft's log replays it), point reads and ranges.
pub(crate) fn open_state(path: &Path, tuning: &Tuning, cache: &Cache) -> Result<DB, OpenError> {
    let (mut options, mut table) = common(tuning, cache);
    table.set_bloom_filter(10.0, false);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(0.02);
    open(&options, path)
}

fn open(options: &Options, path: &Path) -> Result<DB, OpenError> {
    DB::open(options, path).map_err(|error| {
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

/// What the disk last said. Writers that fail keep trying; meanwhile nothing new is accepted.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    problem: Mutex<Option<String>>,
}

impl Disk {
    /// What is wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// Runs a write until it succeeds or `stopped`; returns whether it did.
    pub fn insist(
        &self,
        what: &str,
        stopped: impl Fn() -> bool,
        mut write: impl FnMut() -> Result<(), rocksdb::Error>,
    ) -> bool {
        let mut failed = false;
        loop {
            match write() {
                Ok(()) => {
                    if failed {
                        tracing::info!(what, "the disk takes writes again");
                        *self.problem.lock() = None;
                    }
                    return true;
                }
                Err(error) => {
                    if !failed {
                        tracing::error!(what, %error, "a write failed; no new writes are accepted until it succeeds");
                    }
                    failed = true;
                    *self.problem.lock() = Some(format!("cannot write {what}: {error}"));
                    if stopped() {
                        return false;
                    }
                    std::thread::sleep(RETRY_WRITE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn failure() -> rocksdb::Error {
        let dir = tempfile::tempdir().unwrap();
        DB::open(&Options::default(), dir.path().join("absent")).unwrap_err()
    }

    #[test]
    fn a_failing_disk_is_reported_until_a_write_succeeds() {
        let (disk, mut left) = (Disk::default(), 2);
        let mut seen = Vec::new();
        let error = failure();
        let done = disk.insist(
            "log",
            || false,
            || {
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
        assert!(!disk.insist("log", || true, || Err(failure())));
        assert!(disk.problem().is_some());
    }
}
