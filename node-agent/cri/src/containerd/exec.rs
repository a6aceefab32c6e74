//! Commands in containers through containerd's task service: FIFOs for the streams, and an explicit end of
//! standard input, which the streaming protocols of containerd before 2.0 can't express.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest,
    GetContainerRequest, KillRequest, ResizePtyRequest, StartRequest, WaitRequest,
};
use parking_lot::Mutex;
use prost_types::Any;
use serde_json::{Value, json};
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::transport::Channel;
use tracing::{Instrument, debug, debug_span};

use super::namespaced;
use crate::client::call;
use crate::error::{Error, Result};
use crate::runtime::{Control, Session, StreamSpec};
use crate::types::{CALL_TIMEOUT, START_TIMEOUT};

/// Type name by which containerd knows an OCI process in JSON.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

const SIGKILL: u32 = 9;

/// How often the end of a command is awaited anew; containerd's wait has no limit of its own.
const WAIT: Duration = Duration::from_secs(3600);

/// How many commands may be being started in one container at a time. containerd's shim starts one after the other,
/// and tells ends of processes between two starts: where dozens wait to be started it falls behind so far (a second
/// for each end) that it starts hardly any more.
const STARTS: usize = 4;

static NEXT: AtomicU64 = AtomicU64::new(0);

struct Exec {
    tasks: TasksClient<Channel>,
    container_id: String,
    exec_id: String,
}

/// Places for commands that are being started, by container.
#[derive(Default)]
pub(super) struct Starts(Mutex<HashMap<String, Weak<Semaphore>>>);

impl Starts {
    /// Waits for a place, which is free again when the answer is dropped.
    async fn place(&self, container_id: &str) -> Result<OwnedSemaphorePermit> {
        let own = {
            let mut all = self.0.lock();
            let known = all.get(container_id).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                all.retain(|_, places| places.strong_count() > 0);
                let fresh = Arc::new(Semaphore::new(STARTS));
                all.insert(container_id.to_owned(), Arc::downgrade(&fresh));
                fresh
            })
        };
        let place = own.acquire_owned().await;
        place.map_err(|_| Error::local("starting a command", "the node is stopping"))
    }
}

/// Paths of a session's FIFOs; the folder goes when this is dropped.
struct Fifos {
    dir: PathBuf,
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    stderr: Option<PathBuf>,
}

impl Fifos {
    fn create(dir: PathBuf, spec: StreamSpec) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let make = |wanted: bool, name: &str| -> std::io::Result<Option<PathBuf>> {
            if !wanted {
                return Ok(None);
            }
            let path = dir.join(name);
            make_fifo(&path)?;
            Ok(Some(path))
        };
        let stdin = make(spec.stdin, "stdin")?;
        // containerd 1.6 wants all outputs or none ("opening file \"\" failed"); unwanted ones are thrown away.
        let any = spec.stdin || spec.stdout || spec.stderr || spec.tty;
        let stdout = make(any, "stdout")?;
        let stderr = make(any && !spec.tty, "stderr")?;
        Ok(Self {
            dir,
            stdin,
            stdout,
            stderr,
        })
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            debug!(%error, dir = %self.dir.display(), "could not remove FIFOs");
        }
    }
}

