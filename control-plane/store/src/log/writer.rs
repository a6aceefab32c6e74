//! The one thread that writes the log: drain the queue, one batch, one sync, answers in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex};
use rocksdb::{WriteBatch, WriteOptions};
use tokio::sync::{Notify, oneshot};

use super::prime::prime;
use super::{Shared, codec};
use crate::config::Tuning;
use crate::db::log_file_bytes;
use crate::fault::{self, Point, Site};
use crate::raft::{Entry, LogId, Types, Vote};

/// Appends wait while this many bytes are queued.
const QUEUE_BYTES: usize = 64 << 20;

pub(super) enum Task {
    Append {
        entries: Vec<Entry>,
        bytes: usize,
        era: u64,
        queued: Instant,
        callback: IOFlushed<Types>,
    },
    Vote {
        vote: Vote,
        done: oneshot::Sender<()>,
    },
    /// A hint for the next start: it goes along with the next write.
    Committed(LogId),
    /// Cut entries from an index on.
    Truncate {
        from: u64,
        done: oneshot::Sender<()>,
    },
    /// Cut entries up to one. Nobody waits for it: it is done again if it is lost.
    Purge(LogId),
}

/// What waits to be written, in order.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    drained: Notify,
    #[cfg(test)]
    filled_for_tasks: Notify,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    /// The newest hint, which alone wakes nobody.
    committed: Option<LogId>,
    bytes: usize,
    stopped: bool,
}

impl Queue {
    /// Waits until bytes may be queued; one append always may.
    pub async fn room(&self, bytes: usize) {
        loop {
            let drained = self.drained.notified();
            {
                let state = self.state.lock();
                if state.stopped || state.bytes == 0 || state.bytes + bytes <= QUEUE_BYTES {
                    return;
                }
            }
            drained.await;
        }
    }

    /// Queues a task. After the stop it is dropped, and with it the sender that somebody may wait for.
    pub fn push(&self, task: Task) {
        let mut state = self.state.lock();
        if state.stopped {
            if let Task::Append { callback, .. } = task {
                drop(state);
                callback.io_completed(Err(super::stopped()));
            }
            return;
        }
        match &task {
            Task::Append { bytes, .. } => state.bytes += bytes,
            Task::Committed(committed) => {
                state.committed = Some(*committed);
                return;
            }
            _ => {}
        }
        state.tasks.push_back(task);
        drop(state);
        self.filled.notify_one();
        #[cfg(test)]
        self.filled_for_tasks.notify_one();
    }

    /// Waits for tasks; `None` once stopped and empty.
    fn drain(&self) -> Option<VecDeque<Task>> {
        let mut state = self.state.lock();
        while state.tasks.is_empty() && !state.stopped {
            self.filled.wait(&mut state);
        }
        let mut tasks = std::mem::take(&mut state.tasks);
        tasks.extend(state.committed.take().map(Task::Committed));
        if tasks.is_empty() {
            return None;
        }
        state.bytes = 0;
        drop(state);
        self.drained.notify_waiters();
        Some(tasks)
    }

    fn stop(&self) {
        self.state.lock().stopped = true;
        self.filled.notify_one();
        #[cfg(test)]
        self.filled_for_tasks.notify_one();
        self.drained.notify_waiters();
    }

    /// Waits until there is something to do.
    #[cfg(test)]
    pub async fn filled_for_tasks(&self) {
        self.filled_for_tasks.notified().await;
    }

    /// What waits, if anything.
    #[cfg(test)]
    pub fn take(&self) -> Option<VecDeque<Task>> {
        if self.state.lock().tasks.is_empty() {
            return None;
        }
        self.drain()
    }

    pub fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }
}

