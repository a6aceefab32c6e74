//! Writes per second of three members on one machine, each a process of its own, and how long writes stop
//! when the leader is killed.
//!
//! ```text
//! bench [puts|gets|kill] [TASKS] [SECONDS] [leader|spread]
//! ```
//!
//! `puts` and `gets` run `TASKS` tasks inside the leader's process, or spread over all three; `kill` writes
//! through followers and kills the leader with SIGKILL a few times.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use balsa_store::{Config, Op, Store, Txn};
use bytes::Bytes;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "member") {
        return member(&args[1..]);
    }
    let mode = args.first().map_or("puts", String::as_str);
    let tasks: usize = args.get(1).map_or(Ok(64), |arg| arg.parse())?;
    let seconds: u64 = args.get(2).map_or(Ok(5), |arg| arg.parse())?;
    let spread = args.get(3).is_some_and(|arg| arg == "spread");
    let dir = std::env::temp_dir().join(format!("balsa-store-bench-{}", std::process::id()));
    let result = Members::start(&dir).and_then(|members| match mode {
        "kill" => kill(members),
        _ => load(members, mode, tasks, seconds, spread),
    });
    std::fs::remove_dir_all(&dir)?;
    result
}

/// A member's process: does what is said on its standard input.
fn member(args: &[String]) -> Result<()> {
    let (id, addresses, dir) = (args[0].parse::<u64>()?, &args[1..4], Path::new(&args[4]));
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let listen: SocketAddr = addresses[usize::try_from(id)? - 1].parse()?;
        let mut config = Config::new(
            dir.join(id.to_string()),
            id,
            listen.to_string(),
            listen,
            None,
        );
        if let Ok(threads) = std::env::var("BENCH_THREADS") {
            config.tuning.threads = threads.parse()?;
        }
        let store = Store::open(config, Arc::new(())).await?;
        println!("ready");
        for line in std::io::stdin().lines() {
            let line = line?;
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["form"] => {
                    store.initialize().await?;
                    for other in [2, 3] {
                        store
                            .add_member(other, addresses[usize::try_from(other)? - 1].clone())
                            .await?;
                    }
                    println!("ok");
                }
                ["leader"] => println!("{}", store.leadership().borrow().leader.unwrap_or(0)),
                [mode @ ("puts" | "gets"), tasks, seconds] => {
                    println!(
                        "{}",
                        run(&store, mode == "puts", tasks.parse()?, seconds.parse()?).await
                    );
                }
                ["gap", seconds] => println!("{}", gap(&store, seconds.parse()?).await),
                _ => break,
            }
            std::io::stdout().flush()?;
        }
        store.shutdown().await;
        Ok(())
    })
}

fn put(n: u64) -> Txn {
    let key = Bytes::from(format!("bench/{:06}", (n * 7_919) % 100_000));
    Txn {
        ops: vec![Op::Put {
            key,
            value: Bytes::from(vec![b'v'; 256]),
            lease: None,
        }],
        ..Txn::default()
    }
}

/// Operations, and latencies in microseconds: `count p50 p99`.
async fn run(store: &Store, puts: bool, tasks: usize, seconds: u64) -> String {
    let (next, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let (store, next, stop) = (store.clone(), next.clone(), stop.clone());
            tokio::spawn(async move {
                let mut took = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let txn = put(next.fetch_add(1, Ordering::Relaxed));
                    let started = Instant::now();
                    let done = if puts {
                        store.txn(txn).await.is_ok()
                    } else {
                        store.read_barrier().await.is_ok() && store.get(txn.ops[0].key()).is_ok()
                    };
                    if done {
                        took.push(started.elapsed().as_micros());
                    }
                }
                took
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.unwrap_or_default());
    }
    took.sort_unstable();
    let at = |percent: usize| {
        took.get(took.len() * percent / 100)
            .copied()
            .unwrap_or_default()
    };
    format!("{} {} {}", took.len(), at(50), at(99))
}

