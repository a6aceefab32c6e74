//! The steps that a pod's worker takes: everything with an effect on the world. Each runs in a task of its
//! own and ends with news in the worker's mailbox.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use balsa_client::EventType;
use balsa_cri::{ContainerConfig, Image};
use balsa_pod::{Instance, Sandbox, StartFailure, reasons};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use super::context::Context;
use super::mailbox::Mailbox;
use super::{container, env, hooks, observe, sandbox, status};
use crate::cgroups;
use crate::cluster::ApiError;
use crate::images::Want;
use crate::objects::Sources;
use crate::volumes::payload::{Inputs, TokenWant, Tokens, token_wants};
use crate::volumes::{self, Prepared};

/// Least time that a container gets to end, as upstream.
const MIN_GRACE: Duration = Duration::from_secs(2);

/// Pause after a failure of the container's configuration or creation.
const CONFIG_RETRY: Duration = Duration::from_secs(5);

/// How long a failed start is shown before the crash-loop backoff is.
const START_ERROR_SHOWN: Duration = Duration::from_secs(1);

/// Time allowed to a postStart hook, which upstream does not bound.
const POST_START_LIMIT: Duration = Duration::from_secs(3600);

/// Pauses between attempts of the final clean-up.
const FINISH_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How a step ended.
pub(crate) enum Done {
    /// Volumes: where they are and when tokens want renewal.
    Volumes(Result<(Prepared, Option<Timestamp>), String>),
    /// Volumes were brought up to date.
    Refreshed(Option<Timestamp>),
    /// A sandbox was made.
    Sandbox(Result<Sandbox, String>),
    /// A sandbox was stopped, or not.
    SandboxStopped { id: String, ok: bool },
    /// An instance is there, in this state.
    Seen(Instance),
    /// A start has ended.
    Started {
        name: String,
        failure: Option<StartFailure>,
    },
    /// A kill has ended.
    Killed { id: String, ok: bool },
    /// An instance was removed, or not.
    Removed { id: String, ok: bool },
    /// The status was written, or not.
    Patched(Result<Box<Pod>, ApiError>),
    /// Nothing is left of the pod.
    Finished,
}

/// Tokens of a pod, kept between refreshes.
pub(crate) type TokenCache = BTreeMap<TokenWant, (crate::cluster::Token, Timestamp)>;

/// What the steps of one pod share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ops {
    pub(crate) context: Arc<Context>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) uid: String,
    /// Cancelled when the pod goes: waits and pulls are given up.
    pub(crate) going: CancellationToken,
    pub(crate) tokens: Arc<tokio::sync::Mutex<TokenCache>>,
}

