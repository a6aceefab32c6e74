//! A store in memory that holds ciphertext.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::backend::{Backend, Compare, Event, Op, Txn, TxnOutcome};
use crate::cache::Cache;
use crate::testing::MemoryBackend;

const AT: &[u8] = b"/registry/core/secrets/d/a";

fn encryption(providers: &str) -> Arc<Encryption> {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [secrets]\n  providers: {providers}\n"
    );
    Arc::new(Encryption {
        rules: config::parse(&text).unwrap(),
        problems: Mutex::default(),
    })
}

const ONE: &str = "{name: one, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}";
const TWO: &str = "{name: two, secret: AQEBAQEBAQEBAQEBAQEBAQ==}";

fn put(key: &[u8], value: &'static [u8]) -> Txn {
    Txn {
        compares: Vec::new(),
        ops: vec![Op::Put {
            key: Bytes::copy_from_slice(key),
            value: Bytes::from_static(value),
            lease: None,
        }],
        fence: None,
    }
}

fn plain(store: &Sealed) -> Vec<u8> {
    let page = store.range(AT, b"", 10, Backend::lead(store).term + 100);
    page.unwrap().kvs[0].value.to_vec()
}

#[tokio::test]
async fn the_store_holds_ciphertext_and_readers_see_plain_text() {
    let memory = MemoryBackend::new(Cache::new(&[]));
    let store = Sealed::new(
        memory.clone(),
        encryption(&format!("[{{aesgcm: {{keys: [{ONE}]}}}}]")),
    );
    store.txn(put(AT, b"{\"a\":1}")).await.unwrap();
    store
        .txn(put(b"/registry/core/pods/d/a", b"{}"))
        .await
        .unwrap();
    let raw = memory.value("/registry/core/secrets/d/a").unwrap();
    assert!(raw.value.starts_with(b"k8s:enc:aesgcm:v1:one:"));
    assert_eq!(memory.value("/registry/core/pods/d/a").unwrap().value, "{}");
    assert_eq!(plain(&store), b"{\"a\":1}");
    // A refused write tells what is there.
    let mut refused = put(AT, b"{}");
    refused
        .compares
        .push(Compare::Absent(Bytes::from_static(AT)));
    let outcome = store.txn(refused).await.unwrap();
    let TxnOutcome::Refused { found, .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(found[0].as_ref().unwrap().value, "{\"a\":1}");
}

#[tokio::test]
async fn after_a_change_of_keys_everything_is_written_with_the_first() {
    let memory = MemoryBackend::new(Cache::new(&[]));
    let old = Sealed::new(
        memory.clone(),
        encryption(&format!("[{{aesgcm: {{keys: [{ONE}]}}}}]")),
    );
    old.txn(put(AT, b"{\"a\":1}")).await.unwrap();
    let raw = || memory.value("/registry/core/secrets/d/a").unwrap().value;
    let both = encryption(&format!(
        "[{{aesgcm: {{keys: [{TWO}, {ONE}]}}}}, {{identity: {{}}}}]"
    ));
    let both = Sealed::new(memory.clone(), both);
    assert_eq!(plain(&both), b"{\"a\":1}");
    both.renew(1, tokio_util::sync::CancellationToken::new())
        .await;
    assert!(raw().starts_with(b"k8s:enc:aesgcm:v1:two:"));
    // By other ways.
    for (provider, name) in [("secretbox", "sb"), ("aescbc", "cbc")] {
        let config = format!(
            "[{{{provider}: {{keys: [{{name: {name}, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}}]}}}}, \
             {{secretbox: {{keys: [{{name: sb, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}}]}}}}, \
             {{aesgcm: {{keys: [{TWO}]}}}}]"
        );
        let other = Sealed::new(memory.clone(), encryption(&config));
        other
            .renew(1, tokio_util::sync::CancellationToken::new())
            .await;
        let head = format!("k8s:enc:{provider}:v1:{name}:");
        assert!(raw().starts_with(head.as_bytes()));
        assert_eq!(plain(&other), b"{\"a\":1}");
    }
    // And back to plain text.
    let off = encryption(
        "[{identity: {}}, {aescbc: {keys: [{name: cbc, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}]}}]",
    );
    let off = Sealed::new(memory.clone(), off);
    off.renew(1, tokio_util::sync::CancellationToken::new())
        .await;
    assert_eq!(raw(), "{\"a\":1}");
}

#[tokio::test]
async fn what_cannot_be_read_makes_the_server_unready_and_says_why() {
    let kinds = balsa_api::kinds::builtin();
    let cache = Cache::new(&kinds);
    let memory = MemoryBackend::new(Cache::new(&[]));
    let sealed = encryption(&format!("[{{aesgcm: {{keys: [{ONE}]}}}}]"));
    let writer = Sealed::new(memory.clone(), Arc::clone(&sealed));
    writer
        .txn(put(AT, b"{\"metadata\":{\"name\":\"a\"}}"))
        .await
        .unwrap();
    let kv = memory.value("/registry/core/secrets/d/a").unwrap();
    let event = Event::Put { kv, previous: None };
    let secrets = cache.resource("", "secrets").unwrap();

    let blind = Arc::new(Encryption::default());
    let blind_cache = SealedCache::new(Arc::clone(&cache), Arc::clone(&blind));
    balsa_store::Observer::applied(&blind_cache, 2, std::slice::from_ref(&event));
    assert!(secrets.get("d/a").is_none());
    let reader = Sealed::new(memory, Arc::clone(&blind));
    let why = reader.health().unwrap_err();
    assert!(why.contains("/registry/core/secrets/d/a"), "{why}");
    assert!(
        why.contains("key \"one\"") && why.contains("encryptionProviderConfig"),
        "{why}"
    );
    assert!(reader.range(AT, b"", 1, 100).is_err());

    let seeing = SealedCache::new(Arc::clone(&cache), sealed);
    balsa_store::Observer::applied(&seeing, 3, &[event]);
    let name = secrets.get("d/a").unwrap().value()["metadata"]["name"].clone();
    assert_eq!(name, json!("a"));
}
