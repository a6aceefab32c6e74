#![allow(clippy::unwrap_used)]
use super::*;
use crate::backend::{Op, Txn};
use crate::testing::MemoryBackend;

fn cache() -> (Arc<Cache>, Arc<MemoryBackend>) {
    let cache = Cache::new(&balsa_api::kinds::builtin());
    let backend = MemoryBackend::new(Arc::clone(&cache));
    (cache, backend)
}

async fn put(backend: &MemoryBackend, name: &str) {
    use crate::backend::Backend;
    let key = format!("/registry/core/configmaps/d/{name}").into();
    let value =
        format!(r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"{name}"}}}}"#)
            .into();
    let txn = Txn {
        ops: vec![Op::Put {
            key,
            value,
            lease: None,
        }],
        ..Txn::default()
    };
    backend.txn(txn).await.unwrap();
}

#[tokio::test]
async fn a_subscription_misses_nothing_and_repeats_nothing() {
    let (cache, backend) = cache();
    let maps = cache.resource("", "configmaps").unwrap();
    put(&backend, "a").await;
    put(&backend, "b").await;
    let (mut live, missed) = maps.subscribe_from(Scope::All, "", 2).unwrap();
    assert_eq!(missed.iter().map(|e| e.revision).collect::<Vec<_>>(), [3]);
    put(&backend, "c").await;
    assert_eq!(live.changes.recv().await.unwrap().revision, 4);
}

#[tokio::test]
async fn rubbish_in_the_store_is_passed_over() {
    use crate::backend::Backend;
    let (cache, backend) = cache();
    let ops = vec![Op::Put {
        key: "/registry/core/configmaps/d/x".into(),
        value: "rubbish".into(),
        lease: None,
    }];
    backend
        .txn(Txn {
            ops,
            ..Txn::default()
        })
        .await
        .unwrap();
    put(&backend, "a").await;
    assert_eq!(cache.resource("", "configmaps").unwrap().len(), 1);
}

#[tokio::test]
async fn a_reset_ends_watches_and_forgets_the_past() {
    let (cache, backend) = cache();
    let maps = cache.resource("", "configmaps").unwrap();
    let mut live = maps.subscribe(Scope::All, "");
    put(&backend, "a").await;
    cache.reset(9, |_| Vec::new());
    assert_eq!(live.changes.recv().await.unwrap().revision, 2);
    assert!(live.changes.recv().await.is_none());
    assert_eq!(
        maps.subscribe_from(Scope::All, "", 5).err(),
        Some(TooOld(9))
    );
    assert!(maps.is_empty());
    assert_eq!(cache.revision(), 9);
}

#[tokio::test]
async fn a_dropped_watcher_leaves_nothing_behind() {
    let (cache, _backend) = cache();
    let maps = cache.resource("", "configmaps").unwrap();
    let subscription = maps.subscribe(Scope::Namespace("d".into()), "d");
    assert_eq!(maps.watchers(), 1);
    drop(subscription);
    assert_eq!(maps.watchers(), 0);
}

#[tokio::test]
async fn the_reader_shares_one_decoded_object() {
    let (cache, backend) = cache();
    put(&backend, "a").await;
    let one = cache.get("", "configmaps", "d", "a").unwrap();
    assert!(Arc::ptr_eq(
        &one,
        &cache.get("", "configmaps", "d", "a").unwrap()
    ));
    assert_eq!(cache.list("", "configmaps", Some("e")).len(), 0);
    let before = ObjectReader::generation(&*cache, "", "configmaps");
    put(&backend, "b").await;
    assert!(ObjectReader::generation(&*cache, "", "configmaps") > before);
}
