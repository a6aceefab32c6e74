//! The replicated state: applied entries in a database, readable at any time.
//!
//! ```text
//!              entries                     Reader, Watch
//!  Raft ──> Machine ──> State::apply          │
//!                         │ Draft (apply)     │ snapshot reads (read)
//!                         v                   v
//!                       RocksDB: schema ──────┘
//!                         │ one unsynced batch with `applied`
//!                         ├──> Window, Observer, waiting writers: in this order
//! ```

mod apply;
mod generation;
mod leases;
mod machine;
mod read;
mod schema;
mod sweep;
#[cfg(test)]
mod tests;
mod view;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use openraft::EntryPayload;
use parking_lot::Mutex;
use rocksdb::{Cache, Direction, IteratorMode, WriteBatch, WriteOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Tuning;
use crate::db::Disk;
use crate::error::OpenError;
use crate::metrics::Metrics;
use crate::observer::Observer;
use crate::pending::Pending;
use crate::raft::{Entry, LogId, SnapshotMeta, StoredMembership, term_of};
use crate::types::{Revision, Term};
use crate::watch::Window;
use apply::{ApplyError, Draft, Working};
use generation::Generation;
use schema::{Damaged, Meta};

pub(crate) use apply::{Answer, OriginState, Settled};
pub(crate) use machine::{Machine, SnapshotData};
pub use read::Reader;
pub(crate) use schema::Remembered;
pub(crate) use view::{Incoming, View};

/// How far the state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    pub revision: Revision,
    pub compacted: Revision,
    /// Index of the last applied entry, 0 if none.
    pub index: u64,
    /// Term of the last applied entry.
    pub term: Term,
}

/// What the state needs of the rest.
pub(crate) struct Context {
    pub tuning: Tuning,
    pub cache: Cache,
    pub disk: Arc<Disk>,
    pub metrics: Arc<Metrics>,
    pub pending: Arc<Pending>,
    pub stop: CancellationToken,
}

/// The state. Applying and installing take `applier`; reading takes no lock.
pub(crate) struct State {
    dir: PathBuf,
    context: Context,
    generation: ArcSwap<Generation>,
    applier: Mutex<Applier>,
    progress: watch::Sender<Progress>,
    window: Window,
}

struct Applier {
    /// `None` once the store is closed: an observer may hold a [`Reader`], and that would be a circle.
    observer: Option<Arc<dyn Observer>>,
    work: Working,
    membership: StoredMembership,
    /// Everything up to here survives a crash without the log.
    durable: Option<LogId>,
}

impl Applier {
    fn load(generation: &Generation, observer: Option<Arc<dyn Observer>>) -> Result<Self, Damaged> {
        let meta = generation.meta()?;
        let work = load_working(generation, meta)?;
        Ok(Self {
            observer,
            work,
            membership: generation.membership()?,
            durable: meta.applied,
        })
    }
}

impl State {
    /// Opens the state and tells the observer.
    pub fn open(
        dir: &Path,
        context: Context,
        observer: Arc<dyn Observer>,
    ) -> Result<Arc<Self>, OpenError> {
        let generation = Generation::open(dir, &context.tuning, &context.cache)?;
        let damaged = |error: Damaged| OpenError::Damaged {
            path: dir.to_owned(),
            detail: error.to_string(),
        };
        let applier = Applier::load(&generation, Some(observer.clone())).map_err(damaged)?;
        let progress = progress(&applier.work.meta);
        let state = Arc::new(Self {
            dir: dir.to_owned(),
            window: Window::new(progress.revision, context.tuning.window_bytes),
            context,
            generation: ArcSwap::from_pointee(generation),
            applier: Mutex::new(applier),
            progress: watch::Sender::new(progress),
        });
        observer.reset(&Reader::new(state.clone()));
        Ok(state)
    }

    /// Lets go of the observer.
    pub fn close(&self) {
        self.applier.lock().observer = None;
    }

    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub fn revision(&self) -> Revision {
        self.progress.borrow().revision
    }

    pub fn window(&self) -> &Window {
        &self.window
    }

    pub fn stop(&self) -> &CancellationToken {
        &self.context.stop
    }

    pub fn generation(&self) -> Arc<Generation> {
        self.generation.load_full()
    }

    pub fn compacted(&self) -> Revision {
        self.progress.borrow().compacted
    }

    /// The cluster's clock as of the last entry, and when the next lease ends.
    pub fn clock(&self) -> (u64, Option<u64>) {
        let applier = self.applier.lock();
        (applier.work.meta.clock_ms, applier.work.leases.next_end())
    }

    /// The last applied entry and the membership then.
    pub fn applied(&self) -> (Option<LogId>, StoredMembership) {
        let applier = self.applier.lock();
        (applier.work.meta.applied, applier.membership.clone())
    }

