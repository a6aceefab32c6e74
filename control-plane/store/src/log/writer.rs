//! The one thread that writes the log: drain the queue, one batch, one sync, answers in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex};
use rocksdb::{WriteBatch, WriteOptions};
use tokio::sync::{Notify, oneshot};

use super::{Shared, codec};
use crate::raft::{Entry, LogId, Types, Vote};

/// Appends wait while this many bytes are queued.
const QUEUE_BYTES: usize = 64 << 20;

pub(super) enum Task {
    Append {
        entries: Vec<Entry>,
        bytes: usize,
        era: u64,
        callback: IOFlushed<Types>,
    },
    Vote {
        vote: Vote,
        done: oneshot::Sender<()>,
    },
    /// Not synced: a hint for the next start.
    Committed(LogId),
    /// Cut entries from an index on.
    Truncate {
        from: u64,
        done: oneshot::Sender<()>,
    },
    /// Cut entries up to one. Not synced: done again if it is lost.
    Purge(LogId),
}

/// What waits to be written, in order.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    drained: Notify,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
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
        if let Task::Append { bytes, .. } = &task {
            state.bytes += bytes;
        }
        state.tasks.push_back(task);
        drop(state);
        self.filled.notify_one();
    }

    /// Waits for tasks; `None` once stopped and empty.
    fn drain(&self) -> Option<VecDeque<Task>> {
        let mut state = self.state.lock();
        while state.tasks.is_empty() {
            if state.stopped {
                return None;
            }
            self.filled.wait(&mut state);
        }
        state.bytes = 0;
        let tasks = std::mem::take(&mut state.tasks);
        drop(state);
        self.drained.notify_waiters();
        Some(tasks)
    }

    fn stop(&self) {
        self.state.lock().stopped = true;
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }
}

/// The thread. Dropping it stops it, after what is queued is written.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub fn start(shared: Arc<Shared>) -> std::io::Result<Self> {
        let mine = shared.clone();
        let thread = std::thread::Builder::new()
            .name("store-log".into())
            .spawn(move || {
                crate::threads::raise_priority();
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

enum Done {
    Appended {
        callback: IOFlushed<Types>,
        era: u64,
        last: Option<u64>,
    },
    Waited(oneshot::Sender<()>),
}

/// Writes what was drained; `false` if it could not be before the stop.
fn write(shared: &Shared, tasks: VecDeque<Task>) -> bool {
    let started = Instant::now();
    let (mut batch, mut done, mut sync) = (
        WriteBatch::default(),
        Vec::with_capacity(tasks.len()),
        false,
    );
    let mut purged = None;
    for task in tasks {
        match task {
            Task::Append {
                entries,
                era,
                callback,
                ..
            } => {
                for entry in &entries {
                    match codec::encode_entry(entry) {
                        Ok(bytes) => batch.put(codec::key(entry.log_id.index), bytes),
                        Err(error) => {
                            callback.io_completed(Err(std::io::Error::other(error)));
                            return false;
                        }
                    }
                }
                sync = true;
                done.push(Done::Appended {
                    callback,
                    era,
                    last: entries.last().map(|entry| entry.log_id.index),
                });
            }
            Task::Vote { vote, done: sender } => {
                batch.put(codec::VOTE, codec::to_bytes(&vote));
                sync = true;
                done.push(Done::Waited(sender));
            }
            Task::Committed(committed) => batch.put(codec::COMMITTED, codec::to_bytes(&committed)),
            Task::Truncate { from, done: sender } => {
                batch.delete_range(&codec::key(from)[..], &codec::after_entries()[..]);
                sync = true;
                done.push(Done::Waited(sender));
            }
            Task::Purge(upto) => {
                batch.put(codec::PURGED, codec::to_bytes(&upto));
                batch.delete_range(
                    &codec::key(0)[..],
                    &codec::key(upto.index.saturating_add(1))[..],
                );
                purged = Some(upto);
            }
        }
    }
    shared.metrics.log_batch_bytes(batch.size_in_bytes());
    if !write_batch(shared, batch, sync) {
        return false;
    }
    if sync {
        shared
            .metrics
            .fsync
            .observe(started.elapsed().as_secs_f64());
    }
    answer(shared, done);
    if let Some(upto) = purged
        && let Err(error) = shared
            .db
            .delete_file_in_range(codec::key(0), codec::key(upto.index))
    {
        tracing::warn!(%error, "files of the log's purged part are left for later");
    }
    true
}

fn write_batch(shared: &Shared, batch: WriteBatch, sync: bool) -> bool {
    let data = batch.data().to_vec();
    let mut first = Some(batch);
    let mut options = WriteOptions::default();
    options.set_sync(sync);
    shared.disk.insist(
        "Raft's log",
        || shared.queue.is_stopped(),
        || {
            let batch = first.take().unwrap_or_else(|| WriteBatch::from_data(&data));
            shared.db.write_opt(batch, &options)
        },
    )
}

fn answer(shared: &Shared, done: Vec<Done>) {
    for done in done {
        match done {
            Done::Appended {
                callback,
                era,
                last,
            } => {
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
