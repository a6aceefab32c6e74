//! The command line of `balsa local`.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use nix::sys::signal::Signal;

use crate::local::process::Process;
use crate::local::topology::{Paths, Topology};
use crate::local::{images, network, nodes, status, up};

/// A cluster on this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the cluster's data, logs and kubeconfig.
    #[arg(
        long,
        env = "BALSA_LOCAL_DIR",
        default_value = "/var/lib/balsa-local",
        global = true
    )]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Failover {
    Fast,
    Default,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the cluster, or what is missing of it, and wait until it is ready.
    Up {
        /// Number of servers.
        #[arg(long, default_value_t = 3)]
        servers: usize,
        /// Number of agents.
        #[arg(long, default_value_t = 2)]
        agents: usize,
        /// How soon a dead node's pods are replaced: `fast` is about 5 s, `default` is Kubernetes' 350 s.
        #[arg(long, value_enum, default_value_t = Failover::Fast)]
        failover: Failover,
        /// Seconds to wait for the cluster to be ready.
        #[arg(long, default_value_t = 120)]
        timeout: u64,
    },
    /// Stop everything and remove what it left, data included.
    Down,
    /// Show the nodes.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Kill a node's processes with SIGKILL: the server, or the agent and its containerd.
    Kill {
        /// Nodes, for example s1.
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Stop a node's process in good order (SIGTERM); its pods go on running.
    Stop {
        /// Nodes, for example a1.
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Start nodes that were killed or stopped.
    Start {
        /// Nodes, for example s1.
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Freeze a node's processes (SIGSTOP).
    Pause {
        /// Nodes, for example s1.
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Let frozen processes go on.
    Resume {
        /// Nodes, for example s1.
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Cut the named nodes off from all others (they still reach each other, and this host reaches all).
    Partition {
        /// Nodes of one side, for example s1,a1.
        #[arg(value_delimiter = ',', required = true)]
        nodes: Vec<String>,
    },
    /// End the partition.
    Heal,
    /// Print a node's log.
    Logs {
        /// Node.
        node: String,
        /// Go on printing what is logged.
        #[arg(short, long)]
        follow: bool,
    },
    /// Container images of the nodes.
    Images {
        #[command(subcommand)]
        command: ImageCommand,
    },
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Import an image archive (docker save or OCI) into every agent's containerd.
    Import {
        /// The archive.
        file: PathBuf,
    },
}

/// Runs a command.
///
/// # Errors
/// With a message for people.
pub fn run(args: Args) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "balsa local makes network namespaces and containers, so it must run as root: use sudo"
        );
    }
    let paths = Paths::new(&args.dir);
    if let Command::Up {
        servers,
        agents,
        failover,
        timeout,
    } = args.command
    {
        let failover = match failover {
            Failover::Fast => "fast",
            Failover::Default => "default",
        };
        let plan = Topology::plan(servers, agents, failover)?;
        return up::up(&paths, plan, Duration::from_secs(timeout));
    }
    if matches!(args.command, Command::Down) {
        return nodes::down(&paths);
    }
    let mut topology = up::load(&paths)?.with_context(|| {
        format!(
            "no local cluster in {}; start one with `balsa local up`",
            args.dir.display()
        )
    })?;
    match args.command {
        Command::Up { .. } | Command::Down => Ok(()),
        Command::Status { json } => status::print(&paths, &topology, json),
        Command::Kill { nodes } => each(&topology, &nodes, |node| nodes::kill(&paths, node)),
        Command::Stop { nodes } => each(&topology, &nodes, |node| nodes::stop(&paths, node)),
        Command::Start { nodes } => each(&topology, &nodes, |node| {
            nodes::start(&paths, &topology, node)
        }),
        Command::Pause { nodes } => each(&topology, &nodes, |node| {
            nodes::signal(&paths, node, Signal::SIGSTOP)
        }),
        Command::Resume { nodes } => each(&topology, &nodes, |node| {
            nodes::signal(&paths, node, Signal::SIGCONT)
        }),
        Command::Partition { nodes } => partition(&paths, &mut topology, nodes),
        Command::Heal => heal(&paths, &mut topology),
        Command::Logs { node, follow } => logs(&paths, &topology, &node, follow),
        Command::Images {
            command: ImageCommand::Import { file },
        } => images::import(&paths, &topology, &file),
    }
}

fn each(
    topology: &Topology,
    names: &[String],
    mut act: impl FnMut(&crate::local::topology::Node) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // All names are checked before anything is done to any.
    let nodes = names
        .iter()
        .map(|name| topology.node(name))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for node in nodes {
        act(node)?;
    }
    Ok(())
}

fn partition(paths: &Paths, topology: &mut Topology, side: Vec<String>) -> anyhow::Result<()> {
    for name in &side {
        topology.node(name)?;
    }
    heal(paths, topology)?;
    for (a, b) in topology.cuts(&side) {
        network::set_cut(a, b, true)?;
    }
    topology.partition = side;
    up::save(paths, topology)
}

fn heal(paths: &Paths, topology: &mut Topology) -> anyhow::Result<()> {
    let side = std::mem::take(&mut topology.partition);
    for (a, b) in topology.cuts(&side) {
        network::set_cut(a, b, false)?;
    }
    up::save(paths, topology)
}

fn logs(paths: &Paths, topology: &Topology, name: &str, follow: bool) -> anyhow::Result<()> {
    let node = topology.node(name)?;
    let path = paths.log(&node.name);
    let mut file =
        fs::File::open(&path).with_context(|| format!("cannot open the log {}", path.display()))?;
    let mut out = std::io::stdout().lock();
    loop {
        let copied = std::io::copy(&mut file, &mut out);
        // A reader that has seen enough (head) is no failure.
        if copied.is_err() || !follow {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
        // A log that was cut is read from its start again.
        if file.metadata()?.len() < file.stream_position()? {
            file.seek(SeekFrom::Start(0))?;
        }
    }
}

/// The process of a node, if it runs.
pub(super) fn process(paths: &Paths, node: &str) -> Option<Process> {
    Process::running(&paths.process(node))
}

/// The last lines of a node's log, for error messages.
pub(super) fn last_lines(paths: &Paths, node: &str) -> String {
    const BYTES: u64 = 2000;
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(paths.log(node))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    lines
        .into_iter()
        .rev()
        .map(|line| format!("  | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
