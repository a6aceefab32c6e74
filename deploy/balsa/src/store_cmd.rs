//! `balsa store`: a server's data folder, while the server does not run.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use balsa_server::store::verify;
use clap::Subcommand;

/// A server's stored data.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read everything and check every checksum, without changing anything. The server must not run.
    Verify {
        /// The server's data folder, or the folder `store` in it.
        #[arg(default_value = "/var/lib/balsa")]
        dir: PathBuf,
    },
}

/// Runs a command.
///
/// # Errors
/// When something is wrong with the folder.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Command::Verify { dir } = args.command;
    let dir = if dir.join("identity.json").exists() {
        dir
    } else {
        store_dir(&dir)
    };
    let report = verify(&dir);
    println!(
        "{}: member {}, cluster {}, revision {}, {} keys, {} entries in the log",
        dir.display(),
        report
            .member
            .map_or_else(|| "unknown".to_owned(), |id| id.to_string()),
        report.cluster.as_deref().unwrap_or("none"),
        report.revision,
        report.keys,
        report.entries
    );
    for problem in &report.problems {
        println!("{problem}");
    }
    match report.problems.len() {
        0 => {
            println!("sound");
            Ok(())
        }
        count => bail!("{count} problems"),
    }
}

/// Where a server's store is in its data folder.
pub fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

/// The member id that a server chose when it first started.
pub fn member_id(data_dir: &Path) -> anyhow::Result<u64> {
    #[derive(serde::Deserialize)]
    struct Member {
        id: u64,
    }
    let path = data_dir.join("member.json");
    let bytes = std::fs::read(&path).with_context(|| {
        format!(
            "cannot read {}: is this a server's data folder?",
            path.display()
        )
    })?;
    let member: Member =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(member.id)
}
