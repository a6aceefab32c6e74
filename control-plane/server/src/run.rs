//! A server from start to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use balsa_apiserver::admission::{AdmissionConfig, Chain, webhook};
use balsa_apiserver::audit::{AuditConfig, LogConfig};
use balsa_apiserver::authn::{Authn, IssuerDiscovery, Oidc, issuer};
use balsa_apiserver::authz::{Authz, bootstrap_objects};
use balsa_apiserver::encryption::{Encryption, Sealed, SealedCache};
use balsa_apiserver::extensions::aggregation::Outside;
use balsa_apiserver::metrics_api::MetricsApi;
use balsa_apiserver::registry::csr::Signer;
use balsa_apiserver::seam::{Admission, Fence, ObjectReader, RequestBody, User};
use balsa_apiserver::streams::Streams;
use balsa_apiserver::webhook_client::{ClusterDialer, WebhookClient};
use balsa_apiserver::{ApiServer, Cache, Kinds, reviews};
use balsa_controllers::Controllers;
use balsa_identity::{GROUP_MASTERS, Identity, Kubeconfig, RAFT_SERVER_NAME};
use balsa_link::join;
use balsa_link::server::Nodes;
use balsa_scheduler::Scheduler;
use balsa_store::{Store, Term, Tls};
use http::Request;
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::api::{Api, MemberRequest};
use crate::config::{Config, Failover};
use crate::endpoints::{self, Endpoints};
use crate::links::Links;
use crate::records::{self, ServerRecord};
use crate::{bootstrap, identity, leader, priority, silence};

/// Streaming subresources that the API serves through the node link.
const STREAMS: [(&str, &str); 7] = [
    ("pods", "exec"),
    ("pods", "attach"),
    ("pods", "portforward"),
    ("pods", "log"),
    ("pods", "proxy"),
    ("services", "proxy"),
    ("nodes", "proxy"),
];

/// Runs a server until `stop`.
///
/// # Errors
/// When it cannot start; each error says what to do.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    priority::raise();
    let (identity, member) = identity::obtain(&config).await?;
    let kinds = Arc::new(Kinds::new(balsa_api::kinds::builtin()));
    let cache = Cache::new(kinds.all());
    let encryption = Arc::new(match &config.encryption_provider_config {
        Some(path) => Encryption::load(path)?,
        None => Encryption::default(),
    });
    let observer = SealedCache::new(Arc::clone(&cache), Arc::clone(&encryption));
    let store = open_store(&config, &identity, member.id, observer).await?;
    if let Err(problem) = readable(&encryption).await {
        store.shutdown().await;
        anyhow::bail!(problem);
    }
    let sealed = Arc::new(Sealed::new(Arc::new(store.clone()), encryption));
    let nodes = Nodes::default();
    // What is started from here on is stopped by this token, so that a failed start leaves nothing behind.
    let running = CancellationToken::new();
    let api = api_server(
        &config,
        &identity,
        (&store, &sealed),
        &nodes,
        kinds,
        cache,
        running.clone(),
    )?;
    api.metrics()
        .register(|registry| store.register_metrics(registry));
    let link_tls = (*identity.link_tls()?.server).clone();
    balsa_link::server::serve(
        config.link_address(),
        link_tls,
        nodes.clone(),
        running.clone(),
    )?;
    let listener = TcpListener::bind(config.api_address())
        .await
        .with_context(|| {
            format!(
                "cannot listen on {} for the API; is another server running?",
                config.api_address()
            )
        })?;
    let serving = {
        let (api, tls, stop) = (api.clone(), identity.api_server_tls()?, running.clone());
        tokio::spawn(
            async move { api.serve(listener, tls, stop).await }.instrument(info_span!("api")),
        )
    };
    tokio::spawn(Arc::clone(&identity).keep_renewed(running.clone()));
    let leading = {
        let (config, identity, api, links) = (
            config.clone(),
            Arc::clone(&identity),
            api.clone(),
            Links(nodes),
        );
        let store_handle = store.clone();
        let work = move |term: Term, stop: CancellationToken| {
            let job = LeaderWork {
                config: config.clone(),
                identity: Arc::clone(&identity),
                api: api.clone(),
                links: links.clone(),
                store: store_handle.clone(),
                sealed: Arc::clone(&sealed),
                term,
            };
            job.run(stop)
        };
        tokio::spawn(leader::follow(store.leadership(), work, running.clone()))
    };
    let started = tokio::select! {
        () = stop.cancelled() => Ok(()),
        done = become_member(&config, &identity, &store) => done,
    };
    if started.is_ok() && !stop.is_cancelled() {
        info!(address = %config.api_address(), "serving");
        stop.cancelled().await;
    }
    // In the reverse order: hand over leadership and send clients elsewhere while requests are still answered, then drain.
    if let Err(error) = store.transfer_leadership(None).await {
        info!(%error, "leadership was not handed over");
    }
    endpoints::leave(&store, &*api.reader(), config.api_address().ip()).await;
    running.cancel();
    if let Err(error) = leading.await {
        warn!(%error, "leader-only work ended badly");
    }
    match serving.await {
        Ok(Err(error)) => warn!(%error, "the API ended badly"),
        Err(error) => warn!(%error, "the API ended badly"),
        Ok(Ok(())) => {}
    }
    store.shutdown().await;
    started
}

