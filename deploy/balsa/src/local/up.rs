//! `balsa local up`: starts what is missing and waits until the cluster is whole.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::local::topology::{Node, Paths, Role, Topology};
use crate::local::{args, network, nodes, outside, status};

/// Remembers which folder's cluster has the bridge and the namespaces, of which a machine has one set.
const OWNER: &str = "/run/balsa-local";

/// Refuses to go on when the cluster of another folder is there.
pub fn require_own(paths: &Paths) -> anyhow::Result<()> {
    let Ok(owner) = fs::read_to_string(OWNER) else {
        return Ok(());
    };
    let other = Paths::new(Path::new(owner.trim()));
    let alive = load(&other).ok().flatten().is_some_and(|t| {
        t.nodes
            .iter()
            .any(|node| args::process(&other, &node.name).is_some())
    });
    if other.root == paths.root || !alive {
        return Ok(());
    }
    bail!(
        "a local cluster is there already, in {0}; take it down first: balsa local --dir {0} down",
        other.root.display()
    )
}

/// Claims this machine's one local cluster for a folder, or gives it up.
pub fn claim(paths: Option<&Paths>) -> anyhow::Result<()> {
    let outcome = match paths {
        Some(paths) => fs::write(OWNER, paths.root.display().to_string()),
        None => match fs::remove_file(OWNER) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        },
    };
    outcome.with_context(|| format!("cannot write {OWNER}"))
}

