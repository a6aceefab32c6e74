//! What several controllers need to know of pods, owners and selectors. Pure, except [`pod_control`].

pub(crate) mod batches;
pub(crate) mod expectations;
pub(crate) mod follow;
pub(crate) mod history;
pub(crate) mod owner;
pub(crate) mod pod_control;
pub(crate) mod pods;
pub(crate) mod selector;
pub(crate) mod template;
