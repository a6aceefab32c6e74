//! A node's runtime hangs or dies, its agent is killed at any moment, its disk is full: the node says so, the
//! others go on, and it comes right again. These run alone (see `e2e/nextest.toml`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use balsa_e2e::{Kubectl, Local, Namespace, eventually, eventually_some, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Folder of a local node.
pub(crate) fn folder(node: &str) -> PathBuf {
    let root = std::env::var_os("BALSA_LOCAL_DIR").unwrap_or_else(|| "/var/lib/balsa-local".into());
    Path::new(&root).join(node)
}

/// Process id of a node's containerd.
fn containerd(node: &str) -> anyhow::Result<Pid> {
    let file = folder(node).join("containerd/containerd.pid");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(Pid::from_raw(text.trim().parse()?))
}

/// What a node's containerd says to its own client program.
pub(crate) fn ctr(node: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let socket = folder(node).join("containerd.sock");
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(socket)
        .args(["-n", "k8s.io"])
        .args(arguments);
    run(&mut command, "", Duration::from_secs(20))?.ok()
}

/// Kills a node's agent and waits for its end: a killed process is not gone at once, and a running one is not
/// started again.
pub(crate) fn kill_agent(local: &Local, node: &str) -> anyhow::Result<()> {
    let pid = local.node(node)?.pid.context("the agent does not run")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    eventually("the agent's end", 10, || {
        Ok(local.node(node)?.pid.is_none())
    })
    .map(|_| ())
}

/// Kills a node's containerd, once it runs, and waits for its end. The agent starts it again.
pub(crate) fn kill_runtime(node: &str) -> anyhow::Result<()> {
    let pid = eventually_some("a containerd that can be killed", 40, || {
        let pid = containerd(node)?;
        // The number of one that has died may be somebody else's.
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
        ensure!(name.trim() == "containerd", "process {pid} is {name}");
        kill(pid, Signal::SIGKILL)?;
        Ok(Some(pid))
    })?;
    eventually("containerd's end", 10, || Ok(kill(pid, None).is_err())).map(|_| ())
}

/// A pod on that node that sleeps.
fn sleeper(name: &str, node: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  tolerations: [{{operator: Exists}}]
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, \"100000\"]}}
---"
    )
}

fn ready(kubectl: &Kubectl, pod: &str) -> anyhow::Result<bool> {
    let path = "{.status.conditions[?(@.type=='Ready')].status}";
    Ok(kubectl.field(&format!("pod/{pod}"), path)? == "True")
}

/// Which instance of its container a pod runs.
fn instance(kubectl: &Kubectl, pod: &str) -> anyhow::Result<String> {
    let path =
        "{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
    kubectl.field(&format!("pod/{pod}"), path)
}

/// Lets a frozen process go on whatever becomes of the scenario.
struct Thaw(Pid);

