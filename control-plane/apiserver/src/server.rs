//! [`ApiServer`]: what it is made of and its public face.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ipnet::Ipv4Net;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admission::policy::status as policy_status;
use crate::audit::{Audit, AuditConfig, AuditError};
use crate::backend::Backend;
use crate::cache::Cache;
use crate::extensions::aggregation::{self, Aggregator, Outside};
use crate::extensions::crd::admission::DefinitionRules;
use crate::extensions::crd::convert::NoConversion;
use crate::extensions::crd::{self, ConversionCaller, CustomResources};
use crate::flow::Flow;
use crate::http::discovery::Documents;
use crate::http::metrics::Metrics;
use crate::http::slis::Slis;
use crate::keeper;
use crate::kinds::Kinds;
use crate::metrics_api::MetricsApi;
use crate::registry::leases::MinuteLeases;
use crate::registry::quota::Quotas;
use crate::registry::reach::Reach;
use crate::registry::service::ServiceAllocator;
use crate::registry::{Allocator, Registry};
use crate::seam::{
    Admission, Authenticator, Authorizer, Computed, Connect, Extension, ObjectReader, Peer,
    RequestBody, ResponseBody, ServerAddresses, User,
};

/// What is configurable.
#[derive(Debug, Clone)]
pub struct Config {
    /// `host:port` under which clients reach this server, for discovery.
    pub advertise: String,
    /// Range of Service addresses.
    pub service_cidr: Ipv4Net,
    /// Range of node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Port of Service `kubernetes`'s endpoints.
    pub secure_port: u16,
    /// Requests that are worked on at once, shared out among the priority levels.
    pub max_requests: usize,
    /// How long a request waits for its turn.
    pub queue_time: Duration,
    /// What is recorded of requests, and where.
    pub audit: Option<AuditConfig>,
    /// Time for a request that is no watch and no stream.
    pub request_timeout: Duration,
    /// How long a request waits for a resourceVersion that this server has not applied yet.
    pub patience: Duration,
    /// Time between the bookmarks of a watch.
    pub bookmark_every: Duration,
    /// Time that open requests get at shutdown.
    pub drain: Duration,
    /// The CA of client certificates (PEM), told to aggregated API servers; empty to tell them nothing.
    pub client_ca_pem: String,
    /// The CA of what this server shows to aggregated API servers (PEM).
    pub front_proxy_ca_pem: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            advertise: "127.0.0.1:6443".into(),
            // A constant that is known to parse.
            service_cidr: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16),
            node_ports: 30_000..=32_767,
            secure_port: 6443,
            max_requests: 600,
            queue_time: Duration::from_secs(15),
            audit: None,
            request_timeout: Duration::from_secs(60),
            patience: Duration::from_secs(3),
            bookmark_every: Duration::from_secs(60),
            drain: Duration::from_secs(10),
            client_ca_pem: String::new(),
            front_proxy_ca_pem: String::new(),
        }
    }
}

/// Why an [`ApiServer`] could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Nobody said who may come in.
    #[error("the API server needs an authenticator")]
    NoAuthenticator,
    /// Nobody said who may do what.
    #[error("the API server needs an authorizer")]
    NoAuthorizer,
    /// Requests could not be recorded as wanted.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// An extension with its prefix.
pub(crate) struct Mounted {
    pub prefix: String,
    pub open: bool,
    pub extension: Arc<dyn Extension>,
}

/// What all requests share.
pub(crate) struct Core {
    pub config: Config,
    pub kinds: Arc<Kinds>,
    pub cache: Arc<Cache>,
    pub custom: Arc<CustomResources>,
    pub aggregation: Arc<Aggregator>,
    pub metrics_api: Option<Arc<MetricsApi>>,
    pub registry: Registry,
    pub authn: Arc<dyn Authenticator>,
    pub authz: Arc<dyn Authorizer>,
    /// By group, resource and subresource. Few.
    pub computed: Vec<([String; 3], Arc<dyn Computed>)>,
    pub connect: HashMap<(String, String), Arc<dyn Connect>>,
    pub extensions: Vec<Mounted>,
    pub documents: Documents,
    pub flow: Flow,
    pub audit: Option<Arc<Audit>>,
    pub metrics: Arc<Metrics>,
    pub slis: Slis,
}

/// The API server. A cheap handle.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) core: Arc<Core>,
}

