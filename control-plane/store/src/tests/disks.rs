//! Disks that fail: at every place where something is written, once and for good, in whole members.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::{Cluster, PATIENCE, committed, eventually, put, value};
use crate::fault::{Mishap, Site};
use crate::{Error, Store, Tuning};

const FULL: &str = "IO error: No space left on device: While appending to file";
const BROKEN: &str = "IO error: Input/output error: While fsync";

/// So that all sites are written to soon.
fn tuning() -> Tuning {
    Tuning {
        snapshot_entries: 20,
        keep_entries: 10,
        history_age: Duration::from_millis(100),
        history_revisions: 5,
        ..Tuning::default()
    }
}

async fn healthy(store: &Store) {
    eventually(|| async {
        let health = store.health();
        if health.is_ready() {
            Ok(())
        } else {
            Err(health)
        }
    })
    .await;
}

/// Writes until a site has met its mishap, and then until all is well again; what was acknowledged is there.
async fn goes_on(site: Site, message: &str) {
    let cluster = Cluster::tuned(3, tuning()).await;
    let leader = cluster.leader().await;
    let store = cluster.stores[&leader].clone();
    store
        .disk()
        .plan
        .set(site, Mishap::Fail(message.to_owned()), 3);
    let listening = tokio::spawn({
        let (store, message) = (store.clone(), message.to_owned());
        async move {
            let tells = |problem: &String| problem.contains(&message);
            while !store.health().problems.iter().any(tells) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let mut acknowledged = Vec::new();
    for n in 0.. {
        let any = &cluster.stores[&(n % 3 + 1)];
        let key = format!("k/{n}");
        match any.txn(put(key.clone(), "v")).await {
            Ok(_) => acknowledged.push(key),
            Err(Error::Unavailable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        let met = store.disk().plan.met(site);
        if met >= 3 && n > 100 {
            break;
        }
        assert!(n < 20_000, "{site:?} was met {met} times only");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let told = tokio::time::timeout(PATIENCE, listening).await;
    told.expect("the health never told").unwrap();
    for store in cluster.stores.values() {
        healthy(store).await;
        store.read_barrier().await.unwrap();
        for key in &acknowledged {
            assert!(value(store, key).is_some(), "{key} is lost");
        }
    }
    drop(store);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_log_is_told_and_waited_for() {
    goes_on(Site::Log, FULL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_state_is_told_and_waited_for() {
    goes_on(Site::State, FULL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_at_a_flush_is_told_and_waited_for() {
    goes_on(Site::Flush, FULL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_stays_full_gives_way() {
    let cluster = Cluster::of(3).await;
    let full = cluster.leader().await;
    let store = cluster.stores[&full].clone();
    let plan = &store.disk().plan;
    plan.set(Site::Log, Mishap::Fail(FULL.to_owned()), u32::MAX);
    let other = &cluster.stores[&(full % 3 + 1)];
    let third = &cluster.stores[&((full + 1) % 3 + 1)];
    // The disk is found to be full when something is written.
    let began = std::time::Instant::now();
    while other.leadership().borrow().leader == Some(full) {
        assert!(began.elapsed() < PATIENCE * 2, "it still leads");
        let _ = other.txn(put("a", "1")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for store in [other, third] {
        eventually(|| store.txn(put("b", "2"))).await;
    }
    plan.set(Site::Log, Mishap::Fail(FULL.to_owned()), 0);
    healthy(&store).await;
    store.read_barrier().await.unwrap();
    assert_eq!(value(&store, "b").unwrap(), "2");
    drop(store);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_disk_under_the_log_is_opened_again() {
    goes_on(Site::Log, BROKEN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_takes_no_writes_any_more_is_copied_to_a_new_one() {
    let cluster = Cluster::tuned(1, tuning()).await;
    let store = cluster.stores[&1].clone();
    committed(store.txn(put("before", "1")).await);
    let plan = &store.disk().plan;
    plan.set(Site::State, Mishap::Fail(BROKEN.to_owned()), 7);
    committed(store.txn(put("after", "1")).await);
    assert_eq!(plan.met(Site::State), 7);
    for key in ["before", "after"] {
        assert_eq!(value(&store, key).unwrap(), "1");
    }
    healthy(&store).await;
    drop(store);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_while_a_snapshot_is_received_delays_it_only() {
    let mut cluster = Cluster::tuned(3, tuning()).await;
    for n in 0..200 {
        committed(
            cluster
                .any()
                .txn(put(format!("k/{n}"), vec![b'v'; 4_000]))
                .await,
        );
    }
    eventually(|| async {
        let purged: Vec<_> = cluster.stores.values().map(Store::purged).collect();
        if purged.iter().all(|purged| *purged > 100) {
            Ok(())
        } else {
            Err(purged)
        }
    })
    .await;
    let lost = cluster.follower().await.node_id();
    cluster.crash(lost).await;
    let (_, address) = cluster.folders.remove(&lost).unwrap();
    let fresh = (tempfile::tempdir().unwrap(), address);
    cluster.folders.insert(lost, fresh);
    let store = cluster.start(lost).await;
    let plan = &store.disk().plan;
    plan.set(Site::Receive, Mishap::Fail(FULL.to_owned()), 2);
    plan.set(Site::Install, Mishap::Fail(FULL.to_owned()), 2);
    cluster.add(lost).await;
    assert_eq!((plan.met(Site::Receive), plan.met(Site::Install)), (2, 2));
    store.read_barrier().await.unwrap();
    assert_eq!(store.range(b"k/", None, 0, None).unwrap().kvs.len(), 200);
    drop(store);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_that_cannot_be_swept_is_swept_later() {
    let cluster = Cluster::tuned(1, tuning()).await;
    let store = cluster.stores[&1].clone();
    let plan = &store.disk().plan;
    plan.set(Site::Sweep, Mishap::Fail(FULL.to_owned()), 1);
    for n in 0..50 {
        committed(store.txn(put("k", n.to_string())).await);
    }
    eventually(|| async {
        match plan.met(Site::Sweep) {
            0 => Err("not swept yet"),
            _ => Ok(()),
        }
    })
    .await;
    committed(store.txn(put("k", "last")).await);
    drop(store);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_for_ten_seconds_is_told_while_others_serve() {
    let cluster = Cluster::tuned(3, tuning()).await;
    let follower = cluster.follower().await;
    let stall = Mishap::Stall(Duration::from_secs(10));
    follower.disk().plan.set(Site::Log, stall, 1);
    let leader = cluster.leader().await;
    for n in 0..200 {
        let written = cluster.stores[&leader].txn(put(format!("k/{n}"), "v"));
        committed(tokio::time::timeout(PATIENCE, written).await.unwrap());
    }
    eventually(|| async {
        let problems = follower.health().problems;
        if problems
            .iter()
            .any(|p| p.contains("has not finished writing"))
        {
            Ok(())
        } else {
            Err(problems)
        }
    })
    .await;
    healthy(&follower).await;
    follower.read_barrier().await.unwrap();
    assert_eq!(follower.range(b"k/", None, 0, None).unwrap().kvs.len(), 200);
    drop(follower);
    cluster.stop().await;
}

/// A file size limit makes RocksDB fail as a broken disk does: for good, until its files are opened again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_failure_that_rocksdb_does_not_forgive_is_survived() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Without a handler the signal would end the process.
    let mut signals =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(25)).unwrap();
    let cluster = Cluster::tuned(1, Tuning::default()).await;
    let store = cluster.stores[&1].clone();
    committed(store.txn(put("before", vec![b'v'; 200_000])).await);
    let limit = getrlimit(Resource::Fsize);
    let lower = Rlimit {
        current: Some(100_000),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Fsize, lower).unwrap();
    let writing = tokio::spawn({
        let store = store.clone();
        async move { store.txn(put("during", vec![b'v'; 300_000])).await }
    });
    signals.recv().await;
    eventually(|| async {
        match store.health().problems.is_empty() {
            true => Err("nothing is told"),
            false => Ok(()),
        }
    })
    .await;
    let refused = store.txn(put("refused", "1")).await;
    assert!(
        matches!(refused, Err(Error::Unavailable { .. })),
        "{refused:?}"
    );
    setrlimit(Resource::Fsize, limit).unwrap();
    committed(writing.await.unwrap());
    healthy(&store).await;
    committed(store.txn(put("after", "1")).await);
    drop(store);
    let mut cluster = cluster;
    cluster.crash(1).await;
    let store = cluster.start(1).await;
    eventually(|| store.read_barrier()).await;
    for key in ["before", "during", "after"] {
        assert!(value(&store, key).is_some(), "{key} is lost");
    }
    drop(store);
    cluster.stop().await;
}
