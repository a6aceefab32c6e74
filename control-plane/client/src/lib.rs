//! One way to talk to an API server, and what everything that watches one is made of.
//!
//! - [`in_process`] and [`connect`] make a [`kube::Client`]: over a tower service in the same process, or over
//!   TLS to several servers with failover.
//! - [`Informer`] keeps a local copy of one kind and tells of its changes; [`Index`] finds objects by
//!   something else than their name.
//! - [`WorkQueue`] and [`Workers`] turn changes into deduplicated, rate-limited calls of a reconcile function.
//! - [`EventRecorder`] writes core/v1 Events for people, without ever holding up its caller.

mod config;
mod connect;
pub mod events;
mod failover;
mod in_process;
mod informer;
mod key;
mod queue;
mod servers;
mod source;
mod store;
pub mod time;
mod tls;
mod trim;
mod workers;

pub use config::{ClientConfig, Credentials, Timeouts};
pub use connect::{Connection, Error, connect};
pub use events::{Deed, EventRecorder, EventType};
pub use failover::Unavailable;
pub use in_process::in_process;
pub use informer::{Informer, InformerOptions, Subscription};
pub use key::Key;
pub use queue::{Backoff, WorkQueue};
pub use servers::{InvalidServers, Servers};
pub use source::{ApiSource, ListFrom, MetadataSource, Source};
pub use store::{Delta, Index};
pub use tls::TlsError;
pub use trim::pods;
pub use workers::{Outcome, Workers};
