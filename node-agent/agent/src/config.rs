//! What an agent is told at its start.

mod eviction;
mod shutdown;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use eviction::{Eviction, Signal, Soft, Threshold};
pub use shutdown::{ShutdownGrace, duration, shutdown_grace, shutdown_grace_by_priority};

/// Which runtime the agent uses.
#[derive(Debug, Clone)]
pub enum RuntimeChoice {
    /// Its own containerd, started and supervised by the agent and private to it.
    Supervised {
        /// The containerd program; looked up in `PATH` if it has no slash.
        containerd: PathBuf,
    },
    /// A runtime that somebody else runs, by its CRI socket.
    Existing {
        /// Path of the socket.
        endpoint: PathBuf,
    },
}

/// What an agent is told at its start.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// Address by which other nodes reach this one.
    pub node_ip: IpAddr,
    /// Folder for everything that the agent keeps: at most 80 bytes long, as sockets lie in it.
    pub data_dir: PathBuf,
    /// Where pods expect the agent's folders: hostPath volumes at or below it are those of `data_dir`, so that the
    /// manifests of volume drivers and device plugins work as they are. It need not be there.
    pub kubelet_dir: PathBuf,
    /// Which runtime.
    pub runtime: RuntimeChoice,
    /// Cgroup (below each controller's root) that pods are made in, for example `/balsa` or `/balsa-local/a1`.
    pub cgroup_root: String,
    /// Address of the cluster's DNS for pods; `None` leaves them the node's.
    pub cluster_dns: Option<IpAddr>,
    /// Domain of Services, `cluster.local`.
    pub cluster_domain: String,
    /// Addresses of all pods.
    pub pod_cidr: IpNet,
    /// Addresses of all Services.
    pub service_cidr: IpNet,
    /// Renew the Lease every second instead of every ten, for clusters that fail over fast.
    pub fast_failover: bool,
    /// Most pods on the node.
    pub max_pods: u32,
    /// Most sandboxes made at the same time: runtimes slow down when asked for more.
    pub max_sandbox_creates: usize,
    /// Most images pulled at the same time.
    pub max_pulls: usize,
    /// Labels to put on the Node when it registers.
    pub node_labels: Vec<(String, String)>,
    /// Taints to put on the Node when it registers, as `key=value:effect`.
    pub node_taints: Vec<String>,
    /// The program that serves as CNI plugin when called `balsa-cni` or `loopback`: this very binary.
    pub cni_program: PathBuf,
    /// Interface that carries `node_ip`; found by the address when `None`.
    pub interface: Option<String>,
    /// VXLAN UDP port.
    pub vxlan_port: u16,
    /// Resolvers that DNS questions about other names go to; those of `/etc/resolv.conf` when empty.
    pub upstream_dns: Vec<IpAddr>,
    /// Run the overlay, the Services and DNS of this node. Off only in tests of the rest.
    pub network: bool,
    /// Folder of pods that run without the API (static pods); none when `None`. It need not be there.
    pub static_pods: Option<PathBuf>,
    /// Kernel settings beyond the safe ones that pods may make; `*` at the end stands for anything.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Most processes of a pod; the kernel's limit when `None`.
    pub pod_pids_limit: Option<i64>,
    /// When pods are thrown out for want of memory, disk or process ids.
    pub eviction: Eviction,
    /// CPU in thousandths that pods are not offered.
    pub reserved_cpu_milli: i64,
    /// Memory in bytes that pods are not offered, besides what the eviction threshold keeps free.
    pub reserved_memory: i64,
    /// Time for pods to end when the machine goes down, by priority; empty leaves them to it.
    pub shutdown: Vec<ShutdownGrace>,
}

