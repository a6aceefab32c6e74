//! Keeping what other servers say of their resources, for our discovery documents.

use std::sync::Arc;
use std::time::Duration;

use balsa_api::kinds::walk::Walk;
use balsa_api::openapi::Foreign;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{Aggregator, GROUP, PLURAL, Remote, RemoteVersion};
use crate::cache::Scope;

/// Between two questions to a server whose answer is known.
const EVERY: Duration = Duration::from_secs(60);
/// While a server that should answer does not.
const SOON: Duration = Duration::from_secs(2);
/// Until the cache has been filled.
const UNSYNCED: Duration = Duration::from_millis(50);

impl Aggregator {
    /// Keeps asking, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(resource) = self.cache.resource(GROUP, PLURAL) else {
            return;
        };
        while !stop.is_cancelled() {
            let mut subscription = resource.subscribe(Scope::All, "");
            loop {
                let wait = if self.cache.is_synced() {
                    self.refresh().await
                } else {
                    UNSYNCED
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    change = subscription.changes.recv() => {
                        while subscription.changes.try_recv().is_ok() {}
                        if change.is_none() {
                            break;
                        }
                    }
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }

    /// Asks all servers. Returns when to ask again.
    async fn refresh(&self) -> Duration {
        let remotes = self.remotes();
        let before = self.kinds.set();
        let asked = remotes.iter().map(|remote| {
            let known = before
                .remote()
                .iter()
                .find(|r| r.group == remote.group && r.version == remote.version);
            self.resources(remote, known)
        });
        let mut versions = join_all(asked).await;
        let silent = |v: &RemoteVersion| v.available && v.resources.is_empty();
        let wait = if versions.iter().any(silent) {
            SOON
        } else {
            EVERY
        };
        // What they serve is told at once: their documents can take seconds, as can one that hangs.
        self.publish(versions.clone());
        let asked = remotes.iter().zip(&mut versions);
        join_all(asked.map(|(remote, version)| self.documents(remote, version))).await;
        self.publish(versions);
        wait
    }

    /// Puts what is served beside others into our discovery.
    fn publish(&self, mut versions: Vec<RemoteVersion>) {
        for own in &self.beside {
            let replaced = versions
                .iter()
                .any(|v| v.group == own.group && v.version == own.version);
            if !replaced {
                versions.push(own.clone());
            }
        }
        if self.kinds.set().remote() != versions {
            self.kinds.replace_remote(versions);
        }
    }

    /// A version with the resources that its server lists, and otherwise as it was known.
    async fn resources(&self, remote: &Remote, known: Option<&RemoteVersion>) -> RemoteVersion {
        let mut version = RemoteVersion {
            group: remote.group.clone(),
            version: remote.version.clone(),
            group_priority: remote.group_priority,
            version_priority: remote.version_priority,
            available: remote.available,
            resources: known.map(|k| k.resources.clone()).unwrap_or_default(),
            openapi: known.and_then(|k| k.openapi.clone()),
            v2: known.and_then(|k| k.v2.clone()),
        };
        if !remote.available {
            return version;
        }
        let path = format!("/apis/{}/{}", remote.group, remote.version);
        match self.ask(remote, &path).await {
            Ok((200, list)) => version.resources = list["resources"].clone(),
            Ok((code, _)) => tracing::debug!(name = remote.name, code, "no resource list"),
            Err(why) => tracing::debug!(name = remote.name, why, "no resource list"),
        }
        version
    }

    /// Asks for the OpenAPI documents of a version that is served.
    async fn documents(&self, remote: &Remote, version: &mut RemoteVersion) {
        if !remote.available {
            return;
        }
        if let Ok((200, index)) = self.ask(remote, "/openapi/v3").await {
            let path = format!("apis/{}/{}", remote.group, remote.version);
            let url = index["paths"][path]["serverRelativeURL"].text();
            version.openapi = (!url.is_empty()).then(|| url.to_owned());
        }
        if let Ok((200, document)) = self.ask(remote, "/openapi/v2").await {
            let part = Foreign::of(&document, &remote.group, &remote.version);
            version.v2 = (!part.is_empty()).then(|| Arc::new(part));
        }
    }
}
