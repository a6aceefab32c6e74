//! Static pods: those of files in a folder of the node, which run with or without the API. The API gets a mirror
//! of each, so that its users see it; the mirror goes and comes with the file.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use balsa_api::kinds::pod::validate::validate_pod_create;
use balsa_api::schema::decode::parse_yaml;
use balsa_api::validation::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tracing::warn;

use super::capacity::SOURCE;
use crate::config::AgentConfig;

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Most bytes of a file.
const MAX_FILE: u64 = 10 << 20;

/// Annotations of static pods and their mirrors, as upstream.
const MIRROR: &str = "kubernetes.io/config.mirror";
const HASH: &str = "kubernetes.io/config.hash";
const SEEN: &str = "kubernetes.io/config.seen";

/// The static pods of a node.
pub(crate) struct Statics {
    folder: Option<PathBuf>,
    node: String,
    /// As last read.
    current: Mutex<Vec<Arc<Pod>>>,
    files: Mutex<HashMap<PathBuf, ReadFile>>,
    /// The UID before the newest change, by namespace and name.
    before: Mutex<HashMap<(String, String), String>>,
    wake: Notify,
}

/// What came of reading a file.
#[derive(Default)]
struct ReadFile {
    /// The newest pod that it made.
    pod: Option<Arc<Pod>>,
    /// Why it can't be used as it is now.
    fault: Option<String>,
}

impl Statics {
    pub(crate) fn new(config: &AgentConfig) -> Self {
        Self {
            folder: config.static_pods.clone(),
            node: config.node_name.clone(),
            current: Mutex::default(),
            files: Mutex::default(),
            before: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Are there any to come?
    pub(crate) fn any(&self) -> bool {
        self.folder.is_some()
    }

    /// As last read.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.current.lock().clone()
    }

    /// Reads the folder. A file that cannot be used, perhaps because it is just being written, leaves the pod alone that
    /// it made before: only taking the file away ends that.
    pub(crate) fn read(&self) -> Vec<Arc<Pod>> {
        let Some(folder) = &self.folder else {
            return Vec::new();
        };
        let paths = match files(folder) {
            Ok(paths) => paths,
            Err(error) => {
                warn!(%error, folder = %folder.display(), "cannot list static pods, leaving them as they are");
                return self.pods();
            }
        };
        let mut known = self.files.lock();
        known.retain(|path, _| paths.contains(path));
        let mut found: BTreeMap<(String, String), Arc<Pod>> = BTreeMap::new();
        for path in paths {
            let read = read_pod(&path, &self.node);
            let file = known.entry(path.clone()).or_default();
            match read {
                Ok(pod) => {
                    *file = ReadFile {
                        pod: Some(self.same_or(pod)),
                        fault: None,
                    };
                }
                // Told once: the folder is looked at all the time.
                Err(error) if file.fault.as_ref() != Some(&error) => {
                    warn!(error, path = %path.display(), "a static pod's file cannot be used");
                    file.fault = Some(error);
                }
                Err(_) => {}
            }
            if let Some(pod) = &file.pod {
                found.entry(key(pod)).or_insert_with(|| Arc::clone(pod));
            }
        }
        found.into_values().collect()
    }

    /// A pod read before is the same object: it keeps the time at which it was first seen.
    fn same_or(&self, pod: Pod) -> Arc<Pod> {
        let current = self.current.lock();
        let same = current
            .iter()
            .find(|known| known.metadata.uid == pod.metadata.uid);
        same.cloned().unwrap_or_else(|| Arc::new(pod))
    }

    /// Takes over what was read, and answers with those that it has no more.
    pub(crate) fn leaving(&self, wanted: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let old = std::mem::replace(&mut *self.current.lock(), wanted.to_vec());
        let stays = |pod: &Arc<Pod>| {
            wanted
                .iter()
                .any(|new| new.metadata.uid == pod.metadata.uid)
        };
        let gone: Vec<_> = old.into_iter().filter(|pod| !stays(pod)).collect();
        let mut before = self.before.lock();
        for pod in &gone {
            before.insert(key(pod), pod.metadata.uid.clone().unwrap_or_default());
        }
        gone
    }

    /// UID of the pod of that name that another file content made before.
    pub(crate) fn predecessor(&self, pod: &Pod) -> Option<String> {
        self.before.lock().get(&key(pod)).cloned()
    }

    /// A mirror has changed.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until it is time to look again.
    pub(crate) async fn changed(&self) {
        let _ = tokio::time::timeout(LOOK, self.wake.notified()).await;
    }
}

fn key(pod: &Pod) -> (String, String) {
    let metadata = &pod.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?.collect::<io::Result<Vec<_>>>()?,
    };
    let mut files: Vec<_> = entries
        .into_iter()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    Ok(files)
}

