//! The tiny CNI plugin: a veth pair, an address from the node's CIDR, and routes.
