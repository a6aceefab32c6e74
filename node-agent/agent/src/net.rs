//! The node's network, wired: the runtime's plugin, nodes to the overlay, Services and EndpointSlices to the
//! proxy and to DNS.
//!
//! Informers only say that something changed; what is done about it is always made from the whole state,
//! so nothing depends on the order of events, and a burst of them costs one round.

mod addresses;
mod follow;
mod plugin;

use std::sync::Arc;

use balsa_client::{Informer, InformerOptions};
use balsa_cni::{CONFLIST_NAME, ConflistParams, conflist};
use balsa_cri::Runtime;
use balsa_netlink::nft::{Kernel, Nft};
use balsa_netlink::{Conntrack, CtNetlink, Links, Rtnl};
use balsa_proxy::Proxy;
use balsa_vxlan::{Mode, Overlay, Peer};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::config::AgentConfig;
use crate::durable;
use crate::error::Error;
use addresses::Addresses;
pub(crate) use plugin::{install_plugin, serve_plugin};

/// What the network follows.
#[derive(Clone)]
pub(crate) struct Watched {
    /// All nodes.
    pub(crate) nodes: Informer<Node>,
    /// All Services.
    pub(crate) services: Informer<Service>,
    /// This node's pods.
    pub(crate) pods: Informer<Pod>,
}

/// Waits for the node's pod CIDR, starts the overlay, the Services and DNS, and tells the runtime's plugin.
/// Gives the pod CIDR; `None` when stopped before. All of it goes on until `stop`.
pub(crate) async fn set_up(
    config: &AgentConfig,
    client: &kube::Client,
    runtime: &Arc<dyn Runtime>,
    watched: Watched,
    stop: &CancellationToken,
) -> Result<Option<IpNet>, Error> {
    let own_cidr = tokio::select! {
        () = stop.cancelled() => return Ok(None),
        cidr = pod_cidr(&watched.nodes, &config.node_name, |_| true) => cidr,
    };
    info!(%own_cidr, "this node's pods have addresses");
    let links: Arc<dyn Links> = Arc::new(Rtnl::open()?);
    let nft: Arc<dyn Nft> = Arc::new(Kernel::open()?);
    let conntrack: Arc<dyn Conntrack> = Arc::new(CtNetlink::open()?);
    let overlay = balsa_vxlan::Config {
        mode: Mode::Vxlan,
        local: Peer {
            name: config.node_name.clone(),
            node_ip: config.node_ip,
            pod_cidr: own_cidr,
        },
        service_cidr: Some(config.service_cidr),
        local_addresses: config.cluster_dns.into_iter().collect(),
        mtu: None,
    };
    let overlay = Overlay::start(overlay, links, stop.clone());
    let mtu = tokio::select! {
        () = stop.cancelled() => return Ok(None),
        mtu = overlay.ready() => mtu,
    };
    let Some(mtu) = mtu else { return Ok(None) };
    follow::peers(overlay, config.node_name.clone(), &watched.nodes, stop);
    let slices: Informer<EndpointSlice> = Informer::start(
        Api::all(client.clone()),
        InformerOptions::default(),
        stop.clone(),
    );
    let mut proxy = balsa_proxy::Config::new(config.node_name.clone(), vec![config.pod_cidr]);
    proxy.service_cidr = Some(config.service_cidr);
    proxy.local_vips = config.cluster_dns.into_iter().collect();
    let proxy = Proxy::start(proxy, nft, conntrack, stop.clone());
    follow::services(proxy, &config.node_name, &watched, &slices, stop);
    if let Some(address) = config.cluster_dns {
        follow::names(config, address, &watched.services, &slices, stop);
    }
    let addresses = Addresses {
        folder: config.paths().cni_data(),
        cidr: own_cidr,
    };
    addresses.collect_old(runtime).await;
    let collection = addresses.keep_collecting(Arc::clone(runtime), stop.clone());
    tokio::spawn(collection.instrument(info_span!("addresses")));
    write_conflist(config, own_cidr, mtu)?;
    Ok(Some(own_cidr))
}

/// Returns when the node has another pod CIDR than `own`: it was deleted and made anew, and another node may have
/// the old one by now.
pub(crate) async fn moved(nodes: &Informer<Node>, name: &str, own: IpNet) {
    let other = pod_cidr(nodes, name, |cidr| cidr != own).await;
    warn!(%own, %other, "this node's pods get other addresses, beginning anew");
}

/// The node's pod CIDR, once the cluster has given it one that is `wanted`.
async fn pod_cidr(nodes: &Informer<Node>, name: &str, wanted: impl Fn(IpNet) -> bool) -> IpNet {
    let changed = Arc::new(Notify::new());
    let own = name.to_owned();
    follow::wake(nodes, &changed, move |delta| {
        delta.object().metadata.name.as_ref() == Some(&own)
    });
    loop {
        let node = nodes.get("", name);
        let cidr = node
            .as_ref()
            .and_then(|n| n.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok());
        if let Some(cidr) = cidr.filter(|cidr| wanted(*cidr)) {
            return cidr;
        }
        changed.notified().await;
    }
}

/// Tells the runtime how pods are connected, which makes it report the network as ready.
fn write_conflist(config: &AgentConfig, own_cidr: IpNet, mtu: u32) -> Result<(), Error> {
    let paths = config.paths();
    let text = conflist(&ConflistParams {
        pod_cidr: own_cidr,
        mtu,
        data_dir: paths.cni_data(),
    });
    let file = paths.cni_conf().join(CONFLIST_NAME);
    if durable::has(&file, text.as_bytes()) {
        return Ok(());
    }
    // The runtime reads every file of the folder with a known ending.
    let new = paths.cni_conf().join(".conflist.new");
    std::fs::write(&new, text).map_err(Error::file("write", &new))?;
    std::fs::rename(&new, &file).map_err(Error::file("write", &file))
}

/// Runs `work` once at the start and once after each burst of changes, until `stop`.
fn on_each_change<W>(
    part: &'static str,
    changed: Arc<Notify>,
    stop: &CancellationToken,
    mut work: W,
) where
    W: FnMut() + Send + 'static,
{
    let stop = stop.clone();
    let task = async move {
        loop {
            work();
            tokio::select! {
                () = stop.cancelled() => return,
                () = changed.notified() => {}
            }
        }
    };
    tokio::spawn(task.instrument(info_span!("network", part)));
}
