//! Snapshots in files, clusters begun anew, folders checked.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use super::{Cluster, committed, eventually, free_address, put, tls, value};
use crate::{Error, Founder, OfflineError, Store, check_snapshot, recover, restore, verify};

async fn load(store: &Store, keys: usize) {
    for n in 0..keys {
        committed(store.txn(put(format!("k/{n:04}"), vec![b'v'; 3_000])).await);
    }
}

fn cluster_of_one(dir: tempfile::TempDir, id: u64, address: std::net::SocketAddr) -> Cluster {
    Cluster {
        tls: tls(),
        tuning: crate::Tuning::default(),
        folders: std::collections::BTreeMap::from([(id, (dir, address))]),
        stores: std::collections::BTreeMap::new(),
    }
}

/// Leaves what a restore leaves that is killed at its very end, and sees that no cluster can be founded on it.
async fn interrupted(file: &Path, founder: &Founder, root: &Path) {
    let identity = founder.dir.join("identity.json");
    restore(file, founder, 0).unwrap();
    let mut known: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&identity).unwrap()).unwrap();
    known["cluster"] = serde_json::Value::Null;
    known["founder"] = false.into();
    std::fs::write(&identity, known.to_string()).unwrap();
    let mut config =
        cluster_of_one(tempfile::tempdir_in(root).unwrap(), 7, free_address()).config(7);
    config.dir.clone_from(&founder.dir);
    let store = Store::open(config, std::sync::Arc::new(())).await.unwrap();
    let refused = store.initialize().await.unwrap_err();
    assert!(
        refused.to_string().contains("restore it again"),
        "{refused}"
    );
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_saved_on_line_and_restored_as_a_new_cluster() {
    let cluster = Cluster::of(3).await;
    load(cluster.any(), 300).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    let writer = cluster.follower().await;
    let saving = {
        let (store, file) = (writer.clone(), file.clone());
        tokio::spawn(async move { store.save_snapshot(&file).await })
    };
    committed(writer.txn(put("meanwhile", "1")).await);
    let info = saving.await.unwrap().unwrap();
    assert_eq!(check_snapshot(&file).unwrap(), info);
    let old = writer.cluster_id().unwrap();
    drop(writer);
    cluster.stop().await;

    let (dir, address) = (tempfile::tempdir().unwrap(), free_address());
    let founder = Founder {
        dir: dir.path().join("store"),
        member: 7,
        advertise: address.to_string(),
    };
    interrupted(&file, &founder, dir.path()).await;
    let reborn = restore(&file, &founder, 1_000).unwrap();
    assert_ne!(reborn.cluster, old);
    assert_eq!(reborn.revision, info.revision + 1_000);
    assert!(matches!(
        restore(&file, &founder, 0),
        Err(OfflineError::NotEmpty(_))
    ));
    let report = verify(&founder.dir);
    assert_eq!(report.problems, []);
    assert!(report.keys >= 300);

    let mut restored = cluster_of_one(dir, 7, address);
    let mut config = restored.config(7);
    config.dir = founder.dir;
    let store = Store::open(config, std::sync::Arc::new(())).await.unwrap();
    restored.stores.insert(7, store.clone());
    eventually(|| store.read_barrier()).await;
    assert_eq!(store.range(b"k/", None, 0, None).unwrap().kvs.len(), 300);
    let early = store.watch(bytes::Bytes::new(), 5);
    assert!(matches!(early, Err(Error::Compacted { .. })));
    assert_eq!(
        committed(store.txn(put("new", "1")).await),
        reborn.revision + 1
    );
    // It grows again.
    restored.start(8).await;
    restored.add(8).await;
    assert_eq!(value(&restored.stores[&8], "new").unwrap(), "1");
    drop(store);
    restored.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_goes_on_alone_after_the_majority_is_gone_and_refuses_the_old_ones() {
    let mut cluster = Cluster::of(3).await;
    load(cluster.any(), 50).await;
    for id in 1..=3 {
        cluster.crash(id).await;
    }
    let (dir, address) = cluster.folders.remove(&2).unwrap();
    let founder = Founder {
        dir: dir.path().to_owned(),
        member: 2,
        advertise: address.to_string(),
    };
    let reborn = recover(&founder).unwrap();
    assert_eq!(verify(&founder.dir).problems, []);
    cluster.folders.insert(2, (dir, address));
    let store = cluster.start(2).await;
    eventually(|| store.read_barrier()).await;
    assert_eq!(store.cluster_id().unwrap(), reborn.cluster);
    assert_eq!(store.members().len(), 1);
    assert_eq!(store.range(b"k/", None, 0, None).unwrap().kvs.len(), 50);
    committed(store.txn(put("after", "1")).await);
    // An old member cannot come back with its old data.
    cluster.start(1).await;
    let old = cluster.folders[&1].1.to_string();
    let refused = store.add_member(1, old).await.unwrap_err().to_string();
    assert!(
        refused.contains("start it with an empty folder"),
        "{refused}"
    );
    assert_eq!(value(&cluster.stores[&1], "after"), None);
    drop(store);
    cluster.stop().await;
}

#[test]
fn a_folder_that_never_had_data_is_not_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let founder = Founder {
        dir: dir.path().to_owned(),
        member: 1,
        advertise: "a:1".to_owned(),
    };
    assert!(matches!(recover(&founder), Err(OfflineError::Blank(_))));
}