impl ApiServer {
    /// Starts building. `cache` is the one that observes `backend`'s store.
    #[must_use]
    pub fn builder(
        config: Config,
        kinds: Arc<Kinds>,
        cache: Arc<Cache>,
        backend: Arc<dyn Backend>,
    ) -> ApiServerBuilder {
        ApiServerBuilder {
            config,
            kinds,
            cache,
            backend,
            authn: None,
            authz: None,
            admission: Vec::new(),
            allocators: Vec::new(),
            computed: Vec::new(),
            connect: HashMap::new(),
            extensions: Vec::new(),
            conversion: None,
            outside: None,
            metrics_api: None,
            metrics: Arc::new(Metrics::default()),
        }
    }

    /// Serves a listener until `stop`, then drains: no new connections, open requests get the configured time,
    /// watches end at once. ALPN of `tls` is set to HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// When the listener is of no more use.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let serving = stop.child_token();
        let custom = self.core.custom.run(serving.clone());
        let aggregation = self.core.aggregation.run(serving.clone());
        let connections = async {
            let ended = balsa_http::serve(
                Arc::new(self.clone()),
                listener,
                tls,
                self.core.config.drain,
                stop,
            )
            .await;
            serving.cancel();
            ended
        };
        let measuring = async {
            if let Some(metrics) = &self.core.metrics_api {
                metrics.run(serving.clone()).await;
            }
        };
        let registry = &self.core.registry;
        let reach = registry.reach.follow(&*registry.backend, serving.clone());
        tokio::join!(connections, custom, aggregation, measuring, reach).0
    }

    /// A request from inside the process: not authenticated (the caller says who it is), but authorized and
    /// treated in every other way like those from outside. Honours [`Fence`](crate::seam::Fence) in its
    /// extensions.
    pub async fn call(
        &self,
        request: ::http::Request<RequestBody>,
        user: User,
    ) -> ::http::Response<ResponseBody> {
        self.handle(request, &crate::seam::Peer::default(), Some(user))
            .await
    }

    /// The objects as this server has them now.
    #[must_use]
    pub fn reader(&self) -> Arc<dyn ObjectReader> {
        Arc::clone(&self.core.cache) as Arc<dyn ObjectReader>
    }

    /// The metrics, for others to register theirs.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.core.metrics)
    }

    /// Keeps what every cluster has: the system namespaces, Service `kubernetes` and its endpoints. Works
    /// while this server leads, until `stop`.
    pub async fn keep(&self, addresses: Arc<dyn ServerAddresses>, stop: CancellationToken) {
        tokio::join!(
            keeper::keep(self, &*addresses, stop.clone()),
            crd::lead(self, stop.clone()),
            aggregation::lead(self, stop.clone()),
            policy_status::lead(self, stop),
        );
    }

    /// Ends all watches now; for shutdown.
    pub fn end_watches(&self) {
        self.core.registry.stop.cancel();
    }
}

impl balsa_http::Service for ApiServer {
    fn answer(
        &self,
        request: http::Request<RequestBody>,
        peer: Arc<Peer>,
    ) -> BoxFuture<'static, http::Response<ResponseBody>> {
        let api = self.clone();
        Box::pin(async move { api.handle(request, &peer, None).await })
    }

    fn draining(&self) {
        self.end_watches();
    }
}

/// See [`ApiServer::builder`].
pub struct ApiServerBuilder {
    config: Config,
    kinds: Arc<Kinds>,
    cache: Arc<Cache>,
    backend: Arc<dyn Backend>,
    authn: Option<Arc<dyn Authenticator>>,
    authz: Option<Arc<dyn Authorizer>>,
    admission: Vec<Arc<dyn Admission>>,
    allocators: Vec<Arc<dyn Allocator>>,
    computed: Vec<([String; 3], Arc<dyn Computed>)>,
    connect: HashMap<(String, String), Arc<dyn Connect>>,
    extensions: Vec<Mounted>,
    conversion: Option<Arc<dyn ConversionCaller>>,
    outside: Option<Outside>,
    metrics_api: Option<Arc<MetricsApi>>,
    metrics: Arc<Metrics>,
}

impl ApiServerBuilder {
    /// Who may come in. Needed.
    #[must_use]
    pub fn authenticator(mut self, authn: Arc<dyn Authenticator>) -> Self {
        self.authn = Some(authn);
        self
    }

    /// Who may do what. Needed.
    #[must_use]
    pub fn authorizer(mut self, authz: Arc<dyn Authorizer>) -> Self {
        self.authz = Some(authz);
        self
    }

    /// Adds an admission plugin (or chain) after those that are there.
    #[must_use]
    pub fn admission(mut self, admission: Arc<dyn Admission>) -> Self {
        self.admission.push(admission);
        self
    }

    /// Adds what allocates along with writes; the one of Services is there already.
    #[must_use]
    pub fn allocator(mut self, allocator: Arc<dyn Allocator>) -> Self {
        self.allocators.push(allocator);
        self
    }

