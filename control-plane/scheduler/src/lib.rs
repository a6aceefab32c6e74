//! The scheduler: queue, snapshot, filter and score plugins, binding.
//!
//! It runs beside the Raft leader. [`cycle::Profile::choose`] decides, purely; [`Scheduler`] feeds it from
//! informers and binds through `pods/binding`. A placed pod is assumed on its node at once, so the next
//! decision does not wait for the API.

mod act;
pub mod cache;
pub mod context;
pub mod cycle;
pub mod drivers;
pub mod framework;
pub mod image;
pub mod plugins;
pub mod pod;
pub mod preempt;
pub mod queue;
mod service;
pub mod terms;

pub use service::{Options, Scheduler};
