//! A replicated MVCC key-value store: openraft, RocksDB and tonic. Knows no Kubernetes.
//!
//! [`Store`] is one member of a cluster. Writes are transactions ([`Txn`]) that any member takes; each that
//! changes something makes a new [`Revision`]. Reads are local, and linearizable after
//! [`Store::read_barrier`]. Changes reach an [`Observer`] as they are applied, and any number of [`Watch`]es.

mod config;
mod error;
mod store;
mod types;

pub use config::{Config, Timings, Tls, Tuning};
pub use error::{Error, OpenError};
pub use store::{Changes, Observer, Reader, Store, Watch};
pub use types::{
    Compare, Event, Health, KeyValue, Leadership, LeaseId, MAX_KEY, MAX_TXN, MAX_TXN_OPS,
    MAX_VALUE, Member, MemberId, Op, RangeOutcome, Revision, Term, Txn, TxnOutcome,
};
