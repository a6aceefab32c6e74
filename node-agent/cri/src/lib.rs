//! The container runtime interface: traits, a gRPC client for containerd and CRI-O, and a hand-written fake.
//!
//! [`Runtime`] is what the agent needs from any CRI runtime, in plain types; [`Streams`] is what it needs to
//! talk with a process in a container, and to load images from files. [`CriClient`] implements the first for
//! every runtime, [`Containerd`] both for containerd, [`fake::FakeRuntime`] both for tests.

mod client;
mod containerd;
mod error;
pub mod fake;
mod runtime;
mod types;
mod websocket;

pub use client::CriClient;
pub use containerd::Containerd;
pub use error::{Error, Result};
pub use runtime::{Control, ReadHalf, Runtime, Session, StreamSpec, Streams, WriteHalf};
pub use types::*;
