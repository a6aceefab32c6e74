//! Plain types of the runtime interface: what the agent asks for and what it sees.

use std::collections::BTreeMap;
use std::time::Duration;

/// Labels or annotations.
pub type Map = BTreeMap<String, String>;

/// Nanoseconds since 1970, as the runtime reports times; 0 is "never".
pub type Nanos = i64;

/// Who the runtime is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version {
    /// `containerd`, `cri-o`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Version of the API that it speaks.
    pub api: String,
}

/// One of the runtime's own health conditions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeCondition {
    /// `RuntimeReady` or `NetworkReady`.
    pub kind: String,
    /// Fulfilled?
    pub status: bool,
    /// CamelCase reason when not.
    pub reason: String,
    /// Words for people.
    pub message: String,
}

/// The runtime's health.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeStatus {
    /// All conditions.
    pub conditions: Vec<RuntimeCondition>,
    /// What it can do beyond what all can.
    pub features: RuntimeFeatures,
}

/// What a runtime can do beyond what all can; old ones tell of nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeFeatures {
    /// Leaves a process's groups as they are told, without those that the image gives its user.
    pub supplemental_groups_policy: bool,
    /// Its handlers.
    pub handlers: Vec<HandlerFeatures>,
}

/// What one handler of a runtime can do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HandlerFeatures {
    /// Name; empty for the usual one.
    pub name: String,
    /// Makes mounts read-only with all that is mounted below them.
    pub recursive_read_only_mounts: bool,
    /// Gives pods user namespaces.
    pub user_namespaces: bool,
}

impl RuntimeStatus {
    /// The condition of that kind, unless it is fulfilled.
    pub fn problem(&self, kind: &str) -> Option<&RuntimeCondition> {
        self.conditions
            .iter()
            .find(|condition| condition.kind == kind && !condition.status)
    }
}

/// Where a namespace of a sandbox or container comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NamespaceMode {
    /// Shared by the pod's containers.
    #[default]
    Pod,
    /// Private to the container.
    Container,
    /// The node's own.
    Node,
    /// That of the container named by [`Namespaces::target`].
    Target,
}

/// Namespaces of a sandbox or container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespaces {
    /// Network namespace.
    pub network: NamespaceMode,
    /// Process id namespace.
    pub pid: NamespaceMode,
    /// System V IPC namespace.
    pub ipc: NamespaceMode,
    /// Container whose process namespace is joined with [`NamespaceMode::Target`].
    pub target: String,
    /// The node's ids that stand for those of a user namespace of the pod's own; `None` shares the node's.
    pub users: Option<IdRange>,
}

/// A range of user ids, and of group ids, of the node. In the pod they begin at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub length: u32,
}

/// Which system calls are let through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Seccomp {
    /// The runtime's own filter.
    RuntimeDefault,
    /// No filter.
    #[default]
    Unconfined,
    /// A profile file on the node.
    Localhost(String),
}

/// What a pod's processes resolve names with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// `search` domains.
    pub searches: Vec<String>,
    /// `options`.
    pub options: Vec<String>,
}

/// A port published on the node by the runtime's network plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the node.
    pub host_port: u16,
    /// Address on the node; empty for all.
    pub host_ip: String,
}

/// What to make a sandbox from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxConfig {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod UID.
    pub uid: String,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// Host name in the pod; empty with the node's network.
    pub hostname: String,
    /// Folder of the containers' logs.
    pub log_directory: String,
    /// Name resolution; `None` leaves the node's.
    pub dns: Option<Dns>,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// Labels, by which the agent finds its pods again.
    pub labels: Map,
    /// Annotations.
    pub annotations: Map,
    /// Parent cgroup of the pod (cgroupfs path, or a systemd slice).
    pub cgroup_parent: String,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// Whether privileged containers will be in it.
    pub privileged: bool,
    /// Supplemental groups of the sandbox's process.
    pub supplemental_groups: Vec<i64>,
    /// User of the sandbox's process.
    pub run_as_user: Option<i64>,
    /// Group of the sandbox's process.
    pub run_as_group: Option<i64>,
    /// Filter of the sandbox's process.
    pub seccomp: Seccomp,
    /// Namespaced kernel settings.
    pub sysctls: Map,
    /// Which of the runtime's handlers is to run it (a RuntimeClass's `handler`); empty for the usual one.
    pub runtime_handler: String,
    /// What the pod's containers may use together.
    pub resources: Resources,
    /// What the sandbox itself is reckoned to use.
    pub overhead: Resources,
    /// Labels of mandatory access control.
    pub selinux: Option<SeLinux>,
}