/// The thread. Dropping it stops it, after what is queued is written.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. It first makes files to write into, if any are wanted.
    pub fn start(shared: Arc<Shared>, tuning: &Tuning) -> std::io::Result<Self> {
        #[cfg(test)]
        if turmoil::in_simulation() {
            return Ok(super::simulated::start(shared));
        }
        let mine = shared.clone();
        let (files, file_bytes) = (tuning.log_files, log_file_bytes(tuning));
        let thread = std::thread::Builder::new()
            .name("store-log".into())
            .spawn(move || {
                crate::threads::raise_priority();
                make_files(&mine, files, file_bytes);
                while let Some(tasks) = mine.queue.drain() {
                    if !write(&mine, tasks) {
                        return;
                    }
                }
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }
}

/// Makes files to write into; goes on without them if the disk refuses, which may be too full for them alone.
fn make_files(shared: &Shared, files: usize, bytes: usize) {
    let Some(db) = shared.db.get() else { return };
    let stopped = || shared.queue.is_stopped();
    let primed = shared
        .disk
        .attempt("Raft's log", || prime(&db, files, bytes, stopped));
    drop(db);
    if let Err(error) = primed {
        tracing::warn!(%error, "Raft's log begins without files made beforehand");
        if let Err(error) = shared.db.reopen() {
            tracing::warn!(%error, "Raft's log cannot be opened again yet");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log's writer panicked");
        }
    }
}

/// Tasks as one write, and whom to tell of it.
pub(super) struct Write {
    batch: WriteBatch,
    done: Vec<Done>,
    purged: Option<LogId>,
}

enum Done {
    Appended {
        callback: IOFlushed<Types>,
        era: u64,
        queued: Instant,
        last: Option<u64>,
    },
    Waited(oneshot::Sender<()>),
}

/// Writes what was drained; `false` if it could not be before the stop.
fn write(shared: &Shared, tasks: VecDeque<Task>) -> bool {
    let started = Instant::now();
    let Some(mut write) = gather(tasks) else {
        return false;
    };
    fault::point(Point::LogDrained);
    if !put(shared, &mut write) {
        return false;
    }
    fault::point(Point::LogSynced);
    shared
        .metrics
        .fsync
        .observe(started.elapsed().as_secs_f64());
    finish(shared, &mut write);
    true
}

/// Gives a write to the disk; `false` if it does not take it before the stop.
pub(super) fn put(shared: &Shared, write: &mut Write) -> bool {
    shared.metrics.log_batch_bytes(write.batch.size_in_bytes());
    write_batch(shared, std::mem::take(&mut write.batch))
}

/// Tells whoever waits for a write, and frees what it cut.
pub(super) fn finish(shared: &Shared, write: &mut Write) {
    answer(shared, std::mem::take(&mut write.done));
    if let Some(upto) = write.purged.take() {
        free_files(shared, upto);
    }
}

/// Puts tasks into one write; `None` if an entry cannot be encoded.
pub(super) fn gather(tasks: VecDeque<Task>) -> Option<Write> {
    let mut write = Write {
        batch: WriteBatch::default(),
        done: Vec::with_capacity(tasks.len()),
        purged: None,
    };
    for task in tasks {
        match task {
            Task::Append {
                entries,
                era,
                queued,
                callback,
                ..
            } => {
                for entry in &entries {
                    #[cfg(test)]
                    let entry = &super::simulated::perhaps_wrong(entry);
                    match codec::encode_entry(entry) {
                        Ok(bytes) => write.batch.put(codec::key(entry.log_id.index), bytes),
                        Err(error) => {
                            callback.io_completed(Err(std::io::Error::other(error)));
                            return None;
                        }
                    }
                }
                write.done.push(Done::Appended {
                    callback,
                    era,
                    queued,
                    last: entries.last().map(|entry| entry.log_id.index),
                });
            }
            Task::Vote { vote, done } => {
                write.batch.put(codec::VOTE, codec::to_bytes(&vote));
                write.done.push(Done::Waited(done));
            }
            Task::Committed(committed) => {
                write
                    .batch
                    .put(codec::COMMITTED, codec::to_bytes(&committed));
            }
            Task::Truncate { from, done } => {
                let (from, end) = (codec::key(from), codec::after_entries());
                write.batch.delete_range(&from[..], &end[..]);
                write.done.push(Done::Waited(done));
            }
            Task::Purge(upto) => {
                fault::point(Point::PurgeBegun);
                let (first, end) = (codec::key(0), codec::key(upto.index.saturating_add(1)));
                write.batch.put(codec::PURGED, codec::to_bytes(&upto));
                write.batch.delete_range(&first[..], &end[..]);
                write.purged = Some(upto);
            }
        }
    }
    Some(write)
}

fn free_files(shared: &Shared, upto: LogId) {
    let Some(db) = shared.db.get() else { return };
    if let Err(error) = db.delete_file_in_range(codec::key(0), codec::key(upto.index)) {
        tracing::warn!(%error, "files of the log's purged part are left for later");
    }
    fault::point(Point::PurgeDone);
}

/// After so many failures of one write the database is opened again: it may have given up for good.
const REOPEN_AFTER: u32 = 2;

/// Every write is synced before the next one begins, so that what is found behind a damaged one proves that it
/// was whole on disk once (see `wal`).
fn write_batch(shared: &Shared, batch: WriteBatch) -> bool {
    let data = batch.data().to_vec();
    let mut first = Some(batch);
    let mut options = WriteOptions::default();
    options.set_sync(true);
    shared.disk.insist(
        Site::Log,
        "Raft's log",
        || shared.queue.is_stopped(),
        |failed| {
            if failed >= REOPEN_AFTER || shared.db.get().is_none() {
                shared.db.reopen().map_err(|error| error.to_string())?;
            }
            let batch = first.take().unwrap_or_else(|| WriteBatch::from_data(&data));
            let db = shared.db.get().ok_or("it is closed")?;
            db.write_opt(batch, &options)
                .map_err(|error| error.to_string())
        },
    )
}

fn answer(shared: &Shared, done: Vec<Done>) {
    for done in done {
        match done {
            Done::Appended {
                callback,
                era,
                queued,
                last,
            } => {
                shared
                    .metrics
                    .append
                    .observe(queued.elapsed().as_secs_f64());
                if let Some(last) = last {
                    shared.tail.write().flushed(era, last);
                }
                callback.io_completed(Ok(()));
            }
            Done::Waited(sender) => {
                // Whoever waited may have been cancelled.
                let _ = sender.send(());
            }
        }
    }
}
