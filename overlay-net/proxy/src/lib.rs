//! Services to nftables maps, and a packet tracer for tests.
