//! Which kinds the API server serves now.

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResourceList};
use kube::Client;
use kube::api::ApiResource;
use kube::discovery::Scope;

/// A kind and what may be done with it.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) api: ApiResource,
    pub(crate) scope: Scope,
    verbs: Vec<String>,
}

impl Served {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }
}

/// All kinds in their preferred versions, and the groups that could not be asked.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    pub(crate) resources: Vec<Served>,
    pub(crate) failed: Vec<String>,
}

impl Discovered {
    /// Kinds by group and kind; owner references name versions that need not be the preferred ones.
    pub(crate) fn by_kind(&self) -> HashMap<(String, String), Served> {
        let key = |served: &Served| (served.api.group.clone(), served.api.kind.clone());
        self.resources
            .iter()
            .map(|served| (key(served), served.clone()))
            .collect()
    }
}

/// Asks the API server; a group that fails does not hide the others.
pub(crate) async fn discover(client: &Client) -> Discovered {
    let mut found = Discovered::default();
    match client.list_core_api_resources("v1").await {
        Ok(list) => found.resources.extend(served("", "v1", list)),
        Err(error) => found.failed.push(format!("v1: {error}")),
    }
    let groups: Vec<APIGroup> = match client.list_api_groups().await {
        Ok(groups) => groups.groups,
        Err(error) => {
            found.failed.push(error.to_string());
            return found;
        }
    };
    for group in groups {
        let preferred = group
            .preferred_version
            .as_ref()
            .or_else(|| group.versions.first());
        let Some(version) = preferred else { continue };
        match client
            .list_api_group_resources(&version.group_version)
            .await
        {
            Ok(list) => found
                .resources
                .extend(served(&group.name, &version.version, list)),
            Err(error) => found
                .failed
                .push(format!("{}: {error}", version.group_version)),
        }
    }
    found
}

fn served(group: &str, version: &str, list: APIResourceList) -> Vec<Served> {
    let api_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    list.resources
        .into_iter()
        .filter(|resource| !resource.name.contains('/'))
        .map(|resource| Served {
            api: ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version: api_version.clone(),
                kind: resource.kind,
                plural: resource.name,
            },
            scope: if resource.namespaced {
                Scope::Namespaced
            } else {
                Scope::Cluster
            },
            verbs: resource.verbs,
        })
        .collect()
}
