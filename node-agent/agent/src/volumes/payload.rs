//! The files of configMap, secret, downwardAPI and projected volumes, computed and not yet written.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume,
    VolumeProjection,
};

use super::outside::Outside;
use crate::objects::Sources;
use crate::pods::fields::{self, Facts};

/// A file to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Its content.
    pub(crate) bytes: Vec<u8>,
    /// Its permissions.
    pub(crate) mode: u32,
    /// It holds a credential of the pod's: readable to its own user and group alone.
    pub(crate) private: bool,
}

/// Files by path in the volume.
pub(crate) type Payload = BTreeMap<String, File>;

/// Permissions when nothing is said.
const DEFAULT_MODE: i32 = 0o644;

/// A service account token that a projected volume wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TokenWant {
    /// Whom it is for; the API server when empty.
    pub(crate) audience: String,
    /// Life in seconds.
    pub(crate) seconds: i64,
}

/// Tokens at hand, by what was wanted.
pub(crate) type Tokens = BTreeMap<TokenWant, String>;

/// The tokens that a volume wants.
pub(crate) fn token_wants(volume: &Volume) -> Vec<TokenWant> {
    let sources = volume
        .projected
        .iter()
        .flat_map(|projected| projected.sources.iter().flatten());
    let tokens = sources.filter_map(|source| source.service_account_token.as_ref());
    tokens
        .map(|token| TokenWant {
            audience: token.audience.clone().unwrap_or_default(),
            seconds: token.expiration_seconds.unwrap_or(3600),
        })
        .collect()
}

/// What a payload is made from.
pub(crate) struct Inputs<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// What it refers to.
    pub(crate) sources: &'a Sources,
    /// Where it is.
    pub(crate) facts: &'a Facts,
    /// Its tokens.
    pub(crate) tokens: &'a Tokens,
    /// Where its volumes come from that are not made of files.
    pub(crate) outside: &'a BTreeMap<String, Outside>,
}

/// The files of a volume, or `None` if it is not of a kind made of files; the error is for people.
pub(crate) fn of(volume: &Volume, inputs: &Inputs<'_>) -> Result<Option<Payload>, String> {
    let mut payload = Payload::new();
    if let Some(source) = &volume.config_map {
        let optional = source.optional.unwrap_or(false);
        if let Some(object) = inputs.sources.config_map(&source.name, optional)? {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            add_config_map(
                &mut payload,
                object,
                source.items.as_deref(),
                mode,
                optional,
            )?;
        }
    } else if let Some(source) = &volume.secret {
        let optional = source.optional.unwrap_or(false);
        let name = source.secret_name.as_deref().unwrap_or_default();
        if let Some(object) = inputs.sources.secret(name, optional)? {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            add_secret(
                &mut payload,
                object,
                source.items.as_deref(),
                mode,
                optional,
            )?;
        }
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        add_downward(
            &mut payload,
            source.items.as_deref().unwrap_or_default(),
            mode,
            inputs,
        )?;
    } else if let Some(projected) = &volume.projected {
        add_projected(&mut payload, projected, inputs)?;
    } else {
        return Ok(None);
    }
    Ok(Some(payload))
}

fn add_projected(
    payload: &mut Payload,
    projected: &ProjectedVolumeSource,
    inputs: &Inputs<'_>,
) -> Result<(), String> {
    let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
    for source in projected.sources.iter().flatten() {
        add_projection(payload, source, mode, inputs)?;
    }
    Ok(())
}

fn add_projection(
    payload: &mut Payload,
    source: &VolumeProjection,
    mode: i32,
    inputs: &Inputs<'_>,
) -> Result<(), String> {
    if let Some(source) = &source.config_map {
        let optional = source.optional.unwrap_or(false);
        if let Some(object) = inputs.sources.config_map(&source.name, optional)? {
            add_config_map(payload, object, source.items.as_deref(), mode, optional)?;
        }
    }
    if let Some(source) = &source.secret {
        let optional = source.optional.unwrap_or(false);
        if let Some(object) = inputs.sources.secret(&source.name, optional)? {
            add_secret(payload, object, source.items.as_deref(), mode, optional)?;
        }
    }
    if let Some(source) = &source.downward_api {
        add_downward(
            payload,
            source.items.as_deref().unwrap_or_default(),
            mode,
            inputs,
        )?;
    }
    if let Some(token) = &source.service_account_token {
        let want = TokenWant {
            audience: token.audience.clone().unwrap_or_default(),
            seconds: token.expiration_seconds.unwrap_or(3600),
        };
        let text = inputs
            .tokens
            .get(&want)
            .ok_or("the service account token is not there yet")?;
        let bytes = text.as_bytes().to_vec();
        payload.insert(
            checked(&token.path)?,
            File {
                bytes,
                mode: mode_of(mode),
                private: true,
            },
        );
    }
    Ok(())
}

fn mode_of(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o777
}

/// A path that stays in its volume.
fn checked(path: &str) -> Result<String, String> {
    let bad = path.is_empty()
        || path.starts_with('/')
        || path.split('/').any(|part| part == ".." || part.is_empty());
    if bad || path.starts_with("..") {
        Err(format!("invalid path {path:?} in a volume"))
    } else {
        Ok(path.to_owned())
    }
}

