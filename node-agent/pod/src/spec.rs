//! Questions to a pod's spec.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, EphemeralContainer, Pod, PodSpec,
};

use crate::observed::Instance;

/// When an ended container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever happened.
    Always,
    /// When it failed.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text? {
            "Always" => Some(Self::Always),
            "OnFailure" => Some(Self::OnFailure),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }

    /// Is a container that ended with that code started again?
    pub fn restarts(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one.
    Init,
    /// An init container that stays (`restartPolicy: Always`).
    Sidecar,
    /// An ordinary container.
    App,
    /// Put into the running pod to look at it (`kubectl debug`): run once, counted by nobody.
    Ephemeral,
}

/// A container of a pod with its role and the restart policy that holds for it.
#[derive(Debug, Clone)]
pub struct Member<'a> {
    /// The container.
    pub container: Cow<'a, Container>,
    /// Its role.
    pub role: Role,
    /// When it is restarted, unless a rule of its own says otherwise.
    pub policy: RestartPolicy,
}

impl Member<'_> {
    /// Is the container started again after it ended with that code? Its own rules come first (KEP-5307), then
    /// the policy.
    pub fn restarts(&self, code: i32) -> bool {
        let rules = self.container.restart_policy_rules.iter().flatten();
        let mut matching = rules.filter(|rule| matches(rule, code));
        match matching.next() {
            Some(rule) => rule.action == "Restart" || self.policy.restarts(code),
            None => self.policy.restarts(code),
        }
    }
}

fn matches(rule: &ContainerRestartRule, code: i32) -> bool {
    let Some(codes) = &rule.exit_codes else {
        return false;
    };
    let listed = codes.values.iter().flatten().any(|value| *value == code);
    match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}

/// The pod-wide restart policy.
pub fn restart_policy(spec: &PodSpec) -> RestartPolicy {
    RestartPolicy::parse(spec.restart_policy.as_deref()).unwrap_or(RestartPolicy::Always)
}

/// Init containers in order, then ordinary ones in order. Ephemeral ones are not among them: nothing waits for
/// those ([`ephemeral`]).
pub fn members(spec: &PodSpec) -> Vec<Member<'_>> {
    let pod_policy = restart_policy(spec);
    let init = spec.init_containers.iter().flatten().map(move |container| {
        let own = RestartPolicy::parse(container.restart_policy.as_deref());
        let (role, policy) = match own {
            Some(RestartPolicy::Always) => (Role::Sidecar, RestartPolicy::Always),
            // A pod that always restarts retries its init containers only until they succeed.
            None if pod_policy != RestartPolicy::Never => (Role::Init, RestartPolicy::OnFailure),
            own => (Role::Init, own.unwrap_or(pod_policy)),
        };
        Member {
            container: Cow::Borrowed(container),
            role,
            policy,
        }
    });
    let apps = spec.containers.iter().map(move |container| {
        let own = RestartPolicy::parse(container.restart_policy.as_deref());
        Member {
            container: Cow::Borrowed(container),
            role: Role::App,
            policy: own.unwrap_or(pod_policy),
        }
    });
    init.chain(apps).collect()
}

/// The ephemeral containers, in order.
pub fn ephemeral(spec: &PodSpec) -> Vec<Member<'_>> {
    let all = spec.ephemeral_containers.iter().flatten();
    all.map(|container| Member {
        container: Cow::Owned(as_container(container)),
        role: Role::Ephemeral,
        policy: RestartPolicy::Never,
    })
    .collect()
}

/// Init containers, then the others: all but ephemeral ones.
pub fn ordinary(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let inits = spec.init_containers.iter().flatten();
    inits.chain(&spec.containers)
}

/// The container of that name, of whatever role.
pub fn container<'a>(spec: &'a PodSpec, name: &str) -> Option<Cow<'a, Container>> {
    let ephemeral = || {
        let mut all = spec.ephemeral_containers.iter().flatten();
        all.find(|container| container.name == name)
    };
    match ordinary(spec).find(|container| container.name == name) {
        Some(container) => Some(Cow::Borrowed(container)),
        None => ephemeral().map(|container| Cow::Owned(as_container(container))),
    }
}

/// An ephemeral container as the container that it is.
fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let own = ephemeral.clone();
    Container {
        args: own.args,
        command: own.command,
        env: own.env,
        env_from: own.env_from,
        image: own.image,
        image_pull_policy: own.image_pull_policy,
        name: own.name,
        security_context: own.security_context,
        stdin: own.stdin,
        stdin_once: own.stdin_once,
        termination_message_path: own.termination_message_path,
        termination_message_policy: own.termination_message_policy,
        tty: own.tty,
        volume_devices: own.volume_devices,
        volume_mounts: own.volume_mounts,
        working_dir: own.working_dir,
        ..Container::default()
    }
}

/// The container whose processes an ephemeral container is to see, if it asks for one.
pub fn target<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a str> {
    let mut all = spec.ephemeral_containers.iter().flatten();
    let own = all.find(|container| container.name == name)?;
    own.target_container_name
        .as_deref()
        .filter(|target| !target.is_empty())
}

/// Does the pod use the node's network?
pub fn host_network(spec: &PodSpec) -> bool {
    spec.host_network.unwrap_or(false)
}

/// `namespace/name` for logs.
pub fn display_name(pod: &Pod) -> String {
    let (namespace, name) = names(pod);
    format!("{namespace}/{name}")
}

/// `name_namespace(uid)`, as messages of events have it.
pub fn event_name(pod: &Pod) -> String {
    let (namespace, name) = names(pod);
    format!(
        "{name}_{namespace}({})",
        pod.metadata.uid.as_deref().unwrap_or_default()
    )
}

fn names(pod: &Pod) -> (&str, &str) {
    let metadata = &pod.metadata;
    (
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// Grace of an orderly end that nobody asked for in particular.
pub fn grace_period(spec: &PodSpec) -> Duration {
    let seconds = spec.termination_grace_period_seconds.unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Grace that the deletion of the pod allows; `None` while it is not being deleted.
pub fn deletion_grace(pod: &Pod) -> Option<Duration> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let own = pod
        .metadata
        .deletion_grace_period_seconds
        .map(|seconds| u64::try_from(seconds).unwrap_or(0));
    let fallback = || {
        pod.spec
            .as_ref()
            .map_or(Duration::from_secs(30), grace_period)
    };
    Some(own.map_or_else(fallback, Duration::from_secs))
}

/// A digest of what, when changed in a running pod, asks for a new instance: the image.
pub fn spec_hash(container: &Container) -> String {
    // FNV-1a: stable across builds and machines, unlike the standard library's hasher.
    let text = format!(
        "{}\0{}",
        container.name,
        container.image.as_deref().unwrap_or_default()
    );
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:x}")
}

/// Does the spec ask for another instance than this one?
pub fn changed(container: &Container, instance: &Instance) -> bool {
    !instance.spec_hash.is_empty() && instance.spec_hash != spec_hash(container)
}

/// A time that much later, at most the end of time.
pub fn after(time: Timestamp, duration: Duration) -> Timestamp {
    let duration = jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX);
    time.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// Time from `earlier` to `later`, zero if in the other order.
pub fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    later
        .duration_since(earlier)
        .try_into()
        .unwrap_or(Duration::ZERO)
}