fn read_pod(path: &Path, node: &str) -> Result<Pod, String> {
    let length = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    if length > MAX_FILE {
        return Err(format!(
            "it has {length} bytes; at most {MAX_FILE} are read"
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse(&text, path, node)
}

/// The pod of a file's text.
fn parse(text: &str, path: &Path, node: &str) -> Result<Pod, String> {
    let parsed = parse_yaml(text.as_bytes()).map_err(|status| status.message)?;
    let mut value = parsed.value;
    if value["kind"] != "Pod" || value["apiVersion"] != "v1" {
        return Err("it is not a Pod of v1".to_owned());
    }
    balsa_api::kinds::pod::default::default_pod(&mut value);
    // No API has looked at it, and what is wrong with it is better told here than by half a pod.
    let faults = validate_pod_create(&value).0.into_iter();
    let faults: Vec<_> = faults.map(|fault| fault.text()).collect();
    if !faults.is_empty() {
        return Err(faults.join("; "));
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let Some(name) = pod.metadata.name.clone().filter(|name| !name.is_empty()) else {
        return Err("it has no name".to_owned());
    };
    let spec = pod.spec.as_mut().ok_or("it has no spec")?;
    spec.node_name = Some(node.to_owned());
    // It is not the node's conditions that a static pod depends on.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    });
    let mut hash = Sha256::new();
    hash.update(format!("host:{node}file:{}", path.display()));
    hash.update(text);
    let hash = hex::encode(&hash.finalize()[..16]);
    let metadata = &mut pod.metadata;
    let name = format!("{name}-{}", node.to_lowercase());
    let namespace = metadata.namespace.clone().filter(|name| !name.is_empty());
    let namespace = namespace.unwrap_or_else(|| "default".to_owned());
    let uid = metadata.uid.clone().filter(|uid| !uid.is_empty());
    let uid = uid.unwrap_or_else(|| hash.clone());
    check_names(&name, &namespace, &uid)?;
    metadata.name = Some(name);
    metadata.namespace = Some(namespace);
    metadata.uid = Some(uid);
    metadata.generation = Some(1);
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    annotations.insert(HASH.to_owned(), hash);
    annotations.insert(SEEN.to_owned(), Timestamp::now().to_string());
    pod.status = Some(Default::default());
    Ok(pod)
}

/// Folders are called by these.
fn check_names(name: &str, namespace: &str, uid: &str) -> Result<(), String> {
    let checks = [
        ("name", name, names::dns1123_subdomain(name)),
        ("namespace", namespace, names::dns1123_label(namespace)),
        ("uid", uid, names::dns1123_label(&uid.to_lowercase())),
    ];
    for (field, value, faults) in checks {
        if let Some(fault) = faults.first() {
            return Err(format!("its {field} cannot be {value:?}: {fault}"));
        }
    }
    Ok(())
}

/// Is it a mirror of a static pod?
pub(crate) fn is_mirror(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(MIRROR))
}

fn hash<'a>(pod: &'a Pod, annotation: &str) -> Option<&'a String> {
    pod.metadata.annotations.as_ref()?.get(annotation)
}

/// The mirror to show a static pod by.
pub(crate) fn make_mirror(pod: &Pod, node: &Node) -> Pod {
    let mut mirror = pod.clone();
    mirror.status = None;
    let metadata = &mut mirror.metadata;
    metadata.uid = None;
    metadata.generation = None;
    let own = hash(pod, HASH).cloned().unwrap_or_default();
    metadata
        .annotations
        .get_or_insert_default()
        .insert(MIRROR.to_owned(), own);
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    mirror
}

/// The mirror that the API has of a static pod.
pub(crate) fn mirror_of(pod: &Pod, known: &[Arc<Pod>]) -> Option<Arc<Pod>> {
    let shows = |mirror: &&Arc<Pod>| {
        is_mirror(mirror) && key(mirror) == key(pod) && hash(mirror, MIRROR) == hash(pod, HASH)
    };
    known.iter().find(shows).cloned()
}

/// Mirrors that show nothing, or something that has changed, or that somebody is deleting.
pub(crate) fn stale<'a>(
    mirrors: impl Iterator<Item = &'a Arc<Pod>>,
    wanted: &[Arc<Pod>],
) -> Vec<&'a Arc<Pod>> {
    mirrors
        .filter(|mirror| {
            mirror.metadata.deletion_timestamp.is_some()
                || !wanted
                    .iter()
                    .any(|pod| key(pod) == key(mirror) && hash(mirror, MIRROR) == hash(pod, HASH))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: c\n    image: app:1\n";

    fn pod(text: &str) -> Result<Pod, String> {
        parse(text, Path::new("/m/web.yaml"), "a1")
    }

    #[test]
    fn a_file_becomes_a_pod_of_the_node_with_defaults() {
        let pod = pod(TEXT).unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-a1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("a1"));
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
        assert_eq!(spec.termination_grace_period_seconds, Some(30));
    }

    #[test]
    fn another_content_is_another_pod_and_makes_its_mirror_stale() {
        let (one, two) = (pod(TEXT).unwrap(), pod(&TEXT.replace(":1", ":2")).unwrap());
        assert_ne!(one.metadata.uid, two.metadata.uid);
        let mirror = Arc::new(make_mirror(&one, &Node::default()));
        assert!(is_mirror(&mirror));
        let mirrors = [mirror];
        assert!(stale(mirrors.iter(), &[Arc::new(one.clone())]).is_empty());
        assert_eq!(stale(mirrors.iter(), &[Arc::new(two.clone())]).len(), 1);
        assert!(mirror_of(&one, &mirrors).is_some() && mirror_of(&two, &mirrors).is_none());
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        assert!(pod("kind: Service\napiVersion: v1\n").is_err());
        assert!(pod("{").is_err());
    }

    #[test]
    fn what_no_api_would_take_is_refused_with_the_field_named() {
        for (what, with, named) in [
            ("name: web", "name: we/b", "name"),
            ("name: web", "{name: web, namespace: ../x}", "namespace"),
            ("name: web", "{name: web, uid: ../x}", "uid"),
            ("name: c", "name: C", "spec.containers[0].name"),
        ] {
            let text = TEXT.replacen(what, with, 1);
            let fault = pod(&text).unwrap_err();
            assert!(fault.contains(named), "{fault}");
        }
        let nameless = TEXT.replace("name: web", "name: web\n  uid: ''");
        assert_eq!(pod(&nameless).unwrap().metadata.uid.unwrap().len(), 32);
    }

    #[test]
    fn a_file_that_turns_to_garbage_leaves_its_pod_alone_until_it_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = AgentConfig::new("a1", [127, 0, 0, 1].into(), dir.path());
        config.static_pods = Some(dir.path().join("manifests"));
        let statics = Statics::new(&config);
        assert!(statics.read().is_empty());
        let file = dir.path().join("manifests/web.yaml");
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        std::fs::write(&file, TEXT).unwrap();
        let first = statics.read();
        statics.leaving(&first);
        std::fs::write(&file, &TEXT[..TEXT.len() / 2]).unwrap();
        let garbage = statics.read();
        assert!(Arc::ptr_eq(&first[0], &garbage[0]));
        assert!(statics.leaving(&garbage).is_empty());
        std::fs::write(&file, TEXT.replace(":1", ":2")).unwrap();
        assert_ne!(statics.read()[0].metadata.uid, first[0].metadata.uid);
        std::fs::remove_file(&file).unwrap();
        assert!(statics.read().is_empty());
    }
}
