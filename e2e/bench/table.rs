//! Measures the rows that a running cluster can answer, one after the other, and prints them.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use balsa_e2e::NodeRow;

use crate::crud::{self, Load};
use crate::etcd::{self, Peer, PeerFigures};
use crate::http::{Endpoint, Lines};
use crate::loss::{self, Gap};
use crate::processes;
use crate::rows::{Goal, Row, render};
use crate::sched::{self, Scheduling};
use crate::scratch::Scratch;
use crate::startup::{self, Starting};
use crate::watch::{self, Watching};

/// Which rows, and how thoroughly.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Percent of the full numbers of requests and rounds; less is faster and says less. What a row is
    /// about (its watchers, pods, nodes) stays
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub effort: u32,
    /// Also kill servers of the local cluster: the rows of the gap and of the start
    #[arg(long)]
    pub kill: bool,
    /// Only these rows
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Step>,
    /// An image with `sleep` that is on the nodes already
    #[arg(long, default_value = "docker.io/library/busybox:latest")]
    pub image: String,
    /// The peer's program
    #[arg(long, default_value = "etcd", env = "BENCH_ETCD")]
    pub etcd: PathBuf,
}

/// A group of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// Memory of idle processes
    Idle,
    /// Creates
    Create,
    /// Reads
    Get,
    /// Lists
    List,
    /// Delivery to 100 and to 1,000 watchers
    Watch,
    /// Pods, one at a time and many at once
    Startup,
    /// From a server's start to /readyz
    Ready,
    /// The leader's death
    Gap,
    /// Scheduling
    Sched,
}

/// In this order: what must find the cluster idle first, what unsettles it last.
const STEPS: [Step; 9] = [
    Step::Idle,
    Step::Create,
    Step::Get,
    Step::List,
    Step::Watch,
    Step::Startup,
    Step::Ready,
    Step::Gap,
    Step::Sched,
];

/// Everything a step needs.
pub struct Bench {
    /// The kubeconfig in use.
    pub kubeconfig: PathBuf,
    /// Its servers.
    pub endpoints: Vec<Endpoint>,
    /// Connections at a time.
    pub connections: usize,
    /// What to measure.
    pub options: Options,
}

/// Measures and prints. A row that cannot be measured is named with the reason and costs no other row.
///
/// # Errors
/// When nothing could be measured.
pub async fn print(bench: &Bench) -> anyhow::Result<()> {
    let peer = bench.peer().await;
    let nodes = processes::local_nodes(&bench.endpoints).await;
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    for step in STEPS
        .into_iter()
        .filter(|s| bench.options.only.is_empty() || bench.options.only.contains(s))
    {
        eprintln!("measuring {step:?}");
        match bench.step(step, &nodes, peer.as_ref().ok()).await {
            Ok(measured) => {
                measured.iter().for_each(|row| eprintln!("  {row}"));
                rows.extend(measured);
            }
            Err(error) => missing.push(format!("{step:?}: {error:#}")),
        }
    }
    match &peer {
        Ok(peer) => println!(
            "peer: {}, {} members on loopback without TLS; put: {}; linearizable read: {}",
            peer.version,
            bench.endpoints.len(),
            peer.put,
            peer.get
        ),
        Err(error) => missing.push(format!("peer: {error:#}")),
    }
    println!(
        "{}, {} percent effort\n\n{}",
        bench.servers(),
        bench.options.effort,
        render(&rows)
    );
    for missing in missing {
        println!("not measured: {missing}");
    }
    ensure!(!rows.is_empty(), "nothing could be measured");
    Ok(())
}

impl Bench {
    /// The full number, or the part of it that the effort asks for.
    fn part(&self, full: u32) -> u32 {
        (full * self.options.effort / 100).max(1)
    }

    fn one(&self) -> bool {
        self.endpoints.len() == 1
    }

    fn servers(&self) -> String {
        let count = self.endpoints.len();
        format!("{count} server{}", if count == 1 { "" } else { "s" })
    }

    fn load(&self, count: u32, in_flight: u32, keys: u32) -> Load {
        Load {
            count: self.part(count),
            in_flight,
            size: 1024,
            keys: self.part(keys),
        }
    }

    async fn peer(&self) -> anyhow::Result<PeerFigures> {
        let peer = Peer {
            etcd: self.options.etcd.clone(),
            dir: "/var/tmp".into(),
            members: self.endpoints.len() as u32,
            count: self.part(20_000),
            in_flight: 64,
            size: 1024,
        };
        eprintln!("measuring the peer");
        etcd::measure(&peer).await
    }

    async fn scratch(&self, part: &str, connections: usize) -> anyhow::Result<Scratch> {
        let lines = Lines::open(&self.endpoints, connections).await?;
        Scratch::make(&lines, part).await
    }