    /// A resource (`subresource` empty) or subresource that is computed by a POST.
    #[must_use]
    pub fn computed(
        mut self,
        group: &str,
        resource: &str,
        subresource: &str,
        computed: Arc<dyn Computed>,
    ) -> Self {
        let place = [group, resource, subresource].map(str::to_owned);
        self.computed.push((place, computed));
        self
    }

    /// A streaming subresource of a core resource: `("pods", "exec")`.
    #[must_use]
    pub fn connect(mut self, resource: &str, subresource: &str, connect: Arc<dyn Connect>) -> Self {
        self.connect
            .insert((resource.to_owned(), subresource.to_owned()), connect);
        self
    }

    /// Paths under a prefix, for example `/balsa/`. An `open` one is served to everybody, without
    /// authentication.
    #[must_use]
    pub fn extension(mut self, prefix: &str, open: bool, extension: Arc<dyn Extension>) -> Self {
        self.extensions.push(Mounted {
            prefix: prefix.to_owned(),
            open,
            extension,
        });
        self
    }

    /// How the servers of aggregated APIs are reached.
    #[must_use]
    pub fn aggregation(mut self, outside: Outside) -> Self {
        self.outside = Some(outside);
        self
    }

    /// What serves `metrics.k8s.io` where no APIService does.
    #[must_use]
    pub fn metrics_api(mut self, metrics: Arc<MetricsApi>) -> Self {
        self.metrics_api = Some(metrics);
        self
    }

    /// What calls the conversion webhooks of custom resources.
    #[must_use]
    pub fn conversion(mut self, caller: Arc<dyn ConversionCaller>) -> Self {
        self.conversion = Some(caller);
        self
    }

    /// Puts it together.
    ///
    /// # Errors
    /// [`BuildError`] when something needed is missing.
    pub fn build(self) -> Result<ApiServer, BuildError> {
        let authn = self.authn.ok_or(BuildError::NoAuthenticator)?;
        let authz = self.authz.ok_or(BuildError::NoAuthorizer)?;
        let services = ServiceAllocator::new(
            self.config.service_cidr,
            self.config.node_ports.clone(),
            Arc::clone(&self.cache),
            Arc::clone(&self.backend),
        );
        // Quotas come last: they count what the others have filled in.
        let mut allocators: Vec<Arc<dyn Allocator>> = vec![Arc::new(services)];
        allocators.extend(self.allocators);
        allocators.push(Arc::new(Quotas::new(Arc::clone(&self.cache))));
        let mut admission = self.admission;
        admission.push(Arc::new(DefinitionRules));
        let registry = Registry {
            backend: self.backend,
            cache: Arc::clone(&self.cache),
            admission,
            allocators,
            leases: MinuteLeases::default(),
            metrics: Arc::clone(&self.metrics),
            stop: CancellationToken::new(),
            reach: Reach::default(),
            patience: self.config.patience,
            bookmark_every: self.config.bookmark_every,
            kinds: Arc::clone(&self.kinds),
        };
        let conversion = self
            .conversion
            .unwrap_or_else(|| Arc::new(NoConversion) as Arc<dyn ConversionCaller>);
        let custom = CustomResources::new(
            Arc::clone(&self.kinds),
            Arc::clone(&self.cache),
            Arc::clone(&registry.backend),
            conversion,
            registry.stop.clone(),
        );
        let flow = Flow::new(
            Arc::clone(&self.cache) as Arc<dyn ObjectReader>,
            self.config.max_requests,
            self.config.queue_time,
            &self.metrics,
        );
        let audit = self.config.audit.clone();
        let audit = audit
            .map(|config| Audit::new(config, &self.metrics).map(Arc::new))
            .transpose()?;
        let aggregation = Aggregator::new(
            Arc::clone(&self.kinds),
            Arc::clone(&self.cache),
            self.outside,
        )
        .beside(self.metrics_api.iter().map(|m| m.discovered()).collect());
        let core = Core {
            custom: Arc::new(custom),
            aggregation: Arc::new(aggregation),
            metrics_api: self.metrics_api,
            flow,
            audit,
            documents: Documents::new(Arc::clone(&self.kinds), self.config.advertise.clone()),
            config: self.config,
            kinds: self.kinds,
            cache: self.cache,
            registry,
            authn,
            authz,
            computed: self.computed,
            connect: self.connect,
            extensions: self.extensions,
            metrics: self.metrics,
            slis: Slis::default(),
        };
        Ok(ApiServer {
            core: Arc::new(core),
        })
    }
}
