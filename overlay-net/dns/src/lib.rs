//! Cluster DNS on each node.
