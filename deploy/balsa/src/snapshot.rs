//! `balsa snapshot`: a copy of everything in the cluster, and a new cluster from it.

use std::path::PathBuf;

use anyhow::Context;
use balsa_server::store::{Founder, Reborn, check_snapshot, restore};
use balsa_server::{SavedSnapshot, SnapshotRequest};
use clap::Subcommand;

use crate::admin::Admin;
use crate::store_cmd::{member_id, store_dir};

/// Snapshots of the cluster's data.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Save everything while the cluster runs. The file is written by the server that is asked, into the
    /// folder `snapshots` of its data folder.
    Save {
        /// The file's name.
        name: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Make a new cluster of one server from a snapshot. The server must not run, and its store must have
    /// been moved away; its keys are used on.
    Restore {
        /// The snapshot.
        file: PathBuf,
        /// The server's data folder.
        #[arg(long, default_value = "/var/lib/balsa")]
        data_dir: PathBuf,
        /// Where other servers will reach its Raft port; it says so itself if it has changed when it starts.
        #[arg(long, default_value = "127.0.0.1:6444")]
        advertise: String,
        /// Let revisions go on so much after the snapshot's, so that clients notice that time went back.
        #[arg(long, default_value_t = 1_000_000)]
        bump: u64,
    },
    /// Check that a snapshot is whole.
    Check {
        /// The snapshot.
        file: PathBuf,
    },
}

/// Runs a command.
///
/// # Errors
/// When a server refuses, or a file or folder cannot be used; each says what to do.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Save { name, admin } => save(name, &admin),
        Command::Restore {
            file,
            data_dir,
            advertise,
            bump,
        } => {
            let founder = Founder {
                dir: store_dir(&data_dir),
                member: member_id(&data_dir)?,
                advertise,
            };
            let reborn = restore(&file, &founder, bump)?;
            print!("{}", told(&reborn));
            Ok(())
        }
        Command::Check { file } => {
            let info = check_snapshot(&file)?;
            println!(
                "{} is whole: revision {}, {} records, {} bytes, of cluster {}",
                file.display(),
                info.revision,
                info.records,
                info.bytes,
                info.cluster
            );
            Ok(())
        }
    }
}

fn save(name: String, admin: &Admin) -> anyhow::Result<()> {
    let saved: SavedSnapshot = admin.run(async |client| {
        let request = http::Request::post("/balsa/v1/snapshots")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&SnapshotRequest { name })?)?;
        client
            .request(request)
            .await
            .context("no snapshot was saved")
    })?;
    println!(
        "{} saved: revision {}, {} bytes",
        saved.path, saved.revision, saved.bytes
    );
    Ok(())
}

/// What to do after a cluster was begun anew.
pub fn told(reborn: &Reborn) -> String {
    format!(
        "member {} is the only one of the new cluster {}, at revision {}\nstart this server now; then join the others with empty data folders: with their old ones they are refused\n",
        reborn.member, reborn.cluster, reborn.revision
    )
}
