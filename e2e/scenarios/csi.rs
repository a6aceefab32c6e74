//! Volumes of a CSI driver: our own driver (`e2e/csi-driver`) runs as drivers do, a DaemonSet for the nodes and a
//! Deployment beside the API, and does for real what agent and controllers ask of it.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use balsa_e2e::{Kubectl, Local, Namespace, eventually};

/// A driver of a name of its own, so that scenarios do not meet.
pub(crate) struct Driver {
    pub(crate) ns: Namespace,
    pub(crate) name: String,
    /// The folder with its volumes, on the machine that all nodes are on.
    root: PathBuf,
}

impl Driver {
    /// Installs a driver and waits until both nodes have it.
    pub(crate) fn install(scenario: &str, settings: &str) -> anyhow::Result<Self> {
        let ns = Namespace::new(scenario)?;
        let name = format!("{}.csi.test", ns.name());
        let root = Path::new("/var/lib/balsa-e2e-volumes").join(ns.name());
        let this = Self { ns, name, root };
        this.kubectl().apply(&this.manifest(settings))?;
        for agent in Local.agents()? {
            eventually("the driver on its node", 90, || {
                let path = "{.spec.drivers[*].name}";
                let drivers = this.kubectl().field(&format!("csinode/{agent}"), path)?;
                Ok(drivers.split(' ').any(|driver| driver == this.name))
            })?;
        }
        Ok(this)
    }

    pub(crate) fn kubectl(&self) -> &Kubectl {
        self.ns.kubectl()
    }

    /// What the driver was asked so far: lines with the node (or `controller`), the call, the volume, the path.
    pub(crate) fn calls(&self) -> String {
        std::fs::read_to_string(self.root.join(".calls")).unwrap_or_default()
    }