fn make_fifo(path: &Path) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a NUL-terminated string that lives through the call.
    if unsafe { libc::mkfifo(path.as_ptr(), 0o600) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Sends a signal to a container's main process.
pub(super) async fn signal(channel: Channel, container_id: &str, signal: i32) -> Result<()> {
    let signal = u32::try_from(signal).unwrap_or(SIGKILL);
    kill(channel, container_id, signal, false).await
}

async fn kill(channel: Channel, container_id: &str, signal: u32, all: bool) -> Result<()> {
    let request = KillRequest {
        container_id: container_id.to_owned(),
        exec_id: String::new(),
        signal,
        all,
    };
    let mut tasks = TasksClient::new(channel);
    call("Kill", CALL_TIMEOUT, tasks.kill(namespaced(request))).await?;
    Ok(())
}

/// Kills all that runs in a container, and deletes its task if it has ended by now.
pub(super) async fn end_task(channel: Channel, container_id: &str) -> Result<()> {
    // It may have ended before.
    let killed = kill(channel.clone(), container_id, SIGKILL, true).await;
    let request = DeleteTaskRequest {
        container_id: container_id.to_owned(),
    };
    let mut tasks = TasksClient::new(channel);
    match call("Delete", CALL_TIMEOUT, tasks.delete(namespaced(request))).await {
        Ok(_) => Ok(()),
        Err(error) => killed.and(Err(error)),
    }
}

pub(super) async fn start(
    channel: Channel,
    starts: &Starts,
    fifo_dir: &Path,
    container_id: &str,
    command: &[String],
    spec: StreamSpec,
) -> Result<Session> {
    let process = process_for(channel.clone(), container_id, command, spec.tty).await?;
    let exec_id = format!(
        "balsa-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let dir = fifo_dir.join(&exec_id);
    let failed = |error: std::io::Error| Error::local("making FIFOs for a command", error);
    let fifos = Fifos::create(dir, spec).map_err(failed)?;
    // Readers first: the runtime's writers must never find a FIFO without one.
    let open_reader = |path: &Option<PathBuf>| {
        path.as_ref()
            .map(|path| pipe::OpenOptions::new().open_receiver(path))
            .transpose()
            .map_err(failed)
    };
    let stdout = open_reader(&fifos.stdout)?;
    let stderr = open_reader(&fifos.stderr)?;
    let stdout = wanted(stdout, spec.stdout);
    let stderr = wanted(stderr, spec.stderr);

    let mut exec = Exec {
        tasks: TasksClient::new(channel),
        container_id: container_id.to_owned(),
        exec_id,
    };
    let place = starts.place(container_id).await?;
    exec.create(&fifos, spec, process).await?;
    let exited = exec.wait();
    if let Err(error) = exec.start().await {
        exec.delete().await;
        return Err(error);
    }
    drop(place);
    let open_writer = |path: &PathBuf| pipe::OpenOptions::new().open_sender(path);
    let stdin = fifos
        .stdin
        .as_ref()
        .map(open_writer)
        .transpose()
        .map_err(failed)?;

    let (control, control_rx) = mpsc::channel(16);
    let (exit_tx, exit) = oneshot::channel();
    let supervise = async move {
        let code = exec.supervise(exited, control_rx).await;
        exec.delete().await;
        let _ = exit_tx.send(code);
        drop(fifos);
    };
    tokio::spawn(supervise.instrument(debug_span!("container-exec")));
    Ok(Session {
        stdin: stdin.map(|pipe| Box::new(pipe) as _),
        stdout: stdout.map(|pipe| Box::new(pipe) as _),
        stderr: stderr.map(|pipe| Box::new(pipe) as _),
        control,
        exit,
    })
}

/// The output if it is wanted; else it is read and thrown away until the command's end, or it would hold that up.
fn wanted(output: Option<pipe::Receiver>, wanted: bool) -> Option<pipe::Receiver> {
    let mut output = output?;
    if wanted {
        return Some(output);
    }
    let discard = async move {
        if let Err(error) = tokio::io::copy(&mut output, &mut tokio::io::sink()).await {
            debug!(%error, "an unwanted output broke off");
        }
    };
    tokio::spawn(discard.instrument(debug_span!("unwanted-output")));
    None
}

impl Exec {
    async fn create(&mut self, fifos: &Fifos, spec: StreamSpec, process: Value) -> Result<()> {
        let text = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default()
        };
        let request = ExecProcessRequest {
            container_id: self.container_id.clone(),
            stdin: text(&fifos.stdin),
            stdout: text(&fifos.stdout),
            stderr: text(&fifos.stderr),
            terminal: spec.tty,
            spec: Some(Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: process.to_string().into_bytes(),
            }),
            exec_id: self.exec_id.clone(),
        };
        call(
            "Tasks.Exec",
            CALL_TIMEOUT,
            self.tasks.exec(namespaced(request)),
        )
        .await
        .map(|_| ())
    }

    async fn start(&mut self) -> Result<()> {
        let request = StartRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
        };
        call(
            "Tasks.Start",
            START_TIMEOUT,
            self.tasks.start(namespaced(request)),
        )
        .await
        .map(|_| ())
    }

    /// Waits for the end in a task of its own, begun before the start so that no end is missed.
    fn wait(&self) -> oneshot::Receiver<Result<i32>> {
        let (done, exited) = oneshot::channel();
        let mut tasks = self.tasks.clone();
        let request = WaitRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
        };
        let wait = async move {
            let ended = loop {
                match call("Tasks.Wait", WAIT, tasks.wait(namespaced(request.clone()))).await {
                    Err(Error::Timeout { .. }) if !done.is_closed() => {}
                    other => break other,
                }
            };
            let _ = done.send(ended.map(|answer| answer.exit_status as i32));
        };
        tokio::spawn(wait.instrument(debug_span!("container-exec-wait")));
        exited
    }

    async fn supervise(
        &mut self,
        mut exited: oneshot::Receiver<Result<i32>>,
        mut control: mpsc::Receiver<Control>,
    ) -> Result<i32> {
        loop {
            tokio::select! {
                code = &mut exited => {
                    return code.unwrap_or_else(|_| Err(Error::local("waiting for a command", "the wait was given up")));
                }
                // A client that is gone leaves the command running, as upstream does.
                Some(control) = control.recv() => self.apply(control).await,
            }
        }
    }

    async fn apply(&mut self, control: Control) {
        let (container_id, exec_id) = (self.container_id.clone(), self.exec_id.clone());
        let done = match control {
            Control::Resize { width, height } => {
                let (width, height) = (u32::from(width), u32::from(height));
                let request = ResizePtyRequest {
                    container_id,
                    exec_id,
                    width,
                    height,
                };
                call(
                    "Tasks.ResizePty",
                    CALL_TIMEOUT,
                    self.tasks.resize_pty(namespaced(request)),
                )
                .await
            }
            Control::CloseStdin => {
                let request = CloseIoRequest {
                    container_id,
                    exec_id,
                    stdin: true,
                };
                call(
                    "Tasks.CloseIO",
                    CALL_TIMEOUT,
                    self.tasks.close_io(namespaced(request)),
                )
                .await
            }
            Control::Kill => {
                let request = KillRequest {
                    container_id,
                    exec_id,
                    signal: SIGKILL,
                    all: false,
                };
                call(
                    "Tasks.Kill",
                    CALL_TIMEOUT,
                    self.tasks.kill(namespaced(request)),
                )
                .await
            }
        };
        if let Err(error) = done {
            debug!(%error, ?control, "instruction to a command failed");
        }
    }

    async fn delete(&mut self) {
        let request = DeleteProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
        };
        let done = call(
            "Tasks.DeleteProcess",
            CALL_TIMEOUT,
            self.tasks.delete_process(namespaced(request)),
        )
        .await;
        if let Err(error) = done
            && !error.is_not_found()
        {
            debug!(%error, "could not remove an ended command");
        }
    }
}

