//! Services to nftables maps, and a packet tracer for tests.
//!
//! `Snapshot` (Services, EndpointSlices, host ports) -> `render` (what one Service needs in the maps) ->
//! `state` (what changed, as nftables operations) -> `worker` (one transaction into the kernel). All but
//! the last are pure. The layout of the maps is in `rules`.

mod config;
mod health;
mod key;
mod render;
mod rules;
mod service;
mod stale;
mod state;
mod worker;

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod tests;

pub use config::{Config, HostPort, Snapshot};
pub use service::Protocol;
pub use worker::{Handle, Proxy};
