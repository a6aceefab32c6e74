//! Whole members in one process, over loopback and mutual TLS.
#![allow(clippy::unwrap_used)]

mod decode;
mod disks;
mod kill;
mod offline;
mod pause;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;

use crate::{
    Compare, Config, Error, Event, Op, OpenError, Revision, Store, Tls, Tuning, Txn, TxnOutcome,
};

/// Everything that is waited for happens within this, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Certificates of a CA of its own for every test cluster.
fn tls() -> Tls {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["store".to_owned()]).unwrap();
    let cert = params.signed_by(&key, &ca).unwrap().der().clone();
    let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![cert.clone()], key())
        .unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert], key())
        .unwrap();
    Tls {
        server: server.into(),
        client: client.into(),
        server_name: "store".to_owned(),
    }
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// Members by id; those that were stopped keep their folder.
struct Cluster {
    tls: Tls,
    tuning: Tuning,
    folders: BTreeMap<u64, (TempDir, SocketAddr)>,
    stores: BTreeMap<u64, Store>,
}

impl Cluster {
    async fn of(size: u64) -> Self {
        Self::tuned(size, Tuning::default()).await
    }

    async fn tuned(size: u64, tuning: Tuning) -> Self {
        // RUST_LOG=balsa_store=debug,openraft=info shows what goes on.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let mut cluster = Self {
            tls: tls(),
            tuning,
            folders: BTreeMap::new(),
            stores: BTreeMap::new(),
        };
        cluster.start(1).await.initialize().await.unwrap();
        for id in 2..=size {
            cluster.start(id).await;
            cluster.add(id).await;
        }
        cluster
    }

    fn config(&mut self, id: u64) -> Config {
        let fresh = || (tempfile::tempdir().unwrap(), free_address());
        let (dir, address) = self.folders.entry(id).or_insert_with(fresh);
        let mut config = Config::new(
            dir.path(),
            id,
            address.to_string(),
            *address,
            Some(self.tls.clone()),
        );
        config.tuning = self.tuning.clone();
        config.timings.request = PATIENCE;
        config
    }

    async fn start(&mut self, id: u64) -> Store {
        let config = self.config(id);
        let store = Store::open(config, Arc::new(())).await.unwrap();
        self.stores.insert(id, store.clone());
        store
    }

    async fn crash(&mut self, id: u64) {
        self.stores.remove(&id).unwrap().crash().await;
    }

    async fn add(&self, id: u64) {
        let address = self.folders[&id].1.to_string();
        let any = self.any();
        eventually(|| any.add_member(id, address.clone())).await;
    }

    /// Who leads, as soon as all running members agree.
    async fn leader(&self) -> u64 {
        eventually(|| async {
            let leaders: Vec<_> = self
                .stores
                .values()
                .map(|store| store.leadership().borrow().leader)
                .collect();
            let first = leaders[0].filter(|leader| self.stores.contains_key(leader));
            if leaders.iter().all(|leader| *leader == first) {
                first.ok_or(())
            } else {
                Err(())
            }
        })
        .await
    }

    fn any(&self) -> &Store {
        self.stores.values().next().unwrap()
    }

    async fn follower(&self) -> Store {
        let leader = self.leader().await;
        self.stores
            .iter()
            .find(|(id, _)| **id != leader)
            .unwrap()
            .1
            .clone()
    }

    async fn stop(self) {
        for store in self.stores.into_values() {
            store.crash().await;
        }
    }
}

/// Repeats until it succeeds.
async fn eventually<T, E: std::fmt::Debug, F: Future<Output = Result<T, E>>>(
    mut attempt: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if tokio::time::Instant::now() > deadline => panic!("{error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Txn {
    Txn {
        ops: vec![Op::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }],
        ..Txn::default()
    }
}

fn committed(outcome: Result<TxnOutcome, Error>) -> Revision {
    match outcome.unwrap() {
        TxnOutcome::Committed { revision } => revision,
        refused @ TxnOutcome::Refused { .. } => panic!("{refused:?}"),
    }
}

