//! The pods of this node. The [`Manager`] starts one [`worker`] per pod and hands it what concerns it; the
//! worker asks the reducer of `balsa-pod` and takes the steps it plans.

pub(crate) mod capacity;
mod checkpoint;
mod clock;
pub(crate) mod container;
mod context;
pub(crate) mod env;
mod env_file;
pub(crate) mod fields;
mod hooks;
mod mailbox;
mod manager;
mod observe;
mod ops;
pub(crate) mod resources;
pub(crate) mod sandbox;
pub(crate) mod security;
pub(crate) mod statics;
mod status;
mod strays;
#[cfg(test)]
mod tests;
pub(crate) mod users;
mod worker;

pub(crate) use context::{Context, Routes};
pub(crate) use mailbox::Mailbox;
pub(crate) use manager::Manager;
