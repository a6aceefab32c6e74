//! containerd's process. It outlives the agent: a new agent finds it by its socket and goes on with it.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use balsa_cri::{Containerd, Runtime};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use super::lost::missed_an_end;
use super::namespaces::Namespaces;
use super::results::{CACHE, Pieces};
use super::write_config;
use crate::config::Paths;
use crate::error::Error;

/// How long containerd may take to answer when it was started, and when it was there before.
const START_DEADLINE: Duration = Duration::from_secs(30);
const ADOPTION: Duration = Duration::from_secs(5);

/// How long it may say that it is only starting. It asks about all containers that it finds, one after the other on
/// older versions, and waits ten seconds for each whose shim hangs.
const RECOVERY: Duration = Duration::from_secs(600);

/// How long it is waited for at a time: one that hangs takes the connection and says nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two looks at whether it answers.
const POLL: Duration = Duration::from_millis(10);

/// How often half-written answers of the network plugin are looked for beside a containerd that runs: a full disk
/// leaves them, too.
const TIDY: Duration = Duration::from_secs(60);

/// Pauses between restarts of a containerd that dies: without it the node can do nothing, and is soon not Ready.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long it may take to end when it is asked to.
const END: Duration = Duration::from_secs(5);

/// Starts, adopts and restarts containerd.
pub(crate) struct Supervisor {
    program: PathBuf,
    paths: Paths,
    runtime: Containerd,
    started: Arc<Notify>,
}

impl Supervisor {
    /// Checks that there is something to start.
    pub(crate) fn new(program: &Path, paths: Paths, runtime: Containerd) -> Result<Self, Error> {
        if paths.socket().as_os_str().len() > 100 {
            return Err(Error::PathTooLong {
                path: paths.socket(),
            });
        }
        let program = find(program).ok_or_else(|| Error::NoContainerd {
            program: program.display().to_string(),
        })?;
        Ok(Self {
            program,
            paths,
            runtime,
            started: Arc::default(),
        })
    }

    /// Adopts a running containerd or starts one, and waits until it answers.
    pub(crate) async fn start(&self) -> Result<OwnedFd, Error> {
        if let Some(process) = self.adopt().await {
            return Ok(process);
        }
        let config =
            write_config(&self.paths).map_err(Error::file("write", self.paths.containerd()))?;
        let left = Namespaces::left(&self.paths.containerd_state());
        let pieces = Pieces::left(Path::new(CACHE));
        let began = SystemTime::now();
        let process = self.spawn(&config)?;
        let watched = process
            .try_clone()
            .map_err(Error::file("watch", &self.program))?;
        tokio::select! {
            answered = self.await_answer(START_DEADLINE) => answered?,
            () = ended(watched) => return Err(self.died_at_once()),
        };
        match self.runtime.drop_leases(began).await {
            Ok(0) => {}
            Ok(count) => info!(count, "let go of what an earlier containerd had half made"),
            Err(error) => warn!(%error, "what an earlier containerd had half made stays for a day"),
        }
        pieces.remove();
        // It asks for every sandbox, which pods need not wait for.
        let removal = left.remove_unknown(self.runtime.clone());
        tokio::spawn(removal.instrument(info_span!("namespaces")));
        Ok(process)
    }

