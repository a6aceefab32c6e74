//! `balsa local`: a cluster of several nodes on this one machine. Every node is a network namespace with
//! its own address, data folder, cgroup and, for agents, containerd. For newcomers, for end-to-end tests,
//! and for people who want to watch what happens when things die.

mod args;
mod images;
mod network;
mod nodes;
mod outside;
mod process;
mod status;
mod topology;
mod up;

pub use args::{Args, run};
