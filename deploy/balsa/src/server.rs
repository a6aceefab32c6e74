//! `balsa server`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use balsa_agent::AgentConfig;
use balsa_server::{Config, Failover, Settings};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::settings::NodeSettings;
use crate::{agent, settings};

/// The first pause before the server's own agent is started again; it doubles up to the longest.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LONGEST: Duration = Duration::from_secs(30);
/// An agent that ran for so long is started again as if for the first time.
const RAN_WELL: Duration = Duration::from_secs(300);

/// Run a server.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Settings file (YAML); flags and BALSA_* variables win over it. /etc/balsa/config.yaml if it is there.
    #[arg(long, env = "BALSA_CONFIG")]
    config: Option<PathBuf>,
    /// Print the settings that result and stop.
    #[arg(long)]
    print_config: bool,
    /// Name of this server; the host name if not given.
    #[arg(long, env = "BALSA_NAME")]
    name: Option<String>,
    /// Data folder [default: /var/lib/balsa].
    #[arg(long, env = "BALSA_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address that other machines reach this one at.
    #[arg(long, env = "BALSA_ADDRESS")]
    address: Option<IpAddr>,
    /// Further name or address for the API's certificate; may be repeated.
    #[arg(long, env = "BALSA_SAN", value_delimiter = ',')]
    san: Vec<String>,
    /// A server of the cluster to join (host or host:port); may be repeated. Without it a new cluster is made.
    #[arg(long, env = "BALSA_JOIN", value_delimiter = ',')]
    join: Vec<String>,
    /// Join token, from another server's data folder or output.
    #[arg(long, env = "BALSA_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Pod network [default: 10.244.0.0/16].
    #[arg(long, env = "BALSA_POD_CIDR")]
    pod_cidr: Option<IpNet>,
    /// Prefix length of each node's share of the pod network [default: 24].
    #[arg(long, env = "BALSA_NODE_CIDR_MASK_SIZE")]
    node_cidr_mask_size: Option<u8>,
    /// Service network [default: 10.96.0.0/16].
    #[arg(long, env = "BALSA_SERVICE_CIDR")]
    service_cidr: Option<IpNet>,
    /// Address of the cluster's DNS Service [default: the tenth of the Service network].
    #[arg(long, env = "BALSA_CLUSTER_DNS")]
    cluster_dns: Option<IpAddr>,
    /// Cluster domain [default: cluster.local].
    #[arg(long, env = "BALSA_CLUSTER_DOMAIN")]
    cluster_domain: Option<String>,
    /// Which requests the audit log records, a file with an audit.k8s.io/v1 Policy; none without it.
    #[arg(long, env = "BALSA_AUDIT_POLICY_FILE")]
    audit_policy_file: Option<PathBuf>,
    /// The audit log, - for standard output [default: audit.log in the data folder].
    #[arg(long, env = "BALSA_AUDIT_LOG_PATH")]
    audit_log_path: Option<PathBuf>,
    /// How objects are encrypted in the store, a file with an EncryptionConfiguration; they are not without it.
    #[arg(long, env = "BALSA_ENCRYPTION_PROVIDER_CONFIG")]
    encryption_provider_config: Option<PathBuf>,
    /// Issuers whose tokens let people in, a file with an AuthenticationConfiguration.
    #[arg(long, env = "BALSA_AUTHENTICATION_CONFIG")]
    authentication_config: Option<PathBuf>,
    /// Folder on nodes for volumes of the built-in storage class [default: /var/lib/balsa/storage].
    #[arg(long, env = "BALSA_LOCAL_PATH_ROOT")]
    local_path_root: Option<String>,
    /// `default` is Kubernetes' patience with dead nodes, `fast` replaces their pods within about 5 s.
    #[arg(long, env = "BALSA_FAILOVER", value_parser = failover)]
    failover: Option<Failover>,
    /// Do not run a node agent on this server.
    #[arg(long, env = "BALSA_NO_AGENT", num_args = 0..=1, default_missing_value = "true")]
    no_agent: Option<bool>,
    #[command(flatten)]
    node: NodeSettings,
}

/// `fast` or `default`.
pub fn failover(text: &str) -> Result<Failover, String> {
    match text {
        "fast" => Ok(Failover::Fast),
        "default" => Ok(Failover::Default),
        _ => Err("must be fast or default".to_owned()),
    }
}

fn given(list: Vec<String>) -> Option<Vec<String>> {
    (!list.is_empty()).then_some(list)
}

