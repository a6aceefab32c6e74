//! `balsa members`: who keeps the cluster's data.

use balsa_server::{Members, StoreTransferRequest};
use clap::Subcommand;

use crate::admin::Admin;

/// Members of the store.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the members, who leads, and how many may fail.
    List,
    /// Remove a member, whether or not it runs. Stop its server first; harmless to repeat.
    Remove {
        /// Its id, as `list` shows it.
        id: u64,
    },
    /// Hand leadership to another member. Ask the server that leads.
    Transfer {
        /// Which; the most advanced other one if absent.
        #[arg(long)]
        to: Option<u64>,
    },
}

/// Runs a command.
///
/// # Errors
/// When the kubeconfig cannot be used or a server refuses.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.admin.run(async |client| {
        let request = match args.command {
            Command::List => http::Request::get("/balsa/v1/members").body(Vec::new())?,
            Command::Remove { id } => {
                http::Request::delete(format!("/balsa/v1/members/{id}")).body(Vec::new())?
            }
            Command::Transfer { to } => http::Request::post("/balsa/v1/leader")
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(serde_json::to_vec(&StoreTransferRequest { to })?)?,
        };
        let members: Members = client.request(request).await?;
        print!("{}", table(&members));
        Ok(())
    })
}

fn table(members: &Members) -> String {
    use std::fmt::Write;
    let mut text = format!("{:<22} {:<24} ROLE\n", "ID", "ADDRESS");
    for member in &members.members {
        let role = match (member.voter, members.leader == Some(member.id)) {
            (_, true) => "leader",
            (true, _) => "voter",
            (false, _) => "catching up",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:<22} {:<24} {role}", member.id, member.address);
    }
    let _ = writeln!(text, "{}", members.advice);
    text
}
