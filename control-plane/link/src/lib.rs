//! The node link: one QUIC connection with mutual TLS from an agent to each server, and streams opened
//! back over it by the servers.
//!
//! The agent dials (so it may sit behind NAT and needs no open port); heartbeats go from agent to server
//! as datagrams' poor but reliable cousin, a stream; servers open streams for exec, attach, logs,
//! port-forward, stats and plain TCP to pod addresses.

pub mod protocol;
