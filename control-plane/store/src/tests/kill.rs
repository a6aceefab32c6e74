//! Members in processes of their own that die by SIGKILL at each edge of durability, again and again. What
//! was acknowledged is there afterwards, once.
//!
//! `BALSA_KILL_ROUNDS=N` runs N random rounds in place of one for each edge.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{PATIENCE, free_address, put};
use crate::fault::{POINT, Point};
use crate::{Config, Error, Store, Tuning, TxnOutcome};

/// What makes this test's process a member: `ID DIR ADDRESS...`.
const MEMBER: &str = "BALSA_STORE_MEMBER";
/// Before each line of a member that is meant for its parent.
const MARK: &str = "member: ";
/// Every edge, and for about how many passings the process lives at most.
const EDGES: [(Point, i64); 15] = [
    (Point::LogDrained, 200),
    (Point::LogSynced, 200),
    (Point::VoteQueued, 2),
    (Point::VoteSynced, 2),
    (Point::ApplyBegun, 200),
    (Point::ApplyWritten, 200),
    (Point::FlushBegun, 3),
    (Point::FlushDone, 3),
    (Point::PurgeBegun, 2),
    (Point::PurgeDone, 2),
    (Point::InstallReceived, 1),
    (Point::InstallRenamed, 1),
    (Point::InstallPointed, 1),
    (Point::SweepBegun, 1),
    (Point::SweepDone, 1),
];

fn tuning() -> Tuning {
    Tuning {
        snapshot_entries: 100,
        keep_entries: 20,
        history_age: Duration::from_secs(1),
        history_revisions: 50,
        ..Tuning::default()
    }
}

/// Not a test: what runs in the members' processes.
#[test]
fn member() {
    let Ok(spec) = std::env::var(MEMBER) else {
        return;
    };
    let words: Vec<&str> = spec.split(' ').collect();
    let (id, dir, addresses) = (words[0].parse::<u64>().unwrap(), words[1], &words[2..]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let listen = addresses[usize::try_from(id - 1).unwrap()];
        let mut config = Config::new(dir, id, listen, listen.parse().unwrap(), None);
        config.tuning = tuning();
        let store = Store::open(config, Arc::new(())).await.unwrap();
        say("ready");
        let addresses: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
        for line in std::io::stdin().lines() {
            let line = line.unwrap();
            let store = store.clone();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["form"] => {
                    store.initialize().await.unwrap();
                    for (other, address) in (2..).zip(&addresses[1..]) {
                        store.add_member(other, address.clone()).await.unwrap();
                    }
                    say("formed");
                }
                ["add", other] => {
                    let other: u64 = other.parse().unwrap();
                    let address = addresses[usize::try_from(other - 1).unwrap()].clone();
                    while store.add_member(other, address.clone()).await.is_err() {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    say("added");
                }
                ["write", prefix] => {
                    for n in 0..8 {
                        tokio::spawn(write(store.clone(), format!("{prefix}/{n}")));
                    }
                }
                ["ready"] => {
                    let ready = store.read_barrier().await.is_ok() && store.health().is_ready();
                    say(if ready { "yes" } else { "no" });
                }
                ["leader"] => {
                    let leader = store.leadership().borrow().leader;
                    say(&format!("leader {}", leader.unwrap_or(0)));
                }
                ["dump"] => {
                    while store.read_barrier().await.is_err() {}
                    for kv in store.range(b"", None, 0, None).unwrap().kvs {
                        let key = String::from_utf8(kv.key.to_vec()).unwrap();
                        say(&format!("has {key} {} {}", kv.mod_revision, kv.version));
                    }
                    say("dumped");
                }
                _ => break,
            }
        }
    });
    std::process::exit(0);
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever listened may be gone.
    let _ = writeln!(out, "\n{MARK}{line}");
    let _ = out.flush();
}

