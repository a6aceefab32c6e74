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
#[cfg(test)]
mod arbitrary;
mod check;
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
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use openraft::EntryPayload;
use parking_lot::Mutex;
use rocksdb::{Cache, Direction, ErrorKind, IteratorMode, WriteBatch, WriteOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::command::{Malformed, Opened};
use crate::config::Tuning;
use crate::db::Disk;
use crate::error::OpenError;
use crate::fault::{self, Point, Site};
use crate::metrics::Metrics;
use crate::observer::Observer;
use crate::pending::Pending;
use crate::raft::{Entry, LogId, SnapshotMeta, StoredMembership, term_of};
use crate::threads;
use crate::types::{Revision, Term};
use crate::watch::Window;
use apply::{ApplyError, Draft, Finished, Working};
use generation::Generation;
use schema::{Damaged, Meta};

pub(crate) use apply::{Answer, OriginState, Settled};
pub(crate) use check::{StateChecker, StateFacts};
pub(crate) use machine::{Machine, SnapshotData};
pub use read::Reader;
pub(crate) use schema::Remembered;
pub(crate) use view::{Incoming, View, count_pairs, last_key};

/// After so many failures of one write the state is copied to a new database.
const MOVE_AFTER: u32 = 6;
/// An interrupted snapshot can be gone on with for so long.
const SENT_AGAIN: Duration = Duration::from_secs(120);
/// A view that nobody has begun to read is kept for so long.
const UNUSED: Duration = Duration::from_secs(5);

/// How far the state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    pub revision: Revision,
    pub compacted: Revision,
    /// Index of the last applied entry, 0 if none.
    pub index: u64,
    /// Term of the last applied entry.
    pub term: Term,
    /// The cluster's clock as of the last entry, in milliseconds.
    pub clock_ms: u64,
    /// When the next lease ends, by that clock.
    pub next_end_ms: Option<u64>,
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
    outgoing: Mutex<Option<(SnapshotMeta, View, Instant)>>,
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

/// The packs of entries that have one.
fn opened(entries: &[Entry]) -> Result<Vec<Option<Opened>>, Malformed> {
    let open = |entry: &Entry| match &entry.payload {
        EntryPayload::Normal(pack) => pack.open().map(Some),
        EntryPayload::Blank | EntryPayload::Membership(_) => Ok(None),
    };
    entries.iter().map(open).collect()
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
        let progress = progress(&applier.work);
        let state = Arc::new(Self {
            dir: dir.to_owned(),
            window: Window::new(progress.revision, context.tuning.window_bytes),
            context,
            generation: ArcSwap::from_pointee(generation),
            applier: Mutex::new(applier),
            progress: watch::Sender::new(progress),
            outgoing: Mutex::default(),
        });
        observer.reset(&Reader::new(state.clone()));
        Ok(state)
    }

    /// Nothing was ever applied.
    pub fn is_blank(&self) -> bool {
        self.progress.borrow().index == 0 && self.revision() <= 1
    }

    /// Lets go of the observer.
    pub fn close(&self) {
        self.applier.lock().observer = None;
        *self.outgoing.lock() = None;
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

    pub fn metrics(&self) -> &Metrics {
        &self.context.metrics
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
        let progress = self.progress.borrow();
        (progress.clock_ms, progress.next_end_ms)
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
        fault::point(Point::ApplyBegun);
        let packs = opened(entries)?;
        let mut draft = Draft::new(&generation.db, self.context.pending.me(), work);
        draft.look_up(packs.iter().flatten())?;
        let mut new_membership = None;
        for (entry, pack) in entries.iter().zip(packs) {
            match (&entry.payload, pack) {
                (EntryPayload::Blank | EntryPayload::Normal(_), None) => {}
                (_, Some(pack)) => draft.pack(term_of(&entry.log_id), pack)?,
                (EntryPayload::Membership(membership), None) => {
                    let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                    draft
                        .batch
                        .put(schema::MEMBERSHIP, schema::to_bytes(&stored));
                    new_membership = Some(stored);
                }
            }
        }
        let Finished {
            mut batch,
            events,
            settled,
        } = draft.finish();
        if let Some(stored) = new_membership {
            *membership = stored;
        }
        if let Some(last) = entries.last() {
            work.meta.applied = Some(last.log_id);
        }
        batch.put(schema::META, schema::to_bytes(&work.meta));
        self.write(batch)?;
        fault::point(Point::ApplyWritten);
        let progress = progress(work);
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

    /// Writes what was applied. Called with the applier locked.
    fn write(&self, batch: WriteBatch) -> Result<(), ApplyError> {
        let options = || {
            let mut options = WriteOptions::default();
            options.disable_wal(true);
            options
        };
        let mut at_once = options();
        at_once.set_no_slowdown(true);
        let data = batch.data().to_vec();
        let mut first = Some(batch);
        let written = self.context.disk.insist(
            Site::State,
            "the state",
            || self.context.stop.is_cancelled(),
            |failed| {
                if failed >= MOVE_AFTER {
                    self.move_on()?;
                }
                let db = &self.generation().db;
                let batch = first.take().unwrap_or_else(|| WriteBatch::from_data(&data));
                let mut written = db.write_opt(batch, &at_once);
                if matches!(&written, Err(error) if error.kind() == ErrorKind::Incomplete) {
                    // RocksDB would wait until it has flushed something: Raft's heartbeats must not.
                    let batch = WriteBatch::from_data(&data);
                    written = threads::aside(|| db.write_opt(batch, &options()));
                }
                written.map_err(|error| error.to_string())
            },
        );
        if written {
            Ok(())
        } else {
            Err(ApplyError::Stopped)
        }
    }

    /// Makes what is applied survive a crash without the log, so that the log may be cut. Blocks; tries until
    /// the disk takes it.
    ///
    /// # Errors
    /// The store stops.
    pub fn make_durable(&self) -> Result<(), ApplyError> {
        let mut flushed = None;
        let done = self.context.disk.insist(
            Site::Flush,
            "the state to its files",
            || self.context.stop.is_cancelled(),
            |failed| {
                let (generation, applied) = {
                    let applier = self.applier.lock();
                    if failed >= MOVE_AFTER {
                        self.move_on()?;
                    }
                    let applied = applier.work.meta.applied;
                    if applier.durable == applied {
                        return Ok::<_, String>(());
                    }
                    (self.generation(), applied)
                };
                fault::point(Point::FlushBegun);
                generation.db.flush().map_err(|error| error.to_string())?;
                fault::point(Point::FlushDone);
                flushed = Some((generation, applied));
                Ok(())
            },
        );
        if !done {
            return Err(ApplyError::Stopped);
        }
        if let Some((generation, applied)) = flushed {
            let mut applier = self.applier.lock();
            if Arc::ptr_eq(&generation, &self.generation.load()) {
                applier.durable = applier.durable.max(applied);
            }
        }
        Ok(())
    }

    /// Copies the state into a new generation: after some failures of the disk RocksDB reads on, but takes no
    /// writes from then on, however well the disk is. Called with the applier locked.
    fn move_on(&self) -> Result<(), String> {
        let old = self.generation();
        let copied = self.incoming().map_err(|error| error.to_string())?;
        let copied = copied.copy_of(&old).map_err(|error| error.to_string())?;
        copied.flush().map_err(|error| error.to_string())?;
        let new = old
            .succeed(&copied.close(), &self.context.tuning, &self.context.cache)
            .map_err(|error| error.to_string())?;
        tracing::warn!("the state's database had failed for good: it was copied to a new one");
        self.generation.store(Arc::new(new));
        old.remove();
        Ok(())
    }

    /// A consistent view of everything, and what it covers. Blocks.
    pub fn view(&self) -> std::io::Result<(SnapshotMeta, View)> {
        let applier = self.applier.lock();
        let view = View::open(self.generation())?;
        let meta = SnapshotMeta {
            last_log_id: applier.work.meta.applied,
            last_membership: applier.membership.clone(),
        };
        Ok((meta, view))
    }

    /// The same, to be sent to a member: for some time it is the same one again, so that a member that was
    /// interrupted goes on where it was. Blocks.
    pub fn view_to_send(&self) -> std::io::Result<(SnapshotMeta, View)> {
        let mut outgoing = self.outgoing.lock();
        if let Some((meta, view, since)) = &*outgoing
            && view.is_used()
            && since.elapsed() < SENT_AGAIN
        {
            return Ok((meta.clone(), view.clone()));
        }
        let (meta, view) = self.view()?;
        *outgoing = Some((meta.clone(), view.clone(), Instant::now()));
        Ok((meta, view))
    }

    /// The last entry of the snapshot that is being sent, if one is: whoever receives it needs the log from
    /// there on.
    pub fn sending(&self) -> Option<u64> {
        let mut outgoing = self.outgoing.lock();
        let kept = outgoing.take().filter(|(_, view, since)| {
            let longest = if view.is_used() { SENT_AGAIN } else { UNUSED };
            since.elapsed() < longest
        });
        let last = kept.as_ref().filter(|(_, view, _)| view.is_used());
        let last = last.map(|(meta, _, _)| meta.last_log_id.map_or(0, |last| last.index));
        *outgoing = kept;
        last
    }

    /// A place to receive a snapshot in. Blocks.
    pub fn incoming(&self) -> Result<Incoming, OpenError> {
        let Context {
            tuning,
            cache,
            disk,
            ..
        } = &self.context;
        Incoming::create(&self.dir, tuning, cache, disk.clone())
    }

    /// Replaces everything by a received snapshot. Blocks; tries until the disk takes it.
    pub fn install(
        self: &Arc<Self>,
        meta: &SnapshotMeta,
        received: Incoming,
    ) -> Result<(), OpenError> {
        received.check(meta)?;
        let stopped = || self.context.stop.is_cancelled();
        let disk = &self.context.disk;
        if !disk.insist(Site::Install, "a snapshot", stopped, |_| received.flush()) {
            return Err(OpenError::Raft("the store stops".into()));
        }
        fault::point(Point::InstallReceived);
        let path = received.close();
        let mut applier = self.applier.lock();
        let old = self.generation();
        let mut new = None;
        let installed = disk.insist(Site::Install, "a snapshot", stopped, |_| {
            let (tuning, cache) = (&self.context.tuning, &self.context.cache);
            new = Some(old.succeed(&path, tuning, cache)?);
            Ok::<_, OpenError>(())
        });
        let Some(new) = new.filter(|_| installed) else {
            return Err(OpenError::Raft("the store stops".into()));
        };
        let damaged = |error: Damaged| OpenError::Damaged {
            path,
            detail: error.to_string(),
        };
        let observer = applier.observer.clone();
        *applier = Applier::load(&new, observer.clone()).map_err(damaged)?;
        self.generation.store(Arc::new(new));
        *self.outgoing.lock() = None;
        let progress = progress(&applier.work);
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

    /// Makes the state that of a new cluster with another membership, its revision so much later. All history
    /// is given up if the revision changes. Returns the revision. Blocks; only for a state without Raft.
    pub fn rebear(
        &self,
        membership: StoredMembership,
        bump: Revision,
    ) -> Result<Revision, rocksdb::Error> {
        let mut applier = self.applier.lock();
        let meta = &mut applier.work.meta;
        if bump > 0 {
            meta.revision = meta.revision.saturating_add(bump);
            meta.compacted = meta.revision;
        }
        let mut batch = WriteBatch::default();
        batch.put(schema::META, schema::to_bytes(&*meta));
        batch.put(schema::MEMBERSHIP, schema::to_bytes(&membership));
        let revision = meta.revision;
        let generation = self.generation();
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        generation.db.write_opt(batch, &options)?;
        generation.db.flush()?;
        Ok(revision)
    }

    /// Bytes of the database's files.
    pub fn disk_bytes(&self) -> u64 {
        self.generation.load().disk_bytes()
    }
}

fn progress(work: &Working) -> Progress {
    let meta = &work.meta;
    Progress {
        revision: meta.revision,
        compacted: meta.compacted,
        index: meta.applied.map_or(0, |applied| applied.index),
        term: meta.applied.map_or(0, |applied| term_of(&applied)),
        clock_ms: meta.clock_ms,
        next_end_ms: work.leases.next_end(),
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
        let origin = work.origins.entry(member).or_default();
        (origin.life, origin.settled) = schema::read_origin(value)?;
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
