//! A CSI driver whose volumes are folders.

mod controller;
mod devices;
mod node;
mod register;
mod volumes;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// A CSI driver whose volumes are folders.
#[derive(Parser)]
struct Arguments {
    /// The driver's name.
    #[arg(long, default_value = "folders.csi.balsa.test")]
    driver: String,
    /// Folder with the volumes.
    #[arg(long)]
    root: PathBuf,
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Serves the node's agent.
    Node(node::Options),
    /// Makes, attaches, grows and deletes volumes as the API has it.
    Controller,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let volumes = volumes::Volumes::new(arguments.root)?;
    match arguments.part {
        Part::Node(options) => node::run(arguments.driver, volumes, options).await,
        Part::Controller => Box::pin(controller::run(arguments.driver, volumes)).await,
    }
}

/// Waits until somebody asks the process to stop.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
