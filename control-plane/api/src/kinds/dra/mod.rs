//! Dynamic resource allocation (KEP-4381): devices that nodes offer and pods claim.

pub(super) mod device_class;
mod requests;
pub(super) mod resource_claim;
pub(super) mod resource_claim_template;
pub(super) mod resource_slice;

/// Their group.
const GROUP: &str = "resource.k8s.io";
