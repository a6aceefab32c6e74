//! What is seen of a pod on its node.

use jiff::Timestamp;

/// Everything seen of one pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    /// Its newest sandbox, if any.
    pub sandbox: Option<Sandbox>,
    /// All instances of all its containers, in any order.
    pub instances: Vec<Instance>,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// Which one of the pod's sandboxes.
    pub attempt: u32,
    /// Alive, with its network set up?
    pub ready: bool,
    /// Addresses, primary first.
    pub ips: Vec<String>,
}

/// One instance of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The runtime's id.
    pub id: String,
    /// Name of the container in the pod.
    pub name: String,
    /// The sandbox that it is in.
    pub sandbox_id: String,
    /// Which one of the container's instances: its restart count.
    pub attempt: u32,
    /// State.
    pub state: InstanceState,
    /// Image as asked for.
    pub image: String,
    /// Image by digest.
    pub image_id: String,
    /// Digest of the spec that it was made from; empty if unknown.
    pub spec_hash: String,
    /// Who its first process is, if the runtime tells.
    pub user: Option<User>,
    /// Where in it something is mounted read-only with all that is mounted below.
    pub recursive_read_only: Vec<String>,
}

/// Ids of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Further groups.
    pub groups: Vec<i64>,
}

/// State of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceState {
    /// Made, not started.
    Created,
    /// Running.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// Ended.
    Exited(Exit),
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, 128 + signal when killed.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// Termination message.
    pub message: String,
    /// When it was started, if ever.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

impl Instance {
    /// Is it running?
    pub fn running(&self) -> bool {
        matches!(self.state, InstanceState::Running { .. })
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            InstanceState::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

impl Observed {
    /// Instances of a container, newest first.
    pub fn of<'a>(&'a self, name: &str) -> Vec<&'a Instance> {
        let mut instances: Vec<_> = self
            .instances
            .iter()
            .filter(|instance| instance.name == name)
            .collect();
        instances.sort_by(|a, b| b.attempt.cmp(&a.attempt).then_with(|| b.id.cmp(&a.id)));
        instances
    }

    /// The newest instance of a container.
    pub fn newest(&self, name: &str) -> Option<&Instance> {
        self.of(name).into_iter().next()
    }

    /// Whether anything may still run.
    pub fn alive(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready)
            || self.instances.iter().any(Instance::running)
    }
}
