//! Wiring of one server: configuration, identity, leadership, start and stop order.
//!
//! [`run`] is the whole, top to bottom: what is started in which order, and stopped in the reverse.

mod api;
mod bootstrap;
mod config;
mod endpoints;
mod identity;
mod leader;
mod links;
mod maintenance;
mod priority;
mod records;
mod run;
mod silence;

pub use api::{RenewRequest, RenewResponse, TokenInfo, TokenRequest};
pub use config::{Config, Failover, Settings};
pub use maintenance::{
    Members, SavedSnapshot, SnapshotRequest, TransferRequest as StoreTransferRequest, advice,
};
pub use records::ServerRecord;
pub use run::run;

/// What is done to a server's store while the server does not run.
pub mod store {
    pub use balsa_store::{
        Founder, OfflineError, Problem, Reborn, Report, SnapshotInfo, check_snapshot, recover,
        restore, verify,
    };
}
