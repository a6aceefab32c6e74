//! The overlay between nodes: desired and observed devices, routes, neighbours and FDB entries to operations.
