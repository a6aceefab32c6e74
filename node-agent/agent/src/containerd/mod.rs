//! The agent's own containerd: its configuration, its process, and the sandbox image that it needs.

mod config;
mod lost;
mod namespaces;
mod pause;
mod process;
mod results;
mod shims;

pub(crate) use config::write as write_config;
pub(crate) use pause::{IMAGE as PAUSE_IMAGE, import as import_pause};
pub(crate) use process::Supervisor;
pub(crate) use shims::end_forgotten as end_forgotten_shims;
