//! OpenAPI documents, made from the schema and the declared kinds: v3 (one document per group and version) and
//! v2 (one for all).
//!
//! kubectl reads them to explain fields, to find out whether the server validates fields and supports dry runs,
//! and to merge lists on the client; old kubectl validates against v2. Documents are written straight to bytes:
//! the API server builds one when it is asked for and may keep it, compressed.

mod foreign;
mod paths;
mod proto;
mod schemas;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha512};

use crate::kind::Kind;
use crate::object::join_api_version;
use crate::schema::{Definition, Schema};

pub use foreign::Foreign;

/// Media type by which kubectl asks for the v2 document in protobuf. It is also written with a dot instead of `@`,
/// as [`V2_PROTOBUF_ANSWER`]; accept both.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// Content-Type of the answer: the form asked for is no valid media type, and newer clients refuse it.
pub const V2_PROTOBUF_ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Text of `info.version`.
const SERVED_VERSION: &str = "v1.35.0";

/// A kind with the schema that describes it: [`Schema::builtin`], or its own for a custom kind.
#[derive(Clone)]
pub struct Served<'a> {
    /// The kind.
    pub kind: &'a Kind,
    /// Where its types are.
    pub schema: &'a Schema,
    /// How a custom kind's own type is published; built-in ones are described by `schema` alone.
    pub custom: Option<&'a CustomSchema>,
}

/// A custom kind's type as it is published. Unlike a [`Schema`], it has the checks of values too.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CustomSchema {
    /// For OpenAPI v2.
    pub v2: Value,
    /// For OpenAPI v3.
    pub v3: Value,
    /// Changes whenever one of them does.
    pub fingerprint: u64,
}

impl<'a> Served<'a> {
    /// Built-in kinds.
    #[must_use]
    pub fn builtin(kinds: &'a [Arc<Kind>]) -> Vec<Self> {
        kinds
            .iter()
            .map(|kind| Self {
                kind,
                schema: Schema::builtin(),
                custom: None,
            })
            .collect()
    }
}

