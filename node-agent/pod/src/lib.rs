//! The pod lifecycle as a pure reducer: what a pod is asked to be, what is seen of it, and what went before
//! give what to do next and the status to report. No I/O, no clock: [`reduce`] is told the time.

pub mod backoff;
mod local;
mod observed;
mod plan;
pub mod qos;
pub mod resize;
pub mod spec;
mod status;
#[cfg(test)]
mod tests;

pub use local::{Condemned, ContainerLocal, Local, Rejection, ResizePending, StartFailure, Step};
pub use observed::{Exit, Instance, InstanceState, Observed, Sandbox, User};
pub use plan::{Action, Input, Plan, reduce};
pub use status::reasons;
