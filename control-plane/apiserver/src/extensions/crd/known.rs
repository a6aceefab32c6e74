//! One definition, made ready to serve.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use balsa_api::crd::columns::Columns;
use balsa_api::crd::jsonpath::JsonPath;
use balsa_api::crd::naming;
use balsa_api::crd::publish::publish;
use balsa_api::crd::schema::Node;
use balsa_api::kind::{ALL_VERBS, Kind, Name, ScalePaths, Scope, Subresource};
use balsa_api::kinds::walk::Walk;
use balsa_api::object;
use balsa_api::schema::Schema;
use balsa_api::status::FieldErrors;
use balsa_api::validation::Path;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::convert::{Conversion, ConversionCaller};
use super::rules;
use super::strategy::CustomStrategy;
use super::version::CustomVersion;
use crate::kinds::Served;

const READ_WRITE: &[&str] = &["get", "patch", "update"];
/// While a definition is being deleted: finalizers must still be taken off its objects.
const VERBS_TERMINATING: &[&str] = &[
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// See the module.
#[derive(Clone)]
pub(super) struct Known {
    pub name: String,
    pub uid: String,
    /// See [`fingerprint`].
    pub fingerprint: u64,
    pub group: String,
    pub plural: String,
    /// Versions that are served.
    pub served: Vec<Served>,
    /// The version that objects are stored in.
    pub storage: Served,
    /// Cancelled when this is replaced.
    pub retired: CancellationToken,
}

/// Changes when what is served changes.
pub(super) fn fingerprint(definition: &Value) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    definition["spec"].to_string().hash(&mut hasher);
    definition["status"]["acceptedNames"]
        .to_string()
        .hash(&mut hasher);
    is_terminating(definition).hash(&mut hasher);
    hasher.finish()
}

fn is_terminating(definition: &Value) -> bool {
    object::is_deleting(definition) || naming::is_true(definition, "Terminating")
}

fn owned(value: &Value) -> Name {
    value.text().to_owned().into()
}

fn all(value: &Value) -> Vec<Name> {
    value.items().iter().map(owned).collect()
}

impl Known {
    pub fn new(
        definition: &Value,
        caller: &Arc<dyn ConversionCaller>,
        retired: CancellationToken,
    ) -> Self {
        let spec = &definition["spec"];
        let conversion = Arc::new(Conversion::new(spec, Arc::clone(caller)));
        let mut served = Vec::new();
        let mut storage = None;
        let list = spec["versions"].items();
        for version in list {
            let one = one(definition, version, &conversion, &retired);
            if version["storage"].is_true() || storage.is_none() {
                storage = Some(one.clone());
            }
            if version["served"].is_true() {
                served.push(one);
            }
        }
        // A definition without versions cannot be created; should there be one, nothing is served of it.
        let storage =
            storage.unwrap_or_else(|| one(definition, &Value::Null, &conversion, &retired));
        Self {
            name: object::name(definition).to_owned(),
            uid: object::uid(definition).to_owned(),
            fingerprint: fingerprint(definition),
            group: spec["group"].text().to_owned(),
            plural: spec["names"]["plural"].text().to_owned(),
            served,
            storage,
            retired,
        }
    }

    /// The same state of the same definition?
    pub fn is(&self, other: &Self) -> bool {
        self.uid == other.uid && self.fingerprint == other.fingerprint
    }

    pub fn is_named(&self, definition: &Value) -> bool {
        self.name == object::name(definition)
    }
}

fn subresources(group: &Name, version: &Name, kind: &Name, declared: &Value) -> Vec<Subresource> {
    let mut list = Vec::new();
    if declared["status"].is_object() {
        list.push(Subresource {
            name: "status".into(),
            group: group.clone(),
            version: version.clone(),
            kind: kind.clone(),
            verbs: READ_WRITE,
        });
    }
    if declared["scale"].is_object() {
        list.push(Subresource {
            name: "scale".into(),
            group: "autoscaling".into(),
            version: "v1".into(),
            kind: "Scale".into(),
            verbs: READ_WRITE,
        });
    }
    list
}

fn scale_paths(scale: &Value) -> Option<ScalePaths> {
    let pointer = |key: &str| JsonPath::simple(scale[key].text()).ok().map(Name::from);
    Some(ScalePaths {
        spec_replicas: pointer("specReplicasPath")?,
        status_replicas: pointer("statusReplicasPath")?,
        selector: pointer("labelSelectorPath"),
    })
}

fn selectable(version: &Value) -> Vec<(String, String)> {
    let fields = version["selectableFields"].items().iter();
    fields
        .filter_map(|field| {
            let path = field["jsonPath"].text();
            let pointer = JsonPath::simple(path).ok()?;
            Some((path.trim_start_matches('.').to_owned(), pointer))
        })
        .collect()
}

fn one(
    definition: &Value,
    version: &Value,
    conversion: &Arc<Conversion>,
    retired: &CancellationToken,
) -> Served {
    let spec = &definition["spec"];
    let names = &definition["status"]["acceptedNames"];
    let (group, kind) = (owned(&spec["group"]), owned(&spec["names"]["kind"]));
    let version_name = owned(&version["name"]);
    let schema = &version["schema"]["openAPIV3Schema"];
    let node = Arc::new(Node::parse(schema));
    // Problems were reported when the definition was written.
    let rules = rules::compile(
        schema,
        &Path::new("openAPIV3Schema"),
        &mut FieldErrors::default(),
    );
    let strategy = CustomStrategy {
        rules,
        node: Arc::clone(&node),
        has_status: version["subresources"]["status"].is_object(),
        scale: scale_paths(&version["subresources"]["scale"]),
        columns: Columns::parse(&version["additionalPrinterColumns"]),
        selectable: selectable(version),
        list_kind: spec["names"]["listKind"].text().to_owned(),
    };
    let declared = Arc::new(Kind {
        group: group.clone(),
        version: version_name.clone(),
        kind: kind.clone(),
        plural: owned(&spec["names"]["plural"]),
        singular: owned(&names["singular"]),
        short_names: all(&names["shortNames"]),
        categories: all(&names["categories"]),
        scope: if spec["scope"].text() == "Cluster" {
            Scope::Cluster
        } else {
            Scope::Namespaced
        },
        verbs: if is_terminating(definition) {
            VERBS_TERMINATING
        } else {
            ALL_VERBS
        },
        subresources: subresources(&group, &version_name, &kind, &version["subresources"]),
        strategy: Box::new(strategy),
    });
    let custom = CustomVersion::new(
        Arc::clone(&declared),
        Schema::for_custom(&group, &version_name, &kind, schema),
        node,
        publish(schema, &version["selectableFields"]),
        Arc::clone(conversion),
        retired.clone(),
        deprecation(version, &group, &kind),
    );
    Served::custom(declared, Arc::new(custom))
}

/// What clients of a deprecated version are told.
fn deprecation(version: &Value, group: &str, kind: &str) -> Option<String> {
    if !version["deprecated"].is_true() {
        return None;
    }
    let own = version["deprecationWarning"].text();
    Some(if own.is_empty() {
        format!("{group}/{} {kind} is deprecated", version["name"].text())
    } else {
        own.to_owned()
    })
}
