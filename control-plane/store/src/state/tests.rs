//! The semantics of the state, driven entry by entry.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::EntryPayload;
use parking_lot::Mutex;
use rocksdb::Cache;
use tempfile::TempDir;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Answer, Context, Reader, State, sweep};
use crate::command::{Batch, Command, Origin, Pack};
use crate::config::Tuning;
use crate::error::Error;
use crate::observer::Observer;
use crate::pending::{Pending, Ticket};
use crate::raft::{Entry, LogId};
use crate::types::{Compare, Event, KeyValue, LeaseId, Op, Revision, Term, Txn, TxnOutcome};
use crate::watch::Watch;

#[derive(Default)]
struct Heard {
    revisions: Mutex<Vec<Revision>>,
    resets: Mutex<Vec<Revision>>,
}

impl Observer for Heard {
    fn applied(&self, revision: Revision, events: &[Event]) {
        assert!(events.iter().all(|event| event.revision() == revision));
        self.revisions.lock().push(revision);
    }

    fn reset(&self, reader: &Reader) {
        self.resets.lock().push(reader.revision());
    }
}

struct Fixture {
    dir: TempDir,
    state: Arc<State>,
    pending: Arc<Pending>,
    heard: Arc<Heard>,
    index: u64,
    term: Term,
    now_ms: u64,
}

