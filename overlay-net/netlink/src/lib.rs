//! Links, routes, neighbours and nftables over netlink: traits, the real thing and fakes.
