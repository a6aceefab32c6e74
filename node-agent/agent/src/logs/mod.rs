//! Logs of containers: reading them as `kubectl logs` wants, and rotating them.

mod line;
mod read;
mod rotate;
mod watch;

pub(crate) use read::{Source, stream};
pub(crate) use rotate::Rotator;
