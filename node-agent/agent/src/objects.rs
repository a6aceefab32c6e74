//! ConfigMaps and Secrets that the node's pods refer to. Each is watched by itself, by name, as long as some
//! pod needs it: a node may see no others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use balsa_client::{Informer, InformerOptions};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Api;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a first look at an object may take.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reference {
    /// A ConfigMap by name.
    ConfigMap(String),
    /// A Secret by name.
    Secret(String),
}

/// The objects that one pod refers to, as they are now; those that do not exist are missing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: BTreeMap<String, Arc<ConfigMap>>,
    pub(crate) secrets: BTreeMap<String, Arc<Secret>>,
}

impl Sources {
    /// A ConfigMap, or an error in upstream's words when it must exist.
    pub(crate) fn config_map(
        &self,
        name: &str,
        optional: bool,
    ) -> Result<Option<&ConfigMap>, String> {
        match self.config_maps.get(name) {
            Some(object) => Ok(Some(object)),
            None if optional => Ok(None),
            None => Err(format!("configmap \"{name}\" not found")),
        }
    }

    /// A Secret, or an error in upstream's words when it must exist.
    pub(crate) fn secret(&self, name: &str, optional: bool) -> Result<Option<&Secret>, String> {
        match self.secrets.get(name) {
            Some(object) => Ok(Some(object)),
            None if optional => Ok(None),
            None => Err(format!("secret \"{name}\" not found")),
        }
    }
}

/// Everything that a pod refers to: environments, volumes, pull secrets.
pub(crate) fn references(pod: &Pod) -> HashSet<Reference> {
    let mut found = HashSet::new();
    let Some(spec) = &pod.spec else { return found };
    let ephemeral = balsa_pod::spec::ephemeral(spec);
    let ephemeral = ephemeral.iter().map(|member| &*member.container);
    for container in balsa_pod::spec::ordinary(spec).chain(ephemeral) {
        for from in container.env_from.iter().flatten() {
            found.extend(
                from.config_map_ref
                    .iter()
                    .map(|r| Reference::ConfigMap(r.name.clone())),
            );
            found.extend(
                from.secret_ref
                    .iter()
                    .map(|r| Reference::Secret(r.name.clone())),
            );
        }
        for from in container
            .env
            .iter()
            .flatten()
            .filter_map(|var| var.value_from.as_ref())
        {
            found.extend(
                from.config_map_key_ref
                    .iter()
                    .map(|r| Reference::ConfigMap(r.name.clone())),
            );
            found.extend(
                from.secret_key_ref
                    .iter()
                    .map(|r| Reference::Secret(r.name.clone())),
            );
        }
    }
    for volume in spec.volumes.iter().flatten() {
        found.extend(
            volume
                .config_map
                .iter()
                .map(|source| Reference::ConfigMap(source.name.clone())),
        );
        let secret = volume
            .secret
            .iter()
            .filter_map(|source| source.secret_name.clone());
        found.extend(secret.map(Reference::Secret));
        let projected = volume
            .projected
            .iter()
            .flat_map(|source| source.sources.iter().flatten());
        for source in projected {
            found.extend(
                source
                    .config_map
                    .iter()
                    .map(|source| Reference::ConfigMap(source.name.clone())),
            );
            found.extend(
                source
                    .secret
                    .iter()
                    .map(|source| Reference::Secret(source.name.clone())),
            );
        }
    }
    // The API takes ones without a name, which charts render; they mean nothing.
    let pull = spec.image_pull_secrets.iter().flatten();
    found.extend(
        pull.filter(|secret| !secret.name.is_empty())
            .map(|secret| Reference::Secret(secret.name.clone())),
    );
    found
}

/// Where changes are told: the UIDs of the pods that refer to the object.
pub(crate) type OnChange = Arc<dyn Fn(&[String]) + Send + Sync>;

/// Keeps the objects that pods refer to.
pub(crate) struct Objects {
    client: kube::Client,
    /// Told of changes; never called under `entries`.
    on_change: OnChange,
    entries: Arc<Mutex<HashMap<(String, Reference), Entry>>>,
    stop: CancellationToken,
}

struct Entry {
    informer: AnyInformer,
    users: HashSet<String>,
    _stop: DropGuard,
}

#[derive(Clone)]
enum AnyInformer {
    ConfigMap(Informer<ConfigMap>),
    Secret(Informer<Secret>),
}

