//! Wiring of one node: watches pods, runs probes, volumes, images, logs, streams and node status.
//!
//! [`Agent::new`] checks what it is told, [`Agent::run`] is the whole life of an agent from top to bottom, and
//! [`Agent`] is the [`StreamHandler`](balsa_link::agent::StreamHandler) that servers talk to over the link.

mod agent;
mod cgroups;
mod cluster;
mod config;
mod containerd;
mod csi;
mod devices;
mod durable;
mod error;
mod eviction;
mod folders;
mod http;
mod images;
mod logs;
mod net;
mod node;
mod objects;
mod pods;
mod probes;
mod shutdown;
mod stats;
mod streams;
mod volumes;

pub use agent::Agent;
pub use config::{
    AgentConfig, Eviction, Paths, RuntimeChoice, ShutdownGrace, Signal, Soft, Threshold, duration,
    shutdown_grace, shutdown_grace_by_priority,
};
pub use error::Error;