fn add_config_map(
    payload: &mut Payload,
    object: &ConfigMap,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<(), String> {
    let text = object
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key, value.as_bytes()));
    let binary = object
        .binary_data
        .iter()
        .flatten()
        .map(|(key, value)| (key, value.0.as_slice()));
    let data: BTreeMap<&String, &[u8]> = text.chain(binary).collect();
    let missing = "configmap references non-existent config key";
    add_keys(payload, &data, items, mode, optional, missing)
}

fn add_secret(
    payload: &mut Payload,
    object: &Secret,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<(), String> {
    let data = object
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key, value.0.as_slice()));
    let data: BTreeMap<&String, &[u8]> = data.collect();
    let missing = "references non-existent secret key";
    add_keys(payload, &data, items, mode, optional, missing)
}

/// Adds all keys, or those asked for at the paths asked for; `missing` is what an error says before the key.
fn add_keys(
    payload: &mut Payload,
    data: &BTreeMap<&String, &[u8]>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
    missing: &str,
) -> Result<(), String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, bytes) in data {
            let file = File {
                bytes: bytes.to_vec(),
                mode: mode_of(mode),
                private: false,
            };
            payload.insert((*key).clone(), file);
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => {
                let mode = mode_of(item.mode.unwrap_or(mode));
                payload.insert(
                    checked(&item.path)?,
                    File {
                        bytes: bytes.to_vec(),
                        mode,
                        private: false,
                    },
                );
            }
            None if optional => {}
            None => return Err(format!("{missing}: {}", item.key)),
        }
    }
    Ok(())
}

fn add_downward(
    payload: &mut Payload,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    inputs: &Inputs<'_>,
) -> Result<(), String> {
    for item in items {
        let text = if let Some(selector) = &item.field_ref {
            fields::field(inputs.pod, inputs.facts, selector)?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let spec = inputs.pod.spec.as_ref();
            let container = spec.and_then(|spec| balsa_pod::spec::container(spec, name));
            let container = container.ok_or_else(|| format!("container {name} not found"))?;
            fields::resource(&container, inputs.facts, selector)?
        } else {
            String::new()
        };
        let mode = mode_of(item.mode.unwrap_or(mode));
        payload.insert(
            checked(&item.path)?,
            File {
                bytes: text.into_bytes(),
                mode,
                private: false,
            },
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn sources() -> Sources {
        let map = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}});
        let secret = json!({"data": {"k": "c2VjcmV0"}});
        Sources {
            config_maps: [(
                "m".to_owned(),
                Arc::new(serde_json::from_value(map).unwrap()),
            )]
            .into(),
            secrets: [(
                "s".to_owned(),
                Arc::new(serde_json::from_value(secret).unwrap()),
            )]
            .into(),
        }
    }

    fn payload(volume: serde_json::Value) -> Result<Option<Payload>, String> {
        let volume = serde_json::from_value(volume).unwrap();
        let pod =
            json!({"metadata": {"name": "p", "labels": {"x": "y"}}, "spec": {"containers": []}});
        let tokens = Tokens::from([(
            TokenWant {
                audience: String::new(),
                seconds: 3600,
            },
            "jwt".to_owned(),
        )]);
        let inputs = Inputs {
            pod: &serde_json::from_value(pod).unwrap(),
            sources: &sources(),
            facts: &Facts::default(),
            tokens: &tokens,
            outside: &BTreeMap::new(),
        };
        of(&volume, &inputs)
    }

    fn texts(payload: &Payload) -> Vec<(String, String, u32)> {
        let text = |file: &File| String::from_utf8_lossy(&file.bytes).into_owned();
        payload
            .iter()
            .map(|(path, file)| (path.clone(), text(file), file.mode))
            .collect()
    }

    #[test]
    fn all_keys_or_the_named_ones_become_files() {
        let all = payload(json!({"name": "v", "configMap": {"name": "m", "defaultMode": 256}}))
            .unwrap()
            .unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(all.values().all(|file| file.mode == 0o400));
        let items = json!([{"key": "b", "path": "d/e", "mode": 384}]);
        let some = payload(json!({"name": "v", "configMap": {"name": "m", "items": items}}))
            .unwrap()
            .unwrap();
        assert_eq!(texts(&some), [("d/e".to_owned(), "2".to_owned(), 0o600)]);
    }

    #[test]
    fn what_is_missing_is_an_error_unless_optional() {
        assert!(payload(json!({"name": "v", "configMap": {"name": "none"}})).is_err());
        let optional = json!({"name": "v", "secret": {"secretName": "none", "optional": true}});
        assert_eq!(payload(optional), Ok(Some(Payload::new())));
        let items = json!([{"key": "none", "path": "x"}]);
        assert!(payload(json!({"name": "v", "configMap": {"name": "m", "items": items}})).is_err());
    }

    #[test]
    fn projections_are_merged_with_the_token_private() {
        let all = payload(
            json!({"name": "v", "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "m", "items": [{"key": "a", "path": "a"}]}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"secret": {"name": "s"}}]}}),
        );
        let all = all.unwrap().unwrap();
        assert_eq!(
            all.keys().collect::<Vec<_>>(),
            ["a", "k", "labels", "token"]
        );
        assert!(all["token"].private && all["token"].bytes == b"jwt");
    }

    #[test]
    fn paths_out_of_the_volume_are_refused() {
        for path in ["../x", "/x", "a/../b", "..data", ""] {
            let items = json!([{"key": "a", "path": path}]);
            assert!(
                payload(json!({"name": "v", "configMap": {"name": "m", "items": items}})).is_err(),
                "{path}"
            );
        }
    }
}