impl Objects {
    /// Watches until stopped.
    pub(crate) fn new(client: kube::Client, on_change: OnChange, stop: CancellationToken) -> Self {
        Self {
            client,
            on_change,
            entries: Arc::default(),
            stop,
        }
    }

    /// Everything that the pod refers to, watched from now on until released.
    pub(crate) async fn sources(&self, pod: &Pod) -> Result<Sources, String> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let wanted = references(pod);
        let informers: Vec<_> = wanted
            .into_iter()
            .map(|reference| (self.follow(&namespace, &reference, &uid), reference))
            .collect();
        let mut sources = Sources::default();
        for (informer, reference) in informers {
            let synced = async {
                match &informer {
                    AnyInformer::ConfigMap(informer) => informer.synced().await,
                    AnyInformer::Secret(informer) => informer.synced().await,
                }
            };
            let timeout = tokio::time::timeout(FIRST_LOOK, synced).await;
            timeout.map_err(|_| {
                format!("timed out waiting for {reference:?} of namespace {namespace}")
            })?;
            match (informer, reference) {
                (AnyInformer::ConfigMap(informer), Reference::ConfigMap(name)) => {
                    sources
                        .config_maps
                        .extend(informer.get(&namespace, &name).map(|object| (name, object)));
                }
                (AnyInformer::Secret(informer), Reference::Secret(name)) => {
                    sources
                        .secrets
                        .extend(informer.get(&namespace, &name).map(|object| (name, object)));
                }
                _ => {}
            }
        }
        Ok(sources)
    }

    /// Stops watching what only this pod referred to.
    pub(crate) fn release(&self, uid: &str) {
        self.entries.lock().retain(|_, entry| {
            entry.users.remove(uid);
            !entry.users.is_empty()
        });
    }

    fn follow(&self, namespace: &str, reference: &Reference, uid: &str) -> AnyInformer {
        let key = (namespace.to_owned(), reference.clone());
        let informer = {
            let mut entries = self.entries.lock();
            if let Some(entry) = entries.get_mut(&key) {
                entry.users.insert(uid.to_owned());
                return entry.informer.clone();
            }
            let stop = self.stop.child_token();
            let informer = self.start(namespace, reference, stop.clone());
            let users = HashSet::from([uid.to_owned()]);
            entries.insert(
                key.clone(),
                Entry {
                    informer: informer.clone(),
                    users,
                    _stop: stop.drop_guard(),
                },
            );
            informer
        };
        let (entries, on_change) = (Arc::clone(&self.entries), Arc::clone(&self.on_change));
        let tell = move || {
            let users = entries
                .lock()
                .get(&key)
                .map(|entry| entry.users.iter().cloned().collect::<Vec<_>>());
            if let Some(users) = users {
                on_change(&users);
            }
        };
        match &informer {
            AnyInformer::ConfigMap(informer) => informer.on_change(move |_| tell()),
            AnyInformer::Secret(informer) => informer.on_change(move |_| tell()),
        }
        informer
    }

    fn start(
        &self,
        namespace: &str,
        reference: &Reference,
        stop: CancellationToken,
    ) -> AnyInformer {
        let client = self.client.clone();
        match reference {
            Reference::ConfigMap(name) => {
                let options = InformerOptions::fields(format!("metadata.name={name}"));
                AnyInformer::ConfigMap(Informer::start(
                    Api::namespaced(client, namespace),
                    options,
                    stop,
                ))
            }
            Reference::Secret(name) => {
                let options = InformerOptions::fields(format!("metadata.name={name}"));
                AnyInformer::Secret(Informer::start(
                    Api::namespaced(client, namespace),
                    options,
                    stop,
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn references_of_environments_volumes_and_pulls_are_found() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}, {"name": ""}, {}],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s1"}}]}],
            "containers": [{"name": "c", "env": [{"name": "A",
                "valueFrom": {"configMapKeyRef": {"name": "m1", "key": "k"}}}]}],
            "volumes": [{"name": "v", "configMap": {"name": "m2"}}, {"name": "w", "secret": {"secretName": "s2"}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "m3"}}, {"secret": {"name": "s3"}}]}}]
        }}))
        .unwrap();
        let found = references(&pod);
        let map = |name: &str| Reference::ConfigMap(name.to_owned());
        let secret = |name: &str| Reference::Secret(name.to_owned());
        let wanted = [
            map("m1"),
            map("m2"),
            map("m3"),
            secret("s1"),
            secret("s2"),
            secret("s3"),
            secret("pull"),
        ];
        assert_eq!(found, HashSet::from(wanted));
    }
}
