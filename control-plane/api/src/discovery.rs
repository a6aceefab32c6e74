//! What the server serves: `/api`, `/apis`, resource lists, and the aggregated form of all of it.
//!
//! All documents are made from the declared [`Kind`]s, so that they cannot disagree with what is routed.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

use crate::kind::{Kind, Scope, Subresource};
use crate::kinds::converter;
use crate::object::join_api_version;

/// Group order of `/apis`; clients resolve an ambiguous resource name in the first group that has it.
const GROUP_ORDER: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "storagemigration.k8s.io",
    "internal.apiserver.k8s.io",
];

/// Where a built-in group stands in `/apis`.
#[must_use]
pub fn group_rank(group: &str) -> Option<usize> {
    GROUP_ORDER.iter().position(|g| *g == group)
}

/// A version's name with its kinds, sorted by resource.
type Versions<'k> = Vec<(&'k str, Vec<&'k Kind>)>;

/// Kinds by group, then version, both in the order clients should prefer.
fn grouped(kinds: &[Arc<Kind>]) -> Vec<(&str, Versions<'_>)> {
    let mut groups: BTreeMap<&str, BTreeMap<&str, Vec<&Kind>>> = BTreeMap::new();
    for kind in kinds {
        groups
            .entry(&kind.group)
            .or_default()
            .entry(&kind.version)
            .or_default()
            .push(kind);
    }
    let mut list: Vec<_> = groups
        .into_iter()
        .map(|(group, versions)| {
            let mut versions: Vec<_> = versions.into_iter().collect();
            versions.sort_by(|a, b| compare_versions(a.0, b.0));
            for (_, kinds) in &mut versions {
                kinds.sort_by(|a, b| a.plural.cmp(&b.plural));
            }
            (group, versions)
        })
        .collect();
    let rank = |group: &str| {
        GROUP_ORDER
            .iter()
            .position(|g| *g == group)
            .unwrap_or(GROUP_ORDER.len())
    };
    list.sort_by_key(|(group, _)| (rank(group), *group));
    list
}