    /// Applies entries in one write. Blocks.
    pub fn apply(&self, entries: &[Entry]) -> Result<(), ApplyError> {
        let started = Instant::now();
        let mut applier = self.applier.lock();
        let generation = self.generation();
        let Applier {
            observer,
            work,
            membership,
            ..
        } = &mut *applier;
        let mut draft = Draft::new(&generation.db, self.context.pending.me(), work);
        let mut new_membership = None;
        for entry in entries {
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(pack) => draft.pack(term_of(&entry.log_id), pack)?,
                EntryPayload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                    draft
                        .batch
                        .put(schema::MEMBERSHIP, schema::to_bytes(&stored));
                    new_membership = Some(stored);
                }
            }
        }
        let Draft {
            mut batch,
            events,
            settled,
            ..
        } = draft;
        if let Some(stored) = new_membership {
            *membership = stored;
        }
        if let Some(last) = entries.last() {
            work.meta.applied = Some(last.log_id);
        }
        batch.put(schema::META, schema::to_bytes(&work.meta));
        self.write(&generation, batch)?;
        let progress = progress(&work.meta);
        // The order is a promise: database, watches, observer, then whoever waits for the outcome.
        for (revision, events) in events {
            if let Some(observer) = observer {
                observer.applied(revision, &events);
            }
            self.window.push(revision, events);
        }
        self.context
            .metrics
            .applied(entries.len(), started.elapsed(), progress.revision);
        self.progress.send_replace(progress);
        for settled in settled {
            self.context.pending.settle(settled);
        }
        drop(applier);
        Ok(())
    }

    fn write(&self, generation: &Generation, batch: WriteBatch) -> Result<(), rocksdb::Error> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        let data = batch.data().to_vec();
        let (mut first, mut last_error) = (Some(batch), None);
        let written = self.context.disk.insist(
            "the state",
            || self.context.stop.is_cancelled(),
            || {
                let batch = first.take().unwrap_or_else(|| WriteBatch::from_data(&data));
                generation
                    .db
                    .write_opt(batch, &options)
                    .inspect_err(|error| last_error = Some(error.clone()))
            },
        );
        match last_error {
            Some(error) if !written => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes what is applied survive a crash without the log, so that the log may be cut. Blocks.
    pub fn make_durable(&self) -> Result<(), rocksdb::Error> {
        let (generation, applied) = {
            let applier = self.applier.lock();
            if applier.durable == applier.work.meta.applied {
                return Ok(());
            }
            (self.generation(), applier.work.meta.applied)
        };
        generation.db.flush()?;
        let mut applier = self.applier.lock();
        if Arc::ptr_eq(&generation, &self.generation.load()) {
            applier.durable = applier.durable.max(applied);
        }
        Ok(())
    }

    /// A consistent view of everything, and what it covers.
    pub fn view(&self) -> std::io::Result<(SnapshotMeta, View)> {
        let applier = self.applier.lock();
        let view = View::open(self.generation())?;
        let meta = SnapshotMeta {
            last_log_id: applier.work.meta.applied,
            last_membership: applier.membership.clone(),
        };
        Ok((meta, view))
    }

    /// A place to receive a snapshot in. Blocks.
    pub fn incoming(&self) -> Result<Incoming, OpenError> {
        Incoming::create(&self.dir, &self.context.tuning, &self.context.cache)
    }

    /// Replaces everything by a received snapshot. Blocks.
    pub fn install(
        self: &Arc<Self>,
        meta: &SnapshotMeta,
        received: Incoming,
    ) -> Result<(), OpenError> {
        let path = received.finish(meta)?;
        let mut applier = self.applier.lock();
        let old = self.generation();
        let new = old.succeed(&path, &self.context.tuning, &self.context.cache)?;
        let damaged = |error: Damaged| OpenError::Damaged {
            path,
            detail: error.to_string(),
        };
        let observer = applier.observer.clone();
        *applier = Applier::load(&new, observer.clone()).map_err(damaged)?;
        self.generation.store(Arc::new(new));
        let progress = progress(&applier.work.meta);
        self.window.reset(progress.revision);
        self.progress.send_replace(progress);
        if let Some(observer) = observer {
            observer.reset(&Reader::new(self.clone()));
        }
        if let Some(origin) = applier.work.origins.get(&self.context.pending.me().member) {
            self.context.pending.recover(origin);
        }
        drop(applier);
        old.remove();
        Ok(())
    }

    /// Bytes of the database's files.
    pub fn disk_bytes(&self) -> u64 {
        self.generation.load().disk_bytes()
    }
}

fn progress(meta: &Meta) -> Progress {
    Progress {
        revision: meta.revision,
        compacted: meta.compacted,
        index: meta.applied.map_or(0, |applied| applied.index),
        term: meta.applied.map_or(0, |applied| term_of(&applied)),
    }
}

fn load_working(generation: &Generation, meta: Meta) -> Result<Working, Damaged> {
    let mut work = Working {
        meta,
        ..Working::default()
    };
    scan(generation, schema::LEASES, |lease, _, value| {
        work.leases.grant(lease, schema::from_bytes(value)?);
        Ok(())
    })?;
    scan(generation, schema::ATTACHED, |lease, key, _| {
        work.leases
            .attach(lease, bytes::Bytes::copy_from_slice(key));
        Ok(())
    })?;
    scan(generation, schema::ORIGINS, |member, _, value| {
        work.origins.entry(member).or_default().life = schema::from_bytes(value)?;
        Ok(())
    })?;
    scan(generation, schema::BATCHES, |member, seq, value| {
        let seq = seq
            .try_into()
            .map_err(|_| Damaged("a batch's key is cut short".into()))?;
        let remembered = schema::from_bytes(value)?;
        work.origins
            .entry(member)
            .or_default()
            .batches
            .insert(u64::from_be_bytes(seq), remembered);
        Ok(())
    })?;
    Ok(work)
}

/// Visits all records whose keys are a tag, a number and perhaps more.
fn scan(
    generation: &Generation,
    tag: u8,
    mut visit: impl FnMut(u64, &[u8], &[u8]) -> Result<(), Damaged>,
) -> Result<(), Damaged> {
    for item in generation
        .db
        .iterator(IteratorMode::From(&[tag], Direction::Forward))
    {
        let (key, value) = item.map_err(|error| Damaged(error.to_string()))?;
        if key.first() != Some(&tag) {
            break;
        }
        let (number, rest) =
            schema::number(tag, &key).ok_or_else(|| Damaged("a key is cut short".into()))?;
        visit(number, rest, &value)?;
    }
    Ok(())
}
