//! A replicated MVCC key-value store: openraft, RocksDB and tonic. Knows no Kubernetes.
//!
//! [`Store`] is one member of a cluster. Writes are transactions ([`Txn`]) that any member takes; each that
//! changes something makes a new [`Revision`]. Reads are local, and linearizable after
//! [`Store::read_barrier`]. Changes reach an [`Observer`] as they are applied, and any number of [`Watch`]es.
//!
//! A write's way: [`Store::txn`] -> `write` -> `pending` -> `proposer` -> (`net`) -> the leader's `sequencer`
//! -> Raft, `log` -> `state`, which answers it.

mod archive;
mod barrier;
mod command;
mod config;
mod confirm;
mod crc;
mod crowd;
mod db;
mod duties;
mod error;
mod failover;
mod fault;
mod folder;
mod give_way;
mod log;
mod members;
mod metrics;
mod net;
mod observer;
mod offline;
mod patience;
mod pending;
mod proposer;
mod raft;
mod rounds;
mod running;
mod sequencer;
#[cfg(test)]
mod sim;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod threads;
mod types;
mod verify;
mod watch;
mod write;

pub use archive::{ArchiveError, SnapshotInfo};
pub use config::{Config, Timings, Tls, Tuning};
pub use error::{Error, OpenError};
pub use observer::Observer;
pub use offline::{Founder, OfflineError, Reborn, check_snapshot, recover, restore};
pub use state::Reader;
pub use store::Store;
pub use types::{
    Compare, Event, Health, KeyValue, Leadership, LeaseId, MAX_KEY, MAX_TXN, MAX_TXN_OPS,
    MAX_VALUE, Member, MemberId, Op, RangeOutcome, Revision, Term, Txn, TxnOutcome,
};
pub use verify::{Problem, Report, verify};
pub use watch::{Changes, Watch};
