//! Paths and operations of the declared kinds.

use serde_json::{Map, Value, json};

use super::{Dialect, Served, base_path, gvk_value, schemas};
use crate::kind::{Kind, Scope, Subresource};
use crate::schema::Type;

const JSON_TYPES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

const CUSTOM_PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];

/// One operation before it is written in a dialect.
struct Operation<'a> {
    method: &'static str,
    /// `x-kubernetes-action`.
    action: &'static str,
    /// First word of the operationId.
    verb: &'static str,
    parameters: &'static [Parameter],
    /// Type of the request body; `Some(None)` is a body without a type in the schema.
    body: Option<Option<Type<'a>>>,
    response: Option<Type<'a>>,
}

/// Name, type and help of a query parameter.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "If 'true', the output is indented.");
const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "'All' runs every stage of the request but stores nothing.",
);
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "Name under which the changed fields are recorded in managedFields.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What happens to unknown or duplicate fields: Ignore, Warn (the default) or Strict.",
);
const FORCE: Parameter = (
    "force",
    "boolean",
    "Take over fields that other managers own; for apply patches only.",
);
const GRACE: Parameter = (
    "gracePeriodSeconds",
    "integer",
    "Seconds the object has to end by itself; 0 deletes at once.",
);
const ORPHAN: Parameter = (
    "orphanDependents",
    "boolean",
    "Deprecated: use propagationPolicy.",
);
const PROPAGATION: Parameter = (
    "propagationPolicy",
    "string",
    "What happens to dependents: Orphan, Background or Foreground.",
);
const IGNORE_READ_ERROR: Parameter = (
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "boolean",
    "Delete an object even though it cannot be read.",
);
const LABEL_SELECTOR: Parameter = (
    "labelSelector",
    "string",
    "Only objects whose labels match.",
);
const FIELD_SELECTOR: Parameter = (
    "fieldSelector",
    "string",
    "Only objects whose fields match.",
);
const LIMIT: Parameter = (
    "limit",
    "integer",
    "Number of objects to answer with at most.",
);
const CONTINUE: Parameter = ("continue", "string", "Where a limited list goes on.");
const VERSION: Parameter = (
    "resourceVersion",
    "string",
    "State of the cluster that the answer must reflect.",
);
const VERSION_MATCH: Parameter = (
    "resourceVersionMatch",
    "string",
    "How resourceVersion is meant.",
);
const TIMEOUT: Parameter = ("timeoutSeconds", "integer", "Time limit of the call.");
const WATCH: Parameter = ("watch", "boolean", "Stream changes instead of listing.");
const BOOKMARKS: Parameter = (
    "allowWatchBookmarks",
    "boolean",
    "Send BOOKMARK events while watching.",
);
const INITIAL: Parameter = (
    "sendInitialEvents",
    "boolean",
    "Begin a watch with the objects that exist.",
);

const READ: &[Parameter] = &[PRETTY];
const CREATE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, PRETTY];
const PATCH: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE, PRETTY];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    GRACE,
    IGNORE_READ_ERROR,
    ORPHAN,
    PRETTY,
    PROPAGATION,
];
const LIST: &[Parameter] = &[
    BOOKMARKS,
    CONTINUE,
    FIELD_SELECTOR,
    LABEL_SELECTOR,
    LIMIT,
    PRETTY,
    VERSION,
    VERSION_MATCH,
    INITIAL,
    TIMEOUT,
    WATCH,
];
const DELETE_MANY: &[Parameter] = &[
    CONTINUE,
    DRY_RUN,
    FIELD_SELECTOR,
    GRACE,
    LABEL_SELECTOR,
    LIMIT,
    ORPHAN,
    PRETTY,
    PROPAGATION,
    VERSION,
    VERSION_MATCH,
    INITIAL,
    TIMEOUT,
];

