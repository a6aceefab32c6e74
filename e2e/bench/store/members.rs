//! The members' processes, from outside.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A member does what it is told within this, or not at all.
const PATIENCE: Duration = Duration::from_secs(180);

/// One member's process. It ends when this is dropped.
pub(super) struct Process {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

/// The allocator's settings in the product.
const ALLOCATOR: &str = "narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0,background_thread:true,max_background_threads:1";

impl Process {
    async fn start(id: usize, dir: &Path, addresses: &[SocketAddr]) -> anyhow::Result<(Self, u64)> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["store-member", &id.to_string()])
            .arg(dir.join(id.to_string()))
            .args(addresses.iter().map(SocketAddr::to_string))
            .env("MALLOC_CONF", ALLOCATOR)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a member")?;
        let input = child.stdin.take().context("a member without input")?;
        let output = child.stdout.take().context("a member without output")?;
        let mut process = Self {
            child,
            input,
            lines: BufReader::new(output).lines(),
        };
        let ready = process.hear().await?;
        let took = ready.strip_prefix("ready ").context("a strange member")?;
        Ok((process, took.parse()?))
    }

    /// Tells it something, without waiting for the answer.
    pub async fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(self.input.flush().await?)
    }

    /// Its next answer.
    pub async fn hear(&mut self) -> anyhow::Result<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line());
        let line = line.await.context("a member does not answer")??;
        line.context("a member has ended")
    }

    /// Tells it something, and waits for the answer.
    pub async fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        self.tell(line).await?;
        self.hear().await
    }

    fn pid(&self) -> anyhow::Result<i32> {
        Ok(self.child.id().context("a member has ended")?.try_into()?)
    }
}

/// Three of them, and their folders.
pub(super) struct Members {
    running: Vec<Option<Process>>,
    addresses: Vec<SocketAddr>,
    dir: TempDir,
}

impl Members {
    /// Starts a new cluster with its data in a folder under `dir`.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("balsa-bench-store-")
            .tempdir_in(dir)
            .with_context(|| format!("cannot make a folder in {}", dir.display()))?;
        let held: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()?;
        let addresses: Vec<SocketAddr> = held
            .iter()
            .map(TcpListener::local_addr)
            .collect::<Result<_, _>>()?;
        drop(held);
        let mut members = Self {
            running: Vec::new(),
            addresses,
            dir,
        };
        for id in 1..=3 {
            let (process, _) = Process::start(id, members.dir.path(), &members.addresses).await?;
            members.running.push(Some(process));
        }
        members.get(1)?.ask("form").await?;
        Ok(members)
    }

    /// A member, from 1.
    pub fn get(&mut self, id: usize) -> anyhow::Result<&mut Process> {
        let place = id.checked_sub(1).and_then(|n| self.running.get_mut(n));
        place
            .and_then(Option::as_mut)
            .with_context(|| format!("member {id} does not run"))
    }

    /// The leader, once a member knows it.
    pub async fn leader(&mut self) -> anyhow::Result<usize> {
        for _ in 0..500 {
            let leader: usize = match self.running.iter_mut().flatten().next() {
                Some(process) => process.ask("leader").await?.parse()?,
                None => 0,
            };
            if leader > 0 && self.running[leader - 1].is_some() {
                return Ok(leader);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("the store has no leader")
    }

    /// Ends a member as `kill -9` does.
    pub async fn kill(&mut self, id: usize) -> anyhow::Result<()> {
        let process = self.running.get_mut(id - 1).and_then(Option::take);
        let mut process = process.with_context(|| format!("member {id} does not run"))?;
        Ok(process.child.kill().await?)
    }

    /// Starts a member that was killed; how many milliseconds it took to open its store.
    pub async fn restart(&mut self, id: usize) -> anyhow::Result<u64> {
        let (process, took) = Process::start(id, self.dir.path(), &self.addresses).await?;
        self.running[id - 1] = Some(process);
        Ok(took)
    }

    /// A member's folder.
    pub fn folder(&self, id: usize) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    /// A member's address.
    pub fn address(&self, id: usize) -> SocketAddr {
        self.addresses[id - 1]
    }

    /// The processes that run.
    pub fn pids(&self) -> anyhow::Result<Vec<i32>> {
        self.running.iter().flatten().map(Process::pid).collect()
    }
}

/// The numbers of an answer.
pub(super) fn numbers<
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    const N: usize,
>(
    answer: &str,
) -> anyhow::Result<[T; N]> {
    let numbers: Vec<T> = answer
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("a member answered {answer:?}"))?;
    let count = numbers.len();
    let numbers = numbers.try_into().ok();
    numbers.with_context(|| format!("a member answered with {count} numbers, not {N}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_as_many_numbers_as_were_asked_for() {
        assert_eq!(numbers::<u64, 2>("3 40").ok(), Some([3, 40]));
        assert!(numbers::<u64, 2>("3").is_err());
        assert!(numbers::<u64, 1>("not carried out").is_err());
    }
}
