//! The container runtime interface: a trait, a gRPC client for containerd and CRI-O, and a hand-written fake.
