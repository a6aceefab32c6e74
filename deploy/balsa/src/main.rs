//! The one binary: server, agent, cni, local, token.
fn main() {}
