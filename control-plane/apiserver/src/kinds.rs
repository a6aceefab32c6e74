//! The kinds that are served, by their paths.

use std::collections::HashMap;
use std::sync::Arc;

use balsa_api::kind::Kind;
use balsa_api::kinds::{Convert, converter};
use balsa_api::schema::{Schema, Type};

use crate::cache::Cache;
use crate::registry::Target;

/// A kind and its schema.
#[derive(Clone)]
pub struct Served {
    /// The declaration.
    pub kind: Arc<Kind>,
    /// The type of its objects; `None` when nothing is known of their fields.
    pub type_: Option<Type<'static>>,
    /// How its objects are stored, when as another kind.
    pub convert: Option<&'static dyn Convert>,
    /// Group of the resource that is stored.
    stored_group: String,
}

impl Served {
    fn new(kind: Arc<Kind>) -> Self {
        let type_ = Schema::builtin().kind(&kind.group, &kind.version, &kind.kind);
        let convert = converter(&kind.group, &kind.version, &kind.kind);
        let stored_group =
            convert.map_or_else(|| kind.group.to_string(), |c| c.stored_as()[0].to_owned());
        Self {
            kind,
            type_,
            convert,
            stored_group,
        }
    }

    /// An object of the resource, or all (empty name).
    #[must_use]
    pub fn target(&self, cache: &Cache, namespace: &str, name: &str) -> Option<Target> {
        Some(Target {
            kind: Arc::clone(&self.kind),
            // A kind that is stored as another shares its plural name.
            resource: cache.resource(&self.stored_group, &self.kind.plural)?,
            type_: self.type_,
            convert: self.convert,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// See the module.
pub struct Kinds {
    all: Vec<Arc<Kind>>,
    by_path: HashMap<(String, String), Vec<Served>>,
}

impl Kinds {
    /// From declarations; of two with the same group, version and plural the first counts.
    #[must_use]
    pub fn new(kinds: Vec<Arc<Kind>>) -> Self {
        let mut by_path: HashMap<(String, String), Vec<Served>> = HashMap::new();
        let mut all: Vec<Arc<Kind>> = Vec::with_capacity(kinds.len());
        for kind in kinds {
            let versions = by_path
                .entry((kind.group.to_string(), kind.plural.to_string()))
                .or_default();
            if versions.iter().any(|s| s.kind.version == kind.version) {
                continue;
            }
            versions.push(Served::new(Arc::clone(&kind)));
            all.push(kind);
        }
        Self { all, by_path }
    }

    /// All, in the order of declaration.
    #[must_use]
    pub fn all(&self) -> &[Arc<Kind>] {
        &self.all
    }

    /// One by path.
    #[must_use]
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Served> {
        self.versions(group, plural)
            .iter()
            .find(|s| s.kind.version == version)
    }

    fn versions(&self, group: &str, plural: &str) -> &[Served] {
        self.by_path
            .get(&(group.to_owned(), plural.to_owned()))
            .map_or(&[], Vec::as_slice)
    }

    /// An object of a resource in its stored version.
    #[must_use]
    pub fn target(
        &self,
        cache: &Cache,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Target> {
        self.versions(group, plural)
            .first()?
            .target(cache, namespace, name)
    }
}
