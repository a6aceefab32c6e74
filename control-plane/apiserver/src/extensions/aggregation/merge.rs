//! Discovery documents with what other servers serve put in.

use std::sync::Arc;

use balsa_api::kinds::walk::Walk;
use balsa_api::object::join_api_version;
use balsa_api::openapi::Foreign;
use serde_json::{Map, Value, json};

/// What is known of one group version of another server.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RemoteVersion {
    /// Its group.
    pub group: String,
    /// Its version.
    pub version: String,
    /// Groups with a higher one come first.
    pub group_priority: i64,
    /// Versions with a higher one come first within the group.
    pub version_priority: i64,
    /// The server answers.
    pub available: bool,
    /// `resources` of its APIResourceList, as it last answered.
    pub resources: Value,
    /// Where its OpenAPI v3 document is, with a hash, when it has one.
    pub openapi: Option<String>,
    /// Its part of the server's OpenAPI v2 document, when it has one.
    pub v2: Option<Arc<Foreign>>,
}

/// Groups of other servers with their versions, in the order of preference.
fn groups(remotes: &[RemoteVersion]) -> Vec<(&str, Vec<&RemoteVersion>)> {
    let mut sorted: Vec<&RemoteVersion> = remotes.iter().collect();
    sorted.sort_by_key(|r| {
        (
            -r.group_priority,
            r.group.as_str(),
            -r.version_priority,
            r.version.as_str(),
        )
    });
    let mut groups: Vec<(&str, Vec<&RemoteVersion>)> = Vec::new();
    for remote in sorted {
        match groups.iter_mut().find(|(group, _)| *group == remote.group) {
            Some((_, versions)) => versions.push(remote),
            None => groups.push((&remote.group, vec![remote])),
        }
    }
    groups
}

fn entry(remote: &RemoteVersion) -> Value {
    json!({"groupVersion": join_api_version(&remote.group, &remote.version), "version": remote.version})
}

fn api_group(group: &str, versions: &[&RemoteVersion]) -> Value {
    let entries: Vec<Value> = versions.iter().map(|r| entry(r)).collect();
    let preferred = entries.first().cloned().unwrap_or_default();
    json!({"name": group, "versions": entries, "preferredVersion": preferred})
}

/// `/apis/GROUP` of a group that only others serve.
#[must_use]
pub fn group(remotes: &[RemoteVersion], name: &str) -> Option<Value> {
    let groups = groups(remotes);
    let (group, versions) = groups.iter().find(|(group, _)| *group == name)?;
    let mut value = api_group(group, versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

/// Puts the others' groups into `/apis`.
pub fn into_group_list(list: &mut Value, remotes: &[RemoteVersion]) {
    let Some(present) = list["groups"].as_array_mut() else {
        return;
    };
    for (group, versions) in groups(remotes) {
        match present.iter_mut().find(|g| g["name"].text() == group) {
            Some(known) => {
                if let Some(entries) = known["versions"].as_array_mut() {
                    entries.extend(versions.iter().map(|r| entry(r)));
                }
            }
            None => present.push(api_group(group, &versions)),
        }
    }
}

/// Puts them into the aggregated form of `/apis`.
pub fn into_aggregated(list: &mut Value, remotes: &[RemoteVersion]) {
    let Some(present) = list["items"].as_array_mut() else {
        return;
    };
    for (group, versions) in groups(remotes) {
        let entries: Vec<Value> = versions.iter().map(|r| aggregated_version(r)).collect();
        match present
            .iter_mut()
            .find(|g| g["metadata"]["name"].text() == group)
        {
            Some(known) => {
                if let Some(known) = known["versions"].as_array_mut() {
                    known.extend(entries);
                }
            }
            None => present.push(json!({"metadata": {"name": group}, "versions": entries})),
        }
    }
}

fn aggregated_version(remote: &RemoteVersion) -> Value {
    let mut resources: Vec<Value> = Vec::new();
    let list = remote.resources.items();
    let plain = list.iter().filter(|r| !r["name"].text().contains('/'));
    for resource in plain {
        resources.push(aggregated_resource(remote, resource));
    }
    for resource in list {
        let Some((parent, name)) = resource["name"].text().split_once('/') else {
            continue;
        };
        let sub = json!({"subresource": name, "responseKind": response_kind(remote, resource), "verbs": resource["verbs"]});
        let known = resources
            .iter_mut()
            .find(|r| r["resource"].text() == parent);
        let Some(known) = known.and_then(Value::as_object_mut) else {
            continue;
        };
        let subs = known
            .entry("subresources")
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Some(subs) = subs.as_array_mut() {
            subs.push(sub);
        }
    }
    let freshness = if remote.available { "Current" } else { "Stale" };
    json!({"version": remote.version, "resources": resources, "freshness": freshness})
}

fn response_kind(remote: &RemoteVersion, resource: &Value) -> Value {
    let or = |key: &str, own: &str| match resource[key].text() {
        "" => own.to_owned(),
        text => text.to_owned(),
    };
    json!({"group": or("group", &remote.group), "version": or("version", &remote.version), "kind": resource["kind"]})
}

fn aggregated_resource(remote: &RemoteVersion, resource: &Value) -> Value {
    let mut value = Map::new();
    value.insert("resource".to_owned(), resource["name"].clone());
    value.insert("responseKind".to_owned(), response_kind(remote, resource));
    let scope = if resource["namespaced"].is_true() {
        "Namespaced"
    } else {
        "Cluster"
    };
    value.insert("scope".to_owned(), scope.into());
    value.insert(
        "singularResource".to_owned(),
        resource["singularName"].text().into(),
    );
    for key in ["verbs", "shortNames", "categories"] {
        if resource[key].present() {
            value.insert(key.to_owned(), resource[key].clone());
        }
    }
    value.into()
}

/// Puts the others' documents into the index of OpenAPI v3.
pub fn into_openapi_index(index: &mut Value, remotes: &[RemoteVersion]) {
    for remote in remotes {
        if let Some(url) = &remote.openapi {
            let path = format!("apis/{}/{}", remote.group, remote.version);
            index["paths"][path] = json!({"serverRelativeURL": url});
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn remote(version: &str, priority: i64) -> RemoteVersion {
        RemoteVersion {
            group: "metrics.k8s.io".into(),
            version: version.into(),
            group_priority: 100,
            version_priority: priority,
            available: true,
            resources: json!([{"name": "nodes", "kind": "NodeMetrics", "namespaced": false, "verbs": ["get"]},
                {"name": "nodes/x", "kind": "X", "group": "g", "version": "v9", "verbs": ["get"]}]),
            openapi: None,
            v2: None,
        }
    }

    #[test]
    fn groups_of_other_servers_stand_beside_our_own() {
        let remotes = [remote("v1beta1", 1), remote("v1", 2)];
        let mut list = json!({"groups": [{"name": "apps"}]});
        into_group_list(&mut list, &remotes);
        assert_eq!(
            list["groups"][1]["preferredVersion"]["groupVersion"],
            "metrics.k8s.io/v1"
        );
        let mut list = json!({"items": []});
        into_aggregated(&mut list, &remotes);
        let first = &list["items"][0]["versions"][0];
        assert_eq!(
            (first["version"].text(), first["freshness"].text()),
            ("v1", "Current")
        );
        assert_eq!(
            first["resources"][0]["subresources"][0]["responseKind"]["version"],
            "v9"
        );
        assert_eq!(
            group(&remotes, "metrics.k8s.io").unwrap()["kind"],
            "APIGroup"
        );
        assert_eq!(group(&remotes, "other"), None);
    }
}
