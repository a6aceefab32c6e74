//! How members talk: gRPC over mutual TLS.

mod client;
mod connect;
mod listen;
mod peers;
mod server;
mod wire;

/// Generated from `proto/peer.proto`.
mod proto {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    tonic::include_proto!("balsa.store.v1");
}

pub(crate) use client::Network;
pub(crate) use listen::{Listener, serve};
pub(crate) use peers::{Forwarding, Peers};
pub(crate) use server::Service;
pub(crate) use wire::{Hello, Manage, Managed};

/// The largest message: a few entries, each a pack with a large transaction at most.
const MAX_MESSAGE: usize = 64 << 20;
/// How much may be under way in a stream without an acknowledgement, and in a connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Metadata of each call.
const CLUSTER: &str = "balsa-cluster";
const FROM: &str = "balsa-from";
const TO: &str = "balsa-to";
