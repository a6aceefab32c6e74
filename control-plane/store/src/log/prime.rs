//! Gives a log that was opened files to write into.
//!
//! Each write is synced. One that makes its file longer also waits for the file system's journal, which on slow disks
//! takes as long again. RocksDB's remedy is to use files again that hold nothing needed any more
//! (`recycle_log_file_num`), but only those of the same process: without this, a member that was started anew would be
//! slow until it has filled two files, which for a cluster at rest takes most of an hour.

use rocksdb::{DB, FlushOptions, WriteBatch, WriteOptions};

/// While one file is written to, the one before it waits for its contents to reach a table.
const FILES: usize = 2;
/// Is never there. Its deletion is why a file's contents count as something to be kept, and so as done with later.
const NOBODY: &[u8] = b"\0nobody";
/// What is written at once.
const PIECE: usize = 256 << 10;

/// Fills files of about this size, which are used again from then on. Blocks for as long as the disk takes.
///
/// # Errors
/// When the disk refuses; nothing is lost by that.
pub(super) fn prime(db: &DB, bytes: usize) -> Result<(), rocksdb::Error> {
    let mut sync = WriteOptions::default();
    sync.set_sync(true);
    let mut wait = FlushOptions::default();
    wait.set_wait(true);
    let nothing = vec![0; PIECE];
    for _ in 0..FILES {
        for _ in 0..bytes / PIECE {
            let mut piece = WriteBatch::default();
            piece.put_log_data(&nothing);
            db.write(piece)?;
        }
        let mut end = WriteBatch::default();
        end.delete(NOBODY);
        db.write_opt(end, &sync)?;
        db.flush_opt(&wait)?;
    }
    Ok(())
}