/// All paths of some kinds, sorted, each with its item.
pub(super) fn of(kinds: &[Served<'_>], dialect: Dialect) -> Vec<(String, Value)> {
    let mut paths: Vec<(String, Value)> = kinds
        .iter()
        .flat_map(|served| of_kind(served, dialect))
        .collect();
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    paths
}

fn of_kind(served: &Served<'_>, dialect: Dialect) -> Vec<(String, Value)> {
    let kind = served.kind;
    let base = base_path(kind);
    let namespaced = kind.scope == Scope::Namespaced;
    let parent = if namespaced {
        format!("{base}/namespaces/{{namespace}}")
    } else {
        base.clone()
    };
    let collection = format!("{parent}/{}", kind.plural);
    let item = format!("{collection}/{{name}}");
    let writer = Writer {
        kind,
        dialect,
        custom: served.custom.is_some(),
    };
    let mut paths = Vec::new();
    let gvk = (&*kind.group, &*kind.version, &*kind.kind);
    paths.extend(writer.item(&collection, &collection_operations(served), gvk, ""));
    paths.extend(writer.item(&item, &item_operations(served), gvk, ""));
    if namespaced && kind.verbs.contains(&"list") {
        let list: Vec<Operation<'_>> = collection_operations(served)
            .into_iter()
            .filter(|o| o.verb == "list")
            .collect();
        paths.extend(writer.item(
            &format!("{base}/{}", kind.plural),
            &list,
            gvk,
            "ForAllNamespaces",
        ));
    }
    for sub in &kind.subresources {
        let gvk = (&*sub.group, &*sub.version, &*sub.kind);
        let path = format!("{item}/{}", sub.name);
        paths.extend(writer.item(
            &path,
            &sub_operations(served, sub),
            gvk,
            &capitalised(&sub.name),
        ));
    }
    paths
}

fn own_type<'a>(served: &Served<'a>) -> Option<Type<'a>> {
    schemas::find(
        served,
        &served.kind.group,
        &served.kind.version,
        &served.kind.kind,
    )
}

fn meta_type<'a>(name: &str) -> Option<Type<'a>> {
    crate::schema::Schema::builtin()
        .definition(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"))
}

fn collection_operations<'a>(served: &Served<'a>) -> Vec<Operation<'a>> {
    let kind = served.kind;
    let list = schemas::find(
        served,
        &kind.group,
        &kind.version,
        &format!("{}List", kind.kind),
    );
    let own = own_type(served);
    let all = [
        ("list", operation("get", "list", "list", LIST, None, list)),
        (
            "create",
            operation("post", "post", "create", CREATE, Some(own), own),
        ),
        (
            "deletecollection",
            operation(
                "delete",
                "deletecollection",
                "deleteCollection",
                DELETE_MANY,
                Some(meta_type("DeleteOptions")),
                meta_type("Status"),
            ),
        ),
    ];
    all.into_iter()
        .filter(|(verb, _)| kind.verbs.contains(verb))
        .map(|(_, o)| o)
        .collect()
}

fn item_operations<'a>(served: &Served<'a>) -> Vec<Operation<'a>> {
    by_verbs(
        served.kind.verbs,
        own_type(served),
        &["get", "update", "delete", "patch"],
    )
}

fn sub_operations<'a>(served: &Served<'a>, sub: &Subresource) -> Vec<Operation<'a>> {
    // A log is text, whatever discovery says of its kind.
    let type_ = if sub.name == "log" {
        None
    } else {
        schemas::find(served, &sub.group, &sub.version, &sub.kind)
    };
    by_verbs(
        sub.verbs,
        type_,
        &["get", "create", "update", "delete", "patch"],
    )
}

fn by_verbs<'a>(verbs: &[&str], type_: Option<Type<'a>>, wanted: &[&str]) -> Vec<Operation<'a>> {
    let make = |verb: &str| match verb {
        "get" => operation("get", "get", "read", READ, None, type_),
        "create" => operation("post", "post", "create", CREATE, Some(type_), type_),
        "update" => operation("put", "put", "replace", CREATE, Some(type_), type_),
        "patch" => operation(
            "patch",
            "patch",
            "patch",
            PATCH,
            Some(meta_type("Patch")),
            type_,
        ),
        _ => {
            let options = Some(meta_type("DeleteOptions"));
            operation(
                "delete",
                "delete",
                "delete",
                DELETE,
                options,
                meta_type("Status"),
            )
        }
    };
    wanted
        .iter()
        .filter(|verb| verbs.contains(verb))
        .map(|verb| make(verb))
        .collect()
}

fn operation<'a>(
    method: &'static str,
    action: &'static str,
    verb: &'static str,
    parameters: &'static [Parameter],
    body: Option<Option<Type<'a>>>,
    response: Option<Type<'a>>,
) -> Operation<'a> {
    Operation {
        method,
        action,
        verb,
        parameters,
        body,
        response,
    }
}

/// `scale` -> `Scale`; `apps` -> `Apps`; `rbac.authorization.k8s.io` -> `RbacAuthorization`.
fn capitalised(text: &str) -> String {
    let text = text.strip_suffix(".k8s.io").unwrap_or(text);
    text.split(['.', '-'])
        .map(|part| {
            let mut chars = part.chars();
            chars
                .next()
                .map(|c| c.to_uppercase().chain(chars).collect::<String>())
                .unwrap_or_default()
        })
        .collect()
}

/// Writes operations of one kind in one dialect.
struct Writer<'k> {
    kind: &'k Kind,
    dialect: Dialect,
    custom: bool,
}

