//! Logs go to standard error, for people or as JSON; `RUST_LOG` chooses what.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What nodes log unless told otherwise. A heartbeat that takes longer than until the next one is no news on a busy
/// machine, and replication complains five times a second of a server that is down; the leader tells itself, once, when
/// a server is heard of no more.
pub const NODE: &str = "info,openraft=warn,openraft::core::heartbeat=error,openraft::replication=error,quinn=warn,\
                        hyper=warn,h2=warn,kube=warn";
/// What commands that people type log: they say themselves what went wrong, and asking servers that do not answer
/// yet is no news.
pub const COMMAND: &str = "warn,kube_client=off";

/// Starts logging; `usual` is the filter that `RUST_LOG` replaces.
pub fn init(json: bool, usual: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json {
        builder.json().init();
    } else {
        builder.with_target(false).init();
    }
}