/// The container's own process description with another command.
async fn process_for(
    channel: Channel,
    container_id: &str,
    command: &[String],
    tty: bool,
) -> Result<Value> {
    let request = GetContainerRequest {
        id: container_id.to_owned(),
    };
    let answer = call(
        "Containers.Get",
        CALL_TIMEOUT,
        ContainersClient::new(channel).get(namespaced(request)),
    )
    .await?;
    let spec = answer
        .container
        .and_then(|container| container.spec)
        .map(|spec| spec.value)
        .unwrap_or_default();
    let spec: Value = serde_json::from_slice(&spec)
        .map_err(|error| Error::local("reading the container's OCI spec", error))?;
    process_from(&spec, command, tty)
        .ok_or_else(|| Error::local("reading the container's OCI spec", "has no process"))
}

fn process_from(spec: &Value, command: &[String], tty: bool) -> Option<Value> {
    let mut process = spec.get("process")?.as_object()?.clone();
    process.insert("args".to_owned(), json!(command));
    process.insert("terminal".to_owned(), json!(tty));
    process.remove("consoleSize");
    let has_term = |env: &Value| env.as_str().is_some_and(|entry| entry.starts_with("TERM="));
    if tty {
        let env = process
            .entry("env")
            .or_insert_with(|| json!([]))
            .as_array_mut()?;
        if !env.iter().any(has_term) {
            env.push(json!("TERM=xterm"));
        }
    }
    Some(Value::Object(process))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_command_inherits_the_containers_identity_and_environment() {
        let spec = json!({"process": {"args": ["sleep"], "cwd": "/w", "env": ["A=1"], "user": {"uid": 7}}});
        let process = process_from(&spec, &["id".to_owned()], true).unwrap();
        let wanted = json!({"args": ["id"], "cwd": "/w", "env": ["A=1", "TERM=xterm"], "terminal": true,
            "user": {"uid": 7}});
        assert_eq!(process, wanted);
    }

    #[tokio::test]
    async fn only_so_many_commands_of_a_container_are_started_at_a_time() {
        let starts = Starts::default();
        let mut held = Vec::new();
        for _ in 0..STARTS {
            held.push(starts.place("a").await.unwrap());
        }
        let mut next = Box::pin(starts.place("a"));
        assert!(futures::poll!(&mut next).is_pending());
        assert!(starts.place("b").await.is_ok());
        held.clear();
        assert!(next.await.is_ok());
    }

    #[test]
    fn a_spec_without_a_process_is_refused() {
        assert_eq!(process_from(&json!({}), &[], false), None);
    }
}
