//! Wiring of one node: watches pods, runs probes, volumes, images, logs, streams and node status.