/// The longest time between two acknowledged writes, in milliseconds.
async fn gap(store: &Store, seconds: u64) -> u128 {
    let (end, mut last, mut longest, mut n) = (
        Instant::now() + Duration::from_secs(seconds),
        Instant::now(),
        Duration::ZERO,
        0,
    );
    while Instant::now() < end {
        n += 1;
        if store.txn(put(n)).await.is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }
    longest.as_millis()
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(id: u64, addresses: &[String], dir: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("member")
            .arg(id.to_string())
            .args(addresses)
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().ok_or("no stdin")?;
        let stdout = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut process = Self {
            child,
            stdin,
            stdout,
        };
        process.hear()?;
        Ok(process)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}")?;
        Ok(self.stdin.flush()?)
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        self.say(line)?;
        self.hear()
    }

    /// User and system time so far, and resident memory in MB.
    fn usage(&self) -> Result<(f64, u64)> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .split(' ')
            .collect();
        let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok((ticks / 100.0, fields[21].parse::<u64>()? * 4 / 1024))
    }
}

struct Members {
    processes: Vec<Option<Process>>,
    addresses: Vec<String>,
    dir: std::path::PathBuf,
}

impl Members {
    fn start(dir: &Path) -> Result<Self> {
        let port = || {
            Ok::<_, std::io::Error>(
                std::net::TcpListener::bind("127.0.0.1:0")?
                    .local_addr()?
                    .to_string(),
            )
        };
        let addresses = vec![port()?, port()?, port()?];
        let start = |id| Process::start(id, &addresses, dir).map(Some);
        let processes = vec![start(1)?, start(2)?, start(3)?];
        let mut members = Self {
            processes,
            addresses,
            dir: dir.to_owned(),
        };
        members.get(1)?.ask("form")?;
        Ok(members)
    }

    fn get(&mut self, id: usize) -> Result<&mut Process> {
        Ok(self.processes[id - 1].as_mut().ok_or("not running")?)
    }

    fn leader(&mut self) -> Result<usize> {
        for process in self.processes.iter_mut().flatten() {
            let leader = process.ask("leader")?.parse()?;
            if leader > 0 {
                return Ok(leader);
            }
        }
        Err("no leader".into())
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().flatten() {
            // It may have ended already.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

fn load(mut members: Members, mode: &str, tasks: usize, seconds: u64, spread: bool) -> Result<()> {
    let leader = members.leader()?;
    let ids: Vec<usize> = if spread { vec![1, 2, 3] } else { vec![leader] };
    let usage = |members: &Members| -> Result<f64> {
        let mut total = 0.0;
        for process in members.processes.iter().flatten() {
            total += process.usage()?.0;
        }
        Ok(total)
    };
    let before = usage(&members)?;
    for id in &ids {
        members
            .get(*id)?
            .say(&format!("{mode} {} {seconds}", tasks / ids.len()))?;
    }
    let mut count = 0.0;
    for id in &ids {
        let answer = members.get(*id)?.hear()?;
        count += answer
            .split(' ')
            .next()
            .unwrap_or_default()
            .parse::<f64>()?;
        println!("member {id}: operations, p50 us, p99 us: {answer}");
    }
    let cpu = usage(&members)? - before;
    println!(
        "{:.0} {mode}/s, {:.1} us CPU of all members each",
        count / seconds as f64,
        cpu * 1e6 / count
    );
    for process in members.processes.iter().flatten() {
        println!("resident: {} MB", process.usage()?.1);
    }
    Ok(())
}

fn kill(mut members: Members) -> Result<()> {
    for _ in 0..8 {
        let leader = members.leader()?;
        let writer = if leader == 1 { 2 } else { 1 };
        members.get(writer)?.say("gap 3")?;
        std::thread::sleep(Duration::from_millis(1_200));
        let mut killed = members.processes[leader - 1].take().ok_or("not running")?;
        killed.child.kill()?;
        killed.child.wait()?;
        println!(
            "leader {leader} killed: longest gap {} ms",
            members.get(writer)?.hear()?
        );
        let id = u64::try_from(leader)?;
        members.processes[leader - 1] = Some(Process::start(id, &members.addresses, &members.dir)?);
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}
