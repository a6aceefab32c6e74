//! Applying entries: the only place where the state changes. It must come to the same result on every
//! member, so nothing here may look at a clock, draw a random number or depend on the order of a hash map.

use std::collections::BTreeMap;

use bytes::Bytes;
use rocksdb::{DB, WriteBatch};

use super::leases::Leases;
use super::schema::{self, Change, Damaged, Meta, Old, Record, Remembered};
use crate::command::{Batch, Command, Malformed, Opened, Origin};
use crate::db;
use crate::error::Error;
use crate::fault::{self, Break};
use crate::types::{Event, LeaseId, MemberId, Op, Revision, Term, Txn, TxnOutcome};

/// The most keys of ended leases that one tick deletes; the rest waits for the next.
const TICK_KEYS: usize = 2_000;

/// What a command answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Txn(TxnOutcome),
    Lease(LeaseId),
    Done,
}

/// What came of one batch of this member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settled {
    Applied {
        seq: u64,
        answers: Vec<Result<Answer, Error>>,
    },
    /// The batch came from an earlier life than others have seen: it is void.
    Void { seq: u64, life: u64 },
}

/// Batches of a member that may still be sent again, and what came of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OriginState {
    pub life: u64,
    pub settled: u64,
    pub batches: BTreeMap<u64, Vec<Remembered>>,
}

/// The state that applying needs in memory; all of it is also on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Working {
    pub meta: Meta,
    pub leases: Leases,
    pub origins: BTreeMap<MemberId, OriginState>,
}

/// Why applying cannot go on. The state on disk is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Damaged(#[from] Damaged),
    #[error("the state's database: {0}")]
    Database(#[from] rocksdb::Error),
    #[error("the store stops")]
    Stopped,
}

/// Changes that are decided but not written yet.
///
/// Keys and old versions are written in order, each kind together: RocksDB inserts what follows closely with a part of
/// the comparisons, and a key that changes several times is written once.
pub(crate) struct Draft<'a> {
    db: &'a DB,
    me: Origin,
    work: &'a mut Working,
    /// Keys as they were before, in order: those of [`Draft::look_up`].
    found: Vec<(Bytes, Option<Record>)>,
    /// Keys as they are now, if they changed.
    changed: BTreeMap<Bytes, Option<Record>>,
    /// `V` records.
    versions: Vec<(Vec<u8>, Vec<u8>)>,
    /// Everything else.
    pub batch: WriteBatch,
    events: Vec<(Revision, Vec<Event>)>,
    settled: Vec<Settled>,
}

/// A [`Draft`] to be written.
pub(crate) struct Finished {
    pub batch: WriteBatch,
    pub events: Vec<(Revision, Vec<Event>)>,
    pub settled: Vec<Settled>,
}

impl<'a> Draft<'a> {
    pub fn new(db: &'a DB, me: Origin, work: &'a mut Working) -> Self {
        Self {
            db,
            me,
            work,
            found: Vec::new(),
            changed: BTreeMap::new(),
            versions: Vec::new(),
            batch: WriteBatch::default(),
            events: Vec::new(),
            settled: Vec::new(),
        }
    }

    /// What is to be written, and whom to tell of it.
    pub fn finish(mut self) -> Finished {
        self.versions.sort_unstable();
        for (key, version) in &self.versions {
            self.batch.put(key, version);
        }
        for (key, record) in &self.changed {
            match record {
                Some(record) => self.batch.put(schema::current(key), record.encode()),
                None => self.batch.delete(schema::current(key)),
            }
        }
        Finished {
            batch: self.batch,
            events: self.events,
            settled: self.settled,
        }
    }

