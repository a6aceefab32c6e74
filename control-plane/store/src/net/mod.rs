//! How members talk, over mutual TLS: raw frames for what is frequent (`pipe`), gRPC for the rest.

mod appends;
mod client;
mod connect;
mod frame;
mod listen;
mod peers;
mod pipe;
mod server;
mod wire;

/// Decodes arbitrary bytes as each kind of message that members send each other.
#[cfg(test)]
pub(crate) fn fuzz(head: Vec<u8>, part: Vec<u8>) {
    let message = proto::Message {
        head: head.into(),
        parts: vec![part.into()],
    };
    let _ = wire::decode::<crate::raft::VoteRequest>(&message);
    let _ = wire::decode::<crate::raft::TransferRequest>(&message);
    let _ = wire::decode::<wire::SnapshotHead>(&message);
    let _ = wire::decode::<Manage>(&message);
    let _ = wire::decode_append_reply(&message);
    let _ = wire::decode_append(message);
}

/// Generated from `proto/peer.proto`.
mod proto {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    tonic::include_proto!("balsa.store.v1");
}

pub(crate) use client::Network;
pub(crate) use listen::{Listener, serve};
pub(crate) use peers::{Forwarding, Line, Peers};
pub(crate) use pipe::Purpose;
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
