//! What is served beside the built-in kinds: custom resources, and APIs of other servers.

pub mod aggregation;
pub mod crd;
