//! Whatever entries say, if they can be read: all members come to the same, and none panics.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;
use proptest::prelude::*;
use rocksdb::{Cache, IteratorMode};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{Context, State};
use crate::command::{Batch, Command, Origin, Pack};
use crate::config::Tuning;
use crate::pending::Pending;
use crate::raft::{Entry, LogId};
use crate::types::{Compare, Op, Txn};

/// Small numbers, so that they meet, and the largest.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![9 => 0_u64..6, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        9 => prop::sample::select(vec!["a", "a/b", "b"]).prop_map(Bytes::from),
        1 => prop::collection::vec(any::<u8>(), 0..6).prop_map(Bytes::from),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let value = prop::collection::vec(any::<u8>(), 0..20);
    let put = (key(), value, prop::option::of(number())).prop_map(|(key, value, lease)| Op::Put {
        key,
        value: value.into(),
        lease,
    });
    prop_oneof![3 => put, 1 => key().prop_map(|key| Op::Delete { key })]
}

fn compare() -> impl Strategy<Value = Compare> {
    prop_oneof![
        key().prop_map(Compare::Absent),
        key().prop_map(Compare::Exists),
        (key(), number()).prop_map(|(key, revision)| Compare::ModRevision(key, revision)),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let txn = (
        prop::collection::vec(compare(), 0..2),
        prop::collection::vec(op(), 0..4),
        prop::option::weighted(0.2, number()),
    );
    prop_oneof![
        6 => txn.prop_map(|(compares, ops, fence)| Command::Txn(Txn { compares, ops, fence })),
        2 => number().prop_map(|ttl_ms| Command::Grant { ttl_ms }),
        1 => number().prop_map(|lease| Command::Revoke { lease }),
        1 => number().prop_map(|to| Command::Compact { to }),
        1 => Just(Command::Tick),
    ]
}

fn batch() -> impl Strategy<Value = Bytes> {
    let commands = prop::collection::vec(command(), 0..4);
    (1_u64..4, number(), number(), number(), commands).prop_map(
        |(member, life, seq, settled, commands)| {
            let origin = Origin { member, life };
            let batch = Batch {
                origin,
                seq,
                settled,
                commands,
            };
            batch.encode().unwrap()
        },
    )
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let pack = (number(), prop::collection::vec(batch(), 0..3));
    prop::collection::vec(pack, 1..12).prop_map(|packs| {
        let entry = |(index, (time_ms, batches)): (u64, (u64, Vec<Bytes>))| Entry {
            log_id: LogId::new(1.into(), index),
            payload: EntryPayload::Normal(Pack::new(time_ms, &batches)),
        };
        (1..).zip(packs).map(entry).collect()
    })
}

fn open(dir: &TempDir, member: u64) -> Arc<State> {
    let pending = Pending::new(Origin { member, life: 3 }, Arc::default());
    let context = Context {
        tuning: Tuning::default(),
        cache: Cache::new_lru_cache(1 << 20),
        disk: Arc::default(),
        metrics: Arc::default(),
        pending: Arc::new(pending),
        stop: CancellationToken::new(),
    };
    State::open(dir.path(), context, Arc::new(())).unwrap()
}

type KeyAndValue = (Box<[u8]>, Box<[u8]>);

fn everything(state: &State) -> Vec<KeyAndValue> {
    let generation = state.generation();
    let all = generation.db.iterator(IteratorMode::Start);
    all.map(Result::unwrap).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn members_come_to_the_same_however_entries_reach_them(entries in entries(), cut in any::<prop::sample::Index>()) {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (together, apart) = (open(&dirs[0], 1), open(&dirs[1], 2));
        together.apply(&entries).unwrap();
        let cut = cut.index(entries.len());
        for entry in &entries[..cut] {
            apart.apply(std::slice::from_ref(entry)).unwrap();
        }
        // And one of them stops in between.
        apart.make_durable().unwrap();
        drop(apart);
        let apart = open(&dirs[1], 2);
        apart.apply(&entries[cut..]).unwrap();
        prop_assert_eq!(everything(&together), everything(&apart));
        prop_assert_eq!(together.revision(), apart.revision());
    }
}
