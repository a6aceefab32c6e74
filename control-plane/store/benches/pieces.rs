//! What the parts of a store cost on one member: a synced write, a linearizable and a local read, a page of a
//! list, a change from writer to watch.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use balsa_store::{Config, Op, Store, Txn};
use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;

fn put(n: u64) -> Txn {
    Txn {
        ops: vec![Op::Put {
            key: Bytes::from(format!("bench/{:06}", n % 10_000)),
            value: Bytes::from(vec![b'v'; 1_024]),
            lease: None,
        }],
        ..Txn::default()
    }
}

async fn open(dir: &std::path::Path) -> Store {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let config = Config::new(dir, 1, address.to_string(), address, None);
    let store = Store::open(config, Arc::new(())).await.unwrap();
    store.initialize().await.unwrap();
    store
}

fn pieces(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = runtime.block_on(async {
        let store = open(dir.path()).await;
        for n in 0..10_000 {
            store.txn(put(n)).await.unwrap();
        }
        store
    });
    let mut n = 0;
    criterion.bench_function("write, alone", |bencher| {
        bencher.iter(|| {
            n += 1;
            runtime.block_on(store.txn(put(n))).unwrap()
        });
    });
    criterion.bench_function("write, 256 at once", |bencher| {
        bencher.iter(|| {
            n += 256;
            let all = (0..256).map(|i| store.txn(put(n + i)));
            runtime.block_on(futures::future::join_all(all))
        });
    });
    criterion.bench_function("linearizable read", |bencher| {
        bencher.iter(|| {
            runtime.block_on(store.read_barrier()).unwrap();
            store.get(b"bench/000042").unwrap()
        });
    });
    criterion.bench_function("local read", |bencher| {
        bencher.iter(|| store.get(b"bench/000042").unwrap());
    });
    criterion.bench_function("page of 500", |bencher| {
        bencher.iter(|| store.range(b"bench/", None, 500, None).unwrap());
    });
    criterion.bench_function("write to watch", |bencher| {
        let mut watch = store.watch(Bytes::from_static(b"bench/"), 0).unwrap();
        bencher.iter(|| {
            n += 1;
            runtime.block_on(async {
                store.txn(put(n)).await.unwrap();
                watch.next().await.unwrap()
            })
        });
    });
    runtime.block_on(store.shutdown());
}

criterion_group!(benches, pieces);
criterion_main!(benches);
