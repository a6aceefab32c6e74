//! Where drivers' sockets and volumes lie. Drivers run in pods that mount `/var/lib/kubelet` and its folders by
//! that name, so that is how paths are told to them; on the node they are in the agent's own data folder.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Folder of a pod's volumes of drivers, by kubelet's escaped name of the volume plugin.
const PLUGIN: &str = "kubernetes.io~csi";
/// Same, among the folders of all plugins.
const OWN: &str = "plugins/kubernetes.io/csi";
/// The file that says what a folder of a volume is for.
pub(super) const RECORD: &str = "vol_data.json";

/// The agent's folders, under both of their names.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// On the node.
    own: PathBuf,
    /// As pods know it.
    known: PathBuf,
}

impl Layout {
    pub(crate) fn new(own: impl Into<PathBuf>, known: impl Into<PathBuf>) -> Self {
        Self {
            own: own.into(),
            known: known.into(),
        }
    }

    /// Where a path lies on the node that a pod or a driver names.
    pub(crate) fn on_node(&self, path: &Path) -> PathBuf {
        translate(path, &self.known, &self.own)
    }

    /// How drivers know a path of the node.
    pub(crate) fn as_known(&self, path: &Path) -> PathBuf {
        translate(path, &self.own, &self.known)
    }

    /// Is it one of the agent's folders, by the name that pods know?
    pub(crate) fn is_known(&self, path: &Path) -> bool {
        path.starts_with(&self.known)
    }

    /// Sockets of plugins that want to be registered.
    pub(super) fn registry(&self) -> PathBuf {
        self.own.join("plugins_registry")
    }

    pub(super) fn plugins(&self) -> PathBuf {
        self.own.join("plugins")
    }

    fn pods(&self) -> PathBuf {
        self.own.join("pods")
    }

    fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// A volume's folder in a pod's.
    pub(super) fn published(&self, uid: &str, volume: &str, block: bool) -> PathBuf {
        let kind = if block { "volumeDevices" } else { "volumes" };
        self.pod(uid).join(kind).join(PLUGIN).join(volume)
    }

    /// What a driver is asked to make of a volume for a pod: a mount, or a device file.
    pub(super) fn target(&self, uid: &str, volume: &str, block: bool) -> PathBuf {
        if block {
            let devices = self.own.join(OWN).join("volumeDevices/publish");
            return devices.join(volume).join(uid);
        }
        self.published(uid, volume, false).join("mount")
    }

    /// What a driver is asked to make of a volume for the whole node.
    pub(super) fn staging(&self, driver: &str, handle: &str, volume: &str, block: bool) -> PathBuf {
        if block {
            let devices = self.own.join(OWN).join("volumeDevices/staging");
            return devices.join(volume);
        }
        self.staged(driver, handle, volume, false)
            .join("globalmount")
    }

    /// The folder with the record of a staged volume.
    pub(super) fn staged(&self, driver: &str, handle: &str, volume: &str, block: bool) -> PathBuf {
        let own = self.own.join(OWN);
        if block {
            return own.join("volumeDevices").join(volume).join("data");
        }
        let digest = hex::encode(Sha256::digest(handle));
        own.join(driver).join(digest)
    }

    /// Folders of a pod's volumes that have records.
    pub(super) fn records_of_pod(&self, uid: &str) -> Vec<PathBuf> {
        let kinds = ["volumes", "volumeDevices"];
        let folders = kinds.map(|kind| self.pod(uid).join(kind).join(PLUGIN));
        with_record(folders.iter().flat_map(|folder| entries(folder)))
    }

    /// Pods that have folders, by UID.
    pub(super) fn pods_with_folders(&self) -> Vec<String> {
        let names = entries(&self.pods()).into_iter();
        names
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect()
    }

    /// Folders of staged volumes that have records.
    pub(super) fn records_of_node(&self) -> Vec<PathBuf> {
        let second = entries(&self.own.join(OWN))
            .into_iter()
            .flat_map(|driver| entries(&driver));
        with_record(second.flat_map(|folder| {
            let data = folder.join("data");
            [folder, data]
        }))
    }
}

fn translate(path: &Path, from: &Path, to: &Path) -> PathBuf {
    match path.strip_prefix(from) {
        // Joining nothing would add a slash.
        Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
        Ok(rest) => to.join(rest),
        Err(_) => path.to_owned(),
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn with_record(folders: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    folders
        .filter(|folder| folder.join(RECORD).is_file())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_and_the_node_know_the_same_folders_by_different_names() {
        let layout = Layout::new("/data/a1", "/var/lib/kubelet");
        let socket = Path::new("/var/lib/kubelet/plugins/d/csi.sock");
        let own = layout.on_node(socket);
        assert_eq!(own, Path::new("/data/a1/plugins/d/csi.sock"));
        assert_eq!(layout.as_known(&own), socket);
        assert_eq!(
            layout.on_node(Path::new("/run/d.sock")),
            Path::new("/run/d.sock")
        );
        assert_eq!(
            layout.on_node(Path::new("/var/lib/kubelet")),
            Path::new("/data/a1")
        );
        assert!(!layout.is_known(Path::new("/var/lib/kubelets")));
    }

    #[test]
    fn volumes_lie_where_kubelet_has_them() {
        let layout = Layout::new("/k", "/k");
        let text = |path: PathBuf| path.display().to_string();
        assert_eq!(
            text(layout.target("u", "pv", false)),
            "/k/pods/u/volumes/kubernetes.io~csi/pv/mount"
        );
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(
            text(layout.staging("d", "abc", "pv", false)),
            format!("/k/plugins/kubernetes.io/csi/d/{digest}/globalmount")
        );
        assert_eq!(
            text(layout.target("u", "pv", true)),
            "/k/plugins/kubernetes.io/csi/volumeDevices/publish/pv/u"
        );
    }
}
