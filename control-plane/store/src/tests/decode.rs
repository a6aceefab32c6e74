//! Foreign bytes: whatever comes from the network or a file is an error or a value, never a panic.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::prelude::*;

use crate::command::{Batch, Command, Origin, Pack};
use crate::log::{decode_entry, encode_entry};
use crate::net::fuzz;
use crate::raft::{Entry, LogId};
use crate::state::{count_pairs, last_key};
use crate::types::{Op, Txn};
use crate::{Config, Store};

/// An entry as members write it.
fn real_entry() -> Vec<u8> {
    let put = Op::Put {
        key: Bytes::from_static(b"some/key"),
        value: Bytes::from(vec![b'v'; 40]),
        lease: Some(3),
    };
    let txn = Txn {
        ops: vec![put],
        ..Txn::default()
    };
    let batch = Batch {
        origin: Origin { member: 2, life: 7 },
        seq: 300,
        settled: 299,
        commands: vec![Command::Txn(txn), Command::Tick],
    };
    let encoded = batch.encode().unwrap();
    let entry = Entry {
        log_id: LogId::new(4.into(), 500),
        payload: openraft::EntryPayload::Normal(Pack::new(1, &[encoded.clone(), encoded])),
    };
    encode_entry(&entry).unwrap()
}

/// What disks and networks make of bytes: some changed, some left out, some twice.
fn damage(bytes: &mut Vec<u8>, changes: &[(prop::sample::Index, u8, u8)]) {
    for (index, kind, byte) in changes {
        if bytes.is_empty() {
            return;
        }
        let at = index.index(bytes.len());
        match kind % 4 {
            0 => bytes[at] ^= byte,
            1 => bytes.truncate(at),
            2 => drop(bytes.remove(at)),
            _ => bytes.extend_from_within(at..),
        }
    }
}

proptest! {
    #[test]
    fn entries_and_packs(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        let _ = decode_entry(bytes.clone());
        let mut versioned = vec![1];
        versioned.extend_from_slice(&bytes);
        if let Ok(entry) = decode_entry(versioned.clone().into())
            && let openraft::EntryPayload::Normal(pack) = entry.payload
        {
            let _ = pack.open();
        }
        let _ = Pack(versioned.into()).open();
        let _ = Batch::decode(&bytes);
    }

    #[test]
    fn entries_that_were_damaged(changes in prop::collection::vec(any::<(prop::sample::Index, u8, u8)>(), 1..5)) {
        let mut bytes = real_entry();
        damage(&mut bytes, &changes);
        if let Ok(entry) = decode_entry(bytes.clone().into())
            && let openraft::EntryPayload::Normal(pack) = entry.payload
        {
            let _ = (pack.open(), pack.is_only_of(2));
        }
        fuzz(bytes.clone(), bytes);
    }

    #[test]
    fn parts_of_snapshots(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = (count_pairs(&bytes), last_key(&bytes));
    }

    #[test]
    fn snapshot_files(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s");
        let mut whole = b"balsa-store-snapshot 1\n".to_vec();
        whole.extend_from_slice(&bytes);
        std::fs::write(&file, whole).unwrap();
        prop_assert!(crate::check_snapshot(&file).is_err());
    }

    #[test]
    fn calls(head in prop::collection::vec(any::<u8>(), 0..200), part in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz(head, part);
    }
}

/// Strangers that say anything to a member's port, some of it in HTTP/2, do not keep it from serving.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_on_the_port() {
    use rand::Rng;
    use tokio::io::AsyncWriteExt;
    let (dir, address) = (tempfile::tempdir().unwrap(), super::free_address());
    let config = Config::new(dir.path(), 1, address.to_string(), address, None);
    let store = Store::open(config, std::sync::Arc::new(())).await.unwrap();
    store.initialize().await.unwrap();
    for round in 0..60 {
        let mut bytes: Vec<u8> = (0..rand::rng().random_range(0..400))
            .map(|_| rand::rng().random())
            .collect();
        if round % 2 == 0 {
            let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            bytes.splice(0..0, hello.iter().copied());
        }
        let mut stranger = tokio::net::TcpStream::connect(address).await.unwrap();
        // It may hang up on nonsense.
        let _ = stranger.write_all(&bytes).await;
    }
    super::committed(store.txn(super::put("a", "1")).await);
    store.read_barrier().await.unwrap();
    store.shutdown().await;
}