/// Which OpenAPI is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// Path of a group and version in the index and the URL: `api/v1`, `apis/apps/v1`.
fn index_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// `GET /openapi/v3`: where the documents are.
#[must_use]
pub fn v3_index(kinds: &[Served<'_>]) -> Value {
    let versions: BTreeSet<(&str, &str)> = kinds
        .iter()
        .map(|s| (&*s.kind.group, &*s.kind.version))
        .collect();
    let mut paths = Map::new();
    for (group, version) in versions {
        let path = index_path(group, version);
        let url = format!("/openapi/v3/{path}?hash={}", v3_hash(kinds, group, version));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// A text that changes whenever the document for a group and version does, for its URL and ETag. It is made from
/// what the document is made from, so that the document need not be.
#[must_use]
pub fn v3_hash(kinds: &[Served<'_>], group: &str, version: &str) -> String {
    let mut hash = Sha512::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    for served in kinds
        .iter()
        .filter(|s| s.kind.group == group && s.kind.version == version)
    {
        let kind = served.kind;
        hash.update(format!(
            "{}/{}/{:?}/{:?}/{:?}",
            kind.kind, kind.plural, kind.scope, kind.verbs, kind.subresources
        ));
        hash.update(served.schema.fingerprint().to_be_bytes());
        hash.update(served.custom.map_or(0, |c| c.fingerprint).to_be_bytes());
    }
    hex::encode_upper(hash.finalize())
}

/// `GET /openapi/v3/api/v1` and `/openapi/v3/apis/GROUP/VERSION`, as JSON; `None` when nothing of it is served.
#[must_use]
pub fn v3_document(kinds: &[Served<'_>], group: &str, version: &str) -> Option<Vec<u8>> {
    let mine: Vec<Served<'_>> = kinds
        .iter()
        .filter(|s| s.kind.group == group && s.kind.version == version)
        .cloned()
        .collect();
    if mine.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(1 << 20);
    out.extend_from_slice(br#"{"openapi":"3.0.0","info":{"title":"Kubernetes","version":""#);
    out.extend_from_slice(SERVED_VERSION.as_bytes());
    out.extend_from_slice(br#""},"paths":"#);
    write_entries(&mut out, paths::of(&mine, Dialect::V3));
    out.extend_from_slice(br#","components":{"schemas":"#);
    let kinds_of = Names::of(&mine);
    let used = schemas::used_by(&mine);
    write_entries(
        &mut out,
        used.values()
            .map(|d| (d.name(), define(*d, &kinds_of, Dialect::V3))),
    );
    out.extend_from_slice(
        br#","securitySchemes":{"BearerToken":{"type":"apiKey","description":"Bearer Token authentication","name":"authorization","in":"header"}}}}"#,
    );
    Some(out)
}

/// `GET /openapi/v2` as JSON, with what other servers serve put in.
#[must_use]
pub fn v2_document(kinds: &[Served<'_>], foreign: &[&Foreign]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 << 20);
    out.extend_from_slice(br#"{"swagger":"2.0","info":{"title":"Kubernetes","version":""#);
    out.extend_from_slice(SERVED_VERSION.as_bytes());
    out.extend_from_slice(br#""},"paths":"#);
    let (paths, definitions) = v2_parts(kinds, foreign);
    write_entries(&mut out, paths);
    out.extend_from_slice(br#","definitions":"#);
    write_entries(&mut out, definitions);
    out.extend_from_slice(
        br#","securityDefinitions":{"BearerToken":{"type":"apiKey","description":"Bearer Token authentication","name":"authorization","in":"header"}},"security":[{"BearerToken":[]}]}"#,
    );
    out
}

/// `GET /openapi/v2` in the protobuf form ([`V2_PROTOBUF`]).
#[must_use]
pub fn v2_protobuf(kinds: &[Served<'_>], foreign: &[&Foreign]) -> Vec<u8> {
    let (paths, definitions) = v2_parts(kinds, foreign);
    proto::document(SERVED_VERSION, paths, definitions)
}

/// Paths and definitions of the v2 document. Our own definitions stand for others' of the same name.
fn v2_parts<'a>(
    kinds: &'a [Served<'a>],
    foreign: &'a [&'a Foreign],
) -> (
    impl Iterator<Item = (String, Value)>,
    impl Iterator<Item = (String, Value)>,
) {
    let names = Names::of(kinds);
    let used = schemas::used_by(kinds);
    let mut known: BTreeSet<String> = used.values().map(|d| d.name().to_owned()).collect();
    let theirs: Vec<(String, Value)> = foreign
        .iter()
        .flat_map(|part| &part.definitions)
        .filter(|(name, _)| known.insert((*name).clone()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let definitions = used
        .into_values()
        .map(move |d| (d.name().to_owned(), define(d, &names, Dialect::V2)))
        .chain(theirs);
    let more = foreign.iter().flat_map(|part| part.paths.clone());
    let paths = paths::of(kinds, Dialect::V2).into_iter().chain(more);
    (paths, definitions)
}

/// Writes a JSON object one entry at a time.
fn write_entries<K: AsRef<str>>(out: &mut Vec<u8>, entries: impl IntoIterator<Item = (K, Value)>) {
    out.push(b'{');
    for (index, (key, value)) in entries.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(Value::from(key.as_ref()).to_string().as_bytes());
        out.push(b':');
        out.extend_from_slice(value.to_string().as_bytes());
    }
    out.push(b'}');
}

/// Group, version and kind of the definitions that are kinds.
type KindNames<'a> = BTreeMap<&'a str, Vec<(String, String, String)>>;

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// What definitions carry beside their types.
struct Names<'a> {
    kinds: KindNames<'a>,
    custom: BTreeMap<&'a str, &'a CustomSchema>,
}

impl<'a> Names<'a> {
    fn of(kinds: &[Served<'a>]) -> Self {
        let custom = kinds.iter().filter_map(|served| {
            let kind = served.kind;
            let type_ = served.schema.kind(&kind.group, &kind.version, &kind.kind)?;
            Some((type_.definition()?.name(), served.custom?))
        });
        Self {
            custom: custom.collect(),
            kinds: kind_names(kinds),
        }
    }
}

fn kind_names<'a>(kinds: &[Served<'a>]) -> KindNames<'a> {
    let mut names: KindNames<'a> = BTreeMap::new();
    let mut versions = BTreeSet::from([("", "v1")]);
    for served in kinds {
        versions.insert((&*served.kind.group, &*served.kind.version));
        for (group, version, kind, type_) in served.schema.kinds() {
            if let Some(definition) = type_.definition() {
                let entry = names.entry(definition.name()).or_default();
                let gvk = (group.to_owned(), version.to_owned(), kind.to_owned());
                if !entry.contains(&gvk) {
                    entry.push(gvk);
                }
            }
        }
    }
    // Its options may be written in any group's version.
    let options = versions
        .into_iter()
        .map(|(g, v)| (g.to_owned(), v.to_owned(), "DeleteOptions".to_owned()));
    names.insert(DELETE_OPTIONS, options.collect());
    names
}

fn gvk_value(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn define(definition: Definition<'_>, names: &Names<'_>, dialect: Dialect) -> Value {
    let mut value = match (names.custom.get(definition.name()), dialect) {
        (Some(custom), Dialect::V2) => custom.v2.clone(),
        (Some(custom), Dialect::V3) => custom.v3.clone(),
        (None, _) => schemas::definition(definition, dialect),
    };
    if let Some(names) = names.kinds.get(definition.name()) {
        let list: Vec<Value> = names.iter().map(|(g, v, k)| gvk_value(g, v, k)).collect();
        value["x-kubernetes-group-version-kind"] = list.into();
    }
    value
}

/// Where a kind's paths begin: `/api/v1`, `/apis/apps/v1`.
fn base_path(kind: &Kind) -> String {
    let prefix = if kind.group.is_empty() {
        "/api/"
    } else {
        "/apis/"
    };
    format!("{prefix}{}", join_api_version(&kind.group, &kind.version))
}
