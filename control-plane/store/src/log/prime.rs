//! Gives a log that was opened files to write into.
//!
//! Each write is synced. One that makes its file longer also waits for the file system's journal, which on slow disks
//! takes as long again. RocksDB's remedy is to use files again that hold nothing needed any more
//! (`recycle_log_file_num`), but only those of the same process: without this, a member that was started anew would be
//! slow until it has filled two files, which for a cluster at rest takes most of an hour.

use rocksdb::{DB, FlushOptions, WriteBatch, WriteOptions};

/// Is never there. Its deletion is why a file's contents count as something to be kept, and so as done with later.
const NOBODY: &[u8] = b"\0nobody";
/// What of it is made at once.
const PIECE: usize = 256 << 10;

/// Fills that many files of about this size, which are used again from then on, unless it is `stopped`. Blocks for as
/// long as the disk takes.
///
/// Each file is filled by one write: of one that a loss of power cuts short nothing whole comes after what is missing,
/// so it is not taken for damage (see `wal`).
///
/// # Errors
/// When the disk refuses: then the database must be opened anew, for it may take nothing more.
pub(super) fn prime(
    db: &DB,
    files: usize,
    bytes: usize,
    stopped: impl Fn() -> bool,
) -> Result<(), rocksdb::Error> {
    let mut wait = FlushOptions::default();
    wait.set_wait(true);
    for _ in 0..files {
        if stopped() {
            break;
        }
        fill(db, bytes)?;
        db.flush_opt(&wait)?;
    }
    Ok(())
}

/// Fills the file that is written to.
pub(super) fn fill(db: &DB, bytes: usize) -> Result<(), rocksdb::Error> {
    let mut sync = WriteOptions::default();
    sync.set_sync(true);
    let nothing = vec![0; PIECE];
    let mut filler = WriteBatch::default();
    for _ in 0..bytes / PIECE {
        filler.put_log_data(&nothing);
    }
    filler.delete(NOBODY);
    db.write_opt(filler, &sync)
}