    /// Reads all keys that packs compare or change at once, which costs about half of reading them one by one: RocksDB
    /// goes through its files once, and keys that are close share a block.
    pub fn look_up<'p>(
        &mut self,
        packs: impl Iterator<Item = &'p Opened>,
    ) -> Result<(), ApplyError> {
        let mut keys: Vec<_> = packs.flat_map(Opened::keys).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        let stored: Vec<_> = keys.iter().map(|key| schema::current(key)).collect();
        let records = db::get_many(self.db, &stored);
        self.found.reserve_exact(keys.len());
        for (key, bytes) in keys.into_iter().zip(records) {
            let record = bytes?.map(|bytes| Record::decode(&bytes)).transpose()?;
            self.found.push((key, record));
        }
        Ok(())
    }

    /// Applies the pack of one entry.
    pub fn pack(&mut self, term: Term, pack: Opened) -> Result<(), ApplyError> {
        self.work.meta.clock_ms = self.work.meta.clock_ms.max(pack.time_ms);
        for batch in pack.batches {
            self.one_batch(term, batch)?;
        }
        Ok(())
    }

    fn one_batch(&mut self, term: Term, batch: Batch) -> Result<(), ApplyError> {
        let Batch {
            origin,
            seq,
            settled,
            commands,
        } = batch;
        if !self.first_time(origin, seq, settled) {
            return Ok(());
        }
        let mine = origin == self.me;
        let mut answers = Vec::with_capacity(commands.len());
        for command in commands {
            answers.push(self.command(term, command, mine)?);
        }
        let remembered: Vec<_> = answers.iter().map(remember).collect();
        self.batch.put(
            schema::batch(origin.member, seq),
            schema::to_bytes(&remembered),
        );
        self.work
            .origins
            .entry(origin.member)
            .or_default()
            .batches
            .insert(seq, remembered);
        if mine {
            self.settled.push(Settled::Applied { seq, answers });
        }
        Ok(())
    }

    /// Whether a batch is to be applied: not if it was before, or comes from a member's earlier life.
    fn first_time(&mut self, origin: Origin, seq: u64, settled: u64) -> bool {
        let state = self.work.origins.entry(origin.member).or_default();
        if origin.life < state.life {
            if origin == self.me {
                self.settled.push(Settled::Void {
                    seq,
                    life: state.life,
                });
            }
            return false;
        }
        let forget_to = if origin.life > state.life {
            u64::MAX
        } else {
            settled
        };
        while let Some(entry) = state.batches.first_entry()
            && *entry.key() < forget_to
        {
            self.batch
                .delete(schema::batch(origin.member, *entry.key()));
            entry.remove();
        }
        let before = (state.life, state.settled);
        if origin.life > state.life {
            *state = OriginState {
                life: origin.life,
                ..OriginState::default()
            };
        }
        state.settled = state.settled.max(settled);
        // On disk as well: a late copy of a settled batch must not count as new on a member that was started again.
        if (state.life, state.settled) != before {
            self.batch.put(
                schema::numbered(schema::ORIGINS, origin.member),
                schema::origin(state.life, state.settled),
            );
        }
        if fault::broken(Break::ApplyAgain) {
            return true;
        }
        seq >= state.settled && !state.batches.contains_key(&seq)
    }

    fn command(
        &mut self,
        term: Term,
        command: Command,
        mine: bool,
    ) -> Result<Result<Answer, Error>, ApplyError> {
        Ok(match command {
            Command::Txn(txn) => self.txn(term, txn, mine)?.map(Answer::Txn),
            Command::Grant { ttl_ms } => Ok(Answer::Lease(self.grant(ttl_ms))),
            Command::Revoke { lease } => {
                while !self.end_lease(lease, TICK_KEYS)?.1 {}
                Ok(Answer::Done)
            }
            Command::Compact { to } => {
                let meta = &mut self.work.meta;
                meta.compacted = meta.compacted.max(to.min(meta.revision.saturating_sub(1)));
                Ok(Answer::Done)
            }
            Command::Tick => {
                self.tick()?;
                Ok(Answer::Done)
            }
        })
    }

    fn txn(
        &mut self,
        term: Term,
        txn: Txn,
        mine: bool,
    ) -> Result<Result<TxnOutcome, Error>, ApplyError> {
        if let Some(fence) = txn.fence.filter(|fence| *fence != term) {
            return Ok(Err(Error::Fenced {
                fence,
                current: term,
            }));
        }
        let mut holds = true;
        let mut found = Vec::with_capacity(txn.compares.len());
        for compare in &txn.compares {
            let record = self.current(compare.key())?;
            holds &= compare.holds(record.as_ref().map(|record| record.modified));
            found.push(record);
        }
        if !holds {
            // Only whoever asked wants to know what was found.
            let found = if mine {
                txn.compares
                    .iter()
                    .zip(found)
                    .map(|(c, r)| with_key(c.key(), r))
                    .collect()
            } else {
                Vec::new()
            };
            return Ok(Ok(TxnOutcome::Refused {
                revision: self.work.meta.revision,
                found,
            }));
        }
        for op in &txn.ops {
            if let Op::Put {
                lease: Some(lease), ..
            } = op
                && !self.work.leases.exists(*lease)
            {
                return Ok(Err(Error::LeaseNotFound(*lease)));
            }
        }
        self.change(txn.ops)?;
        Ok(Ok(TxnOutcome::Committed {
            revision: self.work.meta.revision,
        }))
    }

    /// Carries out operations at the next revision, if they change anything.
    fn change(&mut self, ops: Vec<Op>) -> Result<(), ApplyError> {
        let mut revision = self.work.meta.revision + 1;
        if fault::broken(Break::SkipRevision) && revision.is_multiple_of(50) {
            revision += 1;
        }
        let mut events = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    events.push(self.put(revision, events.len(), key, value, lease)?)
                }
                Op::Delete { key } => events.extend(self.delete(revision, events.len(), key)?),
            }
        }
        if !events.is_empty() {
            self.work.meta.revision = revision;
            self.events.push((revision, events));
        }
        Ok(())
    }

    fn put(
        &mut self,
        revision: Revision,
        n: usize,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
    ) -> Result<Event, ApplyError> {
        let previous = self.current(&key)?;
        let record = Record {
            create: previous
                .as_ref()
                .map_or(revision, |previous| previous.create),
            modified: revision,
            version: previous.as_ref().map_or(1, |previous| previous.version + 1),
            lease,
            value,
        };
        self.keep_history(revision, n, &key, previous.as_ref(), false);
        if let Some(lease) = lease {
            self.batch.put(schema::attached(lease, &key), []);
            self.work.leases.attach(lease, key.clone());
        }
        let kv = record.with_key(key.clone());
        self.changed.insert(key.clone(), Some(record));
        Ok(Event::Put {
            kv,
            previous: with_key(&key, previous),
        })
    }

    fn delete(
        &mut self,
        revision: Revision,
        n: usize,
        key: Bytes,
    ) -> Result<Option<Event>, ApplyError> {
        let Some(previous) = self.current(&key)? else {
            return Ok(None);
        };
        self.keep_history(revision, n, &key, Some(&previous), true);
        self.changed.insert(key.clone(), None);
        let previous = previous.with_key(key.clone());
        Ok(Some(Event::Delete {
            key,
            revision,
            previous,
        }))
    }

    fn keep_history(
        &mut self,
        revision: Revision,
        n: usize,
        key: &Bytes,
        previous: Option<&Record>,
        deleted: bool,
    ) {
        if let Some(previous) = previous {
            self.versions.push((
                schema::version(key, previous.modified),
                Old::encode(previous, revision),
            ));
            if let Some(lease) = previous.lease {
                self.batch.delete(schema::attached(lease, key));
                self.work.leases.detach(lease, key);
            }
        }
        let change = Change {
            key: key.clone(),
            previous: previous.map(|previous| previous.modified),
            deleted,
        };
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.batch
            .put(schema::history(revision, n), schema::to_bytes(&change));
    }

    fn grant(&mut self, ttl_ms: u64) -> LeaseId {
        let lease = self.work.meta.next_lease;
        self.work.meta.next_lease += 1;
        let ends_ms = self.work.meta.clock_ms.saturating_add(ttl_ms);
        self.batch.put(
            schema::numbered(schema::LEASES, lease),
            schema::to_bytes(&ends_ms),
        );
        self.work.leases.grant(lease, ends_ms);
        lease
    }

    fn tick(&mut self) -> Result<(), ApplyError> {
        let mut left = TICK_KEYS;
        while left > 0
            && let Some(lease) = self.work.leases.due(self.work.meta.clock_ms)
        {
            let (deleted, _) = self.end_lease(lease, left)?;
            left = left.saturating_sub(deleted.max(1));
        }
        Ok(())
    }

    /// Deletes keys of a lease, and the lease with the last of them; returns how many, and whether it is gone.
    fn end_lease(&mut self, lease: LeaseId, limit: usize) -> Result<(usize, bool), ApplyError> {
        if !self.work.leases.exists(lease) {
            return Ok((0, true));
        }
        let (keys, all) = self.work.leases.keys(lease, limit);
        let deleted = keys.len();
        self.change(keys.into_iter().map(|key| Op::Delete { key }).collect())?;
        if all {
            self.batch.delete(schema::numbered(schema::LEASES, lease));
            self.work.leases.remove(lease);
        }
        Ok((deleted, all))
    }

    fn current(&self, key: &Bytes) -> Result<Option<Record>, ApplyError> {
        if let Some(record) = self.changed.get(key) {
            return Ok(record.clone());
        }
        if let Ok(at) = self.found.binary_search_by(|(found, _)| found.cmp(key)) {
            return Ok(self.found[at].1.clone());
        }
        match self.db.get_pinned(schema::current(key))? {
            Some(bytes) => Ok(Some(Record::decode(&bytes)?)),
            None => Ok(None),
        }
    }
}

fn with_key(key: &Bytes, record: Option<Record>) -> Option<crate::types::KeyValue> {
    record.map(|record| record.with_key(key.clone()))
}

fn remember(answer: &Result<Answer, Error>) -> Remembered {
    match answer {
        Ok(Answer::Txn(TxnOutcome::Committed { revision })) => Remembered::Committed(*revision),
        Ok(Answer::Lease(lease)) => Remembered::Lease(*lease),
        Ok(Answer::Done) => Remembered::Done,
        Ok(Answer::Txn(TxnOutcome::Refused { .. })) | Err(_) => Remembered::Nothing,
    }
}
