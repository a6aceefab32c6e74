//! Starting a container.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use balsa_client::EventType;
use balsa_cri::{ContainerConfig, Image};
use balsa_pod::{Instance, Sandbox, StartFailure, reasons};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, PodSpec};
use tracing::{debug, warn};

use super::volumes::pull_secrets;
use super::{CONFIG_RETRY, Done, MIN_GRACE, Ops, after};
use crate::images::Want;
use crate::objects::Sources;
use crate::pods::{container, env, hooks, observe};
use crate::volumes::{self, Prepared};

/// How long a failed start is shown before the crash-loop backoff is.
const START_ERROR_SHOWN: Duration = Duration::from_secs(1);

/// Time allowed to a postStart hook, which upstream does not bound.
const POST_START_LIMIT: Duration = Duration::from_secs(3600);

impl Ops {
    /// Has the image, makes an instance, starts it, runs its postStart hook.
    pub(crate) async fn start_container(self, wish: StartWish) -> Done {
        let name = wish.name.clone();
        let mut start = Box::pin(self.start(&wish));
        let result = tokio::select! {
            result = &mut start => result,
            // Once the runtime is at it, the start is seen through: what it makes must be known to be ended.
            () = self.going.cancelled() => if wish.began() { start.await } else { Ok(None) },
        };
        let (seen, failure) = match result {
            Ok(seen) => (seen, None),
            Err(failure) => (None, Some(failure)),
        };
        if let Some(failure) = &failure {
            debug!(
                container = name,
                reason = failure.reason,
                message = failure.message,
                "start failed"
            );
        }
        Done::Started {
            name,
            seen,
            failure,
        }
    }

    /// Answers with the running instance, unless it was told before.
    async fn start(&self, wish: &StartWish) -> Result<Option<Instance>, StartFailure> {
        let context = &self.context;
        let pod = &wish.pod;
        let Some(spec) = &pod.spec else {
            return Ok(None);
        };
        let Some(container) = balsa_pod::spec::container(spec, &wish.name) else {
            return Ok(None);
        };
        let sources = context
            .cluster
            .sources(pod)
            .await
            .map_err(|error| self.config_error(wish, error))?;
        let container = &*container;
        let image = self.image(wish, container, &sources).await?;
        let config = self.config(wish, spec, container, &image, &sources).await;
        let config = config.map_err(|error| self.config_error(wish, error))?;
        wish.begin();
        if wish.attempt > 0 {
            // It may restart to get more than before, for which the pod needs room.
            self.make_cgroup(pod, spec);
        }
        let id = self.create(wish, spec, &config).await?;
        let seen = self.launch(wish, &id).await?;
        let hook = container.lifecycle.as_ref();
        let Some(hook) = hook.and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
            // Told together with the end of the start: one change of the status, not two.
            return Ok(seen);
        };
        if let Some(seen) = seen {
            self.tell(Done::Seen(seen));
        }
        self.post_start(wish, container, hook, &id)
            .await
            .map(|()| None)
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
        container: &Container,
        sources: &Sources,
    ) -> Result<Image, StartFailure> {
        let report = |kind: EventType, reason: &str, message: String| {
            self.context
                .container_event(&wish.pod, &wish.name, kind, reason, message);
        };
        let want = Want {
            image: container.image.as_deref().unwrap_or_default(),
            policy: container.image_pull_policy.as_deref(),
            pod_uid: &self.uid,
            secrets: pull_secrets(&wish.pod, sources),
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
        let extras = context.devices.prepare(&self.uid, &wish.name).await?;
        let env = env::build(&env::Given {
            pod,
            container,
            sources,
            facts: &facts,
            services: &services,
            volumes: &wish.prepared,
        })?;
        let pod_dir = self.pod_dir();
        let abilities = self.abilities(spec).await?;
        let (volumes, users) = (&wish.prepared, context.users.of(&self.uid));
        let mounts = volumes::mounts(container, pod, &pod_dir, volumes, &env, abilities, users)?;
        let devices = volumes::devices(container, &wish.prepared)?;
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
            host: &context.host,
            profiles: &context.paths.seccomp(),
            devices,
            extras,
            target: wish.target.clone(),
            users,
        })
    }

    async fn create(
        &self,
        wish: &StartWish,
        spec: &PodSpec,
        config: &ContainerConfig,
    ) -> Result<String, StartFailure> {
        let context = &self.context;
        let sandbox = self
            .sandbox_config(&wish.pod, spec, wish.sandbox_attempt)
            .await;
        let sandbox = sandbox
            .map_err(|error| failure(reasons::CREATE_CONTAINER_ERROR, error, CONFIG_RETRY))?;
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

    async fn launch(&self, wish: &StartWish, id: &str) -> Result<Option<Instance>, StartFailure> {
        let context = &self.context;
        let started = context.runtime.start_container(id).await;
        // Its state is told in any case: a failed start leaves an ended instance behind.
        let status = context.runtime.container_status(id).await.ok();
        let seen = status.map(|status| observe::instance(&status, &wish.sandbox_id));
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
                Ok(seen)
            }
            Err(error) => {
                if let Some(seen) = seen {
                    self.tell(Done::Seen(seen));
                }
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
        hook: &LifecycleHandler,
        id: &str,
    ) -> Result<(), StartFailure> {
        let runtime = &*self.context.runtime;
        let ip = wish.ips.first().map(String::as_str).unwrap_or_default();
        let run = hooks::run(runtime, hook, container, id, ip, POST_START_LIMIT);
        let ended = tokio::select! {
            ended = run => ended,
            // A pod that is going does not wait for its hooks.
            () = self.going.cancelled() => return Ok(()),
        };
        let Err(message) = ended else { return Ok(()) };
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
    /// For an ephemeral container, the running instance whose processes it is to see.
    pub(crate) target: Option<String>,
    /// Set once the runtime is asked to make it: from then on the start is seen through.
    begun: AtomicBool,
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
            target: None,
            begun: Default::default(),
        }
    }

    fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    fn began(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}

fn failure(reason: &str, message: String, pause: Duration) -> StartFailure {
    StartFailure {
        reason: reason.to_owned(),
        message,
        retry_at: after(pause),
    }
}

/// An empty file that any user of the container can write to.
fn make_message_file(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::File::create(path)?.set_permissions(std::fs::Permissions::from_mode(0o666))
}
