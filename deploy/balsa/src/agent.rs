//! `balsa agent`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use balsa_agent::{Agent, AgentConfig, RuntimeChoice};
use balsa_client::{ClientConfig, Credentials, Timeouts};
use balsa_identity::{
    JoinRequest, JoinRole, JoinToken, LINK_SERVER_NAME, NodeIdentity, PendingNode,
};
use balsa_link::agent::StreamHandler;
use balsa_link::join;
use balsa_link::protocol::Hello;
use balsa_server::{Failover, ServerRecord};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use crate::{server, settings};

/// Run a node agent.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Settings file (YAML); flags and BALSA_* variables win over it. /etc/balsa/config.yaml if it is there.
    #[arg(long, env = "BALSA_CONFIG")]
    config: Option<PathBuf>,
    /// Print the settings that result and stop.
    #[arg(long)]
    print_config: bool,
    /// Name of this node; the host name if not given.
    #[arg(long, env = "BALSA_NAME")]
    name: Option<String>,
    /// Data folder [default: /var/lib/balsa].
    #[arg(long, env = "BALSA_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address that other nodes reach this one at.
    #[arg(long, env = "BALSA_ADDRESS")]
    address: Option<IpAddr>,
    /// A server of the cluster (host or host:port); may be repeated.
    #[arg(long, env = "BALSA_JOIN", value_delimiter = ',')]
    join: Vec<String>,
    /// Join token; needed on the first start only.
    #[arg(long, env = "BALSA_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Socket of a container runtime to use instead of an own containerd.
    #[arg(long, env = "BALSA_CRI_ENDPOINT")]
    cri_endpoint: Option<PathBuf>,
    /// The containerd program [default: containerd in PATH].
    #[arg(long, env = "BALSA_CONTAINERD")]
    containerd: Option<PathBuf>,
    /// Cgroup that pods are made in, below each controller's root [default: /balsa].
    #[arg(long, env = "BALSA_CGROUP_ROOT")]
    cgroup_root: Option<String>,
    /// Pod network [default: 10.244.0.0/16].
    #[arg(long, env = "BALSA_POD_CIDR")]
    pod_cidr: Option<IpNet>,
    /// Service network [default: 10.96.0.0/16].
    #[arg(long, env = "BALSA_SERVICE_CIDR")]
    service_cidr: Option<IpNet>,
    /// Address of the cluster's DNS Service [default: 10.96.0.10].
    #[arg(long, env = "BALSA_CLUSTER_DNS")]
    cluster_dns: Option<IpAddr>,
    /// Cluster domain [default: cluster.local].
    #[arg(long, env = "BALSA_CLUSTER_DOMAIN")]
    cluster_domain: Option<String>,
    /// As the servers': with `fast` this node says more often that it is alive.
    #[arg(long, env = "BALSA_FAILOVER", value_parser = server::failover)]
    failover: Option<Failover>,
}

/// What an agent's settings file may say.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct FileSettings {
    name: Option<String>,
    data_dir: Option<PathBuf>,
    address: Option<IpAddr>,
    join: Option<Vec<String>>,
    token: Option<String>,
    cri_endpoint: Option<PathBuf>,
    containerd: Option<PathBuf>,
    cgroup_root: Option<String>,
    pod_cidr: Option<IpNet>,
    service_cidr: Option<IpNet>,
    cluster_dns: Option<IpAddr>,
    cluster_domain: Option<String>,
    failover: Option<Failover>,
}

/// Runs until SIGTERM or SIGINT. Pods go on running.
pub fn run(args: Args) -> anyhow::Result<()> {
    let file: FileSettings = settings::read(args.config.as_deref())?;
    let print = args.print_config;
    let (config, join, token) = merge(args, file)?;
    if print {
        println!("{config:#?}");
        return Ok(());
    }
    settings::run_until_signal(|stop| async move { join_and_run(config, join, token, stop).await })
}

fn merge(
    args: Args,
    file: FileSettings,
) -> anyhow::Result<(AgentConfig, Vec<String>, Option<String>)> {
    let mut problems = Vec::new();
    let name = match args.name.or(file.name) {
        Some(name) => name,
        None => settings::hostname()?.to_lowercase(),
    };
    let data_dir = args
        .data_dir
        .or(file.data_dir)
        .unwrap_or_else(|| PathBuf::from("/var/lib/balsa"));
    let address = args.address.or(file.address);
    if address.is_none() {
        problems.push(
            "address: the address that other nodes reach this one at is needed (--address IP)"
                .to_owned(),
        );
    }
    let join = if args.join.is_empty() {
        file.join.unwrap_or_default()
    } else {
        args.join
    };
    if join.is_empty() {
        problems.push("join: at least one server is needed (--join HOST)".to_owned());
    }
    let mut config = AgentConfig::new(
        name,
        address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        data_dir,
    );
    if let Some(endpoint) = args.cri_endpoint.or(file.cri_endpoint) {
        config.runtime = RuntimeChoice::Existing { endpoint };
    } else if let Some(containerd) = args.containerd.or(file.containerd) {
        config.runtime = RuntimeChoice::Supervised { containerd };
    }
    if let Some(cgroup) = args.cgroup_root.or(file.cgroup_root) {
        config.cgroup_root = format!("/{}", cgroup.trim_start_matches('/'));
    }
    config.pod_cidr = args.pod_cidr.or(file.pod_cidr).unwrap_or(config.pod_cidr);
    config.service_cidr = args
        .service_cidr
        .or(file.service_cidr)
        .unwrap_or(config.service_cidr);
    config.cluster_dns = args.cluster_dns.or(file.cluster_dns).or(config.cluster_dns);
    config.cluster_domain = args
        .cluster_domain
        .or(file.cluster_domain)
        .unwrap_or(config.cluster_domain);
    config.fast_failover = args.failover.or(file.failover) == Some(Failover::Fast);
    config.cni_program = std::env::current_exe().context("cannot find this program's own file")?;
    let checked = if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    };
    settings::complain(checked)?;
    Ok((config, join, args.token.or(file.token)))
}