/// Runs until SIGTERM or SIGINT.
pub fn run(args: Args) -> anyhow::Result<()> {
    let file = settings::read(args.config.as_deref())?;
    let flags = Settings {
        name: args.name,
        data_dir: args.data_dir,
        address: args.address,
        san: given(args.san),
        join: given(args.join),
        token: args.token,
        pod_cidr: args.pod_cidr,
        node_cidr_mask_size: args.node_cidr_mask_size,
        service_cidr: args.service_cidr,
        cluster_dns: args.cluster_dns,
        cluster_domain: args.cluster_domain,
        local_path_root: args.local_path_root,
        audit_policy_file: args.audit_policy_file,
        audit_log_path: args.audit_log_path,
        encryption_provider_config: args.encryption_provider_config,
        authentication_config: args.authentication_config,
        failover: args.failover,
        no_agent: args.no_agent,
        ..Settings::default()
    };
    let config = settings::complain(flags.over(file.server).check(&settings::hostname()?))?;
    if args.print_config {
        print!("{}", serde_saphyr::to_string(&config)?);
        return Ok(());
    }
    // A wrong setting is told before anything starts.
    let node = if config.no_agent {
        None
    } else {
        Some(agent_config(&config, args.node.over(file.node))?)
    };
    settings::run_until_signal(|stop| async move {
        let Some(node) = node else {
            return balsa_server::run(config, stop).await;
        };
        let node = keep_agent(config.clone(), node, stop.clone());
        // The agent ends first: when the machine goes down, it tells this server what becomes of its pods.
        let serving = CancellationToken::new();
        let serve = balsa_server::run(config, serving.clone());
        let (server, node) = tokio::join!(
            async {
                let outcome = serve.await;
                stop.cancel();
                outcome
            },
            async {
                let outcome = node.await;
                serving.cancel();
                outcome
            }
        );
        server.and(node)
    })
}

/// What the node agent of a server's own machine is told.
fn agent_config(config: &Config, settings: NodeSettings) -> anyhow::Result<AgentConfig> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "a server is a node too and makes containers and networks, so it must run as root; or start it with --no-agent"
    );
    let mut node = AgentConfig::new(
        config.name.clone(),
        config.address,
        config.data_dir.join("agent"),
    );
    settings.configure(&mut node)?;
    node.pod_cidr = config.pod_cidr;
    node.service_cidr = config.service_cidr;
    node.cluster_dns = Some(config.cluster_dns());
    node.cluster_domain.clone_from(&config.cluster_domain);
    node.fast_failover = config.failover == Failover::Fast;
    node.cni_program = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(node)
}

/// Runs the server's own agent until `stop`, again and again if need be: the cluster needs this server, whatever keeps
/// its machine from running pods (no containerd, a full disk). Ends before for what only other settings can mend.
async fn keep_agent(
    config: Config,
    node: AgentConfig,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut pause = Duration::ZERO;
    loop {
        let began = Instant::now();
        let attempt = stop.child_token();
        let outcome = Box::pin(own_agent(&config, node.clone(), attempt.clone())).await;
        // What it had begun ends with it.
        attempt.cancel();
        let why = match outcome {
            outcome if stop.is_cancelled() => return outcome,
            Ok(()) => anyhow!("it ended by itself"),
            Err(error) if needs_other_settings(&error) => return Err(error),
            Err(error) => error,
        };
        pause = next_pause(pause, began.elapsed());
        error!(
            "this server's own node agent does not run, so no pods can run here; the server goes on, and tries again \
             in {} s: {why:#}",
            pause.as_secs()
        );
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether an agent can never start with what it was told.
fn needs_other_settings(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<balsa_agent::Error>(),
        Some(balsa_agent::Error::NotRoot | balsa_agent::Error::PathTooLong { .. })
    )
}

/// The pause after an agent that ran for a while, when the one before it was followed by `last`.
fn next_pause(last: Duration, ran: Duration) -> Duration {
    if ran >= RAN_WELL {
        return AGAIN_FIRST;
    }
    (last * 2).clamp(AGAIN_FIRST, AGAIN_LONGEST)
}

/// The node agent of a server's own machine: an agent like any other, which joins through this server.
async fn own_agent(
    config: &Config,
    node: AgentConfig,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let servers = vec![config.api_address().to_string()];
    let identity = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        identity = async {
            let token = own_token(config).await;
            agent::obtain(&node, &servers, token).await
        } => identity?,
    };
    agent::run_joined(node, &servers, identity, stop).await
}

/// The token this server joined with, or the one it made for others; the latter takes a moment to exist.
async fn own_token(config: &Config) -> Option<String> {
    if config.token.is_some() {
        return config.token.clone();
    }
    let path = config.data_dir.join("agent-token");
    loop {
        if let Ok(text) = tokio::fs::read_to_string(&path).await {
            return Some(text);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_cannot_start_is_tried_again_less_and_less_often() {
        let short = Duration::from_secs(31);
        let mut pause = Duration::ZERO;
        let seconds: Vec<u64> = (0..7)
            .map(|_| {
                pause = next_pause(pause, short);
                pause.as_secs()
            })
            .collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(next_pause(pause, RAN_WELL), AGAIN_FIRST);
    }

    #[test]
    fn only_what_other_settings_alone_can_mend_ends_a_server_with_its_agent() {
        let path = PathBuf::from("/a");
        let too_long = balsa_agent::Error::PathTooLong { path };
        assert!(needs_other_settings(&too_long.into()));
        let program = "containerd".to_owned();
        let missing = balsa_agent::Error::NoContainerd { program };
        assert!(!needs_other_settings(&missing.into()));
        assert!(!needs_other_settings(&anyhow!("no space left on device")));
    }
}
