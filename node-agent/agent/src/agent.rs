//! The life of an agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use balsa_client::{Delta, EventRecorder, Informer, InformerOptions};
use balsa_cri::{Containerd, CriClient, Runtime, Streams};
use balsa_link::agent::StreamHandler;
use balsa_link::protocol::StreamRequest;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::Api;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::cgroups::{Cgroups, whole_settings};
use crate::cluster::{Cluster, KubeCluster};
use crate::config::{AgentConfig, RuntimeChoice};
use crate::containerd::{Supervisor, end_forgotten_shims, import_pause};
use crate::csi::{self, Csi};
use crate::devices::{Devices, Listing};
use crate::error::Error;
use crate::eviction::Evictor;
use crate::folders::let_pods_through;
use crate::images::{Collector, Images};
use crate::logs::Rotator;
use crate::net;
use crate::node::facts::Pressure;
use crate::node::{Keeper, facts};
use crate::objects::Objects;
use crate::pods::capacity::{self, Capacity, Gates, Offer};
use crate::pods::resources::Host;
use crate::pods::sandbox::parse_resolv_conf;
use crate::pods::users::UserRanges;
use crate::pods::{Context, Manager, Routes};
use crate::shutdown::{Machine, Shutdown, Systemd};
use crate::stats::Stats;
use crate::streams::{self, Reader, Refusal, Server, Writer};

/// Pause before the agent begins anew, in which what it had begun comes to its end.
const ANEW: Duration = Duration::from_secs(1);

/// How the agent's work ended.
#[derive(PartialEq, Eq)]
enum Ended {
    Stopped,
    /// The node's pods get other addresses than everything was set up for.
    Moved,
}

/// One node's agent.
pub struct Agent {
    config: AgentConfig,
    client: kube::Client,
    /// Serves streams once everything is up.
    server: watch::Sender<Option<Arc<Server>>>,
    machine: Arc<dyn Machine>,
    /// Ends the pods when the machine goes down; there once everything is up.
    shutdown: Mutex<Option<Shutdown>>,
}

/// The runtime in both its roles, and what keeps it alive.
struct Engine {
    runtime: Arc<dyn Runtime>,
    streams: Arc<dyn Streams>,
}