/// Stable before beta before alpha, then higher numbers first; other texts last, alphabetically.
///
/// Source: apimachinery `version.CompareKubeAwareVersionStrings`.
#[must_use]
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (version_key(a), version_key(b)) {
        (Some(x), Some(y)) => y.cmp(&x),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// Stability (2 stable, 1 beta, 0 alpha), major and minor number of `v1`, `v2beta3`.
fn version_key(version: &str) -> Option<(u8, u32, u32)> {
    let rest = version.strip_prefix('v')?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let major = rest[..end].parse().ok()?;
    let (stability, minor) = match &rest[end..] {
        "" => return Some((2, major, 0)),
        tail if tail.starts_with("beta") => (1, &tail[4..]),
        tail if tail.starts_with("alpha") => (0, &tail[5..]),
        _ => return None,
    };
    Some((stability, major, minor.parse().ok()?))
}

/// `GET /api`. `server_address` is `host:port`.
#[must_use]
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

fn group_value(group: &str, versions: &[(&str, Vec<&Kind>)]) -> Value {
    let entries: Vec<Value> = versions
        .iter()
        .map(|(version, _)| json!({"groupVersion": join_api_version(group, version), "version": version}))
        .collect();
    let preferred = entries.first().cloned().unwrap_or_default();
    json!({"name": group, "versions": entries, "preferredVersion": preferred})
}

/// `GET /apis`.
#[must_use]
pub fn api_group_list(kinds: &[Arc<Kind>]) -> Value {
    let groups: Vec<Value> = grouped(kinds)
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_value(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/GROUP`; `None` when nothing of the group is served.
#[must_use]
pub fn api_group(kinds: &[Arc<Kind>], group: &str) -> Option<Value> {
    let groups = grouped(kinds);
    let (group, versions) = groups
        .iter()
        .find(|(name, _)| *name == group && !name.is_empty())?;
    let mut value = group_value(group, versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

fn sorted(verbs: &[&str]) -> Vec<String> {
    let mut verbs: Vec<String> = verbs.iter().map(|v| (*v).to_owned()).collect();
    verbs.sort_unstable();
    verbs
}

/// `GET /api/v1` and `GET /apis/GROUP/VERSION`; `None` when nothing of it is served.
#[must_use]
pub fn api_resource_list(kinds: &[Arc<Kind>], group: &str, version: &str) -> Option<Value> {
    let mut kinds: Vec<&Kind> = kinds
        .iter()
        .map(AsRef::as_ref)
        .filter(|k| k.group == group && k.version == version)
        .collect();
    if kinds.is_empty() {
        return None;
    }
    kinds.sort_by(|a, b| a.plural.cmp(&b.plural));
    let mut resources = Vec::new();
    for kind in kinds {
        if !kind.verbs.is_empty() {
            resources.push(resource_value(kind));
        }
        let mut subresources: Vec<&Subresource> = kind.subresources.iter().collect();
        subresources.sort_by(|a, b| a.name.cmp(&b.name));
        resources.extend(subresources.into_iter().map(|s| subresource_value(kind, s)));
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": join_api_version(group, version),
        "resources": resources,
    }))
}

fn resource_value(kind: &Kind) -> Value {
    let mut value = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.scope == Scope::Namespaced,
        "kind": kind.kind,
        "verbs": sorted(kind.verbs),
    });
    if !kind.short_names.is_empty() {
        value["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        value["categories"] = json!(kind.categories);
    }
    if kind.verbs.contains(&"list") {
        let own = [&*kind.group, &*kind.version, &*kind.kind];
        let [group, version, stored] =
            converter(&kind.group, &kind.version, &kind.kind).map_or(own, |c| c.stored_as());
        value["storageVersionHash"] = storage_version_hash(group, version, stored).into();
    }
    value
}

fn subresource_value(kind: &Kind, subresource: &Subresource) -> Value {
    let mut value = json!({
        "name": format!("{}/{}", kind.plural, subresource.name),
        "singularName": "",
        "namespaced": kind.scope == Scope::Namespaced,
        "kind": subresource.kind,
        "verbs": sorted(subresource.verbs),
    });
    if subresource.group != kind.group || subresource.version != kind.version {
        value["group"] = json!(subresource.group);
        value["version"] = json!(subresource.version);
    }
    value
}

/// A short name for the form in which a kind is stored, for clients that watch for storage migrations.
#[must_use]
pub fn storage_version_hash(group: &str, version: &str, kind: &str) -> String {
    let digest = Sha256::digest(format!("{group}/{version}/{kind}"));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// The aggregated document (`apidiscovery.k8s.io/v2`) for `/api` (`core`) or `/apis`.
#[must_use]
pub fn aggregated(kinds: &[Arc<Kind>], core: bool) -> Value {
    let items: Vec<Value> = grouped(kinds)
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| aggregated_group(group, versions))
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(group: &str, versions: &[(&str, Vec<&Kind>)]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|(version, kinds)| {
            let resources: Vec<Value> =
                kinds.iter().map(|kind| aggregated_resource(kind)).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.is_empty() {
        json!({})
    } else {
        json!({"name": group})
    };
    json!({"metadata": metadata, "versions": versions})
}

fn response_kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let scope = if kind.scope == Scope::Namespaced {
        "Namespaced"
    } else {
        "Cluster"
    };
    let mut value = json!({
        "resource": kind.plural,
        "responseKind": response_kind(&kind.group, &kind.version, &kind.kind),
        "scope": scope,
        "singularResource": kind.singular,
        "verbs": sorted(kind.verbs),
    });
    if !kind.short_names.is_empty() {
        value["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        value["categories"] = json!(kind.categories);
    }
    if !kind.subresources.is_empty() {
        let mut list: Vec<&Subresource> = kind.subresources.iter().collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        let list: Vec<Value> = list
            .into_iter()
            .map(|s| {
                json!({
                    "subresource": s.name,
                    "responseKind": response_kind(&s.group, &s.version, &s.kind),
                    "verbs": sorted(s.verbs),
                })
            })
            .collect();
        value["subresources"] = list.into();
    }
    value
}

/// A strong ETag for a document's bytes, quotes included.
#[must_use]
pub fn etag(document: &[u8]) -> String {
    format!("\"{}\"", hex::encode_upper(Sha512::digest(document)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kind::{ALL_VERBS, Column, Strategy};
    use crate::status::FieldErrors;

    struct Plain;
    impl Strategy for Plain {
        fn prepare_create(&self, _: &mut Value) {}
        fn prepare_update(&self, _: &mut Value, _: &Value) {}
        fn prepare_status_update(&self, _: &mut Value, _: &Value) {}
        fn validate_create(&self, _: &Value) -> FieldErrors {
            FieldErrors::default()
        }
        fn validate_update(&self, _: &Value, _: &Value) -> FieldErrors {
            FieldErrors::default()
        }
        fn columns(&self) -> Vec<Column> {
            Vec::new()
        }
        fn row(&self, _: &Value, _: jiff::Timestamp) -> Vec<Value> {
            Vec::new()
        }
    }

    fn kind(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
    ) -> Arc<Kind> {
        Arc::new(Kind {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: kind.to_lowercase().into(),
            short_names: vec!["sn".into()],
            categories: vec!["all".into()],
            scope: Scope::Namespaced,
            verbs: ALL_VERBS,
            subresources: vec![Subresource {
                name: "scale".into(),
                group: "autoscaling".into(),
                version: "v1".into(),
                kind: "Scale".into(),
                verbs: &["patch", "get", "update"],
            }],
            strategy: Box::new(Plain),
        })
    }

    #[test]
    fn versions_order_by_stability_then_number() {
        let mut versions = vec!["foo", "v1alpha1", "v1", "v2beta1", "v10", "v1beta2", "bar"];
        versions.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(
            versions,
            ["v10", "v1", "v2beta1", "v1beta2", "v1alpha1", "bar", "foo"]
        );
    }

    #[test]
    fn the_storage_hash_is_the_one_kubernetes_prints() {
        assert_eq!(storage_version_hash("", "v1", "Pod"), "xPOwRZ+Yhw8=");
        assert_eq!(
            storage_version_hash("apps", "v1", "Deployment"),
            "8aSe+NMegvE="
        );
    }

    #[test]
    fn resources_and_their_subresources_are_listed_once_with_their_own_kind() {
        let kinds = [
            kind("apps", "v1", "Deployment", "deployments"),
            kind("", "v1", "Pod", "pods"),
        ];
        let list = api_resource_list(&kinds, "apps", "v1").unwrap();
        assert_eq!(list["groupVersion"], "apps/v1");
        assert_eq!(list["resources"].as_array().unwrap().len(), 2);
        assert_eq!(list["resources"][0]["shortNames"][0], "sn");
        assert_eq!(list["resources"][1]["name"], "deployments/scale");
        assert_eq!(list["resources"][1]["group"], "autoscaling");
        assert_eq!(
            list["resources"][1]["verbs"],
            json!(["get", "patch", "update"])
        );
        assert!(api_resource_list(&kinds, "batch", "v1").is_none());
    }

    #[test]
    fn the_core_group_is_only_under_api() {
        let kinds = [
            kind("batch", "v1", "Job", "jobs"),
            kind("apps", "v1beta1", "Old", "olds"),
            kind("apps", "v1", "Deployment", "deployments"),
            kind("", "v1", "Pod", "pods"),
        ];
        let list = api_group_list(&kinds);
        assert_eq!(list["groups"][0]["name"], "apps");
        assert_eq!(
            list["groups"][0]["preferredVersion"]["groupVersion"],
            "apps/v1"
        );
        assert_eq!(list["groups"][1]["name"], "batch");
        assert!(api_group(&kinds, "").is_none());
        assert_eq!(api_group(&kinds, "batch").unwrap()["kind"], "APIGroup");
        let core = aggregated(&kinds, true);
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        assert_eq!(
            core["items"][0]["versions"][0]["resources"][0]["resource"],
            "pods"
        );
        let rest = aggregated(&kinds, false);
        assert_eq!(
            rest["items"][0]["versions"][0]["resources"][0]["subresources"][0]["subresource"],
            "scale"
        );
    }

    #[test]
    fn the_etag_changes_with_the_document() {
        assert_ne!(etag(b"a"), etag(b"b"));
        assert_eq!(etag(b"a").len(), 130);
    }
}
