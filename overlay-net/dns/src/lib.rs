//! Cluster DNS on each node.
//!
//! [`Zone`] holds the cluster's names, built purely from Services and EndpointSlices; [`Dns`] answers from
//! it and forwards everything else. Each node answers its own pods, so a name costs no network and no
//! DNS pod can fail.

mod answer;
mod forward;
mod packet;
mod resolv;
mod server;
mod zone;

#[cfg(test)]
mod tests;

pub use resolv::{Resolv, parse_resolv_conf};
pub use server::{Config, Dns, Error, Handle};
pub use zone::{Zone, ZoneConfig};