/// The largest file of a database with this ending.
fn largest(dir: &Path, ending: &str) -> Option<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap();
    files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_found_and_named() {
    let mut cluster = Cluster::of(1).await;
    load(cluster.any(), 100).await;
    cluster.stores[&1].clone().make_durable();
    cluster.crash(1).await;
    let dir = cluster.folders[&1].0.path().to_owned();
    let report = verify(&dir);
    assert_eq!(
        (report.problems, report.keys, report.member),
        (vec![], 100, Some(1))
    );
    assert!(report.entries > 0);
    let state = dir.join("state/1");
    flip(&largest(&state, "sst").unwrap());
    let problems = verify(&dir).problems;
    assert!(
        problems.iter().any(|problem| problem.path == state
            && problem.detail.contains("move its folder away")),
        "{problems:?}"
    );
    let missing = verify(&dir.join("nowhere")).problems;
    assert!(missing[0].detail.contains("no such folder"), "{missing:?}");
    cluster.stop().await;
}

/// Where the log's newest writes are, and how many bytes of it hold some. The files that were made beforehand are larger
/// and hold nothing.
fn newest_writes(dir: &Path) -> (PathBuf, Vec<u8>, usize) {
    let files = std::fs::read_dir(dir.join("log")).unwrap().flatten();
    let logs = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|found| found == "log"));
    let path = logs.max().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let written = crate::log::wal::written(&path);
    (path, bytes, written)
}

async fn reopened(cluster: &mut Cluster) -> Result<Store, String> {
    let opened = Store::open(cluster.config(1), std::sync::Arc::new(())).await;
    opened.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_log_changed_on_disk_does_not_start_and_says_what_to_do() {
    let mut cluster = Cluster::of(1).await;
    load(cluster.any(), 100).await;
    cluster.crash(1).await;
    let dir = cluster.folders[&1].0.path().to_owned();
    let (path, bytes, written) = newest_writes(&dir);
    for part in 1..6 {
        let mut changed = bytes.clone();
        changed[written * part / 7] ^= 0x10;
        std::fs::write(&path, &changed).unwrap();
        let refused = reopened(&mut cluster).await.unwrap_err();
        let file = path.display().to_string();
        assert!(
            refused.contains(&file) && refused.contains("move the folder away"),
            "{refused}"
        );
        let problems = verify(&dir).problems;
        assert!(
            problems.iter().any(|problem| problem.path == path),
            "{problems:?}"
        );
    }
    // Nothing was lost if it comes back as it was.
    std::fs::write(&path, &bytes).unwrap();
    let store = reopened(&mut cluster).await.unwrap();
    eventually(|| store.read_barrier()).await;
    assert_eq!(store.range(b"k/", None, 0, None).unwrap().kvs.len(), 100);
    store.shutdown().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_the_power_cut_short_is_left_out() {
    let mut cluster = Cluster::of(1).await;
    load(cluster.any(), 100).await;
    cluster.crash(1).await;
    let dir = cluster.folders[&1].0.path().to_owned();
    let (path, mut bytes, written) = newest_writes(&dir);
    let before = verify(&dir).entries;
    bytes[written - 700..written].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let report = verify(&dir);
    assert_eq!((report.problems, report.entries), (vec![], before - 1));
    let store = reopened(&mut cluster).await.unwrap();
    eventually(|| store.read_barrier()).await;
    // The state was written in full when the databases were closed.
    assert_eq!(store.range(b"k/", None, 0, None).unwrap().kvs.len(), 100);
    store.shutdown().await;
    cluster.stop().await;
}

#[test]
fn a_damaged_snapshot_is_refused_at_every_byte() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    runtime.block_on(async {
        let cluster = Cluster::of(1).await;
        committed(cluster.any().txn(put("a", "1")).await);
        cluster.any().save_snapshot(&file).await.unwrap();
        cluster.stop().await;
    });
    let whole = std::fs::read(&file).unwrap();
    for n in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[n] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        // In the head a changed digit may still be a number, but nothing panics.
        let refused = check_snapshot(&file).is_err();
        assert!(refused || whole[..n].len() < 400, "byte {n}");
        std::fs::write(&file, &whole[..n]).unwrap();
        assert!(check_snapshot(&file).is_err(), "cut at {n}");
    }
}