/// SELinux labels of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeLinux {
    /// User part.
    pub user: String,
    /// Role part.
    pub role: String,
    /// Type part.
    pub kind: String,
    /// Level part.
    pub level: String,
}

/// An AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AppArmor {
    /// The runtime's own, where the kernel has AppArmor.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile loaded on the node.
    Localhost(String),
}

/// Whether a sandbox is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxState {
    /// Its process runs and its network is set up.
    Ready,
    /// Stopped or dead.
    NotReady,
}

/// A sandbox in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxInfo {
    /// The runtime's id.
    pub id: String,
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod UID.
    pub uid: String,
    /// Which one of the pod's sandboxes.
    pub attempt: u32,
    /// Alive?
    pub state: SandboxState,
    /// When made.
    pub created_at: Nanos,
    /// Its labels.
    pub labels: Map,
}

/// A sandbox with its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxStatus {
    /// As in a list.
    pub info: SandboxInfo,
    /// Addresses, primary first; none with the node's network.
    pub ips: Vec<String>,
    /// Path of its network namespace, when the runtime tells it (containerd does).
    pub netns: Option<String>,
}

/// Limits of a container. Zero means "not set", as in CRI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// CFS quota in microseconds per period.
    pub cpu_quota: i64,
    /// CPU shares (cgroup v1 scale).
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    pub memory_limit: i64,
    /// Adjustment for the out-of-memory killer.
    pub oom_score_adj: i64,
    /// When memory runs out, all its processes end together (control groups of version 2).
    pub oom_group: bool,
    /// Its memory is never swapped out (control groups of version 2).
    pub no_swap: bool,
}

/// How mounts spread between node and container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From the node to the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A folder or file of the node, seen in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// Where in the container.
    pub container_path: String,
    /// Where on the node.
    pub host_path: String,
    /// Read-only?
    pub readonly: bool,
    /// Read-only with all that is mounted below it; needs `readonly` and no propagation.
    pub recursive_readonly: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// The node's ids as which the pod's own appear in it, for pods with user namespaces.
    pub users: Option<IdRange>,
}

/// A device of the node, given to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Path in the container.
    pub container_path: String,
    /// Path on the node.
    pub host_path: String,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

/// Who a container's process is and what it may.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerSecurity {
    /// All capabilities and devices.
    pub privileged: bool,
    /// Capabilities to add, without `CAP_`.
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop, without `CAP_`.
    pub drop_capabilities: Vec<String>,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// User id.
    pub run_as_user: Option<i64>,
    /// Group id; needs a user id.
    pub run_as_group: Option<i64>,
    /// User by name, when the image names it so.
    pub run_as_username: String,
    /// Root file system is read-only.
    pub readonly_rootfs: bool,
    /// Supplemental groups.
    pub supplemental_groups: Vec<i64>,
    /// No groups but those: not what the image's `/etc/group` says of the user.
    pub strict_groups: bool,
    /// No new privileges through set-user-id programs.
    pub no_new_privileges: bool,
    /// Paths hidden from the container; `None` for the defaults of `/proc` and `/sys`.
    pub masked_paths: Vec<String>,
    /// Paths read-only in the container.
    pub readonly_paths: Vec<String>,
    /// System call filter.
    pub seccomp: Seccomp,
    /// AppArmor profile; `None` when nothing is said.
    pub apparmor: Option<AppArmor>,
    /// SELinux labels.
    pub selinux: Option<SeLinux>,
}

/// What to make a container from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerConfig {
    /// Container name in the pod.
    pub name: String,
    /// How many instances it had before.
    pub attempt: u32,
    /// Image reference or id.
    pub image: String,
    /// What the user wrote as image.
    pub user_image: String,
    /// Program; empty for the image's.
    pub command: Vec<String>,
    /// Arguments; empty for the image's.
    pub args: Vec<String>,
    /// Folder to start in; empty for the image's.
    pub working_dir: String,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Devices that the runtime knows by name (`vendor.com/gpu=0`, Container Device Interface).
    pub cdi_devices: Vec<String>,
    /// Labels.
    pub labels: Map,
    /// Annotations.
    pub annotations: Map,
    /// Log file, relative to the sandbox's log folder.
    pub log_path: String,
    /// Keeps standard input open.
    pub stdin: bool,
    /// Closes standard input after the first attached client left.
    pub stdin_once: bool,
    /// A terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Limits of huge pages in bytes, by page size as the kernel's control groups name it (`2MB`).
    pub huge_pages: Vec<(String, u64)>,
    /// Identity and rights.
    pub security: ContainerSecurity,
}