impl Writer<'_> {
    /// A path with its item; `None` when no operation is served there.
    fn item(
        &self,
        path: &str,
        operations: &[Operation<'_>],
        gvk: (&str, &str, &str),
        suffix: &str,
    ) -> Option<(String, Value)> {
        if operations.is_empty() {
            return None;
        }
        let mut item = Map::new();
        let mut parameters = Vec::new();
        for name in ["name", "namespace"] {
            if path.contains(&format!("{{{name}}}")) {
                parameters.push(self.parameter(
                    (name, "string", "Name of the object or its namespace."),
                    "path",
                ));
            }
        }
        if !parameters.is_empty() {
            item.insert("parameters".to_owned(), parameters.into());
        }
        for operation in operations {
            let namespaced = path.contains("{namespace}");
            item.insert(
                operation.method.to_owned(),
                self.operation(operation, gvk, namespaced, suffix),
            );
        }
        Some((path.to_owned(), Value::Object(item)))
    }

    fn tag(&self) -> String {
        let group = if self.kind.group.is_empty() {
            "core"
        } else {
            &self.kind.group
        };
        format!(
            "{}_{}",
            group
                .strip_suffix(".k8s.io")
                .unwrap_or(group)
                .replace('.', "_"),
            self.kind.version
        )
    }

    fn operation(
        &self,
        operation: &Operation<'_>,
        (group, version, kind): (&str, &str, &str),
        namespaced: bool,
        suffix: &str,
    ) -> Value {
        let own_group = if self.kind.group.is_empty() {
            "core"
        } else {
            &self.kind.group
        };
        let id = format!(
            "{}{}{}{}{}{suffix}",
            operation.verb,
            capitalised(own_group),
            capitalised(&self.kind.version),
            if namespaced { "Namespaced" } else { "" },
            self.kind.kind
        );
        let mut value = json!({
            "operationId": id,
            "description": format!("{} {}", operation.verb, self.kind.kind),
            "tags": [self.tag()],
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": gvk_value(group, version, kind),
        });
        let mut parameters: Vec<Value> = operation
            .parameters
            .iter()
            .map(|p| self.parameter(*p, "query"))
            .collect();
        match self.dialect {
            Dialect::V3 => self.finish_v3(operation, &mut value),
            Dialect::V2 => self.finish_v2(operation, &mut value, &mut parameters),
        }
        value["parameters"] = parameters.into();
        value
    }

    fn parameter(&self, (name, type_, help): Parameter, place: &str) -> Value {
        let mut value =
            json!({"name": name, "in": place, "description": help, "uniqueItems": true});
        if place == "path" {
            value["required"] = true.into();
        }
        match self.dialect {
            Dialect::V2 => value["type"] = type_.into(),
            Dialect::V3 => {
                if let Value::Object(map) = &mut value {
                    map.remove("uniqueItems");
                }
                value["schema"] = json!({"type": type_, "uniqueItems": true});
            }
        }
        value
    }

    fn schema(&self, type_: Option<Type<'_>>) -> Value {
        type_.map_or_else(
            || json!({"type": "string"}),
            |t| schemas::type_value(t, self.dialect),
        )
    }

    /// Clients choose among these; there is no strategic merge without Go types.
    fn patch_types(&self) -> &'static [&'static str] {
        if self.custom {
            CUSTOM_PATCH_TYPES
        } else {
            PATCH_TYPES
        }
    }

    fn finish_v3(&self, operation: &Operation<'_>, value: &mut Value) {
        let content = |types: &[&str], schema: &Value| -> Map<String, Value> {
            types
                .iter()
                .map(|t| ((*t).to_owned(), json!({"schema": schema})))
                .collect()
        };
        if let Some(body) = operation.body {
            let types = if operation.method == "patch" {
                self.patch_types()
            } else {
                &["*/*"]
            };
            let required = operation.method != "delete";
            value["requestBody"] =
                json!({"content": content(types, &self.schema(body)), "required": required});
        }
        let types = if operation.response.is_some() {
            JSON_TYPES
        } else {
            &["text/plain"]
        };
        let answer = content(types, &self.schema(operation.response));
        value["responses"] = json!({
            "200": {"description": "OK", "content": answer},
            "401": {"description": "Unauthorized"},
        });
    }

    fn finish_v2(&self, operation: &Operation<'_>, value: &mut Value, parameters: &mut Vec<Value>) {
        if let Some(body) = operation.body {
            let required = operation.method != "delete";
            parameters
                .push(json!({"name": "body", "in": "body", "required": required, "schema": self.schema(body)}));
        }
        let types = if operation.method == "patch" {
            self.patch_types()
        } else {
            &["*/*"]
        };
        value["consumes"] = types.into();
        value["produces"] = JSON_TYPES.into();
        value["schemes"] = json!(["https"]);
        value["responses"] = json!({
            "200": {"description": "OK", "schema": self.schema(operation.response)},
            "401": {"description": "Unauthorized"},
        });
    }
}