    /// Mounts of this driver's volumes, whoever has them.
    pub(crate) fn mounts(&self) -> anyhow::Result<Vec<String>> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        // The fourth field is what is mounted, as its file system names it.
        let name = self.ns.name();
        let ours = |line: &&str| {
            line.split(' ')
                .nth(3)
                .is_some_and(|from| from.contains(name))
        };
        let ours = table.lines().filter(ours);
        // The folder itself is mounted in the driver's own containers only, which have tables of their own.
        Ok(ours.map(str::to_owned).collect())
    }

    fn manifest(&self, settings: &str) -> String {
        let (driver, namespace, root) = (&self.name, self.ns.name(), self.root.display());
        format!(
            "
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {{name: {driver}}}
spec: {settings}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {namespace}}}
provisioner: {driver}
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: true
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {namespace}}}
rules:
- {{apiGroups: [\"\"], resources: [persistentvolumes, persistentvolumeclaims, persistentvolumeclaims/status], verbs: [\"*\"]}}
- {{apiGroups: [storage.k8s.io], resources: [storageclasses, volumeattachments, volumeattachments/status], verbs: [\"*\"]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {namespace}}}
subjects: [{{kind: ServiceAccount, name: default, namespace: {namespace}}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: controller}}
spec:
  selector: {{matchLabels: {{app: controller}}}}
  template:
    metadata: {{labels: {{app: controller}}}}
    spec:
      containers:
      - name: driver
        image: balsa-csi-driver
        imagePullPolicy: IfNotPresent
        args: [--driver={driver}, --root=/volumes, controller]
        volumeMounts: [{{name: volumes, mountPath: /volumes}}]
      volumes: [{{name: volumes, hostPath: {{path: {root}, type: DirectoryOrCreate}}}}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: node}}
spec:
  selector: {{matchLabels: {{app: node}}}}
  template:
    metadata: {{labels: {{app: node}}}}
    spec:
      tolerations: [{{operator: Exists}}]
      terminationGracePeriodSeconds: 5
      containers:
      - name: driver
        image: balsa-csi-driver
        imagePullPolicy: IfNotPresent
        securityContext: {{privileged: true}}
        args:
        - --driver={driver}
        - --root=/volumes
        - node
        - --registered-endpoint=/var/lib/kubelet/plugins/{driver}/csi.sock
        - --registration=/registration/{driver}-reg.sock
        env: [{{name: NODE_NAME, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]
        volumeMounts:
        - {{name: own, mountPath: /csi}}
        - {{name: registration, mountPath: /registration}}
        - {{name: plugins, mountPath: /var/lib/kubelet/plugins, mountPropagation: Bidirectional}}
        - {{name: pods, mountPath: /var/lib/kubelet/pods, mountPropagation: Bidirectional}}
        - {{name: volumes, mountPath: /volumes}}
      volumes:
      - {{name: own, hostPath: {{path: /var/lib/kubelet/plugins/{driver}, type: DirectoryOrCreate}}}}
      - {{name: registration, hostPath: {{path: /var/lib/kubelet/plugins_registry, type: Directory}}}}
      - {{name: plugins, hostPath: {{path: /var/lib/kubelet/plugins, type: Directory}}}}
      - {{name: pods, hostPath: {{path: /var/lib/kubelet/pods, type: Directory}}}}
      - {{name: volumes, hostPath: {{path: {root}, type: DirectoryOrCreate}}}}
"
        )
    }

    /// A claim of the driver's class.
    pub(crate) fn claim(&self, name: &str, mode: &str) -> String {
        format!(
            "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  storageClassName: {}
  accessModes: [{mode}]
  resources: {{requests: {{storage: 1Gi}}}}
---",
            self.ns.name()
        )
    }

    /// Waits until nothing of any volume is left on any node, nor in the API.
    pub(crate) fn nothing_is_left(&self) -> anyhow::Result<()> {
        eventually("no mount of any volume", 60, || {
            let mounts = self.mounts()?;
            ensure!(mounts.is_empty(), "{mounts:#?}");
            Ok(true)
        })?;
        eventually("no attachment and no volume in use", 60, || {
            let path = format!(
                "{{.items[?(@.spec.attacher=='{}')].metadata.name}}",
                self.name
            );
            let attachments = self.kubectl().field("volumeattachments", &path)?;
            let in_use = self
                .kubectl()
                .field("nodes", "{.items[*].status.volumesInUse}")?;
            ensure!(!in_use.contains(&self.name), "{in_use}");
            Ok(attachments.is_empty())
        })?;
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let name = self.ns.name();
        // A pod whose driver is gone would keep its volume, and its namespace, for ever.
        let pods = ["delete", "pod", "--selector=!app", "--timeout=30s"];
        let _ = self.kubectl().run(&pods);
        for object in [
            format!("csidriver/{}", self.name),
            format!("storageclass/{name}"),
            format!("clusterrolebinding/{name}"),
            format!("clusterrole/{name}"),
        ] {
            let _ = self.kubectl().run(&["delete", &object, "--wait=false"]);
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// A pod on a node with a volume at `/data`.
pub(crate) fn pod(name: &str, node: &str, volume: &str, command: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, '{command}; exec sleep 100000']
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, {volume}}}]
---"
    )
}

pub(crate) const CLAIMED: &str = "persistentVolumeClaim: {claimName: data}";

#[test]
fn a_drivers_volume_moves_between_nodes_grows_and_goes_with_its_claim() -> anyhow::Result<()> {
    let driver = Driver::install("csi-claim", "{attachRequired: true, fsGroupPolicy: File}")?;
    let kubectl = driver.kubectl();
    let agents = Local.agents()?;
    kubectl.apply(&driver.claim("data", "ReadWriteOnce"))?;
    kubectl.apply(&pod("writer", &agents[0], CLAIMED, "echo hello > /data/f"))?;
    kubectl.wait_ready("writer", 60)?;
    let volume = kubectl.field("pvc/data", "{.spec.volumeName}")?;
    let attached = kubectl.field(
        &format!("node/{}", agents[0]),
        "{.status.volumesAttached[*].name}",
    )?;
    ensure!(attached.contains(&volume), "{attached}");
    // One node has it, so a pod on another waits until it is free.
    kubectl.apply(&pod("reader", &agents[1], CLAIMED, "true"))?;
    eventually("word that the volume is elsewhere", 60, || {
        let events = kubectl.ok(&["get", "events"])?;
        Ok(events.contains("Multi-Attach error for volume"))
    })?;
    kubectl.ok(&["delete", "pod", "writer"])?;
    kubectl.wait_ready("reader", 60)?;
    let read = kubectl.ok(&["exec", "reader", "--", "cat", "/data/f"])?;
    ensure!(read == "hello\n", "{read:?}");

    let patch = r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#;
    kubectl.ok(&["patch", "pvc", "data", "-p", patch])?;
    eventually("the claim has what it asked for", 60, || {
        let capacity = kubectl.field("pvc/data", "{.status.capacity.storage}")?;
        ensure!(capacity == "2Gi", "{capacity}");
        Ok(driver
            .calls()
            .contains(&format!("{} expand {volume}", agents[1])))
    })?;

    kubectl.ok(&["delete", "pod", "reader"])?;
    kubectl.ok(&["delete", "pvc", "data"])?;
    eventually("the volume is deleted", 60, || {
        Ok(driver
            .calls()
            .contains(&format!("controller delete {volume}")))
    })?;
    driver.nothing_is_left()?;
    let calls = driver.calls();
    for node in &agents[..2] {
        let count = |call: &str| calls.matches(&format!("{node} {call} {volume}")).count();
        ensure!(count("unstage") == 1, "{calls}");
    }
    Ok(())
}

#[test]
fn a_pods_own_volume_comes_from_its_driver_and_goes_with_it() -> anyhow::Result<()> {
    let settings =
        "{attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Ephemeral]}";
    let driver = Driver::install("csi-inline", settings)?;
    let kubectl = driver.kubectl();
    let node = Local.agents()?.remove(0);
    let volume = format!(
        "csi: {{driver: {}, volumeAttributes: {{colour: green}}}}",
        driver.name
    );
    kubectl.apply(&pod("app", &node, &volume, "true"))?;
    kubectl.wait_ready("app", 60)?;
    let told = kubectl.ok(&[
        "exec",
        "app",
        "--",
        "sh",
        "-c",
        "cd /data; tail -n +1 colour pod.name ephemeral | tr -d \"\\n\"",
    ])?;
    for part in ["green", "app", "true"] {
        ensure!(told.contains(part), "{told}");
    }
    kubectl.ok(&["delete", "pod", "app"])?;
    driver.nothing_is_left()?;
    let calls = driver.calls();
    ensure!(calls.contains(&format!("{node} unpublish csi-")), "{calls}");
    Ok(())
}

#[test]
fn a_drivers_device_is_what_its_pods_wrote_to_it_on_whichever_node() -> anyhow::Result<()> {
    let driver = Driver::install("csi-block", "{attachRequired: true}")?;
    let kubectl = driver.kubectl();
    let agents = Local.agents()?;
    let claim = driver.claim("data", "ReadWriteOnce");
    let block = "  volumeMode: Block\n  resources: {requests: {storage: 8Mi}}";
    kubectl.apply(&claim.replace("  resources: {requests: {storage: 1Gi}}", block))?;
    // As a file system it cannot be had.
    kubectl.apply(&pod("wrong", &agents[0], CLAIMED, "true"))?;
    let device = |name: &str, node: &str, command: &str| {
        let mount = "volumeMounts: [{name: data, mountPath: /data}]";
        let device = "volumeDevices: [{name: data, devicePath: /dev/xvda}]";
        pod(name, node, CLAIMED, command).replace(mount, device)
    };
    let write = "test -b /dev/xvda && echo raw bytes | dd of=/dev/xvda conv=fsync 2> /dev/null";
    kubectl.apply(&device("writer", &agents[0], write))?;
    kubectl.wait_ready("writer", 60)?;
    let size = kubectl.ok(&[
        "exec",
        "writer",
        "--",
        "blockdev",
        "--getsize64",
        "/dev/xvda",
    ])?;
    ensure!(size.trim() == "8388608", "{size}");
    eventually("word that a device is no file system", 40, || {
        let events = kubectl.ok(&[
            "get",
            "events",
            "--field-selector=involvedObject.name=wrong",
        ])?;
        Ok(events.contains("volumeMode"))
    })?;
    kubectl.ok(&["delete", "pod", "writer", "wrong"])?;
    kubectl.apply(&device("reader", &agents[1], "true"))?;
    kubectl.wait_ready("reader", 90)?;
    let read = kubectl.ok(&["exec", "reader", "--", "head", "-c", "9", "/dev/xvda"])?;
    ensure!(read == "raw bytes", "{read:?}");
    kubectl.ok(&["delete", "pod", "reader"])?;
    kubectl.ok(&["delete", "pvc", "data"])?;
    driver.nothing_is_left()?;
    eventually("no device of any volume", 30, || {
        let all = std::fs::read_dir("/sys/block")?.flatten();
        let files =
            all.filter_map(|it| std::fs::read_to_string(it.path().join("loop/backing_file")).ok());
        let left: Vec<String> = files.filter(|it| it.contains(driver.ns.name())).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(true)
    })?;
    Ok(())
}
