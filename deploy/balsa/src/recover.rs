//! `balsa recover`: go on with one server after most are gone for good.

use std::path::PathBuf;

use balsa_server::store::{Founder, recover};

use crate::snapshot::told;
use crate::store_cmd::{member_id, store_dir};

/// Go on with one server after a majority is gone for good. The server must not run. Choose the one that
/// `balsa store verify` shows the highest revision for.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server's data folder.
    #[arg(long, default_value = "/var/lib/balsa")]
    data_dir: PathBuf,
    /// Where other servers will reach its Raft port; it says so itself if it has changed when it starts.
    #[arg(long, default_value = "127.0.0.1:6444")]
    advertise: String,
}

/// Runs the command.
///
/// # Errors
/// When the data folder cannot be used; each says what to do.
pub fn run(args: Args) -> anyhow::Result<()> {
    let founder = Founder {
        dir: store_dir(&args.data_dir),
        member: member_id(&args.data_dir)?,
        advertise: args.advertise,
    };
    let reborn = recover(&founder)?;
    print!("{}", told(&reborn));
    Ok(())
}