/// Life of a container as the runtime sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited,
    /// The runtime does not know.
    Unknown,
}

/// A container in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    /// The runtime's id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// Name in the pod.
    pub name: String,
    /// Which instance.
    pub attempt: u32,
    /// State.
    pub state: ContainerState,
    /// When made.
    pub created_at: Nanos,
    /// Id of the image.
    pub image_ref: String,
    /// Its labels.
    pub labels: Map,
}

/// A container in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    /// The runtime's id.
    pub id: String,
    /// Name in the pod.
    pub name: String,
    /// Which instance.
    pub attempt: u32,
    /// State.
    pub state: ContainerState,
    /// When made.
    pub created_at: Nanos,
    /// When started.
    pub started_at: Nanos,
    /// When ended.
    pub finished_at: Nanos,
    /// Exit code, 128 + signal when killed.
    pub exit_code: i32,
    /// Image as asked for.
    pub image: String,
    /// Image by digest.
    pub image_ref: String,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`.
    pub reason: String,
    /// Words for people.
    pub message: String,
    /// Labels.
    pub labels: Map,
    /// Annotations.
    pub annotations: Map,
    /// Log file, absolute.
    pub log_path: String,
    /// Who its first process is, if the runtime tells.
    pub user: Option<ProcessUser>,
    /// Where in it something is mounted read-only with all that is mounted below.
    pub recursive_readonly: Vec<String>,
}

/// Ids of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessUser {
    /// User.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Further groups.
    pub groups: Vec<i64>,
}

/// Outcome of a command run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit code.
    pub exit_code: i32,
}

/// An image on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// Id (digest of its configuration).
    pub id: String,
    /// `repository:tag` names.
    pub tags: Vec<String>,
    /// `repository@digest` names.
    pub digests: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    /// User that it runs as by default.
    pub uid: Option<i64>,
    /// User name that it runs as by default.
    pub username: String,
    /// Never to be collected.
    pub pinned: bool,
}

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Auth {
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
    /// Base64 of `user:password`, when the two above are empty.
    pub auth: String,
    /// Registry that they are for.
    pub server: String,
    /// Token for a token server.
    pub identity_token: String,
    /// Bearer token.
    pub registry_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("username", &self.username)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// A file system used for images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilesystemUsage {
    /// Where it is mounted, or a folder in it.
    pub mountpoint: String,
    /// Bytes that images use.
    pub used_bytes: u64,
    /// Inodes that images use.
    pub inodes_used: u64,
}

/// What a container uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerStats {
    /// The runtime's id.
    pub id: String,
    /// Name in the pod.
    pub name: String,
    /// Labels.
    pub labels: Map,
    /// When measured.
    pub at: Nanos,
    /// CPU time since start, in nanoseconds.
    pub cpu_nanos: u64,
    /// Memory that can't be reclaimed, in bytes.
    pub memory_working_set: u64,
    /// All memory, in bytes.
    pub memory_usage: u64,
    /// Resident memory, in bytes.
    pub memory_rss: u64,
    /// Bytes in the writable layer.
    pub rootfs_bytes: u64,
    /// Inodes in the writable layer.
    pub rootfs_inodes: u64,
}

/// Something happened in the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A subscription began: events before it may be lost, list everything again.
    Resync,
    /// A container's (or sandbox's) main process ended.
    Exited {
        /// Its id.
        id: String,
        /// Exit code, 128 + signal when killed.
        code: i32,
        /// When.
        at: Nanos,
    },
    /// The out-of-memory killer struck in a container.
    Oom {
        /// Its id.
        id: String,
    },
    /// A container changed in a way that only a new status tells.
    Changed {
        /// Its id.
        id: String,
        /// Its sandbox, when known.
        sandbox_id: Option<String>,
    },
}

/// Time allowed to ordinary calls.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Time allowed to calls that start processes and set up networks.
pub const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Time allowed to a pull.
pub const PULL_TIMEOUT: Duration = Duration::from_secs(1800);
