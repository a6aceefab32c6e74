//! Label and field selectors of a list or watch.

use balsa_api::kind::{Kind, Scope as KindScope};
use balsa_api::kinds::Convert;
use balsa_api::selector::{FieldSelector, Selector};
use balsa_api::status::Status;

use super::Target;
use crate::cache::resource::INDEXED_FIELDS;
use crate::cache::{Scope, Stored, keys};
use crate::http::query::Query;

/// Both selectors.
#[derive(Clone, Default)]
pub struct Filter {
    labels: Selector,
    fields: FieldSelector,
    convert: Option<&'static dyn Convert>,
}

impl Filter {
    /// From `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// 400 for bad syntax and for fields that cannot be selected.
    pub fn parse(query: &Query, target: &Target) -> Result<Self, Status> {
        let kind = &target.kind;
        let labels = Selector::parse(query.get("labelSelector").unwrap_or_default())
            .map_err(|e| Status::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())
            .map_err(|e| Status::bad_request(e.to_string()))?;
        for requirement in fields.requirements() {
            let field = requirement.field.as_str();
            let common = field == "metadata.name"
                || (field == "metadata.namespace" && kind.scope == KindScope::Namespaced);
            if !common && !kind.strategy.selects(field) {
                return Err(Status::bad_request(format!(
                    "field label not supported: {field}"
                )));
            }
        }
        Ok(Self {
            labels,
            fields,
            convert: target.convert,
        })
    }

    /// Everything matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Does an object match?
    #[must_use]
    pub fn matches(&self, stored: &Stored) -> bool {
        let lookup = |field: &str| match self.convert {
            Some(convert) => stored.field(&convert.stored_field(field)),
            None => stored.field(field),
        };
        (self.fields.is_everything() || self.fields.matches(lookup))
            && (self.labels.is_everything() || self.labels.matches(&*stored.labels))
    }

    /// The name that an object must have to match.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.fields.required("metadata.name")
    }

    /// The narrowest scope that covers the filter within a namespace (empty: all).
    #[must_use]
    pub fn scope(&self, kind: &Kind, namespace: &str) -> Scope {
        if let Some(name) = self.name()
            && (!namespace.is_empty() || kind.scope == KindScope::Cluster)
        {
            return Scope::Object(keys::object_key(namespace, name));
        }
        for field in INDEXED_FIELDS {
            if let Some(value) = self.fields.required(field) {
                return Scope::Field(field.to_owned(), value.to_owned());
            }
        }
        if namespace.is_empty() {
            Scope::All
        } else {
            Scope::Namespace(namespace.to_owned())
        }
    }
}
