//! The one binary: server, agent, cni, local, token.

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod admin;
mod agent;
mod allocator;
mod local;
mod logging;
mod members;
mod memory;
mod recover;
mod server;
mod settings;
mod snapshot;
mod store_cmd;
mod token;

/// Kubernetes on a Raft: a whole cluster in one program.
#[derive(Debug, Parser)]
#[command(
    name = "balsa",
    version,
    about = "Kubernetes on a Raft: a whole cluster in one program."
)]
struct Cli {
    /// Log as JSON lines.
    #[arg(long, env = "BALSA_LOG_JSON", global = true, hide = true)]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a server: API, store, scheduler and controllers (and a node agent unless --no-agent).
    Server(Box<server::Args>),
    /// Run a node agent that joins a cluster.
    Agent(Box<agent::Args>),
    /// Join tokens: make, list and revoke them.
    Token(token::Args),
    /// Members of the store: list, remove, hand leadership over.
    Members(members::Args),
    /// Snapshots of the cluster's data: save, check, restore.
    Snapshot(snapshot::Args),
    /// Go on with one server after a majority is gone for good.
    Recover(recover::Args),
    /// A server's stored data: verify.
    Store(store_cmd::Args),
    /// A cluster of several nodes on this machine.
    Local(local::Args),
}

fn main() -> ExitCode {
    // The container runtime runs this file under the names of CNI plugins.
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name)
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    if balsa_cni::PLUGIN_NAMES.contains(&name) {
        return balsa_cni::run();
    }
    let cli = Cli::parse();
    let usual = match &cli.command {
        Command::Server(_) | Command::Agent(_) => logging::NODE,
        _ => logging::COMMAND,
    };
    logging::init(cli.log_json, usual);
    let outcome = match cli.command {
        Command::Server(args) => server::run(*args),
        Command::Agent(args) => agent::run(*args),
        Command::Token(args) => token::run(args),
        Command::Members(args) => members::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Recover(args) => recover::run(args),
        Command::Store(args) => store_cmd::run(args),
        Command::Local(args) => local::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