fn open(dir: &TempDir, life: u64) -> (Arc<State>, Arc<Pending>, Arc<Heard>) {
    let pending = Arc::new(Pending::new(Origin { member: 1, life }, Arc::default()));
    let heard = Arc::new(Heard::default());
    let context = Context {
        tuning: Tuning {
            window_bytes: 1_000,
            ..Tuning::default()
        },
        cache: Cache::new_lru_cache(1 << 20),
        disk: Arc::default(),
        metrics: Arc::default(),
        pending: pending.clone(),
        stop: CancellationToken::new(),
    };
    (
        State::open(dir.path(), context, heard.clone()).unwrap(),
        pending,
        heard,
    )
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (state, pending, heard) = open(&dir, 1);
        Self {
            dir,
            state,
            pending,
            heard,
            index: 0,
            term: 1,
            now_ms: 0,
        }
    }

    fn reopen(self) -> Self {
        let Self {
            dir,
            state,
            index,
            term,
            now_ms,
            ..
        } = self;
        state.make_durable().unwrap();
        drop(state);
        let (state, pending, heard) = open(&dir, 2);
        Self {
            dir,
            state,
            pending,
            heard,
            index,
            term,
            now_ms,
        }
    }

    fn reader(&self) -> Reader {
        Reader::new(self.state.clone())
    }

    fn entry(&mut self, batches: &[Bytes]) -> Entry {
        self.index += 1;
        let pack = Pack::new(self.now_ms, batches);
        Entry {
            log_id: LogId::new(self.term.into(), self.index),
            payload: EntryPayload::Normal(pack),
        }
    }

    fn apply(&mut self, batches: &[Bytes]) {
        let entry = self.entry(batches);
        self.state.apply(&[entry]).unwrap();
    }

    fn propose(&self, command: Command) -> Ticket {
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        self.pending.propose(command, 1, room)
    }

    fn command(&mut self, command: Command) -> Result<Answer, Error> {
        let mut ticket = self.propose(command);
        let batch = self.pending.next(usize::MAX).batch().unwrap();
        self.apply(&[batch]);
        ticket.answer.try_recv().unwrap()
    }

    fn txn(&mut self, txn: Txn) -> Result<TxnOutcome, Error> {
        match self.command(Command::Txn(txn))? {
            Answer::Txn(outcome) => Ok(outcome),
            other => panic!("{other:?}"),
        }
    }

    fn put(&mut self, key: &'static str, value: &'static str) -> Revision {
        committed(self.txn(ops([put(key, value)])))
    }

    fn delete(&mut self, key: &'static str) -> Revision {
        committed(self.txn(ops([Op::Delete {
            key: Bytes::from(key),
        }])))
    }

    fn grant(&mut self, ttl_ms: u64) -> LeaseId {
        match self.command(Command::Grant { ttl_ms }).unwrap() {
            Answer::Lease(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    fn range(&self, prefix: &str, at: Option<Revision>) -> Vec<(String, String, Revision)> {
        brief(
            &self
                .reader()
                .range(prefix.as_bytes(), None, 0, at)
                .unwrap()
                .kvs,
        )
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn brief(kvs: &[KeyValue]) -> Vec<(String, String, Revision)> {
    kvs.iter()
        .map(|kv| (text(&kv.key), text(&kv.value), kv.mod_revision))
        .collect()
}

fn expect(kvs: &[(&str, &str, Revision)]) -> Vec<(String, String, Revision)> {
    kvs.iter()
        .map(|(key, value, revision)| ((*key).to_owned(), (*value).to_owned(), *revision))
        .collect()
}

fn put(key: &'static str, value: &'static str) -> Op {
    Op::Put {
        key: Bytes::from(key),
        value: Bytes::from(value),
        lease: None,
    }
}

fn ops(ops: impl IntoIterator<Item = Op>) -> Txn {
    Txn {
        ops: ops.into_iter().collect(),
        ..Txn::default()
    }
}

fn committed(outcome: Result<TxnOutcome, Error>) -> Revision {
    match outcome.unwrap() {
        TxnOutcome::Committed { revision } => revision,
        refused @ TxnOutcome::Refused { .. } => panic!("{refused:?}"),
    }
}

#[test]
fn every_change_makes_a_revision_and_keys_count_their_writes() {
    let mut f = Fixture::new();
    assert_eq!(
        (f.put("a", "1"), f.put("b", "1"), f.put("a", "2")),
        (2, 3, 4)
    );
    let a = f.reader().get(b"a").unwrap().unwrap();
    assert_eq!(
        (a.create_revision, a.mod_revision, a.version, text(&a.value)),
        (2, 4, 2, "2".into())
    );
    assert_eq!(f.delete("a"), 5);
    assert_eq!(f.reader().get(b"a").unwrap(), None);
    f.put("a", "3");
    let a = f.reader().get(b"a").unwrap().unwrap();
    assert_eq!((a.create_revision, a.version), (6, 1));
    assert_eq!(*f.heard.revisions.lock(), [2, 3, 4, 5, 6]);
}

#[test]
fn a_transaction_that_changes_nothing_makes_no_revision() {
    let mut f = Fixture::new();
    f.put("a", "1");
    assert_eq!(
        (
            f.delete("absent"),
            committed(f.txn(Txn::default())),
            f.put("b", "1")
        ),
        (2, 2, 3)
    );
}

#[test]
fn a_transaction_is_all_or_nothing_at_one_revision() {
    let mut f = Fixture::new();
    committed(f.txn(ops([put("a", "1"), put("b", "1")])));
    assert_eq!(f.range("", None), expect(&[("a", "1", 2), ("b", "1", 2)]));
    let compares = vec![
        Compare::ModRevision("a".into(), 2),
        Compare::Absent("b".into()),
        Compare::Exists("c".into()),
    ];
    let txn = Txn {
        compares,
        ops: vec![put("a", "9")],
        fence: None,
    };
    let TxnOutcome::Refused { revision, found } = f.txn(txn).unwrap() else {
        panic!()
    };
    assert_eq!(revision, 2);
    let found: Vec<_> = found
        .iter()
        .map(|kv| kv.as_ref().map(|kv| kv.mod_revision))
        .collect();
    assert_eq!(found, [Some(2), Some(2), None]);
    assert_eq!(f.range("", None).len(), 2);
    let compares = vec![
        Compare::ModRevision("a".into(), 2),
        Compare::Exists("b".into()),
        Compare::Absent("c".into()),
    ];
    let txn = Txn {
        compares,
        ops: vec![put("c", "1"), Op::Delete { key: "a".into() }],
        fence: None,
    };
    assert_eq!(committed(f.txn(txn)), 3);
    assert_eq!(f.range("", None), expect(&[("b", "1", 2), ("c", "1", 3)]));
}

#[test]
fn commands_of_one_entry_see_each_other() {
    let mut f = Fixture::new();
    let absent = |value| Txn {
        compares: vec![Compare::Absent("a".into())],
        ops: vec![put("a", value)],
        fence: None,
    };
    let mut tickets = [
        f.propose(Command::Txn(absent("1"))),
        f.propose(Command::Txn(absent("2"))),
    ];
    let batch = f.pending.next(1).batch().unwrap();
    f.apply(&[batch]);
    let answers = tickets
        .each_mut()
        .map(|ticket| ticket.answer.try_recv().unwrap().unwrap());
    assert!(matches!(
        &answers[0],
        Answer::Txn(TxnOutcome::Committed { revision: 2 })
    ));
    let Answer::Txn(TxnOutcome::Refused { found, .. }) = &answers[1] else {
        panic!("{answers:?}")
    };
    assert_eq!(text(&found[0].as_ref().unwrap().value), "1");
}

#[test]
fn a_fenced_transaction_needs_its_term() {
    let mut f = Fixture::new();
    let fenced = |fence| Txn {
        fence: Some(fence),
        ..ops([put("a", "1")])
    };
    assert_eq!(committed(f.txn(fenced(1))), 2);
    f.term = 2;
    assert_eq!(
        f.txn(fenced(1)),
        Err(Error::Fenced {
            fence: 1,
            current: 2
        })
    );
    assert_eq!(f.state.revision(), 2);
}

#[test]
fn a_batch_that_is_sent_again_is_applied_once() {
    let mut f = Fixture::new();
    let mut ticket = f.propose(Command::Txn(ops([put("a", "1")])));
    let batch = f.pending.next(1).batch().unwrap();
    f.apply(&[batch.clone(), batch.clone()]);
    f.apply(std::slice::from_ref(&batch));
    assert!(ticket.answer.try_recv().unwrap().is_ok());
    assert_eq!(f.state.revision(), 2);
    let mut f = f.reopen();
    f.apply(&[batch]);
    assert_eq!(f.state.revision(), 2);
}

#[test]
fn what_is_settled_is_forgotten_and_still_not_repeated() {
    let mut f = Fixture::new();
    let batch = |seq, settled| {
        let origin = Origin { member: 7, life: 1 };
        Batch {
            origin,
            seq,
            settled,
            commands: vec![Command::Txn(ops([put("a", "1")]))],
        }
        .encode()
        .unwrap()
    };
    f.apply(&[batch(1, 1), batch(2, 1), batch(3, 3)]);
    assert_eq!(f.state.revision(), 4);
    assert_eq!(
        f.state.applier.lock().work.origins[&7]
            .batches
            .keys()
            .copied()
            .collect::<Vec<_>>(),
        [3]
    );
    f.apply(&[batch(1, 1), batch(2, 1), batch(3, 1)]);
    assert_eq!(f.state.revision(), 4);
    let mut f = f.reopen();
    f.apply(&[batch(1, 1), batch(2, 1), batch(3, 1)]);
    assert_eq!(f.state.revision(), 4, "after a start as well");
}

#[test]
fn batches_of_an_earlier_life_are_void() {
    let mut f = Fixture::new();
    let batch = |life| {
        let commands = vec![Command::Txn(ops([put("a", "1")]))];
        Batch {
            origin: Origin { member: 7, life },
            seq: 1,
            settled: 1,
            commands,
        }
        .encode()
        .unwrap()
    };
    f.apply(&[batch(5), batch(4), batch(6)]);
    assert_eq!(f.state.revision(), 3);
}

#[test]
fn ranges_are_ordered_limited_and_go_on() {
    let mut f = Fixture::new();
    for key in ["a/1", "a/2", "a/3", "a0", "b"] {
        f.put(key, "v");
    }
    let first = f.reader().range(b"a/", None, 2, None).unwrap();
    assert_eq!((first.kvs.len(), first.more, first.revision), (2, true, 6));
    f.put("a/3", "new");
    f.put("a/4", "new");
    let rest = f
        .reader()
        .range(b"a/", Some(b"a/2\0"), 2, Some(first.revision))
        .unwrap();
    assert_eq!(
        (brief(&rest.kvs), rest.more),
        (expect(&[("a/3", "v", 4)]), false)
    );
}

#[test]
fn an_old_revision_reads_as_it_was() {
    let mut f = Fixture::new();
    f.put("a", "1"); // 2
    f.put("b", "1"); // 3
    f.put("a", "2"); // 4
    f.delete("b"); // 5
    f.put("c", "1"); // 6
    f.put("b", "2"); // 7
    for (at, expected) in [
        (1, expect(&[])),
        (2, expect(&[("a", "1", 2)])),
        (3, expect(&[("a", "1", 2), ("b", "1", 3)])),
        (4, expect(&[("a", "2", 4), ("b", "1", 3)])),
        (5, expect(&[("a", "2", 4)])),
        (6, expect(&[("a", "2", 4), ("c", "1", 6)])),
        (7, expect(&[("a", "2", 4), ("b", "2", 7), ("c", "1", 6)])),
    ] {
        assert_eq!(f.range("", Some(at)), expected, "at {at}");
    }
    let future = f.reader().range(b"", None, 0, Some(8));
    assert_eq!(
        future,
        Err(Error::Future {
            requested: 8,
            current: 7
        })
    );
}

fn drain(watch: &mut Watch) -> Vec<(Revision, String, bool)> {
    use futures::FutureExt;
    let mut seen = Vec::new();
    while let Some(changes) = watch.next().now_or_never() {
        for event in changes.unwrap().events {
            let put = matches!(event, Event::Put { .. });
            seen.push((event.revision(), text(event.key()), put));
        }
    }
    seen
}

#[test]
fn a_watch_sees_every_change_from_memory_and_from_disk() {
    let mut f = Fixture::new();
    // More than the window holds, so that the beginning comes from disk.
    for round in 0..10 {
        f.put("a/1", "some value");
        f.put("b/1", "some value");
        if round % 3 == 0 {
            f.delete("a/1");
        }
    }
    let mut from_start = Watch::new(f.reader(), Bytes::from("a/"), 2).unwrap();
    let mut from_now = Watch::new(f.reader(), Bytes::from("a/"), 0).unwrap();
    let seen = drain(&mut from_start);
    assert_eq!(seen.len(), 14);
    assert!(
        seen.is_sorted() && seen.iter().all(|(_, key, _)| key == "a/1"),
        "{seen:?}"
    );
    assert_eq!(seen.iter().filter(|(_, _, put)| !put).count(), 4);
    assert_eq!(from_start.progress(), f.state.revision());
    assert_eq!(drain(&mut from_now), []);
    let revision = f.put("a/2", "new");
    assert_eq!(drain(&mut from_now), [(revision, "a/2".to_owned(), true)]);
    assert_eq!(drain(&mut from_start), [(revision, "a/2".to_owned(), true)]);
}

#[test]
fn history_tells_what_was_announced() {
    let mut f = Fixture::new();
    f.put("a", "1");
    f.put("a", "2");
    f.delete("a");
    let (changes, reached) = f.reader().history(b"", 2, 100).unwrap();
    let events: Vec<_> = changes
        .into_iter()
        .flat_map(|changes| changes.events)
        .collect();
    assert_eq!(reached, 4);
    let Event::Put {
        kv,
        previous: Some(previous),
    } = &events[1]
    else {
        panic!("{events:?}")
    };
    assert_eq!(
        (text(&kv.value), text(&previous.value), kv.version),
        ("2".into(), "1".into(), 2)
    );
    let Event::Delete {
        previous,
        revision: 4,
        ..
    } = &events[2]
    else {
        panic!("{events:?}")
    };
    assert_eq!(text(&previous.value), "2");
}

#[test]
fn compacted_history_is_refused_and_the_rest_stays() {
    let mut f = Fixture::new();
    for value in ["1", "2", "3", "4"] {
        f.put("a", value);
        f.put("b", value);
    }
    let mut slow = Watch::new(f.reader(), Bytes::new(), 2).unwrap();
    let before: Vec<_> = (6..=9).map(|at| f.range("", Some(at))).collect();
    f.command(Command::Compact { to: 6 }).unwrap();
    while sweep::step(&f.state.generation(), 6).unwrap() {}
    assert_eq!(f.reader().compacted(), 6);
    assert_eq!(
        (6..=9).map(|at| f.range("", Some(at))).collect::<Vec<_>>(),
        before
    );
    let compacted = |requested| Error::Compacted {
        requested,
        compacted: 6,
    };
    assert_eq!(f.reader().range(b"", None, 0, Some(5)), Err(compacted(5)));
    assert_eq!(
        Watch::new(f.reader(), Bytes::new(), 6).err(),
        Some(compacted(6))
    );
    assert_eq!(
        futures::FutureExt::now_or_never(slow.next()).unwrap(),
        Err(compacted(2))
    );
    assert_eq!(f.reader().history(b"", 7, 100).unwrap().0.len(), 3);
    let generation = f.state.generation();
    let left = generation
        .db
        .iterator(rocksdb::IteratorMode::Start)
        .filter(|item| {
            let (key, _) = item.as_ref().unwrap();
            matches!(key[0], super::schema::HISTORY | super::schema::VERSIONS)
        });
    assert_eq!(
        left.count(),
        6,
        "3 changes and the 3 versions that they replaced"
    );
}

#[test]
fn the_present_is_never_compacted() {
    let mut f = Fixture::new();
    f.put("a", "1");
    f.command(Command::Compact { to: 100 }).unwrap();
    assert_eq!(f.reader().compacted(), 1);
}

#[test]
fn a_lease_ends_with_its_keys() {
    let mut f = Fixture::new();
    let lease = f.grant(1_000);
    let leased = |key: &'static str| Op::Put {
        key: key.into(),
        value: "v".into(),
        lease: Some(lease),
    };
    f.txn(ops([leased("a"), leased("b"), leased("c")])).unwrap();
    f.put("b", "kept: it was put again without the lease");
    f.delete("c");
    f.now_ms = 999;
    f.command(Command::Tick).unwrap();
    assert_eq!(f.range("", None).len(), 2);
    let mut f = f.reopen();
    f.now_ms = 1_000;
    let before = f.state.revision();
    f.command(Command::Tick).unwrap();
    assert_eq!(
        (f.range("", None).len(), f.state.revision()),
        (1, before + 1)
    );
    assert_eq!(f.txn(ops([leased("d")])), Err(Error::LeaseNotFound(lease)));
    assert_ne!(f.grant(1), lease);
}

#[test]
fn a_revoked_lease_is_gone_at_once() {
    let mut f = Fixture::new();
    let lease = f.grant(1_000);
    f.txn(ops([Op::Put {
        key: "a".into(),
        value: "v".into(),
        lease: Some(lease),
    }]))
    .unwrap();
    f.command(Command::Revoke { lease }).unwrap();
    f.command(Command::Revoke { lease }).unwrap();
    assert_eq!((f.range("", None).len(), f.state.clock().1), (0, None));
}

#[test]
fn the_clusters_clock_never_goes_back() {
    let mut f = Fixture::new();
    f.now_ms = 5_000;
    f.command(Command::Tick).unwrap();
    f.now_ms = 1_000;
    f.command(Command::Tick).unwrap();
    assert_eq!(f.state.clock().0, 5_000);
}

#[test]
fn reopening_finds_everything() {
    let mut f = Fixture::new();
    f.put("a", "1");
    f.put("a", "2");
    let lease = f.grant(1_000);
    let before = (
        f.state.progress().borrow().index,
        f.range("", Some(2)),
        f.state.clock(),
    );
    let mut f = f.reopen();
    assert_eq!(
        (
            f.state.progress().borrow().index,
            f.range("", Some(2)),
            f.state.clock()
        ),
        before
    );
    assert_eq!((f.put("b", "1"), f.grant(1)), (4, lease + 1));
    assert_eq!(*f.heard.resets.lock(), [3]);
}

#[test]
fn an_unreadable_entry_stops_applying_and_changes_nothing() {
    let mut f = Fixture::new();
    f.put("a", "1");
    let entry = Entry {
        log_id: LogId::new(1.into(), 9),
        payload: EntryPayload::Normal(Pack(Bytes::from("junk"))),
    };
    assert!(f.state.apply(&[entry]).is_err());
    assert_eq!(
        (
            f.state.revision(),
            f.state.generation().meta().unwrap().applied.unwrap().index
        ),
        (2, 1)
    );
}

#[tokio::test]
async fn a_snapshot_carries_everything_over() {
    let mut sender = Fixture::new();
    sender.put("a", "1");
    sender.put("a", "2");
    let lease = sender.grant(1_000);
    let (meta, view) = sender.state.view().unwrap();
    sender.put("late", "not in the view");
    let mut receiver = Fixture::new();
    receiver.put("gone", "replaced by the snapshot");
    let mut watch = Watch::new(receiver.reader(), Bytes::new(), 0).unwrap();
    let mut incoming = receiver.state.incoming().unwrap();
    while !incoming.is_complete() {
        let part = view.part(incoming.last()).await.unwrap();
        incoming.write(&part).unwrap();
    }
    receiver.state.install(&meta, incoming).unwrap();
    assert_eq!(receiver.range("", None), expect(&[("a", "2", 3)]));
    assert_eq!(receiver.range("", Some(2)), expect(&[("a", "1", 2)]));
    assert_eq!(receiver.state.applied().0, meta.last_log_id);
    assert_eq!(*receiver.heard.resets.lock(), [1, 3]);
    assert_eq!(drain(&mut watch), [(3, "a".to_owned(), true)]);
    drop(watch);
    let mut receiver = receiver.reopen();
    receiver.term = 3;
    receiver.index = 10;
    assert_eq!((receiver.put("b", "1"), receiver.grant(1)), (4, lease + 1));
}

#[test]
fn a_partial_snapshot_is_not_installed() {
    let (sender, receiver) = (Fixture::new(), Fixture::new());
    let (meta, _view) = sender.state.view().unwrap();
    let incoming = receiver.state.incoming().unwrap();
    assert!(
        receiver
            .state
            .install(&meta, incoming)
            .unwrap_err()
            .to_string()
            .contains("not complete")
    );
    assert_eq!(
        std::fs::read_dir(receiver.dir.path()).unwrap().count(),
        2,
        "nothing is left of it"
    );
}

#[tokio::test]
async fn a_waiting_watch_wakes_up() {
    let mut f = Fixture::new();
    let mut watch = Watch::new(f.reader(), Bytes::from("a"), 0).unwrap();
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move { sender.send(watch.next().await.unwrap().revision) });
    tokio::task::yield_now().await;
    let revision = f.put("a", "1");
    let seen = tokio::time::timeout(Duration::from_secs(5), receiver)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(seen, revision);
}
