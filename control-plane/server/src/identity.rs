//! Who this server is: the cluster's keys and this member's id, made, joined or loaded.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use balsa_identity::{Identity, JoinRequest, JoinRole, JoinToken, ServerNames, files};
use balsa_link::join;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::config::Config;

/// Folder of the keys below the data folder.
const KEYS: &str = "keys";
/// File of the member id below the data folder.
const MEMBER: &str = "member.json";

/// What the data folder says of this member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Raft member id: random, chosen once, never reused by another data folder.
    pub id: u64,
}

/// Loads what the data folder holds; on a first start makes a new cluster's keys, or gets those of the
/// cluster to join.
///
/// # Errors
/// When the folder cannot be used or the cluster cannot be joined.
pub async fn obtain(config: &Config) -> anyhow::Result<(Arc<Identity>, Member)> {
    let dir = config.data_dir.join(KEYS);
    let names = names(config);
    let identity = if Identity::exists(&dir) {
        Identity::load(&dir, &names)?
    } else if config.join.is_empty() {
        // Also what a server does that lost its data folder and is started as on its first day.
        warn!(
            "NEW CLUSTER: {} holds no keys and no server to join is named, so this server founds a cluster of its own, \
             with new keys and nothing in it. If it should belong to a cluster that is there: stop it, empty that \
             folder, and start it with --join and --token",
            config.data_dir.display()
        );
        Identity::create(&dir, &names)?
    } else {
        join_cluster(config, &dir, &names).await?
    };
    let member = member(&config.data_dir.join(MEMBER))?;
    Ok((Arc::new(identity), member))
}

fn names(config: &Config) -> ServerNames {
    let (ips, dns): (Vec<_>, Vec<_>) = config.san.iter().partition(|n| n.parse::<IpAddr>().is_ok());
    let mut ips: Vec<IpAddr> = ips.iter().filter_map(|n| n.parse().ok()).collect();
    ips.extend([config.address, config.kubernetes_service()]);
    let mut dns: Vec<String> = dns.into_iter().cloned().collect();
    dns.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
    ServerNames {
        node: config.name.clone(),
        dns,
        ips,
    }
}

async fn join_cluster(
    config: &Config,
    dir: &Path,
    names: &ServerNames,
) -> anyhow::Result<Identity> {
    let token: JoinToken = config.token.as_deref().unwrap_or_default().parse()?;
    info!(servers = ?config.join, "joining a cluster");
    let request = JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret().to_owned(),
        role: JoinRole::Server,
        node: config.name.clone(),
        request_pem: None,
    };
    let response = join::join(&config.join, &token, &request).await?;
    let Some(bundle) = response.bundle else {
        bail!("the cluster's answer holds no keys; is the other server of the same version?");
    };
    Ok(Identity::from_bundle(dir, names, &bundle)?)
}

fn member(path: &Path) -> anyhow::Result<Member> {
    if let Some(text) = files::read(path)? {
        return serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is damaged; restore it or start with an empty data folder",
                path.display()
            )
        });
    }
    // 53 bits: exact as a JSON number for every tool.
    let member = Member {
        id: rand::random_range(1..1 << 53),
    };
    files::write_secret(path, &serde_json::to_vec(&member)?)?;
    Ok(member)
}