fn value(store: &Store, key: &str) -> Option<Bytes> {
    store.get(key.as_bytes()).unwrap().map(|kv| kv.value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_member_serves_and_finds_its_data_again() {
    let mut cluster = Cluster::of(1).await;
    let store = cluster.stores[&1].clone();
    assert_eq!(committed(store.txn(put("a", "1")).await), 2);
    let lease = store.lease_grant(Duration::from_secs(600)).await.unwrap();
    assert_eq!(store.read_barrier().await.unwrap(), 2);
    assert!(store.health().is_ready(), "{:?}", store.health());
    let id = store.cluster_id().unwrap();
    store.initialize().await.unwrap();
    drop(store);
    cluster.crash(1).await;
    let store = cluster.start(1).await;
    assert_eq!(store.cluster_id().unwrap(), id);
    store.read_barrier().await.unwrap();
    assert_eq!(value(&store, "a").unwrap(), "1");
    let leased = Op::Put {
        key: "b".into(),
        value: "1".into(),
        lease: Some(lease),
    };
    committed(
        store
            .txn(Txn {
                ops: vec![leased],
                ..Txn::default()
            })
            .await,
    );
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(value(&store, "b"), None);
    drop(store);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_writes_and_reads_its_own_writes() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    assert_eq!(
        cluster.stores[&leader]
            .members()
            .iter()
            .filter(|member| member.voter)
            .count(),
        3
    );
    for (id, store) in &cluster.stores {
        let revision = committed(store.txn(put(format!("from/{id}"), "1")).await);
        assert_eq!(
            store
                .get(format!("from/{id}").as_bytes())
                .unwrap()
                .unwrap()
                .mod_revision,
            revision
        );
        // A linearizable read anywhere sees it.
        for other in cluster.stores.values() {
            assert!(other.read_barrier().await.unwrap() >= revision);
            assert_eq!(value(other, &format!("from/{id}")).unwrap(), "1");
        }
    }
    let follower = cluster.follower().await;
    let twice = Txn {
        compares: vec![Compare::Absent("from/1".into())],
        ..put("from/1", "2")
    };
    let TxnOutcome::Refused { found, .. } = follower.txn(twice).await.unwrap() else {
        panic!()
    };
    assert_eq!(found[0].as_ref().unwrap().value, "1");
    let term = follower.leadership().borrow().term;
    let fenced = |fence| Txn {
        fence: Some(fence),
        ..put("fenced", "1")
    };
    assert!(matches!(
        follower.txn(fenced(term + 7)).await,
        Err(Error::Fenced { .. })
    ));
    drop(follower);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_or_repeated_when_leaders_die() {
    let mut cluster = Cluster::of(3).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        let survivors: Vec<Store> = cluster
            .stores
            .iter()
            .filter(|(id, _)| **id != leader)
            .map(|(_, s)| s.clone())
            .collect();
        // A counter of its own for each writer: a lost or repeated write shows as a wrong value.
        let writers: Vec<_> = survivors
            .iter()
            .cloned()
            .enumerate()
            .map(|(n, store)| tokio::spawn(count_up(store, format!("round/{round}/{n}"), 60)))
            .collect();
        tokio::time::sleep(Duration::from_millis(30)).await;
        cluster.crash(leader).await;
        for writer in writers {
            writer.await.unwrap();
        }
        for store in &survivors {
            store.read_barrier().await.unwrap();
            for n in 0..survivors.len() {
                let last = store
                    .get(format!("round/{round}/{n}").as_bytes())
                    .unwrap()
                    .unwrap();
                assert_eq!((last.value, last.version), (Bytes::from("60"), 60));
            }
        }
        drop(survivors);
        cluster.start(leader).await;
    }
    cluster.stop().await;
}

/// Writes 1, 2, 3... each conditional on the one before: exactly once, or it fails.
async fn count_up(store: Store, key: String, to: u64) {
    let mut last = None;
    for n in 1..=to {
        let key = Bytes::from(key.clone());
        let compare = match last {
            None => Compare::Absent(key.clone()),
            Some(revision) => Compare::ModRevision(key.clone(), revision),
        };
        let txn = Txn {
            compares: vec![compare],
            ..put(key, n.to_string())
        };
        last = Some(committed(store.txn(txn).await));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_on_any_member_is_gapless_across_a_change_of_leader() {
    let cluster = Cluster::of(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let mut watch = follower.watch(Bytes::from("k/"), 0).unwrap();
    let writer = tokio::spawn({
        let store = cluster.stores[&leader].clone();
        async move {
            for n in 0..50 {
                committed(store.txn(put(format!("k/{n:02}"), "v")).await);
            }
        }
    });
    eventually(|| cluster.stores[&leader].transfer_leadership(Some(follower.node_id()))).await;
    writer.await.unwrap();
    let mut keys = Vec::new();
    while keys.len() < 50 {
        let changes = tokio::time::timeout(PATIENCE, watch.next())
            .await
            .unwrap()
            .unwrap();
        keys.extend(changes.events.iter().map(Event::key).cloned());
    }
    assert_eq!(
        keys,
        (0..50)
            .map(|n| Bytes::from(format!("k/{n:02}")))
            .collect::<Vec<_>>()
    );
    assert!(watch.progress() >= 51);
    drop((watch, follower));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_member_in_the_place_of_another_takes_its_vote() {
    let mut cluster = Cluster::of(3).await;
    // The same machine is wiped twice, and draws another id each time.
    for (gone, new) in [(3, 4), (4, 5)] {
        cluster.crash(gone).await;
        let (_, address) = cluster.folders.remove(&gone).unwrap();
        let folder = (tempfile::tempdir().unwrap(), address);
        cluster.folders.insert(new, folder);
        cluster.start(new).await;
        cluster.add(new).await;
        let members = cluster.stores[&1].members();
        let ids: Vec<_> = members.iter().map(|m| (m.id, m.voter)).collect();
        assert_eq!(ids, [(1, true), (2, true), (new, true)]);
    }
    // So one may still be missing.
    cluster.crash(2).await;
    committed(cluster.any().txn(put("a", "1")).await);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_data_is_added_again_by_snapshot() {
    // The log is cut at once, so that only a snapshot can bring the member up to date.
    let tuning = Tuning {
        snapshot_entries: 5,
        keep_entries: 2,
        ..Tuning::default()
    };
    let mut cluster = Cluster::tuned(3, tuning).await;
    for n in 0..200 {
        committed(
            cluster.stores[&1]
                .txn(put(format!("k/{n:03}"), vec![b'v'; 2_000]))
                .await,
        );
    }
    let lost = cluster.follower().await.node_id();
    cluster.crash(lost).await;
    let (_, address) = cluster.folders.remove(&lost).unwrap();
    cluster
        .folders
        .insert(lost, (tempfile::tempdir().unwrap(), address));
    for n in 0..100 {
        committed(cluster.any().txn(put(format!("k/{n:03}"), "newer")).await);
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
    let store = cluster.start(lost).await;
    assert!(!store.health().member);
    cluster.add(lost).await;
    store.read_barrier().await.unwrap();
    assert_eq!(store.range(b"k/", None, 0, None).unwrap().kvs.len(), 200);
    assert_eq!(value(&store, "k/000").unwrap(), "newer");
    assert_eq!(committed(store.txn(put("after", "1")).await), 302);
    assert_eq!(
        store.members().iter().filter(|member| member.voter).count(),
        3
    );
    drop(store);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_leave_and_move() {
    let mut cluster = Cluster::of(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let gone = follower.node_id();
    drop(follower);
    // Asked of a member that does not lead.
    let third = *cluster
        .stores
        .keys()
        .find(|id| **id != leader && **id != gone)
        .unwrap();
    let any = cluster.stores[&third].clone();
    cluster.crash(gone).await;
    any.remove_member(gone).await.unwrap();
    any.remove_member(gone).await.unwrap();
    eventually(|| async {
        if any.members().len() == 2 {
            Ok(())
        } else {
            Err(any.members())
        }
    })
    .await;
    committed(any.txn(put("a", "1")).await);
    // A member returns with another address.
    drop(any);
    cluster.crash(third).await;
    cluster.folders.get_mut(&third).unwrap().1 = free_address();
    let moved = cluster.start(third).await;
    let address = cluster.folders[&third].1.to_string();
    eventually(|| async {
        let known = cluster.stores[&leader]
            .members()
            .iter()
            .any(|member| member.id == third && member.address == address);
        if known {
            Ok(())
        } else {
            Err(cluster.stores[&leader].members())
        }
    })
    .await;
    moved.read_barrier().await.unwrap();
    assert_eq!(value(&moved, "a").unwrap(), "1");
    let error = moved.remove_member(99).await;
    assert_eq!(error, Ok(()));
    drop(moved);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused() {
    let (cluster, other) = (Cluster::of(1).await, Cluster::of(1).await);
    // Same id, another CA: TLS refuses it.
    let address = other.folders[&1].1.to_string();
    let result = cluster.stores[&1].add_member(2, address).await;
    assert!(
        matches!(result, Err(Error::Unavailable { .. })),
        "{result:?}"
    );
    // The right CA, but a member of another cluster; then, another id than expected.
    let mut own = Cluster {
        tls: cluster.tls.clone(),
        tuning: Tuning::default(),
        folders: BTreeMap::new(),
        stores: BTreeMap::new(),
    };
    own.start(2).await.initialize().await.unwrap();
    let address = own.folders[&2].1.to_string();
    let error = cluster.stores[&1]
        .add_member(2, address.clone())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("belongs to cluster"), "{error}");
    let error = cluster.stores[&1]
        .add_member(3, address)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("this is member 2, not 3"), "{error}");
    let error = cluster.stores[&1]
        .remove_member(1)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("only voter"), "{error}");
    for cluster in [cluster, other, own] {
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_writes_wait_and_then_say_so() {
    let mut cluster = Cluster::of(2).await;
    let follower = cluster.follower().await;
    let mut config = cluster.config(follower.node_id());
    drop(follower);
    cluster.crash(config.node_id).await;
    config.timings.request = Duration::from_millis(300);
    let leader = cluster.leader().await;
    cluster.crash(leader).await;
    let store = Store::open(config, Arc::new(())).await.unwrap();
    let error = store.txn(put("a", "1")).await.unwrap_err();
    assert!(
        matches!(error, Error::Unavailable { .. } | Error::Unknown { .. }),
        "{error}"
    );
    assert!(store.read_barrier().await.unwrap_err().is_retriable());
    assert!(!store.health().is_ready());
    store.clone().shutdown().await;
    assert_eq!(store.txn(put("a", "1")).await, Err(Error::Closed));
    assert_eq!(store.read_barrier().await, Err(Error::Closed));
    drop(store);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_use_and_a_wrong_configuration_are_told_apart() {
    let mut cluster = Cluster::of(1).await;
    let address = cluster.folders[&1].1;
    let mut config = cluster.config(2);
    config.listen = address;
    let error = Store::open(config.clone(), Arc::new(())).await.unwrap_err();
    assert!(matches!(error, OpenError::Listen { .. }), "{error}");
    config.advertise = "nowhere".to_owned();
    let error = Store::open(config, Arc::new(())).await.unwrap_err();
    assert!(matches!(error, OpenError::Config(_)), "{error}");
    let config = cluster.config(1);
    let error = Store::open(config, Arc::new(())).await.unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_by_the_clusters_clock() {
    let cluster = Cluster::of(1).await;
    let store = cluster.stores[&1].clone();
    let lease = store.lease_grant(Duration::from_millis(50)).await.unwrap();
    let mut watch = store.watch(Bytes::from("a"), 0).unwrap();
    let leased = Op::Put {
        key: "a".into(),
        value: "1".into(),
        lease: Some(lease),
    };
    committed(
        store
            .txn(Txn {
                ops: vec![leased],
                ..Txn::default()
            })
            .await,
    );
    let mut deleted = false;
    while !deleted {
        let changes = tokio::time::timeout(PATIENCE, watch.next())
            .await
            .unwrap()
            .unwrap();
        deleted = matches!(changes.events[..], [Event::Delete { .. }]);
    }
    let mut registry = prometheus_client::registry::Registry::default();
    store.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("balsa_store_revision 3"), "{text}");
    drop((store, watch));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_fails_while_members_restart_one_after_the_other() {
    let mut cluster = Cluster::of(3).await;
    for id in 1..=3 {
        let writers: Vec<_> = cluster
            .stores
            .iter()
            .filter(|(other, _)| **other != id)
            .map(|(other, store)| {
                let key = format!("restart/{id}/from/{other}");
                tokio::spawn(count_up(store.clone(), key, 80))
            })
            .collect();
        let leaving = cluster.stores.remove(&id).unwrap();
        leaving.shutdown().await;
        let back = cluster.start(id).await;
        for writer in writers {
            writer.await.unwrap();
        }
        eventually(|| async {
            let health = back.health();
            if health.is_ready() {
                Ok(())
            } else {
                Err(health)
            }
        })
        .await;
    }
    for store in cluster.stores.values() {
        store.read_barrier().await.unwrap();
        let written = store.range(b"restart/", None, 0, None).unwrap().kvs;
        assert_eq!(written.len(), 6);
        assert!(written.iter().all(|kv| kv.version == 80));
    }
    cluster.stop().await;
}
