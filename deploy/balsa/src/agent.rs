//! `balsa agent`.

mod renewal;
mod servers;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use balsa_agent::{Agent, AgentConfig};
use balsa_client::{ClientConfig, Credentials, Timeouts};
use balsa_identity::{
    JoinRequest, JoinRole, JoinToken, LINK_SERVER_NAME, NodeIdentity, PendingNode,
};
use balsa_link::agent::StreamHandler;
use balsa_link::join;
use balsa_link::protocol::Hello;
use balsa_server::Failover;
use ipnet::IpNet;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use crate::server;
use crate::settings::{self, NodeSettings};
use servers::KnownServers;

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
    #[command(flatten)]
    node: NodeSettings,
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

/// What results from flags, environment and file; printed by `--print-config`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Settled {
    name: String,
    data_dir: PathBuf,
    address: IpAddr,
    join: Vec<String>,
    #[serde(skip)]
    token: Option<String>,
    pod_cidr: IpNet,
    service_cidr: IpNet,
    cluster_dns: Option<IpAddr>,
    cluster_domain: String,
    failover: Failover,
    #[serde(flatten)]
    node: NodeSettings,
}

/// Runs until SIGTERM or SIGINT. Pods go on running.
pub fn run(args: Args) -> anyhow::Result<()> {
    let file = settings::read(args.config.as_deref())?;
    let print = args.print_config;
    let settled = settle(args, file)?;
    if print {
        print!("{}", serde_saphyr::to_string(&settled)?);
        return Ok(());
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let (join, token) = (settled.join.clone(), settled.token.clone());
    let config = settled.config(program)?;
    settings::run_until_signal(|stop| async move { join_and_run(config, join, token, stop).await })
}

fn settle(args: Args, file: settings::File) -> anyhow::Result<Settled> {
    let mut problems = Vec::new();
    let (node, file) = (args.node.over(file.node), file.server);
    let name = match args.name.or(file.name) {
        Some(name) => name,
        None => settings::hostname()?.to_lowercase(),
    };
    let address = args.address.or(file.address).unwrap_or_else(|| {
        problems.push(
            "address: the address that other nodes reach this one at is needed (--address IP)"
                .to_owned(),
        );
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    });
    let join = if args.join.is_empty() {
        file.join.unwrap_or_default()
    } else {
        args.join
    };
    if join.is_empty() {
        problems.push("join: at least one server is needed (--join HOST)".to_owned());
    }
    settings::complain(if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    })?;
    let data_dir = args
        .data_dir
        .or(file.data_dir)
        .unwrap_or_else(|| PathBuf::from("/var/lib/balsa"));
    // What an agent does when nobody says otherwise.
    let usual = AgentConfig::new(name.clone(), address, data_dir.clone());
    Ok(Settled {
        name,
        data_dir,
        address,
        join,
        token: args.token.or(file.token),
        pod_cidr: args.pod_cidr.or(file.pod_cidr).unwrap_or(usual.pod_cidr),
        service_cidr: args
            .service_cidr
            .or(file.service_cidr)
            .unwrap_or(usual.service_cidr),
        cluster_dns: args.cluster_dns.or(file.cluster_dns).or(usual.cluster_dns),
        cluster_domain: args
            .cluster_domain
            .or(file.cluster_domain)
            .unwrap_or(usual.cluster_domain),
        failover: args.failover.or(file.failover).unwrap_or_default(),
        node,
    })
}

impl Settled {
    fn config(self, program: PathBuf) -> anyhow::Result<AgentConfig> {
        let mut config = AgentConfig::new(self.name, self.address, self.data_dir);
        self.node.configure(&mut config)?;
        config.pod_cidr = self.pod_cidr;
        config.service_cidr = self.service_cidr;
        config.cluster_dns = self.cluster_dns;
        config.cluster_domain = self.cluster_domain;
        config.fast_failover = self.failover == Failover::Fast;
        config.cni_program = program;
        Ok(config)
    }
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
    run_joined(config, &servers, identity, stop).await
}

/// Runs the agent of a node that has its certificate. When the machine goes down it may take its time to return.
///
/// # Errors
/// When the agent cannot start.
pub async fn run_joined(
    config: AgentConfig,
    servers: &[String],
    identity: NodeIdentity,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    // The agent may have to reach servers for a while after it was told to stop.
    let running = CancellationToken::new();
    let _guard = running.clone().drop_guard();
    let known = KnownServers::new(&config.data_dir);
    let connection = balsa_client::connect(ClientConfig {
        servers: known.urls(servers),
        ca_pem: identity.ca_pem().as_bytes().to_vec(),
        credentials: credentials(&identity),
        user_agent: "kubelet/v1.35.0 balsa",
        timeouts: Timeouts::default(),
    })?;
    let (links, link_servers) = watch::channel(known.links());
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
        servers::follow(connection.clone(), links, known, running.clone())
            .instrument(info_span!("servers")),
    );
    tokio::spawn(
        renewal::keep(identity, connection, running.clone()).instrument(info_span!("certificate")),
    );
    let link = balsa_link::agent::run(options, handler, running.clone());
    let link = tokio::spawn(link.instrument(info_span!("link")));
    agent.run(stop).await?;
    running.cancel();
    link.await??;
    Ok(())
}

/// What the node shows to servers.
fn credentials(identity: &NodeIdentity) -> Credentials {
    let pem = identity.client_pem();
    Credentials::Certificate {
        cert_pem: pem.chain_pem.into_bytes(),
        key_pem: pem.key_pem.into_bytes(),
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
