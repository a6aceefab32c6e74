//! Wiring of one server: configuration, identity, leadership, start and stop order.