impl AgentConfig {
    /// A configuration with the usual values for everything but name, address and folder.
    pub fn new(
        node_name: impl Into<String>,
        node_ip: IpAddr,
        data_dir: impl Into<PathBuf>,
    ) -> Self {
        let v4 = |a, b, prefix| {
            IpNet::V4(ipnet::Ipv4Net::new_assert(
                std::net::Ipv4Addr::new(a, b, 0, 0),
                prefix,
            ))
        };
        let data_dir: PathBuf = data_dir.into();
        Self {
            node_name: node_name.into(),
            node_ip,
            static_pods: Some(data_dir.join("manifests")),
            data_dir,
            kubelet_dir: PathBuf::from("/var/lib/kubelet"),
            runtime: RuntimeChoice::Supervised {
                containerd: PathBuf::from("containerd"),
            },
            cgroup_root: "/balsa".to_owned(),
            cluster_dns: Some(IpAddr::from([10, 96, 0, 10])),
            cluster_domain: "cluster.local".to_owned(),
            pod_cidr: v4(10, 244, 16),
            service_cidr: v4(10, 96, 16),
            fast_failover: false,
            max_pods: 250,
            max_sandbox_creates: 8,
            max_pulls: 4,
            node_labels: Vec::new(),
            node_taints: Vec::new(),
            cni_program: PathBuf::from("/proc/self/exe"),
            interface: None,
            vxlan_port: 8472,
            upstream_dns: Vec::new(),
            network: true,
            allowed_unsafe_sysctls: Vec::new(),
            pod_pids_limit: None,
            eviction: Eviction::default(),
            reserved_cpu_milli: 0,
            reserved_memory: 0,
            shutdown: Vec::new(),
        }
    }

    /// How often the Lease is renewed.
    pub fn lease_period(&self) -> Duration {
        Duration::from_secs(if self.fast_failover { 1 } else { 10 })
    }

    /// How long the Lease is good for.
    pub fn lease_seconds(&self) -> i32 {
        if self.fast_failover { 4 } else { 40 }
    }

    /// The data folder under both of its names.
    pub(crate) fn layout(&self) -> crate::csi::Layout {
        crate::csi::Layout::new(&self.data_dir, &self.kubelet_dir)
    }

    /// Where things lie in the data folder.
    pub fn paths(&self) -> Paths {
        Paths {
            root: self.data_dir.clone(),
        }
    }
}

/// Where things lie in the data folder.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// containerd's configuration, log and pid file.
    pub fn containerd(&self) -> PathBuf {
        self.root.join("containerd")
    }

    /// What containerd keeps while the machine runs.
    pub fn containerd_state(&self) -> PathBuf {
        self.containerd().join("state")
    }

    /// containerd's socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("containerd.sock")
    }

    /// What concerns the runtime's network plugin.
    pub fn cni(&self) -> PathBuf {
        self.root.join("cni")
    }

    /// Programs that containerd runs to connect pods.
    pub fn cni_bin(&self) -> PathBuf {
        self.root.join("cni/bin")
    }

    /// How they are to connect pods.
    pub fn cni_conf(&self) -> PathBuf {
        self.root.join("cni/net.d")
    }

    /// The table of the pods' addresses.
    pub fn cni_data(&self) -> PathBuf {
        self.root.join("cni/data")
    }

    /// FIFOs of running exec sessions.
    pub fn fifos(&self) -> PathBuf {
        self.root.join("exec")
    }

    /// Volumes and files of pods.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Volumes and files of one pod.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// Seccomp profiles that pods name (`Localhost`).
    pub fn seccomp(&self) -> PathBuf {
        self.root.join("seccomp")
    }

    /// Sockets and volumes of CSI drivers.
    pub fn plugins(&self) -> PathBuf {
        self.root.join("plugins")
    }

    /// Sockets of device plugins.
    pub fn device_plugins(&self) -> PathBuf {
        self.root.join("device-plugins")
    }

    /// Where monitoring agents ask which devices pods have.
    pub fn pod_resources(&self) -> PathBuf {
        self.root.join("pod-resources/kubelet.sock")
    }

    /// Logs of containers, in `namespace_name_uid/container/attempt.log`.
    pub fn logs(&self) -> PathBuf {
        self.root.join("log/pods")
    }

    /// Logs of one pod's containers.
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.logs().join(format!("{namespace}_{name}_{uid}"))
    }
}
