//! What a person with kubectl sees, on a real local cluster: real containers, real packets. `e2e/run` makes
//! the cluster and runs these; each works in a namespace of its own.

#![allow(clippy::unwrap_used, missing_docs)]

mod api;
mod autoscaling;
mod bad_input;
mod clients;
mod csi;
mod extensions;
mod first_app;
mod helm;
mod kubectl;
mod loss;
mod loss_csi;
mod loss_devices;
mod loss_leaks;
mod loss_node;
mod loss_runtime;
mod network;
mod node;
mod node_static;
mod platform;
mod pod_life;
mod pod_rules;
mod pods;
mod scheduling;
mod seeds;
mod services;
mod streams;
mod workloads;
