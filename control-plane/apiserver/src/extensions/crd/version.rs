//! One version of a custom resource, as the registry works with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use balsa_api::crd::schema::Node;
use balsa_api::crd::{defaults, embedded, prune};
use balsa_api::kind::Kind;
use balsa_api::object;
use balsa_api::openapi::CustomSchema;
use balsa_api::schema::decode::{Expected, FieldValidation, Parsed, judge};
use balsa_api::schema::{Schema, Type};
use balsa_api::status::Status;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::convert::Conversion;
use crate::cache::Stored;
use crate::cache::stored::View;
use crate::registry::metadata;
use crate::render::api_version;
use crate::seam::Custom;

/// Numbers for views of objects: each state of each version has one of its own.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// See the module.
pub(super) struct CustomVersion {
    number: u64,
    kind: Arc<Kind>,
    api_version: String,
    schema: Schema,
    node: Arc<Node>,
    published: CustomSchema,
    conversion: Arc<Conversion>,
    retired: CancellationToken,
    deprecation: Option<String>,
}

impl CustomVersion {
    pub fn new(
        kind: Arc<Kind>,
        schema: Schema,
        node: Arc<Node>,
        published: CustomSchema,
        conversion: Arc<Conversion>,
        retired: CancellationToken,
        deprecation: Option<String>,
    ) -> Self {
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            api_version: api_version(&kind),
            kind,
            schema,
            node,
            published,
            conversion,
            retired,
            deprecation,
        }
    }

    fn expected(&self) -> Expected<'_> {
        Expected {
            group: &self.kind.group,
            version: &self.kind.version,
            kind: &self.kind.kind,
        }
    }

    /// The view of an object that has been converted to this version.
    fn finish(&self, stored: &Arc<Stored>, mut value: Value, converted: bool) -> Arc<Stored> {
        let before = (!converted).then(|| value.clone());
        prune::prune(&self.node, &mut value);
        defaults::fill(&self.node, &mut value);
        let plain = self
            .kind
            .strategy
            .selectable_fields(&Value::Null)
            .is_empty();
        if plain && before.as_ref() == Some(&value) {
            stored.keep_view(self.number, View::Same);
            return Arc::clone(stored);
        }
        let shown = Arc::new(stored.shown_as(&self.kind, &value));
        stored.keep_view(self.number, View::Other(Arc::clone(&shown)));
        // What is shown may be shown again, for a watch that comes by it twice.
        shown.keep_view(self.number, View::Same);
        shown
    }
}

#[async_trait]
impl Custom for CustomVersion {
    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn type_(&self) -> Option<Type<'_>> {
        self.schema
            .kind(&self.kind.group, &self.kind.version, &self.kind.kind)
    }

    fn conform(
        &self,
        parsed: Parsed,
        validation: FieldValidation,
    ) -> Result<(Value, Vec<String>), Status> {
        let Parsed {
            mut value,
            duplicates,
        } = parsed;
        metadata::check_type_as(&self.kind.kind, &self.api_version, &mut value)?;
        let unknown_metadata =
            embedded::conform_metadata(&self.node, &mut value).map_err(|why| {
                let expected = self.expected();
                Status::bad_request(format!(
                    "{kind} in version {:?} cannot be handled as a {kind}: {why}",
                    expected.version,
                    kind = expected.kind
                ))
            })?;
        let unknown = prune::prune(&self.node, &mut value);
        let unknown = unknown.into_iter().chain(unknown_metadata).collect();
        let warnings = judge(self.expected(), &duplicates, unknown, validation)?;
        Ok((value, warnings))
    }

    async fn present(&self, stored: Vec<Arc<Stored>>) -> Result<Vec<Arc<Stored>>, Status> {
        let mut shown = Vec::with_capacity(stored.len());
        let mut places = Vec::new();
        let mut foreign = Vec::new();
        for (place, stored) in stored.into_iter().enumerate() {
            let view = match stored.view(self.number) {
                Some(View::Same) => Arc::clone(&stored),
                Some(View::Other(other)) => other,
                None => {
                    let value = stored.decode();
                    if object::api_version(&value) == self.api_version {
                        self.finish(&stored, value, false)
                    } else {
                        foreign.push(value);
                        places.push(place);
                        Arc::clone(&stored)
                    }
                }
            };
            shown.push(view);
        }
        if !foreign.is_empty() {
            let converted = self.conversion.convert(foreign, &self.api_version).await?;
            for (place, value) in places.into_iter().zip(converted) {
                shown[place] = self.finish(&shown[place], value, true);
            }
        }
        Ok(shown)
    }

    async fn to_storage(&self, object: &Value) -> Result<Option<Value>, Status> {
        let wanted = self.conversion.storage();
        if wanted == self.api_version {
            return Ok(None);
        }
        let converted = self
            .conversion
            .convert(vec![object.clone()], wanted)
            .await?;
        Ok(converted.into_iter().next())
    }

    fn retired(&self) -> &CancellationToken {
        &self.retired
    }

    fn openapi(&self) -> &CustomSchema {
        &self.published
    }

    fn deprecation(&self) -> Option<&str> {
        self.deprecation.as_deref()
    }
}