impl Agent {
    /// Checks what can be checked before anything is started.
    ///
    /// # Errors
    /// When not root, or when the data folder can't be made.
    pub fn new(config: AgentConfig, client: kube::Client) -> Result<Self, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let paths = config.paths();
        for dir in [
            paths.containerd(),
            paths.cni_bin(),
            paths.cni_conf(),
            paths.fifos(),
            paths.pods(),
            paths.logs(),
        ] {
            std::fs::create_dir_all(&dir).map_err(Error::file("make the folder", &dir))?;
        }
        let folders = csi::make_folders(&config.layout(), &paths.containerd());
        folders.map_err(Error::file("share the mounts below", &config.data_dir))?;
        Ok(Self {
            config,
            client,
            server: watch::channel(None).0,
            machine: Arc::new(Systemd),
            shutdown: Mutex::new(None),
        })
    }

    /// Runs until stopped. Containers, and the agent's own containerd, go on running then, unless the machine goes
    /// down and pods are given time for that: then this returns when they have ended, or their time is up.
    ///
    /// # Errors
    /// When the runtime can't be started or its sandbox image can't be had; everything later is retried.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), Error> {
        // Whatever ends this run ends its tasks.
        let running = CancellationToken::new();
        let _guard = running.clone().drop_guard();
        let take_leave = async {
            stop.cancelled().await;
            self.end_pods_if_the_machine_stops().await;
            running.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            done = self.keep_working(&running) => done,
            () = take_leave => Ok(()),
        }
    }

    /// Works until stopped, from the beginning again when the node was given other addresses.
    async fn keep_working(&self, running: &CancellationToken) -> Result<(), Error> {
        loop {
            let life = running.child_token();
            let ended = Box::pin(self.work(life.clone())).await?;
            life.cancel();
            if ended == Ended::Stopped {
                return Ok(());
            }
            tokio::time::sleep(ANEW).await;
        }
    }

    async fn end_pods_if_the_machine_stops(&self) {
        if self.config.shutdown.is_empty() || !self.machine.is_stopping().await {
            return;
        }
        let shutdown = self.shutdown.lock().take();
        if let Some(shutdown) = shutdown {
            shutdown.run().await;
        }
    }

    /// The agent's life until stopped.
    async fn work(&self, stop: CancellationToken) -> Result<Ended, Error> {
        let config = &self.config;
        let paths = config.paths();

        let nodes: Informer<Node> = Informer::start(
            Api::all(self.client.clone()),
            InformerOptions::default(),
            stop.clone(),
        );
        let services: Informer<Service> = Informer::start(
            Api::all(self.client.clone()),
            InformerOptions::default(),
            stop.clone(),
        );
        let mine = InformerOptions::fields(format!("spec.nodeName={}", config.node_name));
        let pods: Informer<Pod> =
            Informer::start(Api::all(self.client.clone()), mine, stop.clone());
        let recorder = EventRecorder::start(
            self.client.clone(),
            "kubelet",
            Some(&config.node_name),
            stop.clone(),
        );

        net::install_plugin(config)?;
        let plugin = net::serve_plugin(paths.cni(), stop.clone());
        tokio::spawn(plugin.instrument(info_span!("cni")));
        let engine = self.start_runtime(&stop).await?;
        let version = engine
            .runtime
            .version()
            .await
            .map_err(|source| Error::Runtime {
                what: "tell its version",
                source,
            })?;
        let features = engine.runtime.status().await.unwrap_or_default().features;
        if features.handlers.iter().any(|known| known.user_namespaces)
            && let Err(error) = let_pods_through(&config.data_dir, &paths.containerd())
        {
            warn!(%error, "pods with user namespaces cannot be started");
        }
        let facts = facts::read_facts(
            &config.data_dir,
            format!("{}://{}", version.name, version.version),
            features,
        );

        let (obstacle, obstacle_rx) =
            watch::channel(Some("the node's network is being set up".to_owned()));
        let (pressure, pressure_rx) = watch::channel(Pressure::default());
        let devices = Devices::new(paths.device_plugins());
        let serve = Arc::clone(&devices).serve(stop.clone());
        tokio::spawn(serve.instrument(info_span!("device-plugins")));
        let keeper = Keeper {
            config: config.clone(),
            client: self.client.clone(),
            runtime: Arc::clone(&engine.runtime),
            facts: facts.clone(),
            recorder: recorder.clone(),
            nodes: nodes.clone(),
            devices: Arc::clone(&devices),
            obstacle: obstacle_rx,
            pressure: pressure_rx,
        };
        let Some(node) = keeper.register(&stop).await else {
            return Ok(Ended::Stopped);
        };
        let (known, stopped) = (node.clone(), stop.clone());
        let keep = async move { Box::pin(keeper.run(&known, stopped)).await };
        tokio::spawn(keep.instrument(info_span!("node-status")));

        let changed: Arc<Mutex<Option<Arc<Manager>>>> = Arc::default();
        let tell = Arc::clone(&changed);
        let on_change = move |uids: &[String]| {
            let manager = tell.lock().clone();
            if let Some(manager) = manager {
                manager.objects_changed(uids);
            }
        };
        let cluster: Arc<dyn Cluster> = Arc::new(KubeCluster {
            client: self.client.clone(),
            objects: Objects::new(self.client.clone(), Arc::new(on_change), stop.clone()),
            services: services.clone(),
        });
        let csi = Csi::start(
            config,
            &self.client,
            nodes.clone(),
            Arc::clone(&cluster),
            recorder.clone(),
            &stop,
        );
        let cgroups = Cgroups::new(&config.cgroup_root);
        let whole = whole_settings(
            facts.cpu_milli - config.reserved_cpu_milli,
            facts.memory - config.reserved_memory,
        );
        if let Err(error) = cgroups.make_classes(&whole) {
            warn!(%error, "cannot set up the control groups of pods");
        }
        let host = Host {
            memory: facts.memory,
            unified: cgroups.unified(),
            swap_controller: cgroups.limits_swap(),
            page_sizes: facts.page_sizes(),
        };
        let gates = Gates {
            allowed_sysctls: config.allowed_unsafe_sysctls.clone(),
            strict_groups: facts.features.supplemental_groups_policy,
            apparmor: capacity::apparmor_enabled(),
        };
        let context = Arc::new(Context {
            config: config.clone(),
            paths: paths.clone(),
            runtime: Arc::clone(&engine.runtime),
            cluster,
            csi,
            recorder,
            images: Images::new(Arc::clone(&engine.runtime), config.max_pulls),
            sandbox_slots: Semaphore::new(config.max_sandbox_creates.max(1)),
            routes: Routes::default(),
            relist: Notify::new(),
            node_dns: parse_resolv_conf(
                &std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            ),
            host_ips: vec![config.node_ip.to_string()],
            host,
            capacity: Capacity::new(Offer::default(), gates),
            cgroups,
            users: UserRanges::load(&paths.pods()),
            features: facts.features.clone(),
            devices,
            stop: stop.clone(),
        });
        context.capacity.node_is(&node);
        let books = Arc::downgrade(&context);
        let own = config.node_name.clone();
        nodes.on_change(move |delta| {
            if let Delta::Added(node) | Delta::Updated { new: node, .. } = delta
                && node.metadata.name.as_ref() == Some(&own)
                && let Some(context) = books.upgrade()
            {
                context.capacity.node_is(node);
            }
        });

        let watched = net::Watched {
            nodes: nodes.clone(),
            services: services.clone(),
            pods: pods.clone(),
        };
        let own_cidr = net::set_up(config, &self.client, &engine.runtime, watched, &stop).await?;
        let Some(own_cidr) = own_cidr else {
            return Ok(Ended::Stopped);
        };
        obstacle.send_replace(None);
        info!("the node is up");

        let manager = Manager::new(Arc::clone(&context), pods, stop.clone());
        *changed.lock() = Some(Arc::clone(&manager));
        let listing = Listing {
            devices: Arc::clone(&context.devices),
            manager: Arc::clone(&manager),
            socket: paths.pod_resources(),
        };
        tokio::spawn(
            listing
                .serve(stop.clone())
                .instrument(info_span!("pod-resources")),
        );
        let stats = Arc::new(Stats::new(Arc::clone(&context), Arc::clone(&manager)));
        *self.shutdown.lock() = Some(Shutdown {
            context: Arc::clone(&context),
            manager: Arc::clone(&manager),
            obstacle,
        });
        let server = Server {
            context,
            streams: engine.streams,
            manager: Arc::clone(&manager),
            stats: Arc::clone(&stats),
        };
        self.server.send_replace(Some(Arc::new(server)));
        let evictor = Evictor {
            stats,
            manager: Arc::clone(&manager),
            pressure,
        };
        tokio::spawn(evictor.run(stop.clone()).instrument(info_span!("eviction")));
        let rotator = Rotator {
            runtime: Arc::clone(&engine.runtime),
            folder: paths.logs(),
        };
        tokio::spawn(
            rotator
                .run(stop.clone())
                .instrument(info_span!("log-rotation")),
        );
        let collector = Collector {
            runtime: engine.runtime,
            folder: config.data_dir.clone(),
        };
        tokio::spawn(
            collector
                .run(stop.clone())
                .instrument(info_span!("image-collection")),
        );
        tokio::select! {
            () = manager.run() => stop.cancelled().await,
            () = net::moved(&nodes, &config.node_name, own_cidr) => return Ok(Ended::Moved),
        }
        Ok(Ended::Stopped)
    }

    /// Starts or adopts the runtime and gives it the sandbox image.
    async fn start_runtime(&self, stop: &CancellationToken) -> Result<Engine, Error> {
        let paths = self.config.paths();
        match &self.config.runtime {
            RuntimeChoice::Supervised { containerd } => {
                let ctr = beside(containerd, "ctr");
                let runtime = Containerd::new(paths.socket(), paths.fifos(), ctr);
                let supervisor = Supervisor::new(containerd, paths.clone(), runtime.clone())?;
                let process = supervisor.start().await?;
                let (kept, started) = (stop.clone(), supervisor.started());
                let keep = async move { supervisor.keep(process, kept).await };
                tokio::spawn(keep.instrument(info_span!("containerd")));
                let shims =
                    end_forgotten_shims(runtime.clone(), paths.socket(), started, stop.clone());
                tokio::spawn(shims.instrument(info_span!("shims")));
                let imported = import_pause(&runtime, &paths.containerd()).await;
                imported.map_err(|source| Error::Runtime {
                    what: "import the sandbox image",
                    source,
                })?;
                let runtime = Arc::new(runtime);
                Ok(Engine {
                    runtime: Arc::clone(&runtime) as _,
                    streams: runtime,
                })
            }
            RuntimeChoice::Existing { endpoint } => {
                let cri = CriClient::new(endpoint);
                let version = cri.version().await;
                let version = version.map_err(|source| Error::Runtime {
                    what: "tell its version",
                    source,
                })?;
                if version.name != "containerd" {
                    let runtime = Arc::new(cri);
                    return Ok(Engine {
                        runtime: Arc::clone(&runtime) as _,
                        streams: runtime,
                    });
                }
                let runtime = Arc::new(Containerd::new(endpoint, paths.fifos(), Path::new("ctr")));
                if let Err(error) = import_pause(&*runtime, &paths.containerd()).await {
                    // It is configured by somebody else, perhaps with another sandbox image.
                    warn!(%error, "could not import the sandbox image");
                }
                Ok(Engine {
                    runtime: Arc::clone(&runtime) as _,
                    streams: runtime,
                })
            }
        }
    }
}

/// A program that comes in the same package.
fn beside(program: &Path, name: &str) -> PathBuf {
    match program.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.join(name),
        _ => PathBuf::from(name),
    }
}

#[async_trait]
impl StreamHandler for Agent {
    async fn serve(&self, request: StreamRequest, reader: Reader, writer: Writer) {
        let server = self.server.borrow().clone();
        match server {
            Some(server) => server.serve(request, reader, writer).await,
            None => streams::refuse(writer, Refusal::unavailable("the node is starting")).await,
        }
    }
}
