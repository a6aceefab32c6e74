//! One member in a process of its own. It does what it is told on its standard input, a line at a time, and
//! answers each with a line: the tasks that load it run in it, as those of the API server do.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use balsa_store::{Config, Event, Op, Store, Txn, TxnOutcome};
use bytes::Bytes;

use crate::drive::percentile;

/// Who it is.
#[derive(Debug, Clone, clap::Args)]
pub struct Member {
    /// Its number, from 1
    id: u64,
    /// Its data folder
    dir: PathBuf,
    /// The addresses of all members
    #[arg(required = true)]
    addresses: Vec<SocketAddr>,
}

/// Runs a member until its standard input ends.
///
/// # Errors
/// When the store does not open, or what it is told makes no sense.
pub async fn member(member: &Member) -> anyhow::Result<()> {
    let began = Instant::now();
    // Much as servers log. Where nobody listens, each span of a library's is made for `log`, which costs Raft's thread.
    tracing_subscriber::fmt()
        .with_env_filter("info,openraft=warn,h2=warn,hyper=warn")
        .with_writer(std::io::stderr)
        .init();
    // As servers have it: a session of its own, with more than an ordinary one's share of the processors.
    if nix::unistd::setsid().is_ok()
        && let Err(error) = std::fs::write("/proc/self/autogroup", "-5")
    {
        eprintln!("this member's share of the processors is left as it is: {error}");
    }
    let place = usize::try_from(member.id)?.checked_sub(1);
    let listen = *place
        .and_then(|place| member.addresses.get(place))
        .context("no address for this member")?;
    let config = Config::new(&member.dir, member.id, listen.to_string(), listen, None);
    let store = Store::open(config, Arc::new(())).await?;
    say(&format!("ready {}", began.elapsed().as_millis()))?;
    let (sender, mut lines) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        let answer = Box::pin(obey(&store, &line, &member.addresses)).await?;
        say(&answer)?;
    }
    store.shutdown().await;
    Ok(())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

async fn obey(store: &Store, line: &str, addresses: &[SocketAddr]) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    Ok(match words[..] {
        ["form"] => {
            store.initialize().await?;
            for (id, address) in (2..).zip(&addresses[1..]) {
                store.add_member(id, address.to_string()).await?;
            }
            "formed".to_owned()
        }
        ["leader"] => store.leadership().borrow().leader.unwrap_or(0).to_string(),
        ["term"] => store.leadership().borrow().term.to_string(),
        [what @ ("puts" | "gets"), tasks, seconds] => {
            let seconds = Duration::from_secs(seconds.parse()?);
            load(store, what == "puts", tasks.parse()?, seconds).await
        }
        ["fill", keys, size] => fill(store, keys.parse()?, size.parse()?).await?,
        ["serve"] => {
            let began = Instant::now();
            while store.read_barrier().await.is_err() {}
            began.elapsed().as_millis().to_string()
        }
        ["gap", seconds, pause_ms] => {
            let pause = Duration::from_millis(pause_ms.parse()?);
            gap(store, Duration::from_secs(seconds.parse()?), pause).await
        }
        ["transfer"] => match store.transfer_leadership(None).await {
            Ok(()) => "transferred".to_owned(),
            Err(error) => format!("not transferred: {error}"),
        },
        ["replace", id, address] => {
            let (id, began) = (id.parse()?, Instant::now());
            store.remove_member(id).await?;
            while let Err(error) = store.add_member(id, address.to_owned()).await {
                if began.elapsed() > Duration::from_secs(60) {
                    bail!("member {id} is not added: {error}");
                }
            }
            began.elapsed().as_millis().to_string()
        }
        ["watch", watchers, rate, seconds] => {
            let seconds: u64 = seconds.parse()?;
            watch(store, watchers.parse()?, rate.parse()?, seconds).await?
        }
        _ => bail!("what is {line:?}?"),
    })
}

fn put(key: String, value: Bytes) -> Txn {
    Txn {
        ops: vec![Op::Put {
            key: key.into(),
            value,
            lease: None,
        }],
        ..Txn::default()
    }
}

/// Keys that the loads use.
const KEYS: u64 = 100_000;
/// Bytes of their values.
const VALUE: usize = 256;

/// Operations, and latencies in microseconds: `count p50 p99`.
async fn load(store: &Store, puts: bool, tasks: usize, time: Duration) -> String {
    let (next, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let value = Bytes::from(vec![b'v'; VALUE]);
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let (store, next, stop) = (store.clone(), next.clone(), stop.clone());
            let value = value.clone();
            tokio::spawn(async move {
                let mut took = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let key = format!("bench/{:06}", n.wrapping_mul(7_919) % KEYS);
                    let began = Instant::now();
                    let done = if puts {
                        store.txn(put(key, value.clone())).await.is_ok()
                    } else {
                        store.read_barrier().await.is_ok() && store.get(key.as_bytes()).is_ok()
                    };
                    if done {
                        took.push(began.elapsed());
                    }
                }
                took
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.unwrap_or_default());
    }
    took.sort_unstable();
    let micros = |percent| percentile(&took, percent) * 1e3;
    format!("{} {:.0} {:.0}", took.len(), micros(50), micros(99))
}

