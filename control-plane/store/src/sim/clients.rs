//! What clients do, inside members' processes, as the API server does.

use std::time::Duration;

use bytes::Bytes;
use rand::Rng;

use super::history::{Ask, Change, History, Key, Leased, Seen, Told, Value, now_ms};
use super::node::{Node, World};
use crate::error::Error;
use crate::store::Store;
use crate::types::{Compare, KeyValue, Op, Revision, Txn, TxnOutcome};

/// Registers that transactions may write together.
pub(super) const GROUP: Key = 3;
/// All registers.
pub(super) const KEYS: Key = 2 * GROUP;
/// The prefix that is watched: the registers of the first group and all leased keys are not under it.
pub(super) const WATCHED: &[u8] = b"r/";

/// The name of a register.
pub(super) fn name(key: Key) -> String {
    format!("r/{key}")
}

/// Which register a change wrote, and with what.
pub(super) fn parse(change: &Change) -> Option<(Key, Value)> {
    let key = std::str::from_utf8(&change.key).ok()?.strip_prefix("r/")?;
    let value = std::str::from_utf8(change.value.as_deref()?).ok()?;
    Some((key.parse().ok()?, value.parse().ok()?))
}

fn value_of(kv: &KeyValue) -> Option<Value> {
    std::str::from_utf8(&kv.value).ok()?.parse().ok()
}

fn put(key: Key, value: Value) -> Op {
    Op::Put {
        key: name(key).into(),
        value: value.to_string().into(),
        lease: None,
    }
}

/// In a quiet world a hundred times as long.
async fn rest(world: &World, from_ms: u64, to_ms: u64) {
    let factor = if world.quiet { 100 } else { 1 };
    let pause = rand::rng().random_range(from_ms..=to_ms) * factor;
    tokio::time::sleep(Duration::from_millis(pause)).await;
}

/// Reads and writes registers until the clients are to stop.
pub(super) async fn registers(node: Node, store: Store, client: usize) {
    while !node.world.is_over() {
        let key = rand::rng().random_range(0..KEYS);
        let dice = rand::rng().random_range(0..10);
        match dice {
            0..4 => drop(read(&node.history, &store, client, key).await),
            4..6 => write(&node, &store, client, Vec::new(), vec![key]).await,
            6..9 => {
                if let Ok(found) = read(&node.history, &store, client, key).await {
                    write(&node, &store, client, vec![(key, found)], vec![key]).await;
                }
            }
            _ => {
                // Two registers at once, on condition of the first.
                let other = key / GROUP * GROUP + (key + 1) % GROUP;
                if let Ok(found) = read(&node.history, &store, client, key).await {
                    write(&node, &store, client, vec![(key, found)], vec![key, other]).await;
                }
            }
        }
        rest(&node.world, 5, 60).await;
    }
}

type Found = Option<(Value, Revision)>;

async fn read(history: &History, store: &Store, client: usize, key: Key) -> Result<Found, Error> {
    let operation = history.begin(client, Ask::Read(key));
    let found = match store.read_barrier().await {
        Ok(_) => store.get(name(key).as_bytes()),
        Err(error) => Err(error),
    };
    let found = found.map(|kv| kv.and_then(|kv| Some((value_of(&kv)?, kv.mod_revision))));
    history.end(
        operation,
        match &found {
            Ok(found) => Told::Read(found.map(|(value, _)| value)),
            Err(_) => Told::Unknown,
        },
    );
    found
}

async fn write(
    node: &Node,
    store: &Store,
    client: usize,
    expected: Vec<(Key, Found)>,
    keys: Vec<Key>,
) {
    let values: Vec<_> = keys
        .iter()
        .map(|key| (*key, node.world.next_value()))
        .collect();
    let compare = |(key, found): &(Key, Found)| match found {
        Some((_, revision)) => Compare::ModRevision(name(*key).into(), *revision),
        None => Compare::Absent(name(*key).into()),
    };
    let txn = Txn {
        compares: expected.iter().map(compare).collect(),
        ops: values
            .iter()
            .map(|(key, value)| put(*key, *value))
            .collect(),
        fence: None,
    };
    let ask = Ask::Write {
        expected: expected
            .iter()
            .map(|(key, found)| (*key, found.map(|(value, _)| value)))
            .collect(),
        values,
    };
    let operation = node.history.begin(client, ask);
    let told = match store.txn(txn).await {
        Ok(TxnOutcome::Committed { revision }) => Told::Done(revision),
        Ok(TxnOutcome::Refused { .. }) => Told::Refused,
        Err(Error::Unavailable { .. }) => Told::NotDone,
        Err(_) => Told::Unknown,
    };
    node.history.end(operation, told);
}

/// Makes leases and puts keys under them.
pub(super) async fn leases(node: Node, store: Store) {
    while !node.world.is_over() {
        let (asked_ms, ttl_ms) = (now_ms(), rand::rng().random_range(300..2_500));
        if let Ok(lease) = store.lease_grant(Duration::from_millis(ttl_ms)).await {
            let key = format!("lease/{}", node.world.next_value());
            let op = Op::Put {
                key: key.clone().into(),
                value: Bytes::from_static(b"1"),
                lease: Some(lease),
            };
            let index = {
                let mut record = node.history.0.lock();
                record.leases.push(Leased {
                    key: key.into_bytes(),
                    ttl_ms,
                    asked_ms,
                    told_ms: None,
                });
                record.leases.len() - 1
            };
            let txn = Txn {
                ops: vec![op],
                ..Txn::default()
            };
            if store.txn(txn).await.is_ok() {
                node.history.0.lock().leases[index].told_ms = Some(now_ms());
            }
        }
        rest(&node.world, 200, 700).await;
    }
}

/// Watches the registers, across the member's restarts.
pub(super) async fn watch(node: Node, store: Store) {
    loop {
        let from = node.watched_to() + 1;
        let mut watch = match store.watch(Bytes::from_static(WATCHED), from) {
            Ok(watch) => watch,
            Err(Error::Compacted { compacted, .. }) => {
                node.history.see(node.id, Seen::From(compacted + 1));
                node.set_watched_to(compacted);
                continue;
            }
            Err(_) => return,
        };
        loop {
            match watch.next().await {
                Ok(changes) => {
                    let briefly = changes.events.iter().map(Change::from).collect();
                    node.history
                        .see(node.id, Seen::Changes(changes.revision, briefly));
                    node.set_watched_to(changes.revision);
                }
                Err(Error::Compacted { .. }) => break,
                Err(_) => return,
            }
            let progress = watch.progress();
            if progress > node.watched_to() {
                node.history.see(node.id, Seen::UpTo(progress));
                node.set_watched_to(progress);
            }
        }
    }
}
