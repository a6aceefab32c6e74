//! Foreign bytes: whatever comes from the network or a file is an error or a value, never a panic.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::prelude::*;

use crate::command::{Batch, Pack};
use crate::log::decode_entry;
use crate::net::fuzz;
use crate::state::{count_pairs, last_key};

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
