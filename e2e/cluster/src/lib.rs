//! The end-to-end harness: drives `balsa local` and an unmodified kubectl as a person would, and waits for
//! what should come true.
//!
//! One cluster serves all scenarios; each works in a namespace of its own, so they may run in any order.

mod command;
mod kubectl;
mod local;
mod namespace;
mod proxy;
mod wait;
mod writer;

pub use command::{Output, run};
pub use kubectl::Kubectl;
pub use local::{Local, NodeRow};
pub use namespace::Namespace;
pub use proxy::{Answer, Proxy};
pub use wait::{eventually, eventually_some};
pub use writer::{Report, Writer, clients};
