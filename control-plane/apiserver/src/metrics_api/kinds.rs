//! What the metrics API serves, for discovery, OpenAPI and Tables.

use std::sync::Arc;

use balsa_api::crd::publish;
use balsa_api::discovery;
use balsa_api::kind::{Column, Kind, Scope, Strategy};
use balsa_api::kinds::walk::Walk;
use balsa_api::openapi::{self, CustomSchema, Served};
use balsa_api::schema::Schema;
use balsa_api::status::FieldErrors;
use balsa_api::table::{column, name_column};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{GROUP, VERSION};

/// Nothing is written: metrics are looked at.
const VERBS: &[&str] = &["get", "list"];

/// NodeMetrics or PodMetrics.
struct Metrics {
    /// Usage of one container each, where there are several.
    per_container: bool,
}

impl Strategy for Metrics {
    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn prepare_status_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate_create(&self, _object: &Value) -> FieldErrors {
        FieldErrors::default()
    }

    fn validate_update(&self, _object: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::default()
    }

    fn columns(&self) -> Vec<Column> {
        let quantity = |name, description| Column {
            format: "quantity".into(),
            ..column(name, "string", description)
        };
        vec![
            name_column(),
            quantity("cpu", "CPU used, in cores."),
            quantity("memory", "Memory in the working set, in bytes."),
            Column {
                format: "duration".into(),
                ..column("Window", "string", "Time over which CPU was measured.")
            },
        ]
    }

    fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let used = |resource: &str| {
            if !self.per_container {
                return object["usage"][resource].clone();
            }
            let containers = object["containers"].items();
            super::objects::sum(containers.iter().map(|c| &c["usage"][resource]))
        };
        vec![
            object["metadata"]["name"].clone(),
            used("cpu"),
            used("memory"),
            object["window"].clone(),
        ]
    }
}

/// A kind with the schemas it is described by.
struct Described {
    kind: Arc<Kind>,
    schema: Schema,
    published: CustomSchema,
}

/// Both kinds of the group.
pub(crate) struct Kinds {
    nodes: Described,
    pods: Described,
}

fn describe(kind: &'static str, plural: &'static str, scope: Scope, own: &Value) -> Described {
    let mut schema = json!({
        "type": "object",
        "required": ["timestamp", "window"],
        "properties": {
            "metadata": {"type": "object"},
            "timestamp": {"type": "string", "format": "date-time",
                "description": "End of the time over which the usage was measured."},
            "window": {"type": "string",
                "description": "Length of the time over which the usage was measured, as a Go duration."},
        },
    });
    if let (Some(all), Some(own)) = (schema["properties"].as_object_mut(), own.as_object()) {
        all.extend(own.clone());
    }
    let per_container = scope == Scope::Namespaced;
    let declared = Kind {
        group: GROUP.into(),
        version: VERSION.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: "".into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope,
        verbs: VERBS,
        subresources: Vec::new(),
        strategy: Box::new(Metrics { per_container }),
    };
    Described {
        schema: Schema::for_custom(GROUP, VERSION, kind, &schema),
        published: publish::publish(&schema, &Value::Null),
        kind: Arc::new(declared),
    }
}

impl Kinds {
    pub(crate) fn new() -> Self {
        let quantity = json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]});
        let usage = json!({"type": "object", "additionalProperties": quantity,
            "description": "Amounts used, by resource: cpu in cores, memory in bytes of the working set."});
        let container = json!({"type": "object", "required": ["name", "usage"], "properties": {
            "name": {"type": "string", "description": "Name of the container in the pod's spec."},
            "usage": usage,
        }});
        let containers = json!({"type": "array", "items": container,
            "description": "What each running container uses."});
        Self {
            nodes: describe(
                "NodeMetrics",
                "nodes",
                Scope::Cluster,
                &json!({"usage": usage}),
            ),
            pods: describe(
                "PodMetrics",
                "pods",
                Scope::Namespaced,
                &json!({"containers": containers}),
            ),
        }
    }

    /// By the resource's name.
    pub(crate) fn get(&self, plural: &str) -> Option<&Kind> {
        self.all()
            .into_iter()
            .map(|d| &*d.kind)
            .find(|k| k.plural == plural)
    }

    fn all(&self) -> [&Described; 2] {
        [&self.nodes, &self.pods]
    }

    /// The APIResourceList.
    pub(crate) fn resource_list(&self) -> Value {
        let kinds: Vec<Arc<Kind>> = self.all().iter().map(|d| Arc::clone(&d.kind)).collect();
        discovery::api_resource_list(&kinds, GROUP, VERSION).unwrap_or_default()
    }

    /// As OpenAPI describes them.
    pub(crate) fn served(&self) -> Vec<Served<'_>> {
        self.all()
            .into_iter()
            .map(|d| Served {
                kind: &d.kind,
                schema: &d.schema,
                custom: Some(&d.published),
            })
            .collect()
    }

    /// The OpenAPI v3 document of the group version.
    pub(crate) fn openapi(&self) -> Option<Vec<u8>> {
        openapi::v3_document(&self.served(), GROUP, VERSION)
    }

    /// Where that document lies; changes with it.
    pub(crate) fn openapi_url(&self) -> String {
        let hash = self.openapi_hash();
        format!("/openapi/v3/apis/{GROUP}/{VERSION}?hash={hash}")
    }

    /// Changes with the document.
    pub(crate) fn openapi_hash(&self) -> String {
        openapi::v3_hash(&self.served(), GROUP, VERSION)
    }
}