async fn join_and_run(
    config: AgentConfig,
    servers: Vec<String>,
    token: Option<String>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "a node agent makes containers and networks, so it must run as root"
    );
    let identity = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        identity = obtain(&config, &servers, token) => identity?,
    };
    run_joined(config, &servers, &identity, stop).await
}

/// Runs the agent of a node that has its certificate.
///
/// # Errors
/// When the agent cannot start.
pub async fn run_joined(
    config: AgentConfig,
    servers: &[String],
    identity: &NodeIdentity,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let running = stop.child_token();
    let _guard = running.clone().drop_guard();
    let urls = servers
        .iter()
        .map(|server| format!("https://{}", join::address(server)))
        .collect();
    let pem = identity.client_pem();
    let connection = balsa_client::connect(ClientConfig {
        servers: urls,
        ca_pem: identity.ca_pem().as_bytes().to_vec(),
        credentials: Credentials::Certificate {
            cert_pem: pem.chain_pem.into_bytes(),
            key_pem: pem.key_pem.into_bytes(),
        },
        timeouts: Timeouts::default(),
    })?;
    let (links, link_servers) = watch::channel(Vec::new());
    let hello = Hello {
        node: config.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let options = balsa_link::agent::Options {
        hello,
        servers: link_servers,
        server_name: LINK_SERVER_NAME.to_owned(),
        tls: (*identity.link_client()?).clone(),
    };
    let agent = Arc::new(Agent::new(config, connection.client.clone())?);
    let handler: Arc<dyn StreamHandler> = Arc::clone(&agent) as _;
    tokio::spawn(
        follow_servers(connection, links, running.clone()).instrument(info_span!("servers")),
    );
    let link = balsa_link::agent::run(options, handler, running.clone());
    let link = tokio::spawn(link.instrument(info_span!("link")));
    agent.run(running.clone()).await?;
    running.cancel();
    link.await??;
    Ok(())
}

/// How often the list of servers is asked for; at first, until there is one, much more often.
const REFRESH: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_millis(300);

/// Keeps the lists of servers fresh: servers come, go and move while agents run.
async fn follow_servers(
    connection: balsa_client::Connection,
    links: watch::Sender<Vec<SocketAddr>>,
    stop: CancellationToken,
) {
    loop {
        let known = !links.borrow().is_empty();
        let request = http::Request::get("/balsa/v1/servers").body(Vec::new());
        if let Ok(request) = request {
            match connection
                .client
                .request::<Vec<ServerRecord>>(request)
                .await
            {
                Ok(servers) if !servers.is_empty() => {
                    let urls: Vec<String> = servers
                        .iter()
                        .map(|s| format!("https://{}", s.api))
                        .collect();
                    if let Err(error) = connection.servers.set(&urls) {
                        tracing::warn!(%error, "the list of servers cannot be used");
                    }
                    let addresses: Vec<SocketAddr> = servers.iter().map(|s| s.link).collect();
                    links.send_if_modified(|now| {
                        let changed = *now != addresses;
                        *now = addresses;
                        changed
                    });
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the list of servers cannot be had now"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if known { REFRESH } else { FIRST }) => {}
        }
    }
}

/// The node's certificate: the one there is, or one got with the join token.
///
/// # Errors
/// When the cluster refuses the machine, or the folder cannot be used.
pub async fn obtain(
    config: &AgentConfig,
    servers: &[String],
    token: Option<String>,
) -> anyhow::Result<NodeIdentity> {
    let dir: &Path = &config.data_dir.join("keys");
    if let Some(identity) = NodeIdentity::load(dir)? {
        anyhow::ensure!(
            identity.name() == config.node_name,
            "{} holds the certificate of node {:?}, but this node is {:?}: start with that name, or with another data folder",
            dir.display(),
            identity.name(),
            config.node_name
        );
        return Ok(identity);
    }
    let token: JoinToken = token
        .context("token: to join a cluster a token is needed (--token)")?
        .parse()?;
    let pending = PendingNode::new(&config.node_name)?;
    let request = JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret().to_owned(),
        role: JoinRole::Agent,
        node: config.node_name.clone(),
        request_pem: Some(pending.request_pem().to_owned()),
    };
    let response = loop {
        match join::join(servers, &token, &request).await {
            Ok(response) => break response,
            // Machines are often started all at once, the servers not first.
            Err(join::JoinError::Unreachable(why)) => {
                tracing::info!("no server answers yet, trying again:\n{why}");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let certificate = response
        .certificate_pem
        .context("the cluster's answer holds no certificate")?;
    Ok(pending.install(dir, &response.ca_pem, &certificate)?)
}