    /// Restarts containerd whenever it dies or has missed an end, until stopped; leaves it running then.
    pub(crate) async fn keep(&self, process: OwnedFd, stop: CancellationToken) {
        let mut process = process;
        let mut pause = RESTART.0;
        let mut blamed = HashSet::new();
        loop {
            let born = Instant::now();
            let handle = process.try_clone();
            let mut ended = pin!(ended(process));
            tokio::select! {
                () = stop.cancelled() => return,
                () = &mut ended => {}
                () = tidy() => {}
                () = missed_an_end(&self.runtime, &mut blamed) => end(handle, ended).await,
            }
            if born.elapsed() > RESTART.1 {
                pause = RESTART.0;
            }
            error!(log = %self.log().display(), "containerd has died, restarting it");
            process = loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RESTART.1);
                let started = tokio::select! {
                    () = stop.cancelled() => return,
                    started = self.start() => started,
                };
                match started {
                    Ok(process) => {
                        self.started.notify_one();
                        break process;
                    }
                    Err(error) => error!(%error, "could not restart containerd"),
                }
            };
        }
    }

    /// Told when a containerd was started in place of one that died.
    pub(crate) fn started(&self) -> Arc<Notify> {
        Arc::clone(&self.started)
    }

    fn log(&self) -> PathBuf {
        self.paths.containerd().join("containerd.log")
    }

    fn died_at_once(&self) -> Error {
        Error::Containerd {
            socket: self.paths.socket(),
            log: self.log(),
            message: "it died at once".to_owned(),
        }
    }

    fn pid_file(&self) -> PathBuf {
        self.paths.containerd().join("containerd.pid")
    }

    /// The containerd of an earlier agent, if it lives and answers, or will. One that lives without answering is killed.
    async fn adopt(&self) -> Option<OwnedFd> {
        let pid: i32 = std::fs::read_to_string(self.pid_file())
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let process = pidfd(pid)?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        // The number may be somebody else's by now.
        let ours = self.paths.containerd().join("config.toml");
        if !String::from_utf8_lossy(&command).contains(&*ours.to_string_lossy()) {
            return None;
        }
        let watched = process.try_clone().ok()?;
        let answered = tokio::select! {
            answered = self.await_answer(ADOPTION) => answered,
            () = ended(watched) => return None,
        };
        let error = match answered {
            Ok(version) => {
                info!(pid, version, "adopted the running containerd");
                return Some(process);
            }
            Err(error) => error,
        };
        warn!(pid, %error, "the running containerd does not answer, killing it");
        // SAFETY: a plain system call; the pid was checked to be our containerd.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        ended(process).await;
        None
    }

    fn spawn(&self, config: &Path) -> Result<OwnedFd, Error> {
        let log = self.log();
        let open = || File::options().create(true).append(true).open(&log);
        let out = open().map_err(Error::file("open", &log))?;
        let err = open().map_err(Error::file("open", &log))?;
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        // A session of its own: signals to the agent's group must not reach it.
        // SAFETY: setsid is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 {
                    Err(std::io::Error::last_os_error())
                } else {
                    Ok(())
                }
            });
        }
        let mut child = command.spawn().map_err(Error::file("run", &self.program))?;
        let pid = child.id();
        if let Err(error) = note(&self.pid_file(), pid) {
            // It runs, and is looked after all the same.
            warn!(%error, pid, "the next agent will not find this containerd");
        }
        info!(pid, "containerd started");
        let process = pidfd(pid as i32).ok_or_else(|| self.died_at_once());
        // Reaps it, whenever that is; a thread costs less than a signal handler shared with others.
        std::thread::Builder::new()
            .name("containerd-reaper".to_owned())
            .spawn(move || child.wait())
            .map_err(Error::file("start a thread for", &self.program))?;
        process
    }

    /// Waits until it answers with its version: so long if it says nothing, longer while it says that it starts.
    async fn await_answer(&self, silence: Duration) -> Result<String, Error> {
        let began = Instant::now();
        let mut deadline = began + silence;
        loop {
            let answer = tokio::time::timeout(PATIENCE, self.runtime.version()).await;
            let message = match answer {
                Ok(Ok(version)) => return Ok(version.version),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            let now = Instant::now();
            if is_starting(&message) && now < began + RECOVERY {
                deadline = now + silence;
            }
            if now > deadline {
                return Err(Error::Containerd {
                    socket: self.paths.socket(),
                    log: self.log(),
                    message,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Whether this is what containerd's CRI answers until it has taken stock ("server is not initialized yet").
fn is_starting(message: &str) -> bool {
    message.contains("not initialized")
}

/// Removes half-written answers of the network plugin, for ever.
async fn tidy() {
    let mut last = Pieces::left(Path::new(CACHE));
    loop {
        tokio::time::sleep(TIDY).await;
        let now = Pieces::left(Path::new(CACHE));
        std::mem::replace(&mut last, now).remove();
    }
}

/// Writes a process's number down, over the one before: a full disk has room for that.
fn note(path: &Path, pid: u32) -> std::io::Result<()> {
    let text = pid.to_string();
    let mut options = File::options();
    let mut file = options
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

/// The program by its path, or looked up in `PATH`.
pub(crate) fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let extra = ["/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: a plain system call; the descriptor it answers with is ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: checked to be a descriptor, owned by nobody else.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Asks a process to end, and ends it if it does not soon.
async fn end(process: std::io::Result<OwnedFd>, ended: impl Future<Output = ()>) {
    let process = match process {
        Ok(process) => process,
        Err(error) => {
            error!(%error, "cannot end containerd's process");
            return ended.await;
        }
    };
    send(&process, libc::SIGTERM);
    let mut ended = pin!(ended);
    if tokio::time::timeout(END, &mut ended).await.is_err() {
        send(&process, libc::SIGKILL);
        ended.await;
    }
}

fn send(process: &OwnedFd, signal: i32) {
    let (fd, none) = (process.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: a plain system call on a descriptor that is ours.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) };
    if sent != 0 {
        let error = std::io::Error::last_os_error();
        warn!(%error, signal, "cannot send containerd a signal");
    }
}

/// Waits until a process has ended.
async fn ended(process: OwnedFd) {
    let raw = process.as_raw_fd();
    // SAFETY: an owned descriptor gives the same number until it is dropped, and this one is ours.
    match unsafe { AsyncFd::register_with_interest(process, tokio::io::Interest::READABLE) } {
        Ok(fd) => {
            let _ = fd.readable().await;
        }
        Err(error) => {
            error!(%error, fd = raw, "cannot watch containerd's process");
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::AgentConfig;

    #[test]
    fn a_shorter_number_replaces_a_longer_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        note(&path, 123_456).unwrap();
        note(&path, 7).unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "7");
    }

    #[test]
    fn one_that_takes_stock_is_told_from_one_that_is_not_there() {
        assert!(is_starting(
            "containerd cannot tell its version: server is not initialized yet"
        ));
        assert!(!is_starting("connection refused"));
    }

    #[tokio::test]
    async fn a_containerd_that_dies_while_it_starts_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let paths = AgentConfig::new("a", [127, 0, 0, 1].into(), dir.path()).paths();
        let runtime = Containerd::new(paths.socket(), paths.fifos(), "ctr");
        let program = Path::new("/bin/false");
        let supervisor = Supervisor::new(program, paths, runtime).unwrap();
        let began = Instant::now();
        let error = supervisor.start().await.unwrap_err();
        assert!(error.to_string().contains("it died at once"), "{error}");
        assert!(began.elapsed() < START_DEADLINE / 2);
    }
}