/// Puts keys, each once, and says which were acknowledged.
async fn write(store: Store, prefix: String) {
    for n in 0.. {
        let key = format!("{prefix}/{n}");
        match store.txn(put(key.clone(), vec![b'v'; 300])).await {
            Ok(TxnOutcome::Committed { revision }) => say(&format!("ack {key} {revision}")),
            Ok(_) | Err(Error::Unknown { .. } | Error::Unavailable { .. }) => {}
            Err(_) => return,
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    /// Acknowledged keys and their revisions.
    acknowledged: Vec<(String, u64)>,
    /// It said so while nobody waited for it.
    added: bool,
}

impl Process {
    fn start(id: u64, dir: &Path, addresses: &[String], point: Option<(Point, i64)>) -> Self {
        let spec = format!("{id} {} {}", dir.display(), addresses.join(" "));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "tests::kill::member", "--nocapture"])
            .env(MEMBER, spec)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some((point, count)) = point {
            command.env(POINT, format!("{point:?}:{count}"));
        }
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix(MARK)
                    && sender.send(line.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self {
            child,
            stdin,
            lines,
            acknowledged: Vec::new(),
            added: false,
        }
    }

    fn tell(&mut self, line: &str) {
        // It may be dead.
        let _ = writeln!(self.stdin, "{line}");
    }

    /// Waits for a line; `None` if the process ends before.
    fn hear(&mut self, wanted: &[&str]) -> Option<String> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if wanted.contains(&line.as_str()) {
                        return Some(line);
                    }
                    self.note(&line);
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("no {wanted:?} in time"),
            }
        }
    }

    /// Waits until a member that it was told to add is one.
    fn until_added(&mut self) {
        if !std::mem::take(&mut self.added) {
            self.hear(&["added"]).unwrap();
        }
    }

    fn note(&mut self, line: &str) {
        self.added |= line == "added";
        if let ["ack", key, revision] = line.split(' ').collect::<Vec<_>>()[..] {
            let acknowledged = (key.to_owned(), revision.parse().unwrap());
            self.acknowledged.push(acknowledged);
        }
    }

    /// Takes what was said up to now.
    fn drain(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            self.note(&line);
        }
    }

    fn kill(mut self) -> Vec<(String, u64)> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        while let Ok(line) = self.lines.recv() {
            self.note(&line);
        }
        std::mem::take(&mut self.acknowledged)
    }
}

pub(super) struct Cluster {
    root: tempfile::TempDir,
    addresses: Vec<String>,
    running: BTreeMap<u64, Process>,
    acknowledged: Vec<(String, u64)>,
    written: u64,
}

impl Cluster {
    pub fn start() -> Self {
        let addresses = (0..3).map(|_| free_address().to_string()).collect();
        let mut cluster = Self {
            root: tempfile::tempdir().unwrap(),
            addresses,
            running: BTreeMap::new(),
            acknowledged: Vec::new(),
            written: 0,
        };
        for id in 1..=3 {
            cluster.run(id, None);
            cluster.get(id).hear(&["ready"]).unwrap();
        }
        cluster.get(1).tell("form");
        cluster.get(1).hear(&["formed"]).unwrap();
        for id in 1..=3 {
            cluster.write(id);
        }
        cluster
    }

    fn run(&mut self, id: u64, point: Option<(Point, i64)>) {
        let dir = self.root.path().join(id.to_string());
        let process = Process::start(id, &dir, &self.addresses, point);
        self.running.insert(id, process);
    }

    fn get(&mut self, id: u64) -> &mut Process {
        self.running.get_mut(&id).unwrap()
    }

    fn write(&mut self, id: u64) {
        self.written += 1;
        let line = format!("write w{}", self.written);
        self.get(id).tell(&line);
    }

    fn kill(&mut self, id: u64) {
        let process = self.running.remove(&id).unwrap();
        self.acknowledged.extend(process.kill());
    }

