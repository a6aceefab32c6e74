//! What the v2 document of another server says of one group version, to be put into ours.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

const DEFINITIONS: &str = "#/definitions/";

/// One group version's part of a v2 document.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Foreign {
    pub(super) paths: BTreeMap<String, Value>,
    pub(super) definitions: BTreeMap<String, Value>,
}

impl Foreign {
    /// Takes the paths of a group version out of a document, and the definitions that they lead to.
    #[must_use]
    pub fn of(document: &Value, group: &str, version: &str) -> Self {
        let root = format!("/apis/{group}/{version}");
        let below = format!("{root}/");
        let all = document["paths"].as_object().into_iter().flatten();
        let paths: BTreeMap<String, Value> = all
            .filter(|(path, item)| item.is_object() && (**path == root || path.starts_with(&below)))
            .map(|(path, item)| (path.clone(), item.clone()))
            .collect();
        let mut wanted = BTreeSet::new();
        paths
            .values()
            .for_each(|item| references(item, &mut wanted));
        let mut definitions = BTreeMap::new();
        while let Some(name) = wanted.pop_first() {
            let Some(definition) = document["definitions"].get(&name) else {
                continue;
            };
            let mut more = BTreeSet::new();
            references(definition, &mut more);
            definitions.insert(name, definition.clone());
            wanted.extend(
                more.into_iter()
                    .filter(|name| !definitions.contains_key(name)),
            );
        }
        Self { paths, definitions }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

/// Names of the definitions that a value refers to.
fn references(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str().and_then(|v| v.strip_prefix(DEFINITIONS)) {
                    Some(name) if key == "$ref" => {
                        names.insert(name.to_owned());
                    }
                    _ => references(value, names),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::{Served, v2_document};
    use super::*;
    use crate::kinds;

    #[test]
    fn a_group_version_brings_its_paths_and_what_they_lead_to() {
        let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
        let document = json!({
            "paths": {
                "/apis/g.example.com/v1/things": {"get": {"schema": {"$ref": "#/definitions/Thing"}}},
                "/apis/g.example.com/v10/things": {"get": {"schema": {"$ref": "#/definitions/Later"}}},
                "/api/v1/pods": {}
            },
            "definitions": {
                "Thing": {"properties": {"metadata": {"$ref": format!("#/definitions/{meta}")},
                    "next": {"$ref": "#/definitions/Thing"}}},
                "Later": {}, "Unused": {}, (meta): {"description": "theirs"}
            }
        });
        let part = Foreign::of(&document, "g.example.com", "v1");
        assert_eq!(part.definitions.keys().collect::<Vec<_>>(), ["Thing", meta]);
        let builtin = kinds::builtin();
        let bytes = v2_document(&Served::builtin(&builtin), &[&part]);
        let merged: Value = serde_json::from_slice(&bytes).unwrap();
        assert!(merged["paths"]["/apis/g.example.com/v1/things"].is_object());
        assert!(merged["definitions"]["Thing"].is_object());
        assert!(merged["definitions"]["Later"].is_null());
        assert_ne!(merged["definitions"][meta]["description"], "theirs");
    }
}