/// Whether all that the store holds can be decrypted. After a crash its state may be older than its log, and have values
/// of keys that are gone since: the log is given time to be carried out.
async fn readable(encryption: &Encryption) -> Result<(), String> {
    const ROUNDS: usize = 100;
    for _ in 0..ROUNDS {
        if encryption.check().is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    encryption.check()
}

async fn open_store(
    config: &Config,
    identity: &Identity,
    id: u64,
    observer: SealedCache,
) -> anyhow::Result<Store> {
    let tls = identity.raft_tls()?;
    let address = config.raft_address();
    let tls = Tls {
        server: tls.server,
        client: tls.client,
        server_name: RAFT_SERVER_NAME.to_owned(),
    };
    let settings = balsa_store::Config::new(
        config.data_dir.join("store"),
        id,
        address.to_string(),
        address,
        Some(tls),
    );
    Ok(Store::open(settings, Arc::new(observer)).await?)
}

/// Everything that answers requests, put together.
fn api_server(
    config: &Config,
    identity: &Arc<Identity>,
    (store, sealed): (&Store, &Arc<Sealed>),
    nodes: &Nodes,
    kinds: Arc<Kinds>,
    cache: Arc<Cache>,
    stop: CancellationToken,
) -> anyhow::Result<ApiServer> {
    let reader: Arc<dyn ObjectReader> = Arc::clone(&cache) as _;
    let keys = identity.service_accounts();
    let authz = Arc::new(Authz::new(Arc::clone(&reader)));
    let service_cidr = match config.service_cidr {
        ipnet::IpNet::V4(net) => net,
        ipnet::IpNet::V6(net) => {
            anyhow::bail!("serviceCidr: {net} is IPv6, which is not supported yet")
        }
    };
    let audit = match &config.audit_policy_file {
        None => None,
        Some(policy) => {
            let usual = config.data_dir.join("audit.log");
            let log = LogConfig {
                path: config.audit_log_path.clone().unwrap_or(usual),
                max_size: 100 << 20,
                max_backups: 10,
            };
            Some(AuditConfig::load(policy.clone(), log)?)
        }
    };
    let settings = balsa_apiserver::Config {
        audit,
        advertise: config.api_address().to_string(),
        service_cidr,
        secure_port: config.api_port,
        client_ca_pem: identity.ca().certificate_pem().to_owned(),
        front_proxy_ca_pem: identity.front_proxy_ca().certificate_pem().to_owned(),
        ..balsa_apiserver::Config::default()
    };
    let admission = match config.failover {
        Failover::Default => AdmissionConfig::default(),
        Failover::Fast => AdmissionConfig {
            not_ready_toleration_seconds: 1,
            unreachable_toleration_seconds: 1,
        },
    };
    let chain: Arc<dyn Admission> = Arc::new(Chain::new(&reader, &authz, &admission));
    let webhooks = Arc::new(WebhookClient::new(
        Arc::clone(&reader),
        Arc::new(Links(nodes.clone())),
    ));
    let oidc = oidc(config, &webhooks)?;
    let authn = Authn::new(Arc::clone(&keys), Arc::clone(&reader)).with_oidc(oidc.clone());
    let served_kinds = Arc::clone(&kinds);
    let mut builder = ApiServer::builder(settings, kinds, cache, Arc::clone(sealed) as _)
        .authenticator(Arc::new(authn))
        .authorizer(Arc::clone(&authz) as _)
        .allocator(Arc::new(Signer::new(Arc::clone(identity))))
        .admission(Arc::clone(&chain));
    for plugin in webhook::configured(
        &chain,
        &webhooks,
        &served_kinds,
        &reader,
        &(authz.clone() as _),
    ) {
        builder = builder.admission(plugin);
    }
    builder = builder.conversion(webhooks).aggregation(Outside {
        dialer: Arc::new(ClusterDialer::new(
            Arc::clone(&reader),
            Arc::new(Links(nodes.clone())),
        )),
        front_proxy: identity.front_proxy(),
    });
    builder = builder.metrics_api(Arc::new(MetricsApi::new(
        Arc::clone(&reader),
        Arc::new(Links(nodes.clone())),
    )));
    for served in reviews::all(&authz, &keys, &reader, oidc) {
        builder = builder.computed(
            served.group,
            served.resource,
            served.subresource,
            served.handler,
        );
    }
    let streams = Arc::new(Streams::new(
        Arc::clone(&reader),
        Arc::new(Links(nodes.clone())),
        stop,
    ));
    for (resource, subresource) in STREAMS {
        builder = builder.connect(resource, subresource, Arc::clone(&streams) as _);
    }
    let own = Api {
        store: store.clone(),
        identity: Arc::clone(identity),
        nodes: nodes.clone(),
    };
    for path in [issuer::CONFIGURATION, issuer::KEYS] {
        let discovery = IssuerDiscovery::new(Arc::clone(&keys));
        builder = builder.extension(path, false, Arc::new(discovery));
    }
    Ok(builder.extension("/balsa/", true, Arc::new(own)).build()?)
}

/// Issuers whose users may log in, as configured.
fn oidc(config: &Config, webhooks: &Arc<WebhookClient>) -> anyhow::Result<Option<Arc<Oidc>>> {
    let fetch = Arc::clone(webhooks) as _;
    let oidc = match (&config.authentication_config, &config.oidc) {
        (Some(path), _) => Oidc::load(path, fetch)?,
        (None, Some(settings)) => Oidc::from_settings(settings, fetch)?,
        (None, None) => return Ok(None),
    };
    Ok(Some(Arc::new(oidc)))
}

/// Makes this server a member of its cluster, and tells the others where it is. Returns when it is done.
async fn become_member(
    config: &Config,
    identity: &Arc<Identity>,
    store: &Store,
) -> anyhow::Result<()> {
    let address = config.raft_address().to_string();
    if store.cluster_id().is_none() {
        if config.join.is_empty() {
            store.initialize().await?;
        } else {
            ask_to_be_added(config, identity, store).await?;
        }
    } else {
        let known = store
            .members()
            .into_iter()
            .find(|m| m.id == store.node_id());
        if known.is_none_or(|m| m.address != address) {
            // It came back with another address. Until there is a leader this cannot be said.
            retry("tell the cluster this server's address", || {
                let (store, address) = (store.clone(), address.clone());
                async move { Ok(store.add_member(store.node_id(), address).await?) }
            })
            .await;
        }
    }
    let record = ServerRecord {
        id: store.node_id(),
        name: config.name.clone(),
        api: config.api_address(),
        link: config.link_address(),
    };
    retry("write this server's record", || {
        let (store, record) = (store.clone(), record.clone());
        async move { records::put_server(&store, &record).await }
    })
    .await;
    retry("say that this server stays", || {
        let store = store.clone();
        async move { records::stay(&store).await }
    })
    .await;
    if config.join.is_empty() {
        print_welcome(config, identity, store).await?;
    }
    let servers = vec![(
        config.name.clone(),
        format!("https://{}", config.api_address()),
    )];
    let kubeconfig: Kubeconfig = identity.admin_kubeconfig(&servers)?;
    kubeconfig.write(&config.data_dir.join("admin.kubeconfig"))?;
    Ok(())
}

/// Asks the servers to join in turn, until one has made this server a voter.
async fn ask_to_be_added(
    config: &Config,
    identity: &Identity,
    store: &Store,
) -> anyhow::Result<()> {
    let request = MemberRequest {
        id: store.node_id(),
        address: config.raft_address().to_string(),
    };
    let tls = identity.api_client(&[b"http/1.1"])?;
    const ATTEMPTS: usize = 60;
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        for server in &config.join {
            let asked: Result<serde_json::Value, _> =
                join::post_json(server, Arc::clone(&tls), "/balsa/v1/members", &request).await;
            match asked {
                Ok(_) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
            // The answer may have been lost on its way.
            if store
                .members()
                .iter()
                .any(|m| m.id == request.id && m.voter)
            {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    anyhow::bail!("this server was not made a member of the cluster: {last}")
}

/// Tries until it works: what is done here needs a leader, which may take its time after a power cut.
async fn retry<F, R>(what: &str, mut attempt: F)
where
    F: FnMut() -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let mut pause = Duration::from_millis(50);
    loop {
        match attempt().await {
            Ok(()) => return,
            Err(error) => info!(%error, "cannot {what} yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// The commands to paste on other machines.
async fn print_welcome(config: &Config, identity: &Identity, store: &Store) -> anyhow::Result<()> {
    let mut attempt = records::first_tokens(store, identity, &config.data_dir).await;
    while attempt.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        attempt = records::first_tokens(store, identity, &config.data_dir).await;
    }
    let (server, agent) = attempt?;
    info!(
        "more servers:  balsa server --address THEIR-IP --join {} --token {server}",
        config.address
    );
    info!(
        "more machines: balsa agent --address THEIR-IP --join {} --token {agent}",
        config.address
    );
    Ok(())
}

/// What runs beside the Raft leader.
struct LeaderWork {
    config: Config,
    identity: Arc<Identity>,
    api: ApiServer,
    links: Links,
    store: Store,
    sealed: Arc<Sealed>,
    term: Term,
}

impl LeaderWork {
    async fn run(self, stop: CancellationToken) {
        let ca = self.identity.ca().certificate_pem().to_owned();
        let controllers = balsa_controllers::Config {
            pod_cidr: self.config.pod_cidr,
            node_mask: self.config.node_cidr_mask_size,
            local_path_root: self.config.local_path_root.clone(),
            cluster_ca_pem: ca,
            failover: match self.config.failover {
                Failover::Default => balsa_controllers::Failover::Default,
                Failover::Fast => balsa_controllers::Failover::Fast,
            },
            ..balsa_controllers::Config::default()
        };
        let scheduler = self.client("system:kube-scheduler", "kube-scheduler/v1.35.0 balsa", &[]);
        let manager = self.client(
            "system:kube-controller-manager",
            "kube-controller-manager/v1.35.0 balsa",
            &[],
        );
        let roles = self.client(
            "system:apiserver",
            "kube-apiserver/v1.35.0 balsa",
            &[GROUP_MASTERS],
        );
        let addresses = Arc::new(Endpoints::new(self.store.clone()));
        let controlling = async {
            // Without the default roles the scheduler and the controllers may not even look.
            bootstrap::ensure(roles, bootstrap_objects(), stop.clone()).await;
            // One copy of all pods is enough for both.
            let pods = balsa_client::pods(manager.clone(), stop.clone());
            let scheduler = balsa_scheduler::Options::new(scheduler, pods.clone());
            let controllers = Controllers::start(
                manager,
                pods,
                controllers,
                Arc::new(self.links.clone()),
                stop.clone(),
            );
            tokio::join!(Scheduler::run(scheduler, stop.clone()), async {
                if let Err(error) = controllers.await {
                    warn!(%error, "the controllers ended badly");
                }
            });
        };
        // Beside it: some of the roles are in namespaces that this makes.
        tokio::join!(
            self.api.keep(addresses, stop.clone()),
            self.sealed.renew(self.term, stop.clone()),
            silence::follow(self.store.clone(), stop.clone()),
            controlling
        );
    }

    /// A client in this process that is `name` and calls itself `agent`, and whose writes are refused once this term has passed.
    fn client(&self, name: &str, agent: &'static str, groups: &[&str]) -> kube::Client {
        let user = User {
            name: name.to_owned(),
            groups: groups
                .iter()
                .chain(&["system:authenticated"])
                .map(|g| (*g).to_owned())
                .collect(),
            ..User::default()
        };
        let api = self.api.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (api, user) = (api.clone(), user.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body: RequestBody = body.map_err(Into::into).boxed_unsync();
                Ok::<_, std::convert::Infallible>(
                    api.call(Request::from_parts(parts, body), user).await,
                )
            }
        });
        let fence = Fence(self.term);
        balsa_client::in_process(service, agent, move |extensions| {
            extensions.insert(fence);
        })
    }
}