impl Drop for Thaw {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn a_hung_runtime_makes_its_node_unready_and_no_other_and_comes_back() -> anyhow::Result<()> {
    let (ns, local) = (Namespace::new("hung")?, Local);
    let kubectl = ns.kubectl();
    let agents = local.agents()?;
    let (hung, other) = (&agents[0], &agents[1]);
    kubectl.apply(&format!(
        "{}{}",
        sleeper("before", hung),
        sleeper("doomed", hung)
    ))?;
    eventually("two pods", 40, || {
        Ok(ready(kubectl, "before")? && ready(kubectl, "doomed")?)
    })?;
    let before = instance(kubectl, "before")?;
    let process = containerd(hung)?;
    kill(process, Signal::SIGSTOP)?;
    let thaw = Thaw(process);
    kubectl.ok(&["delete", "pod", "doomed", "--wait=false"])?;
    kubectl.apply(&format!(
        "{}{}",
        sleeper("stuck", hung),
        sleeper("beside", other)
    ))?;
    eventually("a pod on the other node", 40, || ready(kubectl, "beside"))?;
    eventually("the node says that its runtime is down", 60, || {
        let path = "{range .status.conditions[?(@.type=='Ready')]}{.status} {.message}{end}";
        let said = kubectl.field(&format!("node/{hung}"), path)?;
        Ok(said.starts_with("False container runtime is down"))
    })?;
    ensure!(!ready(kubectl, "stuck")?, "a frozen runtime started a pod");
    drop(thaw);
    eventually("the node is Ready again", 60, || {
        let path = "{.status.conditions[?(@.type=='Ready')].status}";
        Ok(kubectl.field(&format!("node/{hung}"), path)? == "True")
    })?;
    eventually("what was asked for meanwhile is done", 150, || {
        let gone = kubectl.run(&["get", "pod", "doomed"])?.code != 0;
        Ok(gone && ready(kubectl, "stuck")?)
    })?;
    ensure!(
        instance(kubectl, "before")? == before,
        "a container that ran was restarted"
    );
    Ok(())
}

#[test]
fn a_killed_runtime_is_started_again_and_its_containers_never_stop() -> anyhow::Result<()> {
    let (ns, local) = (Namespace::new("runtime")?, Local);
    let kubectl = ns.kubectl();
    let node = local.agents()?.remove(0);
    kubectl.apply(&sleeper("before", &node))?;
    eventually("a pod", 40, || ready(kubectl, "before"))?;
    let before = instance(kubectl, "before")?;
    let old = containerd(&node)?;
    kill(old, Signal::SIGKILL)?;
    kubectl.apply(&sleeper("after", &node))?;
    eventually("a pod made by the new runtime", 60, || {
        ready(kubectl, "after")
    })?;
    ensure!(containerd(&node)? != old, "the runtime is the same");
    ensure!(
        instance(kubectl, "before")? == before,
        "a container was restarted"
    );
    let said = kubectl.ok(&["exec", "before", "--", "echo", "alive"])?;
    ensure!(said.trim() == "alive", "{said}");
    Ok(())
}

#[test]
fn an_agent_killed_at_any_moment_ends_with_each_container_once() -> anyhow::Result<()> {
    let (ns, local) = (Namespace::new("killed")?, Local);
    let kubectl = ns.kubectl();
    let node = local.agents()?.remove(0);
    let names: Vec<String> = (0..6).map(|index| format!("p{index}")).collect();
    let manifest: String = names.iter().map(|name| sleeper(name, &node)).collect();
    // Moments from before the first sandbox to after the last start, and back to the deletion.
    for (round, pause) in [20, 150, 400, 800, 1500].into_iter().enumerate() {
        kubectl.apply(&manifest)?;
        std::thread::sleep(Duration::from_millis(pause));
        kill_agent(&local, &node)?;
        if round % 2 == 1 {
            let mut delete = vec!["delete", "pod", "--wait=false"];
            delete.extend(names[..3].iter().map(String::as_str));
            kubectl.ok(&delete)?;
        }
        local.ok(&["start", &node])?;
        let wanted: &[String] = if round % 2 == 1 { &names[3..] } else { &names };
        eventually("the pods that are wanted, and no others", 90, || {
            let pods = kubectl.json(&["get", "pods"])?;
            let count = pods["items"].as_array().map_or(0, Vec::len);
            let mut all = wanted.iter();
            Ok(count == wanted.len()
                && all.try_fold(true, |ok, pod| {
                    Ok::<_, anyhow::Error>(ok && ready(kubectl, pod)?)
                })?)
        })?;
        eventually("each container once in the runtime", 60, || {
            Ok(running(&node, ns.name())? == wanted.len())
        })
        .with_context(|| format!("killed after {pause} ms"))?;
    }
    Ok(())
}

/// How many containers of a namespace run on a node, sandboxes apart.
fn running(node: &str, namespace: &str) -> anyhow::Result<usize> {
    let filter = format!(
        "labels.\"io.kubernetes.pod.namespace\"=={namespace},labels.\"io.cri-containerd.kind\"==container"
    );
    let containers = ctr(node, &["containers", "list", "--quiet", &filter])?;
    let tasks = ctr(node, &["tasks", "list"])?;
    let alive = |id: &&str| {
        tasks
            .lines()
            .any(|task| task.starts_with(*id) && task.contains("RUNNING"))
    };
    Ok(containers.lines().filter(alive).count())
}

#[test]
fn a_pod_on_a_full_disk_says_so_and_starts_when_there_is_room() -> anyhow::Result<()> {
    let (ns, local) = (Namespace::new("full")?, Local);
    let kubectl = ns.kubectl();
    let node = local.agents()?.remove(0);
    // It waits on its node for a ConfigMap until its volumes' folder is a full disk. An agent knows such a pod:
    // it would take the folder of one that is not bound yet for a stray's, and remove it.
    let held = sleeper("app", &node).replace(
        "  terminationGracePeriodSeconds",
        "  automountServiceAccountToken: false\n  volumes: [{name: files, configMap: {name: files}}]\n  \
         terminationGracePeriodSeconds",
    );
    kubectl.apply(&held)?;
    eventually("the pod waits for its files", 40, || {
        told(kubectl, "configmap \"files\" not found")
    })?;
    let uid = kubectl.field("pod/app", "{.metadata.uid}")?;
    let disk = Disk::new(folder(&node).join("pods").join(uid).join("volumes"))?;
    kubectl.ok(&["create", "configmap", "files", "--from-literal=a=b"])?;
    eventually("the pod's events tell of the full disk", 60, || {
        told(kubectl, "No space left on device")
    })?;
    kubectl.apply(&sleeper("beside", &node))?;
    eventually("another pod of the same node", 40, || {
        ready(kubectl, "beside")
    })?;
    ensure!(!ready(kubectl, "app")?, "it runs without its files");
    disk.grow()?;
    eventually("the pod, now that there is room", 90, || {
        ready(kubectl, "app")
    })?;
    kubectl.ok(&["delete", "pod", "app"])?;
    Ok(())
}

/// Do the events of the namespace say that?
fn told(kubectl: &Kubectl, words: &str) -> anyhow::Result<bool> {
    let events = kubectl.ok(&["get", "events", "-o", "jsonpath={.items[*].message}"])?;
    Ok(events.contains(words))
}

/// A disk of one page, which is full at once.
struct Disk(PathBuf);

impl Disk {
    fn new(at: PathBuf) -> anyhow::Result<Self> {
        use nix::mount::{MsFlags, mount};
        std::fs::create_dir_all(&at)?;
        mount(
            Some("full"),
            &at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=4k,nr_inodes=2"),
        )?;
        let disk = Self(at);
        std::fs::write(disk.0.join("ballast"), [0; 4096])?;
        Ok(disk)
    }

    fn grow(&self) -> anyhow::Result<()> {
        use nix::mount::{MsFlags, mount};
        let options = Some("size=4m,nr_inodes=1000");
        mount(
            None::<&str>,
            &self.0,
            None::<&str>,
            MsFlags::MS_REMOUNT,
            options,
        )?;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