/// Reads the plan of the cluster in a folder; `None` when there is none.
pub fn load(paths: &Paths) -> anyhow::Result<Option<Topology>> {
    let path = paths.cluster();
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("{} is damaged; run `balsa local down`", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes the plan, whole or not at all.
pub fn save(paths: &Paths, topology: &Topology) -> anyhow::Result<()> {
    let path = paths.cluster();
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec_pretty(topology)?)
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Command line of a node.
pub fn arguments(paths: &Paths, topology: &Topology, node: &Node) -> anyhow::Result<Vec<String>> {
    let first = topology
        .servers()
        .next()
        .context("the cluster has no server")?;
    let role = match node.role {
        Role::Server => "server",
        Role::Agent => "agent",
    };
    let mut arguments: Vec<String> = vec![
        role.into(),
        "--name".into(),
        node.name.clone(),
        "--data-dir".into(),
        paths.data(&node.name).display().to_string(),
        "--address".into(),
        node.address.to_string(),
        "--failover".into(),
        topology.failover.clone(),
    ];
    let mut join = |token: &str| -> anyhow::Result<()> {
        // Any server would do; those beside the first help when it is the one that is down.
        for server in topology.servers().filter(|s| s.name != node.name) {
            arguments.extend(["--join".into(), server.address.to_string()]);
        }
        let path = paths.data(&first.name).join(token);
        let token = fs::read_to_string(&path)
            .with_context(|| format!("cannot read the join token {}", path.display()))?;
        arguments.extend(["--token".into(), token.trim().to_owned()]);
        Ok(())
    };
    match node.role {
        Role::Server if node.name != first.name => join("server-token")?,
        Role::Server => {}
        Role::Agent => join("agent-token")?,
    }
    match node.role {
        Role::Server => {
            let storage = paths.root.join("storage").display().to_string();
            arguments.extend(["--no-agent".into(), "--local-path-root".into(), storage]);
        }
        Role::Agent => {
            let cgroup = format!("{}/pods", crate::local::topology::cgroup(&node.name));
            arguments.extend(["--cgroup-root".into(), cgroup]);
        }
    }
    Ok(arguments)
}

/// A client with the administrator's certificate for one server.
pub fn client(paths: &Paths, server: &Node) -> anyhow::Result<kube::Client> {
    let file = paths.kubeconfig();
    let kubeconfig =
        Kubeconfig::read_from(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let config = futures::executor::block_on(kube::Config::from_custom_kubeconfig(
        kubeconfig,
        &KubeConfigOptions::default(),
    ));
    let mut config = config.context("the kubeconfig cannot be used")?;
    config.cluster_url = format!("https://{}:6443", server.address).parse()?;
    config.connect_timeout = Some(Duration::from_secs(1));
    config.read_timeout = Some(Duration::from_secs(5));
    kube::Client::try_from(config).context("the kubeconfig cannot be used")
}

struct Progress {
    began: Instant,
    deadline: Instant,
}

impl Progress {
    fn say(&self, what: &str) {
        eprintln!("[{:>5.1} s] {what}", self.began.elapsed().as_secs_f32());
    }

    /// Asks `done` every 50 ms until it says yes; `what` names what is waited for.
    async fn wait<F: AsyncFnMut() -> bool>(
        &self,
        paths: &Paths,
        who: &[&Node],
        what: &str,
        mut done: F,
    ) -> anyhow::Result<()> {
        loop {
            if done().await {
                return Ok(());
            }
            for node in who {
                if args::process(paths, &node.name).is_none() {
                    let lines = args::last_lines(paths, &node.name);
                    bail!(
                        "{} ended while waiting for {what}; its log ends so:\n{lines}",
                        node.name
                    );
                }
            }
            if Instant::now() > self.deadline {
                let lines: Vec<String> = who
                    .iter()
                    .map(|node| format!("{}:\n{}", node.name, args::last_lines(paths, &node.name)))
                    .collect();
                bail!(
                    "gave up waiting for {what}; the logs end so:\n{}",
                    lines.join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Starts the planned cluster, or what is missing of it, waits until it is whole, and says how to use it.
pub fn up(paths: &Paths, plan: Topology, patience: Duration) -> anyhow::Result<()> {
    require_programs(&["containerd", "runc"])?;
    require_own(paths)?;
    let mut topology = match load(paths)? {
        Some(there) if there.nodes == plan.nodes && there.failover == plan.failover => there,
        Some(there) if there.nodes == plan.nodes => bail!(
            "the local cluster that is there has `--failover {}`; run `balsa local down` first to change that",
            there.failover
        ),
        Some(there) => bail!(
            "a local cluster of {} servers and {} agents is there already; run `balsa local down` first, \
             or `up` with these numbers",
            there.servers().count(),
            there.agents().count()
        ),
        None => plan,
    };
    fs::create_dir_all(&paths.root)
        .with_context(|| format!("cannot make {}", paths.root.display()))?;
    claim(Some(paths))?;
    topology.forwarding |= outside::ensure()?;
    save(paths, &topology)?;
    let now = Instant::now();
    let progress = Progress {
        began: now,
        deadline: now + patience,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(start_all(paths, &topology, &progress))?;
    greet(paths, &topology);
    Ok(())
}

fn require_programs(names: &[&str]) -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    let missing: Vec<&str> = names.iter().filter(|name| !found(name)).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "{} not found in PATH; on Debian: apt-get install {}",
        missing.join(" and "),
        missing.join(" ")
    )
}

async fn start_all(paths: &Paths, topology: &Topology, progress: &Progress) -> anyhow::Result<()> {
    network::ensure_bridge()?;
    let servers: Vec<&Node> = topology.servers().collect();
    let agents: Vec<&Node> = topology.agents().collect();
    let first = servers[0];
    progress.say(&format!("starting server {}", first.name));
    nodes::start(paths, topology, first)?;
    let data = paths.data(&first.name);
    let written = |file: &str| data.join(file).exists();
    progress
        .wait(paths, &[first], "the first server", async || {
            written("agent-token") && written("admin.kubeconfig")
        })
        .await?;
    for server in &servers[1..] {
        progress.say(&format!("starting server {}", server.name));
        nodes::start(paths, topology, server)?;
    }
    // Agents need one server only, so they come up while the other servers join.
    for agent in &agents {
        progress.say(&format!("starting agent {}", agent.name));
        nodes::start(paths, topology, agent)?;
    }
    write_kubeconfig(paths, &servers)?;
    progress
        .wait(paths, &servers, "all servers to be ready", async || {
            all_ready(paths, &servers).await
        })
        .await?;
    progress.say(&format!("{} servers are ready", servers.len()));
    if !agents.is_empty() {
        let client = client(paths, first)?;
        progress
            .wait(paths, &agents, "all agents to be Ready", async || {
                agents_ready(&client, &agents).await
            })
            .await?;
        progress.say(&format!("{} agents are Ready", agents.len()));
    }
    Ok(())
}

async fn all_ready(paths: &Paths, servers: &[&Node]) -> bool {
    let all = servers.iter().map(|node| status::ask(paths, node));
    futures::future::join_all(all)
        .await
        .into_iter()
        .all(|s| s.is_some_and(|s| s.ready))
}

async fn agents_ready(client: &kube::Client, agents: &[&Node]) -> bool {
    let api: kube::Api<KubeNode> = kube::Api::all(client.clone());
    let Ok(list) = api.list(&kube::api::ListParams::default()).await else {
        return false;
    };
    let ready = |node: &KubeNode| {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions
            .into_iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True")
    };
    agents.iter().all(|agent| {
        list.items
            .iter()
            .any(|n| n.metadata.name.as_deref() == Some(&agent.name) && ready(n))
    })
}

/// The administrator's kubeconfig with all servers, the first one current.
fn write_kubeconfig(paths: &Paths, servers: &[&Node]) -> anyhow::Result<()> {
    let source = paths.data(&servers[0].name).join("admin.kubeconfig");
    let mut kubeconfig = Kubeconfig::read_from(&source)
        .with_context(|| format!("cannot read {}", source.display()))?;
    let cluster = kubeconfig
        .clusters
        .first()
        .cloned()
        .context("the kubeconfig has no cluster")?;
    let context = kubeconfig
        .contexts
        .first()
        .cloned()
        .context("the kubeconfig has no context")?;
    kubeconfig.clusters.clear();
    kubeconfig.contexts.clear();
    for (index, server) in servers.iter().enumerate() {
        let name = if index == 0 {
            "balsa".to_owned()
        } else {
            format!("balsa-{}", server.name)
        };
        let mut entry = cluster.clone();
        entry.name.clone_from(&name);
        if let Some(cluster) = &mut entry.cluster {
            cluster.server = Some(format!("https://{}:6443", server.address));
        }
        kubeconfig.clusters.push(entry);
        let mut entry = context.clone();
        entry.name.clone_from(&name);
        if let Some(context) = &mut entry.context {
            context.cluster.clone_from(&name);
        }
        kubeconfig.contexts.push(entry);
    }
    kubeconfig.current_context = Some("balsa".to_owned());
    write_private(&paths.kubeconfig(), &serde_saphyr::to_string(&kubeconfig)?)?;
    give_to_caller(&paths.kubeconfig())
}

/// Under sudo the kubeconfig belongs to who called it: kubectl needs no root.
fn give_to_caller(path: &Path) -> anyhow::Result<()> {
    let id = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if let (Some(user), Some(group)) = (id("SUDO_UID"), id("SUDO_GID")) {
        std::os::unix::fs::chown(path, Some(user), Some(group))
            .with_context(|| format!("cannot give {} to user {user}", path.display()))?;
    }
    Ok(())
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn greet(paths: &Paths, topology: &Topology) {
    println!();
    println!("export KUBECONFIG={}", paths.kubeconfig().display());
    println!();
    if require_programs(&["kubectl"]).is_err() {
        println!(
            "(kubectl is not in PATH; https://kubernetes.io/docs/tasks/tools/ says how to get it)"
        );
    }
    println!("Try:");
    println!("  kubectl get nodes -o wide");
    println!("  balsa local status");
    match topology.servers().nth(1) {
        Some(other) => println!(
            "  balsa local kill s1 && kubectl --context balsa-{} get nodes    # and: balsa local start s1",
            other.name
        ),
        None => println!("  kubectl create deployment web --image=nginx --replicas=3"),
    }
}
