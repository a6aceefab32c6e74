//! Links, routes, neighbours and nftables over netlink: traits, the real thing and fakes.
//!
//! Start with [`Links`] (devices, addresses, routes; real: [`Rtnl`], fake: [`FakeLinks`]) and [`nft`]
//! (rules and maps; real: [`nft::Kernel`], fake: [`nft::Model`]). Calls block for microseconds and need no
//! runtime. Every connection belongs to the network namespace of the thread that opened it.

mod connection;
mod conntrack;
mod error;
mod fake;
mod links;
mod monitor;
mod netns;
pub mod nft;
mod rtnl;
pub mod sysctl;
pub mod wire;

pub use connection::Connection;
pub use conntrack::{Conntrack, CtNetlink, Flow};
pub use error::{Error, Result};
pub use fake::{FakeLinks, Tables};
pub use links::{
    Address, FdbEntry, Link, LinkChange, LinkKind, Links, Mac, Neighbour, NewVeth, NewVxlan, Route,
    RouteKind, Scope, Vxlan, host_net, unspecified,
};
pub use monitor::Monitor;
pub use netns::Namespace;
pub use rtnl::Rtnl;
