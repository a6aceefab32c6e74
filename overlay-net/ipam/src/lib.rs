//! Addresses for pods from the node's CIDR, kept on disk.