    /// Lets a member die at an edge, if it comes to it in time, and start again.
    fn round(&mut self, id: u64, point: Point, count: i64) -> bool {
        let install = matches!(
            point,
            Point::InstallReceived | Point::InstallRenamed | Point::InstallPointed
        );
        self.kill(id);
        if install {
            // Its log and state are so old that only a snapshot helps.
            std::fs::remove_dir_all(self.root.path().join(id.to_string())).unwrap();
        }
        self.run(id, Some((point, count)));
        let mut alive = self.get(id).hear(&["ready"]).is_some();
        if alive && install {
            let other = id % 3 + 1;
            let line = format!("add {id}");
            self.get(other).tell(&line);
        } else if alive {
            self.write(id);
        }
        for _ in 0..60 {
            alive = self.get(id).child.try_wait().unwrap().is_none();
            if !alive {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            for process in self.running.values_mut() {
                process.drain();
            }
        }
        self.kill(id);
        self.run(id, None);
        self.get(id).hear(&["ready"]).unwrap();
        if install {
            self.get(id % 3 + 1).until_added();
        }
        self.serves(id);
        self.write(id);
        !alive
    }

    /// Who leads, as the members say that are asked.
    pub fn leader(&mut self, of: &[u64]) -> u64 {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let mut said = Vec::new();
            for id in of {
                self.get(*id).tell("leader");
                let lines = ["leader 0", "leader 1", "leader 2", "leader 3"];
                let line = self.get(*id).hear(&lines).unwrap();
                said.extend(line.split(' ').nth(1).and_then(|id| id.parse::<u64>().ok()));
            }
            if said.iter().all(|leader| *leader == said[0]) && said[0] > 0 {
                return said[0];
            }
            assert!(std::time::Instant::now() < deadline, "{said:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops a member where it is, or lets it go on.
    pub fn signal(&self, id: u64, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.running[&id].child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// How many writes members have acknowledged so far.
    pub fn count(&mut self, of: &[u64]) -> usize {
        let mut count = 0;
        for id in of {
            self.get(*id).drain();
            count += self.get(*id).acknowledged.len();
        }
        count
    }

    /// What a member has, once it is sure to have everything that was acknowledged before.
    pub fn dump(&mut self, id: u64) -> BTreeMap<String, u64> {
        self.get(id).tell("dump");
        let mut found = BTreeMap::new();
        loop {
            let line = self.get(id).lines.recv_timeout(PATIENCE).unwrap();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["has", key, revision, version] => {
                    let revision: u64 = revision.parse().unwrap();
                    assert_eq!(version, "1", "{key} was written more than once");
                    found.insert(key.to_owned(), revision);
                }
                ["dumped"] => return found,
                _ => self.get(id).note(&line),
            }
        }
    }

    /// What members acknowledged so far.
    pub fn acknowledged(&mut self, by: &[u64]) -> Vec<(String, u64)> {
        self.count(by);
        let acknowledged = |id| self.running[id].acknowledged.clone();
        by.iter().flat_map(acknowledged).collect()
    }

    pub fn serves(&mut self, id: u64) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            self.get(id).tell("ready");
            if self.get(id).hear(&["yes", "no"]).unwrap() == "yes" {
                return;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "member {id} does not serve"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything that was acknowledged is on every member, at its revision, written once.
    pub fn check(&mut self) {
        for id in 1..=3 {
            self.kill(id);
        }
        for id in 1..=3 {
            self.run(id, None);
        }
        for id in 1..=3 {
            self.get(id).hear(&["ready"]).unwrap();
            self.serves(id);
            let found = self.dump(id);
            for (key, revision) in &self.acknowledged {
                assert_eq!(found.get(key), Some(revision), "{key} on member {id}");
            }
        }
        assert!(!self.acknowledged.is_empty());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in std::mem::take(&mut self.running).into_values() {
            process.kill();
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_members_die_at_any_edge() {
    let rounds: Option<usize> = std::env::var("BALSA_KILL_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    let seed = rand::random();
    let mut rng = SmallRng::seed_from_u64(seed);
    eprintln!("seed {seed}");
    let mut cluster = Cluster::start();
    let mut died = 0;
    let each: Vec<_> = match rounds {
        None => EDGES.to_vec(),
        Some(rounds) => (0..rounds)
            .map(|_| EDGES[rng.random_range(0..EDGES.len())])
            .collect(),
    };
    for (n, (point, most)) in each.into_iter().enumerate() {
        let (id, count) = (rng.random_range(1..=3), rng.random_range(1..=most));
        let reached = cluster.round(id, point, count);
        eprintln!("round {n}: member {id} at {point:?} {count}: died there: {reached}");
        died += usize::from(reached);
    }
    cluster.check();
    eprintln!("{} acknowledged writes", cluster.acknowledged.len());
    assert!(died > 0);
}