    async fn step(
        &self,
        step: Step,
        nodes: &[NodeRow],
        peer: Option<&PeerFigures>,
    ) -> anyhow::Result<Vec<Row>> {
        if matches!(step, Step::Ready | Step::Gap) {
            ensure!(
                self.options.kill,
                "servers are killed for it; ask with --kill"
            );
            ensure!(
                !nodes.is_empty(),
                "servers can be killed in a cluster of `balsa local` only"
            );
        }
        match step {
            Step::Idle => idle(nodes, peer),
            Step::Create => self.create(peer).await,
            Step::Get => self.get(nodes, peer).await,
            Step::List => self.list().await,
            Step::Watch => self.watch().await,
            Step::Startup => self.startup(nodes).await,
            Step::Ready => self.ready().await,
            Step::Gap => self.gap().await,
            Step::Sched => self.sched().await,
        }
    }

    async fn create(&self, peer: Option<&PeerFigures>) -> anyhow::Result<Vec<Row>> {
        let scratch = self.scratch("create", self.connections).await?;
        let warm = self.scratch("warm", self.connections).await?;
        crud::create(&warm, self.load(1000, 64, 1)).await?.whole()?;
        let outcome = crud::create(&scratch, self.load(15_000, 64, 1))
            .await?
            .whole()?;
        let (rate, times) = if self.one() {
            (2370.0, 4.0)
        } else {
            (1371.0, 5.0)
        };
        let what = format!("create ConfigMap 1 KB, 64 in flight, {}", self.servers());
        let (p50, p99) = (outcome.percentile(50), outcome.percentile(99));
        let mut rows = vec![Row {
            note: format!("p50 {p50:.1}, p99 {p99:.1} ms"),
            peer: peer.map(|p| (p.put.rate(), "etcd put")),
            ..row(&what, "/s", rate, Goal::Times(times), outcome.rate())
        }];
        if !self.one() {
            let peer = peer.map(|p| (p.put.percentile(99), "etcd put"));
            rows.push(Row {
                peer,
                ..row("the same, p99", "ms", 202.0, Goal::Below(40.0), p99)
            });
        }
        Ok(rows)
    }

    async fn get(&self, nodes: &[NodeRow], peer: Option<&PeerFigures>) -> anyhow::Result<Vec<Row>> {
        let scratch = self.scratch("get", self.connections).await?;
        let load = self.load(60_000, 64, 2000);
        load.prepare(&scratch).await?;
        crud::get(&scratch, self.load(2000, 64, 2000))
            .await?
            .whole()?;
        let servers = processes::pids(nodes, "server");
        let before = processes::cpu(&servers)?;
        let client = processes::Client::begin()?;
        let outcome = crud::get(&scratch, load).await?.whole()?;
        let own = client.percent()?;
        let spent = processes::cpu(&servers)?.saturating_sub(before);
        let mut note = format!(
            "p50 {:.1}, p99 {:.1} ms",
            outcome.percentile(50),
            outcome.percentile(99)
        );
        if !servers.is_empty() {
            let each = spent.as_secs_f64() * 1e6 / f64::from(load.count);
            note = format!("{note}; {each:.0} us of server CPU each");
        }
        let note = format!("{note}; client {own:.0}% of a core");
        let what = format!("GET, 64 in flight, {}", self.servers());
        let kubernetes = if self.one() { 6508.0 } else { 3938.0 };
        let peer = peer.map(|p| (p.get.rate(), "etcd read"));
        Ok(vec![Row {
            note,
            peer,
            ..row(&what, "/s", kubernetes, Goal::Times(4.0), outcome.rate())
        }])
    }

    async fn list(&self) -> anyhow::Result<Vec<Row>> {
        let scratch = self.scratch("list", self.connections).await?;
        let load = Load {
            keys: 3000,
            ..self.load(1000, 8, 1)
        };
        load.prepare(&scratch).await?;
        let (outcome, megabytes) = crud::list(&scratch, load).await?;
        let outcome = outcome.whole()?;
        let note = format!(
            "8 in flight, {megabytes:.0} MB/s, p50 {:.0} ms",
            outcome.percentile(50)
        );
        let what = "LIST 3,000 x 1 KB (consistent)";
        Ok(vec![Row {
            note,
            ..row(what, "/s", 29.0, Goal::Times(10.0), outcome.rate())
        }])
    }

    async fn watch(&self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (watchers, rate, count, kubernetes, goal) in
            [(100, 200, 3000, 13.0, 5.0), (1000, 50, 750, 919.0, 50.0)]
        {
            let watching = Watching {
                watchers,
                rate,
                count: self.part(count),
                size: 1024,
            };
            let scratch = self
                .scratch(&format!("watch{watchers}"), watching.connections())
                .await?;
            let client = processes::Client::begin()?;
            let delivery = watch::measure(&scratch, watching).await?.whole()?;
            let own = client.percent()?;
            let what = format!("{watchers} watchers, {rate} writes/s: delivery p99");
            let note = format!(
                "p50 {:.1} ms; client {own:.0}% of a core",
                delivery.percentile(50)
            );
            rows.push(Row {
                note,
                ..row(
                    &what,
                    "ms",
                    kubernetes,
                    Goal::Below(goal),
                    delivery.percentile(99),
                )
            });
        }
        Ok(rows)
    }

