//! The benchmark behind the budget table: what a running cluster does, measured from outside.
//!
//! Each mode measures one thing in a namespace of its own and removes it afterwards; `table` runs the rows
//! of the budget one after the other, with etcd as a peer of the same run. See OVERVIEW.md.

mod crud;
mod drive;
mod etcd;
mod events;
mod http;
mod idle;
mod loss;
mod processes;
mod rows;
mod runtime;
mod sched;
mod scratch;
mod startup;
mod store;
mod table;
mod watch;

use std::path::PathBuf;

use anyhow::bail;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::crud::Load;
use crate::http::{Endpoint, Lines, endpoints};
use crate::scratch::{Scratch, sweep};

/// As in the product, whose store the members here are.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures a running cluster
#[derive(Debug, Parser)]
#[command(name = "balsa-bench")]
struct Args {
    /// The cluster's kubeconfig; requests go to the servers of all its contexts in turn
    #[arg(
        long,
        env = "KUBECONFIG",
        global = true,
        default_value = "/var/lib/balsa-local/kubeconfig"
    )]
    kubeconfig: PathBuf,
    /// Only the servers of these contexts
    #[arg(long, global = true)]
    context: Vec<String>,
    /// Connections at a time, shared by all requests in flight
    #[arg(long, global = true, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Create ConfigMaps
    Create(Load),
    /// Read single ConfigMaps
    Get(Load),
    /// Replace single ConfigMaps
    Update(Load),
    /// List a namespace of ConfigMaps, consistently
    List(Load),
    /// How long a write takes to reach every watcher
    Watch(watch::Watching),
    /// How fast pods get a node
    Sched(sched::Scheduling),
    /// How long a pod takes to be Ready, and to be gone
    Startup(startup::Starting),
    /// What a node's container runtime takes to start a pod when it is told so directly; for a local cluster
    Runtime(runtime::Alone),
    /// What pods that do nothing cost the agent of their node; for a local cluster
    Idle(idle::Idling),
    /// The longest time without an acknowledged write
    Gap(loss::Gap),
    /// From the start of a killed server of the local cluster to its /readyz
    Ready {
        /// Rounds
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
    },
    /// Start etcd on loopback and measure its puts and reads with the same client
    Etcd(etcd::Peer),
    /// Measure the store, three members on loopback, beside as many of etcd
    Store(store::Options),
    /// A member of the store that the benchmark drives over its standard input
    #[command(hide = true)]
    StoreMember(store::Member),
    /// The budget table's rows, one after the other
    Table(table::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match &args.mode {
        Mode::Etcd(peer) => {
            let figures = tokio::select! {
                figures = etcd::measure(peer) => figures?,
                stopped = stopped() => return stopped,
            };
            println!(
                "{}: {} MB idle",
                figures.version,
                figures.idle_megabytes.round()
            );
            println!("put: {}\nlinearizable read: {}", figures.put, figures.get);
            return Ok(());
        }
        Mode::Store(options) => {
            return tokio::select! {
                measured = Box::pin(store::measure(options)) => measured,
                stopped = stopped() => stopped,
            };
        }
        Mode::Runtime(alone) => {
            println!("runtime alone: {}", runtime::measure(alone).await?);
            return Ok(());
        }
        Mode::StoreMember(member) => return Box::pin(store::member(member)).await,
        _ => {}
    }
    let endpoints = endpoints(&args.kubeconfig, &args.context).await?;
    // Whatever way it ends, what was made is removed.
    let result = tokio::select! {
        result = run(args, &endpoints) => result,
        stopped = stopped() => stopped,
    };
    if let Err(error) = sweep(&endpoints).await {
        eprintln!("cannot remove what the benchmark made: {error:#}");
    }
    result
}

/// Returns when the benchmark is asked to end.
async fn stopped() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    bail!("interrupted")
}

async fn run(args: Args, endpoints: &[Endpoint]) -> anyhow::Result<()> {
    let connections = match args.mode {
        Mode::Watch(watching) => watching.connections(),
        _ => args.connections as usize,
    };
    if let Mode::Table(options) = args.mode {
        let (kubeconfig, endpoints) = (args.kubeconfig, endpoints.to_vec());
        return table::print(&table::Bench {
            kubeconfig,
            endpoints,
            connections,
            options,
        })
        .await;
    }
    let lines = Lines::open(endpoints, connections).await?;
    let scratch = Scratch::make(&lines, "main").await?;
    match args.mode {
        Mode::Create(load) => println!("create: {}", crud::create(&scratch, load).await?),
        Mode::Get(load) => {
            load.prepare(&scratch).await?;
            println!("get: {}", crud::get(&scratch, load).await?);
        }
        Mode::Update(load) => {
            load.prepare(&scratch).await?;
            println!("update: {}", crud::update(&scratch, load).await?);
        }
        Mode::List(load) => {
            load.prepare(&scratch).await?;
            let (outcome, megabytes) = crud::list(&scratch, load).await?;
            println!("list: {outcome}, {megabytes:.1} MB/s");
        }
        Mode::Watch(watching) => println!("watch: {}", watch::measure(&scratch, watching).await?),
        Mode::Sched(scheduling) => {
            println!("sched: {}", sched::measure(&scratch, scheduling).await?)
        }
        Mode::Startup(starting) => {
            let (started, removed) = startup::measure(&scratch, &starting).await?;
            println!("create -> Ready: {started}\ndelete -> gone: {removed}");
        }
        Mode::Idle(idling) => {
            let cost = idle::measure(&scratch, endpoints, &idling).await?;
            println!(
                "create -> Ready: {}\nagent, pods idle: {:.1} MB, {:.1} % of a core",
                cost.started, cost.megabytes, cost.percent
            );
        }
        Mode::Gap(gap) => println!(
            "gap: {}",
            loss::gap(&args.kubeconfig, &scratch.name, gap).await?
        ),
        Mode::Ready { rounds } => println!(
            "start -> /readyz: {:?}",
            loss::ready(endpoints, rounds).await?
        ),
        Mode::Etcd(_)
        | Mode::Runtime(_)
        | Mode::Store(_)
        | Mode::StoreMember(_)
        | Mode::Table(_) => {}
    }
    Ok(())
}
