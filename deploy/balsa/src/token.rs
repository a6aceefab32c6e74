//! `balsa token`: the tokens that machines join the cluster with.

use std::time::Duration;

use balsa_identity::JoinRole;
use balsa_server::{TokenInfo, TokenRequest};
use clap::{Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Deserialize;

use crate::admin::Admin;

const PATH: &str = "/balsa/v1/tokens";

/// Join tokens.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Agent,
    Server,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token and print it.
    Create {
        /// What machines that show it may become. A server token hands out the cluster's keys: guard it.
        #[arg(long, value_enum, default_value_t = Role::Agent)]
        role: Role,
        /// How long it is good for: 30m, 24h, 7d; 0 is for ever.
        #[arg(long, default_value = "24h", value_parser = duration)]
        ttl: Duration,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Show the tokens, without their secrets.
    List,
    /// Make tokens useless. Machines that joined with them stay.
    Revoke {
        /// Ids, as `list` shows them.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// A number with s, m, h or d; 0 needs no unit.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write a number and s, m, h or d, as in 24h");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(seconds).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

#[derive(Deserialize)]
struct Created {
    token: String,
}

/// Runs a command.
///
/// # Errors
/// When the kubeconfig cannot be used or a server refuses.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.admin.run(async |client| match args.command {
        Command::Create {
            role,
            ttl,
            description,
        } => create(&client, role, ttl, description).await,
        Command::List => list(&client).await,
        Command::Revoke { ids } => revoke(&client, &ids).await,
    })
}

async fn create(
    client: &kube::Client,
    role: Role,
    ttl: Duration,
    description: String,
) -> anyhow::Result<()> {
    let body = TokenRequest {
        role: match role {
            Role::Agent => JoinRole::Agent,
            Role::Server => JoinRole::Server,
        },
        lifetime_seconds: (!ttl.is_zero()).then_some(ttl.as_secs()),
        description,
    };
    let request = http::Request::post(PATH)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(&body)?)?;
    let created: Created = client.request(request).await?;
    println!("{}", created.token);
    Ok(())
}

async fn list(client: &kube::Client) -> anyhow::Result<()> {
    let request = http::Request::get(PATH).body(Vec::new())?;
    let tokens: Vec<TokenInfo> = client.request(request).await?;
    println!("{:<10} {:<8} {:<22} DESCRIPTION", "ID", "ROLE", "EXPIRES");
    for token in tokens {
        let role = match token.role {
            JoinRole::Agent => "agent",
            JoinRole::Server => "server",
        };
        println!(
            "{:<10} {role:<8} {:<22} {}",
            token.id,
            expiry(token.expires, Timestamp::now()),
            token.description
        );
    }
    Ok(())
}

fn expiry(expires: Option<Timestamp>, now: Timestamp) -> String {
    match expires {
        None => "never".to_owned(),
        Some(at) if at <= now => "expired".to_owned(),
        Some(at) => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }
}

async fn revoke(client: &kube::Client, ids: &[String]) -> anyhow::Result<()> {
    for id in ids {
        let request = http::Request::delete(format!("{PATH}/{id}")).body(Vec::new())?;
        let _: serde_json::Value = client.request(request).await?;
        println!("{id} revoked");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(duration("30m").unwrap(), Duration::from_secs(1800));
        assert_eq!(duration("7d").unwrap(), Duration::from_secs(604_800));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
        for wrong in ["", "h", "12", "5x", "é", "99999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