    async fn startup(&self, nodes: &[NodeRow]) -> anyhow::Result<Vec<Row>> {
        let image = self.options.image.clone();
        let starting = Starting {
            pods: self.part(20),
            in_flight: 1,
            image: image.clone(),
            node: None,
        };
        // Whether pods start here at all is asked with one.
        let first = self.scratch("first", self.connections).await?;
        startup::measure(
            &first,
            &Starting {
                pods: 1,
                ..starting.clone()
            },
        )
        .await?
        .0
        .whole()?;
        let single = self.scratch("single", self.connections).await?;
        let (started, removed) = startup::measure(&single, &starting).await?;
        let note = format!(
            "p99 {:.0} ms; delete -> gone p50 {:.0} ms",
            started.percentile(99),
            removed.whole()?.percentile(50)
        );
        let what = "pod create -> Ready, image present, one at a time";
        let p50 = started.whole()?.percentile(50);
        let mut rows = vec![Row {
            note,
            ..row(what, "ms", 1003.0, Goal::Below(250.0), p50)
        }];
        if let Some(node) = nodes.iter().find(|n| n.role == "agent") {
            let pods = 50;
            let starting = Starting {
                pods,
                in_flight: pods,
                image,
                node: Some(node.node.clone()),
            };
            let many = self.scratch("many", self.connections).await?;
            let (started, _) = startup::measure(&many, &starting).await?;
            let what = format!("{pods} pods at once on one node, all Ready");
            let seconds = started.whole()?.took.as_secs_f64();
            rows.push(row(&what, "s", 40.0, Goal::Below(5.0), seconds));
        }
        Ok(rows)
    }

    async fn ready(&self) -> anyhow::Result<Vec<Row>> {
        let times = loss::ready(&self.endpoints, self.part(5)).await?;
        let slowest = times.last().context("no round")?.as_secs_f64();
        let note = format!(
            "slowest of {}, with `balsa local start` itself",
            times.len()
        );
        Ok(vec![Row {
            note,
            ..row(
                "server start -> /readyz",
                "s",
                6.5,
                Goal::Below(1.0),
                slowest,
            )
        }])
    }

    async fn gap(&self) -> anyhow::Result<Vec<Row>> {
        ensure!(
            !self.one(),
            "a cluster of one server has no other to take over"
        );
        let scratch = self.scratch("gap", self.connections).await?;
        let gap = Gap {
            kill: true,
            rounds: self.part(10),
            seconds: 6,
        };
        let gaps = loss::gap(&self.kubeconfig, &scratch.name, gap).await?;
        ensure!(gaps.lost == 0, "ACKNOWLEDGED WRITES WERE LOST: {gaps}");
        let what = "leader killed (-9): longest gap without an acknowledged write";
        Ok(vec![Row {
            note: gaps.to_string(),
            ..row(what, "ms", 2040.0, Goal::Below(500.0), gaps.longest())
        }])
    }

    async fn sched(&self) -> anyhow::Result<Vec<Row>> {
        let scratch = self.scratch("sched", self.connections).await?;
        let scheduling = Scheduling {
            pods: 3000,
            nodes: 200,
            in_flight: 64,
            settle: 3,
        };
        let scheduled = sched::measure(&scratch, scheduling).await;
        // Pods first: nobody need evict them one by one from nodes that are gone.
        scratch.remove().await;
        sched::forget_nodes(&scratch.lines).await;
        let scheduled = scheduled?;
        let what = format!(
            "schedule {} pods on {} nodes",
            scheduling.pods, scheduling.nodes
        );
        let note = format!("creates alone {:.0}/s", scheduled.creates.rate());
        Ok(vec![Row {
            note,
            ..row(&what, "pods/s", 484.0, Goal::Times(10.0), scheduled.rate())
        }])
    }
}

fn idle(nodes: &[NodeRow], peer: Option<&PeerFigures>) -> anyhow::Result<Vec<Row>> {
    ensure!(
        !nodes.is_empty(),
        "the processes are not of a cluster of `balsa local` here"
    );
    let server = processes::largest_megabytes(&processes::pids(nodes, "server"))?;
    let mut rows = vec![Row {
        note: "RSS of the largest".into(),
        peer: peer.map(|p| (p.idle_megabytes, "empty etcd")),
        ..row(
            "control plane idle memory, one server",
            "MB",
            485.0,
            Goal::Below(60.0),
            server,
        )
    }];
    let agents = processes::pids(nodes, "agent");
    if !agents.is_empty() {
        let agent = processes::largest_megabytes(&agents)?;
        let what = "node agent idle memory, without containerd";
        let note = "RSS of the largest".into();
        rows.push(Row {
            note,
            ..row(what, "MB", 157.0, Goal::Below(30.0), agent)
        });
    }
    Ok(rows)
}

fn row(what: &str, unit: &'static str, kubernetes: f64, goal: Goal, ours: f64) -> Row {
    Row {
        what: what.into(),
        unit,
        kubernetes,
        goal,
        ours,
        note: String::new(),
        peer: None,
    }
}