impl Ops {
    /// Runs a step in a task of its own.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        step: impl Future<Output = Done> + Send + 'static,
    ) {
        let mailbox = Arc::clone(&self.mailbox);
        let run = async move {
            let done = step.await;
            mailbox.tell(|news| news.done.push(done));
        };
        tokio::spawn(run.instrument(info_span!("pod-step", step = name)));
    }

    fn tell(&self, done: Done) {
        self.mailbox.tell(|news| news.done.push(done));
    }

    fn pod_dir(&self) -> PathBuf {
        self.context.paths.pod(&self.uid)
    }

    /// Makes all volumes ready, or brings them up to date.
    pub(crate) async fn volumes(self, pod: Pod, ips: Vec<String>, again: bool) -> Done {
        let result = self.prepare_volumes(&pod, &ips, again).await;
        match result {
            Ok((_, refresh)) if again => Done::Refreshed(refresh),
            Ok(prepared) => Done::Volumes(Ok(prepared)),
            Err(message) => {
                self.context
                    .event(&pod, EventType::Warning, "FailedMount", message.clone());
                if again {
                    Done::Refreshed(Some(after(CONFIG_RETRY)))
                } else {
                    Done::Volumes(Err(message))
                }
            }
        }
    }

    async fn prepare_volumes(
        &self,
        pod: &Pod,
        ips: &[String],
        again: bool,
    ) -> Result<(Prepared, Option<Timestamp>), String> {
        let sources = self.context.cluster.sources(pod).await?;
        let (tokens, refresh) = self.fresh_tokens(pod).await?;
        let spec = pod.spec.clone().unwrap_or_default();
        let facts = self.context.facts(&spec, ips);
        let (pod, dir) = (pod.clone(), self.pod_dir());
        let work = move || {
            let inputs = Inputs {
                pod: &pod,
                sources: &sources,
                facts: &facts,
                tokens: &tokens,
            };
            if again {
                return volumes::refresh(&dir, &inputs).map(|()| Prepared::new());
            }
            std::fs::create_dir_all(&dir)
                .map_err(|error| volumes::VolumeError(error.to_string()))?;
            volumes::prepare(&dir, &inputs)
        };
        let prepared = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| error.to_string())?;
        prepared
            .map(|prepared| (prepared, refresh))
            .map_err(|error| error.0)
    }

    /// Tokens for all volumes, renewed at four fifths of their lives.
    async fn fresh_tokens(&self, pod: &Pod) -> Result<(Tokens, Option<Timestamp>), String> {
        let mut cache = self.tokens.lock().await;
        let volumes = pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        let now = Timestamp::now();
        let mut tokens = Tokens::new();
        let mut refresh = None;
        for want in volumes.flat_map(token_wants) {
            let kept = cache.get(&want).filter(|(_, renew)| *renew > now).cloned();
            let (token, renew) = match kept {
                Some(kept) => kept,
                None => {
                    let token = self.context.cluster.token(pod, &want).await?;
                    let life = balsa_pod::spec::between(now, token.expires);
                    let renew = balsa_pod::spec::after(
                        now,
                        life.mul_f64(0.8).min(Duration::from_secs(24 * 3600)),
                    );
                    cache.insert(want.clone(), (token.clone(), renew));
                    (token, renew)
                }
            };
            refresh = Some(refresh.map_or(renew, |earlier: Timestamp| earlier.min(renew)));
            tokens.insert(want, token.text);
        }
        Ok((tokens, refresh))
    }

    /// Makes a sandbox.
    pub(crate) async fn create_sandbox(self, pod: Pod, attempt: u32) -> Done {
        let made = self.make_sandbox(&pod, attempt).await;
        if let Err(message) = &made {
            let message = format!("Failed to create pod sandbox: {message}");
            self.context
                .event(&pod, EventType::Warning, "FailedCreatePodSandBox", message);
        }
        Done::Sandbox(made)
    }

    async fn make_sandbox(&self, pod: &Pod, attempt: u32) -> Result<Sandbox, String> {
        let context = &self.context;
        let Some(spec) = &pod.spec else {
            return Err("the pod has no spec".to_owned());
        };
        let _slot = context.sandbox_slots.acquire().await;
        if self.going.is_cancelled() {
            return Err("the pod is going".to_owned());
        }
        let config = sandbox::config(pod, spec, &context.config, &context.node_dns, attempt);
        // The runtime makes the containers' log files, not their folder.
        tokio::fs::create_dir_all(&config.log_directory)
            .await
            .map_err(|error| error.to_string())?;
        let id = context
            .runtime
            .run_sandbox(&config)
            .await
            .map_err(|error| error.to_string())?;
        context.routes.add(&id, &self.uid);
        let status = context
            .runtime
            .sandbox_status(&id)
            .await
            .map_err(|error| error.to_string())?;
        self.write_hosts(pod, spec, &status.ips)
            .await
            .map_err(|error| error.to_string())?;
        Ok(observe::sandbox(&status))
    }

    async fn write_hosts(&self, pod: &Pod, spec: &PodSpec, ips: &[String]) -> std::io::Result<()> {
        let text = if balsa_pod::spec::host_network(spec) {
            let node = tokio::fs::read_to_string("/etc/hosts")
                .await
                .unwrap_or_default();
            node + &sandbox::host_aliases(spec)
        } else {
            sandbox::hosts_file(pod, spec, ips, &self.context.config.cluster_domain)
        };
        let dir = self.pod_dir();
        tokio::fs::create_dir_all(&dir).await?;
        tokio::fs::write(dir.join("etc-hosts"), text).await
    }

    /// Stops a sandbox.
    pub(crate) async fn stop_sandbox(self, id: String) -> Done {
        let done = self.context.runtime.stop_sandbox(&id).await;
        if let Err(error) = &done {
            warn!(%error, id, "could not stop a sandbox");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Done::SandboxStopped {
            ok: done.is_ok(),
            id,
        }
    }

    /// Has the image, makes an instance, starts it, runs its postStart hook.
    pub(crate) async fn start_container(self, wish: StartWish) -> Done {
        let name = wish.name.clone();
        let failure = tokio::select! {
            () = self.going.cancelled(), if !wish.began() => Some(failure("", String::new(), CONFIG_RETRY)),
            result = self.start(&wish) => result.err(),
        };
        if let Some(failure) = failure
            .as_ref()
            .filter(|failure| !failure.reason.is_empty())
        {
            debug!(
                container = name,
                reason = failure.reason,
                message = failure.message,
                "start failed"
            );
        }
        Done::Started {
            name,
            failure: failure.filter(|failure| !failure.reason.is_empty()),
        }
    }

    async fn start(&self, wish: &StartWish) -> Result<(), StartFailure> {
        let context = &self.context;
        let pod = &wish.pod;
        let Some(spec) = &pod.spec else { return Ok(()) };
        let Some(container) = balsa_pod::spec::container(spec, &wish.name) else {
            return Ok(());
        };
        let sources = context
            .cluster
            .sources(pod)
            .await
            .map_err(|error| self.config_error(wish, error))?;
        let image = self.image(wish, spec, container, &sources).await?;
        let config = self.config(wish, spec, container, &image, &sources).await;
        let config = config.map_err(|error| self.config_error(wish, error))?;
        wish.begin();
        let id = self.create(wish, spec, &config).await?;
        self.launch(wish, &id).await?;
        self.post_start(wish, container, &id).await
    }

    fn config_error(&self, wish: &StartWish, message: String) -> StartFailure {
        let event = format!("Error: {message}");
        self.context
            .container_event(&wish.pod, &wish.name, EventType::Warning, "Failed", event);
        failure(
            reasons::CREATE_CONTAINER_CONFIG_ERROR,
            message,
            CONFIG_RETRY,
        )
    }

    async fn image(
        &self,
        wish: &StartWish,
        spec: &PodSpec,
        container: &Container,
        sources: &Sources,
    ) -> Result<Image, StartFailure> {
        let report = |kind: EventType, reason: &str, message: String| {
            self.context
                .container_event(&wish.pod, &wish.name, kind, reason, message);
        };
        let secrets = spec.image_pull_secrets.iter().flatten();
        let secrets = secrets
            .filter_map(|secret| sources.secrets.get(&secret.name).map(|secret| &**secret))
            .collect();
        let want = Want {
            image: container.image.as_deref().unwrap_or_default(),
            policy: container.image_pull_policy.as_deref(),
            pod_uid: &self.uid,
            secrets,
        };
        let image = self.context.images.ensure(&want, &report).await;
        image.map_err(|failure| StartFailure {
            reason: failure.reason.to_owned(),
            message: failure.message,
            retry_at: failure.retry_at,
        })
    }

    async fn config(
        &self,
        wish: &StartWish,
        spec: &PodSpec,
        container: &Container,
        image: &Image,
        sources: &Sources,
    ) -> Result<ContainerConfig, String> {
        let context = &self.context;
        let pod = &wish.pod;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let links = spec.enable_service_links.unwrap_or(true);
        let services = context.cluster.service_variables(namespace, links).await;
        let facts = context.facts(spec, &wish.ips);
        let env = env::build(pod, container, sources, &facts, &services)?;
        let mounts = volumes::mounts(container, pod, &wish.prepared, &env)?;
        let pod_dir = self.pod_dir();
        let message = container::message_file(&pod_dir, &wish.name, wish.attempt);
        make_message_file(&message).map_err(|error| format!("{}: {error}", message.display()))?;
        let logs = context.paths.pod_logs(
            namespace,
            pod.metadata.name.as_deref().unwrap_or_default(),
            &self.uid,
        );
        std::fs::create_dir_all(logs.join(&wish.name))
            .map_err(|error| format!("{}: {error}", logs.display()))?;
        container::config(container::Ingredients {
            pod,
            spec,
            container,
            attempt: wish.attempt,
            image,
            env,
            mounts,
            pod_dir: &pod_dir,
            node_memory: context.memory,
        })
    }

    async fn create(
        &self,
        wish: &StartWish,
        spec: &PodSpec,
        config: &ContainerConfig,
    ) -> Result<String, StartFailure> {
        let context = &self.context;
        let sandbox = sandbox::config(
            &wish.pod,
            spec,
            &context.config,
            &context.node_dns,
            wish.sandbox_attempt,
        );
        match context
            .runtime
            .create_container(&wish.sandbox_id, config, &sandbox)
            .await
        {
            Ok(id) => {
                context.routes.add(&id, &self.uid);
                let created = "Container created".to_owned();
                context.container_event(
                    &wish.pod,
                    &wish.name,
                    EventType::Normal,
                    "Created",
                    created,
                );
                Ok(id)
            }
            Err(error) => {
                let event = format!("Error: {}", error.message());
                context.container_event(&wish.pod, &wish.name, EventType::Warning, "Failed", event);
                Err(failure(
                    reasons::CREATE_CONTAINER_ERROR,
                    error.message(),
                    CONFIG_RETRY,
                ))
            }
        }
    }

    async fn launch(&self, wish: &StartWish, id: &str) -> Result<(), StartFailure> {
        let context = &self.context;
        let started = context.runtime.start_container(id).await;
        // Its state is told in any case: a failed start leaves an ended instance behind.
        if let Ok(status) = context.runtime.container_status(id).await {
            self.tell(Done::Seen(observe::instance(&status, &wish.sandbox_id)));
        }
        match started {
            Ok(()) => {
                let started = "Container started".to_owned();
                context.container_event(
                    &wish.pod,
                    &wish.name,
                    EventType::Normal,
                    "Started",
                    started,
                );
                Ok(())
            }
            Err(error) => {
                let event = format!("Error: {}", error.message());
                context.container_event(&wish.pod, &wish.name, EventType::Warning, "Failed", event);
                Err(failure(
                    reasons::RUN_CONTAINER_ERROR,
                    error.message(),
                    START_ERROR_SHOWN,
                ))
            }
        }
    }

    async fn post_start(
        &self,
        wish: &StartWish,
        container: &Container,
        id: &str,
    ) -> Result<(), StartFailure> {
        let Some(hook) = container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.post_start.as_ref())
        else {
            return Ok(());
        };
        let runtime = &*self.context.runtime;
        let ip = wish.ips.first().map(String::as_str).unwrap_or_default();
        let Err(message) = hooks::run(runtime, hook, container, id, ip, POST_START_LIMIT).await
        else {
            return Ok(());
        };
        let report = |reason: &str, kind: EventType, message: String| {
            self.context
                .container_event(&wish.pod, &wish.name, kind, reason, message);
        };
        report(
            "FailedPostStartHook",
            EventType::Warning,
            format!("PostStartHook failed: {message}"),
        );
        report(
            "Killing",
            EventType::Normal,
            "FailedPostStartHook".to_owned(),
        );
        if let Err(error) = runtime.stop_container(id, MIN_GRACE).await {
            warn!(%error, id, "could not stop a container whose postStart hook failed");
        }
        Err(failure(
            reasons::POST_START_HOOK_ERROR,
            format!("PostStartHook failed: {message}"),
            START_ERROR_SHOWN,
        ))
    }

    /// Runs the preStop hook and stops an instance.
    pub(crate) async fn kill(
        self,
        pod: Pod,
        ip: String,
        instance: Instance,
        grace: Duration,
        message: String,
    ) -> Done {
        let context = &self.context;
        let id = instance.id.clone();
        context.container_event(&pod, &instance.name, EventType::Normal, "Killing", message);
        let began = tokio::time::Instant::now();
        let spec = pod.spec.as_ref();
        let container = spec.and_then(|spec| balsa_pod::spec::container(spec, &instance.name));
        let hook = container.and_then(|container| container.lifecycle.as_ref()?.pre_stop.as_ref());
        if let (Some(hook), Some(container), false) = (hook, container, grace.is_zero()) {
            let run = hooks::run(&*context.runtime, hook, container, &id, &ip, grace);
            let result = tokio::time::timeout(grace, run).await;
            if let Ok(Err(message)) = result {
                let event = format!("PreStopHook failed: {message}");
                context.container_event(
                    &pod,
                    &instance.name,
                    EventType::Warning,
                    "FailedPreStopHook",
                    event,
                );
            }
        }
        let left = grace.saturating_sub(began.elapsed()).max(MIN_GRACE);
        let done = context.runtime.stop_container(&id, left).await;
        match &done {
            // The exit's event may have been lost; this state is never stale.
            Ok(()) => {
                if let Ok(status) = context.runtime.container_status(&id).await {
                    self.tell(Done::Seen(observe::instance(&status, &instance.sandbox_id)));
                }
            }
            Err(error) => {
                warn!(%error, id, "could not stop a container");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Done::Killed {
            ok: done.is_ok(),
            id,
        }
    }

    /// Removes an ended instance and what it left.
    pub(crate) async fn remove(self, id: String, name: String, attempt: u32) -> Done {
        let done = self.context.runtime.remove_container(&id).await;
        if let Err(error) = &done {
            warn!(%error, id, "could not remove a container");
        } else {
            self.context.routes.forget_container(&id);
            let _ =
                tokio::fs::remove_file(container::message_file(&self.pod_dir(), &name, attempt))
                    .await;
        }
        Done::Removed {
            ok: done.is_ok(),
            id,
        }
    }

    /// Writes the status.
    pub(crate) async fn patch(self, pod: Pod, patch: serde_json::Value) -> Done {
        let (namespace, name) = names(&pod);
        Done::Patched(
            self.context
                .cluster
                .patch_status(&namespace, &name, &patch)
                .await
                .map(Box::new),
        )
    }

    /// The pod's end: reports, removes it from the API, and cleans up, however often it takes.
    pub(crate) async fn finish(self, pod: Pod, api: PodStatus, in_api: bool) -> Done {
        let report = async {
            if in_api {
                retry("remove the pod from the API", || {
                    self.take_leave(&pod, &api)
                })
                .await;
            }
        };
        tokio::join!(
            report,
            retry("clean up after the pod", || self.clean_up(&pod))
        );
        self.context.cluster.release(&self.uid);
        self.context.routes.forget(&self.uid);
        Done::Finished
    }

    async fn take_leave(&self, pod: &Pod, api: &PodStatus) -> Result<(), String> {
        let (namespace, name) = names(pod);
        let cluster = &self.context.cluster;
        let wanted = pod.status.clone().unwrap_or_default();
        if let Some(patch) = status::patch(api, &wanted, &self.uid) {
            match cluster.patch_status(&namespace, &name, &patch).await {
                Ok(_) => {}
                Err(ApiError::Gone) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        match cluster.delete(&namespace, &name, &self.uid).await {
            Ok(()) | Err(ApiError::Gone) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn clean_up(&self, pod: &Pod) -> Result<(), String> {
        let (namespace, name) = names(pod);
        clean_up(&self.context, &namespace, &name, &self.uid).await
    }
}

/// Removes everything that is on the node of a pod whose containers have ended.
pub(crate) async fn clean_up(
    context: &Context,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<(), String> {
    let runtime = &context.runtime;
    let sandboxes = runtime
        .list_sandboxes()
        .await
        .map_err(|error| error.to_string())?;
    for sandbox in sandboxes.into_iter().filter(|sandbox| sandbox.uid == uid) {
        runtime
            .stop_sandbox(&sandbox.id)
            .await
            .map_err(|error| error.to_string())?;
        runtime
            .remove_sandbox(&sandbox.id)
            .await
            .map_err(|error| error.to_string())?;
    }
    let pod_dir = context.paths.pod(uid);
    let logs = context.paths.pod_logs(namespace, name, uid);
    let cgroup = sandbox::cgroup_parent(&context.config, uid);
    let work = move || {
        volumes::cleanup(&pod_dir)?;
        match std::fs::remove_dir_all(logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        cgroups::remove(&cgroup)
    };
    let done = tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

/// Tries until it works, with growing pauses.
async fn retry<F: Future<Output = Result<(), String>>>(what: &str, mut attempt: impl FnMut() -> F) {
    let mut pause = FINISH_RETRY.0;
    while let Err(error) = attempt().await {
        warn!(error, "could not {what}, trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(FINISH_RETRY.1);
    }
}

/// Which container to start, and what is needed for it.
pub(crate) struct StartWish {
    pub(crate) pod: Pod,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) sandbox_id: String,
    pub(crate) sandbox_attempt: u32,
    pub(crate) ips: Vec<String>,
    pub(crate) prepared: Prepared,
    /// Set once the runtime is asked to make it: from then on the start is seen through.
    begun: std::sync::atomic::AtomicBool,
}

impl StartWish {
    pub(crate) fn new(
        pod: Pod,
        name: String,
        attempt: u32,
        sandbox: &Sandbox,
        prepared: Prepared,
    ) -> Self {
        Self {
            pod,
            name,
            attempt,
            sandbox_id: sandbox.id.clone(),
            sandbox_attempt: sandbox.attempt,
            ips: sandbox.ips.clone(),
            prepared,
            begun: Default::default(),
        }
    }

    fn begin(&self) {
        self.begun.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    fn began(&self) -> bool {
        self.begun.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn failure(reason: &str, message: String, pause: Duration) -> StartFailure {
    StartFailure {
        reason: reason.to_owned(),
        message,
        retry_at: after(pause),
    }
}

fn after(pause: Duration) -> Timestamp {
    balsa_pod::spec::after(Timestamp::now(), pause)
}

fn names(pod: &Pod) -> (String, String) {
    let metadata = &pod.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// An empty file that any user of the container can write to.
fn make_message_file(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::File::create(path)?.set_permissions(std::fs::Permissions::from_mode(0o666))
}
