//! What clients asked and were told, and what members applied and believed. The checkers read nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::types::{Event, Leadership, MemberId, Revision, Term};

/// A register that clients work on.
pub(super) type Key = u8;
/// Every value is written by one operation only.
pub(super) type Value = u64;
/// A place in the order of everything that happened.
pub(super) type Moment = u64;

/// What a client asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    Read(Key),
    /// If every register has the value that is named, write these.
    Write {
        expected: Vec<(Key, Option<Value>)>,
        values: Vec<(Key, Value)>,
    },
}

/// What it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Read(Option<Value>),
    Done(Revision),
    /// A compare did not hold.
    Refused,
    /// Not carried out, it was said.
    NotDone,
    /// Nobody knows: a deadline passed or the member died.
    Unknown,
}

#[derive(Debug, Clone)]
#[allow(dead_code)] // The client is for whoever reads a violation.
pub(super) struct Operation {
    pub client: usize,
    pub ask: Ask,
    pub from: Moment,
    pub to: Option<Moment>,
    pub told: Told,
}

/// A change, briefly.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Change {
    pub key: Vec<u8>,
    /// `None` if it was deleted.
    pub value: Option<Vec<u8>>,
}

impl From<&Event> for Change {
    fn from(event: &Event) -> Self {
        let value = match event {
            Event::Put { kv, .. } => Some(kv.value.to_vec()),
            Event::Delete { .. } => None,
        };
        Self {
            key: event.key().to_vec(),
            value,
        }
    }
}

/// What a member's observer heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// It starts, or a snapshot came: at a revision.
    Reset(Revision),
    Applied(Revision, Vec<Change>),
}

/// What a watch delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// It begins with the changes of this revision: what went before was given up with good reason.
    From(Revision),
    Changes(Revision, Vec<Change>),
    /// All changes up to here have been delivered.
    UpTo(Revision),
}

#[derive(Debug, Clone)]
pub(super) struct Leased {
    pub key: Vec<u8>,
    pub ttl_ms: u64,
    /// When it was asked for, in milliseconds of the simulation.
    pub asked_ms: u64,
    /// When the answer came that the key is there.
    pub told_ms: Option<u64>,
}

/// An entry of a member's log, briefly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Logged {
    pub term: Term,
    pub payload: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Record {
    now: Moment,
    pub operations: Vec<Operation>,
    pub heard: BTreeMap<MemberId, Vec<(u64, Heard)>>,
    pub watched: BTreeMap<MemberId, Vec<Seen>>,
    pub leaderships: Vec<(MemberId, Leadership)>,
    pub leases: Vec<Leased>,
    /// What the members' health said was wrong.
    pub complaints: BTreeSet<String>,
    /// The logs at the end, by member and index, and the index up to which each has applied.
    pub logs: BTreeMap<MemberId, (BTreeMap<u64, Logged>, u64)>,
    /// When the faults were over, in milliseconds.
    pub healed_ms: u64,
    pub ended_ms: u64,
}

/// Shared by everything in a simulation.
#[derive(Debug, Clone, Default)]
pub(super) struct History(pub Arc<Mutex<Record>>);

impl History {
    /// An operation begins; nobody knows how it ends.
    pub fn begin(&self, client: usize, ask: Ask) -> usize {
        let mut record = self.0.lock();
        record.now += 1;
        let from = record.now;
        record.operations.push(Operation {
            client,
            ask,
            from,
            to: None,
            told: Told::Unknown,
        });
        record.operations.len() - 1
    }

    pub fn end(&self, operation: usize, told: Told) {
        let mut record = self.0.lock();
        record.now += 1;
        let now = record.now;
        let operation = &mut record.operations[operation];
        operation.to = (told != Told::Unknown).then_some(now);
        operation.told = told;
    }

    pub fn hear(&self, member: MemberId, heard: Heard) {
        let at = now_ms();
        let mut record = self.0.lock();
        record.heard.entry(member).or_default().push((at, heard));
    }

    pub fn see(&self, member: MemberId, seen: Seen) {
        self.0.lock().watched.entry(member).or_default().push(seen);
    }
}

/// Milliseconds since the simulation began.
pub(super) fn now_ms() -> u64 {
    let elapsed = turmoil::sim_elapsed().unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Every revision that any member applied, and its changes. If members differ, the last that was applied.
pub(super) fn truth(record: &Record) -> BTreeMap<Revision, (u64, Vec<Change>)> {
    let mut all: Vec<_> = record.heard.values().flatten().collect();
    all.sort_by_key(|(at, _)| *at);
    let mut truth = BTreeMap::<Revision, (u64, Vec<Change>)>::new();
    for (at, heard) in all {
        let Heard::Applied(revision, changes) = heard else {
            continue;
        };
        if truth.get(revision).map(|(_, known)| known) != Some(changes) {
            truth.insert(*revision, (*at, changes.clone()));
        }
    }
    truth
}

/// Where a member applied something else at a revision than another.
pub(super) fn disagreement(record: &Record) -> Option<String> {
    let truth = truth(record);
    for (member, heard) in &record.heard {
        for (_, heard) in heard {
            if let Heard::Applied(revision, changes) = heard
                && truth.get(revision).map(|(_, known)| known) != Some(changes)
            {
                return Some(format!(
                    "member {member} applied {changes:?} at revision {revision}, another {:?}",
                    truth.get(revision)
                ));
            }
        }
    }
    None
}
