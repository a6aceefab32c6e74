//! A replicated MVCC key-value store: openraft, RocksDB and tonic. Knows no Kubernetes.