/// Puts keys once, 64 at a time; how many milliseconds that took.
async fn fill(store: &Store, keys: u64, size: usize) -> anyhow::Result<String> {
    const TASKS: u64 = 64;
    let (began, value) = (Instant::now(), Bytes::from(vec![b'v'; size]));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (store, value) = (store.clone(), value.clone());
            tokio::spawn(async move {
                for n in (task..keys).step_by(TASKS as usize) {
                    store
                        .txn(put(format!("fill/{n:07}"), value.clone()))
                        .await?;
                }
                Ok::<_, balsa_store::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(began.elapsed().as_millis().to_string())
}

/// One writer with pauses: `LONGEST ACKNOWLEDGED LOST`, the longest time between two acknowledged writes in
/// milliseconds, and how many of them are not there afterwards.
async fn gap(store: &Store, time: Duration, pause: Duration) -> String {
    let began = Instant::now();
    let (mut last, mut longest, mut acknowledged) = (began, Duration::ZERO, Vec::new());
    let round = store.revision();
    for n in 0_u64.. {
        if began.elapsed() > time {
            break;
        }
        let key = format!("gap/{round}/{n}");
        if let Ok(TxnOutcome::Committed { .. }) =
            store.txn(put(key.clone(), Bytes::from_static(b"v"))).await
        {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            acknowledged.push(key);
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    longest = longest.max(last.elapsed());
    while store.read_barrier().await.is_err() {}
    let there = |key: &&String| matches!(store.get(key.as_bytes()), Ok(Some(_)));
    let lost = acknowledged.len() - acknowledged.iter().filter(there).count();
    format!("{} {} {lost}", longest.as_millis(), acknowledged.len())
}

/// Writes at a rate under watchers of one prefix: `DELIVERED EXPECTED P50 P99`, latencies in microseconds from the
/// write's call to the watcher, in order or not at all.
async fn watch(store: &Store, watchers: u64, rate: u64, seconds: u64) -> anyhow::Result<String> {
    let events = rate * seconds;
    let began = Instant::now();
    let micros = move || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    // When each write was called, in microseconds since the beginning.
    let calls: Arc<[AtomicU64]> = (0..events).map(|_| AtomicU64::new(u64::MAX)).collect();
    let mut tasks = Vec::new();
    for _ in 0..watchers {
        let mut watch = store.watch(Bytes::from_static(b"watched/"), 0)?;
        let calls = calls.clone();
        tasks.push(tokio::spawn(async move {
            let (mut took, mut revision) = (Vec::new(), 0);
            while (took.len() as u64) < events {
                let changes = watch.next().await?;
                anyhow::ensure!(changes.revision > revision, "events out of order");
                revision = changes.revision;
                for event in changes.events {
                    let Event::Put { kv, .. } = event else {
                        bail!("a key was deleted");
                    };
                    let n: usize = String::from_utf8_lossy(&kv.value).parse()?;
                    anyhow::ensure!(n == took.len(), "an event was left out");
                    let called = calls[n].load(Ordering::Relaxed);
                    let after = micros().checked_sub(called);
                    let after = after.context("an event before its write")?;
                    took.push(Duration::from_micros(after));
                }
            }
            Ok(took)
        }));
    }
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / rate.max(1)));
    let mut writes = Vec::new();
    for n in 0..events {
        ticks.tick().await;
        calls[usize::try_from(n)?].store(micros(), Ordering::Relaxed);
        let txn = put(format!("watched/{}", n % 100), n.to_string().into());
        let mut writing = Box::pin({
            let store = store.clone();
            async move { store.txn(txn).await }
        });
        // Polled once, so that it is queued behind the one before.
        match futures::poll!(&mut writing) {
            std::task::Poll::Ready(done) => drop(done?),
            std::task::Poll::Pending => writes.push(tokio::spawn(writing)),
        }
    }
    for write in writes {
        write.await??;
    }
    let mut took = Vec::new();
    for task in tasks {
        took.extend(tokio::time::timeout(Duration::from_secs(20), task).await???);
    }
    took.sort_unstable();
    let at = |percent| percentile(&took, percent) * 1e3;
    Ok(format!(
        "{} {} {:.0} {:.0}",
        took.len(),
        events * watchers,
        at(50),
        at(99)
    ))
}
