//! The kinds that are served, by their paths. The built-in ones never change; custom ones come and go while the
//! server runs, so a request looks everything up in one snapshot ([`KindSet`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use balsa_api::kind::Kind;
use balsa_api::kinds::{Convert, converter};
use balsa_api::schema::{Schema, Type};
use parking_lot::Mutex;

use crate::cache::Cache;
use crate::extensions::aggregation::RemoteVersion;
use crate::http::protobuf;
use crate::registry::Target;
use crate::seam::Custom;

/// A kind and its schema.
#[derive(Clone)]
pub struct Served {
    /// The declaration.
    pub kind: Arc<Kind>,
    /// The type of a built-in kind's objects; `None` when nothing is known of their fields.
    builtin_type: Option<Type<'static>>,
    /// How its objects are stored, when as another kind.
    pub convert: Option<&'static dyn Convert>,
    /// The version of a custom resource that this is.
    pub custom: Option<Arc<dyn Custom>>,
    /// Group of the resource that is stored.
    stored_group: String,
    /// Its objects can be written in protobuf.
    protobuf: bool,
}

impl Served {
    fn builtin(kind: Arc<Kind>) -> Self {
        let builtin_type = Schema::builtin().kind(&kind.group, &kind.version, &kind.kind);
        let convert = converter(&kind.group, &kind.version, &kind.kind);
        let stored_group =
            convert.map_or_else(|| kind.group.to_string(), |c| c.stored_as()[0].to_owned());
        let protobuf = protobuf::knows(&kind.group, &kind.version, &kind.kind);
        Self {
            kind,
            builtin_type,
            convert,
            custom: None,
            stored_group,
            protobuf,
        }
    }

    /// A version of a custom resource.
    #[must_use]
    pub fn custom(kind: Arc<Kind>, custom: Arc<dyn Custom>) -> Self {
        let stored_group = kind.group.to_string();
        Self {
            kind,
            builtin_type: None,
            convert: None,
            custom: Some(custom),
            stored_group,
            protobuf: false,
        }
    }

    /// The schema that has its types.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        match &self.custom {
            Some(custom) => custom.schema(),
            None => Schema::builtin(),
        }
    }

    /// An object of the resource, or all (empty name).
    #[must_use]
    pub fn target(&self, cache: &Cache, namespace: &str, name: &str) -> Option<Target> {
        Some(Target {
            kind: Arc::clone(&self.kind),
            // A kind that is stored as another shares its plural name.
            resource: cache.resource(&self.stored_group, &self.kind.plural)?,
            builtin_type: self.builtin_type,
            convert: self.convert,
            custom: self.custom.clone(),
            protobuf: self.protobuf,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// All kinds that are served at one moment.
#[derive(Default)]
pub struct KindSet {
    all: Vec<Arc<Kind>>,
    /// By group and plural name.
    by_path: HashMap<Box<str>, HashMap<Box<str>, Vec<Served>>>,
    generation: u64,
    remote: Vec<RemoteVersion>,
}

impl KindSet {
    fn add(&mut self, served: Served) {
        let kind = Arc::clone(&served.kind);
        let versions = self
            .by_path
            .entry((*kind.group).into())
            .or_default()
            .entry((*kind.plural).into())
            .or_default();
        if versions.iter().all(|s| s.kind.version != kind.version) {
            versions.push(served);
            self.all.push(kind);
        }
    }

    /// All, the built-in ones first.
    #[must_use]
    pub fn all(&self) -> &[Arc<Kind>] {
        &self.all
    }

    /// All with what serves them, in the same order.
    pub fn served(&self) -> impl Iterator<Item = &Served> {
        self.all
            .iter()
            .filter_map(|kind| self.get(&kind.group, &kind.version, &kind.plural))
    }

    /// A number that is another one in every later set.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What other servers serve.
    #[must_use]
    pub fn remote(&self) -> &[RemoteVersion] {
        &self.remote
    }

    /// Is anything of a group version served here?
    #[must_use]
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.all
            .iter()
            .any(|kind| kind.group == group && kind.version == version)
    }

    /// One by path.
    #[must_use]
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Served> {
        self.versions(group, plural)
            .iter()
            .find(|s| s.kind.version == version)
    }

    /// All versions of a resource; the first is one that its objects can be read in.
    #[must_use]
    pub fn versions(&self, group: &str, plural: &str) -> &[Served] {
        self.by_path
            .get(group)
            .and_then(|plurals| plurals.get(plural))
            .map_or(&[], Vec::as_slice)
    }
}

/// See the module.
pub struct Kinds {
    builtin: Vec<Arc<Kind>>,
    set: ArcSwap<KindSet>,
    /// What the set is made of beside the built-in kinds; held while it is replaced.
    dynamic: Mutex<(Vec<Served>, Vec<RemoteVersion>)>,
    complete: AtomicBool,
}

impl Kinds {
    /// From declarations; of two with the same group, version and plural the first counts.
    #[must_use]
    pub fn new(kinds: Vec<Arc<Kind>>) -> Self {
        let mut set = KindSet::default();
        for kind in kinds {
            set.add(Served::builtin(kind));
        }
        Self {
            builtin: set.all.clone(),
            set: ArcSwap::from_pointee(set),
            dynamic: Mutex::default(),
            complete: AtomicBool::new(false),
        }
    }

    /// The built-in ones, in the order of declaration.
    #[must_use]
    pub fn all(&self) -> &[Arc<Kind>] {
        &self.builtin
    }

    /// What is served now.
    #[must_use]
    pub fn set(&self) -> Arc<KindSet> {
        self.set.load_full()
    }

    /// Replaces all custom kinds. Built-in kinds win where paths meet.
    pub fn replace_custom(&self, custom: Vec<Served>) {
        let mut dynamic = self.dynamic.lock();
        dynamic.0 = custom;
        self.rebuild(&dynamic);
    }

    /// Replaces what other servers serve.
    pub fn replace_remote(&self, remote: Vec<RemoteVersion>) {
        let mut dynamic = self.dynamic.lock();
        dynamic.1 = remote;
        self.rebuild(&dynamic);
    }

    fn rebuild(&self, (custom, remote): &(Vec<Served>, Vec<RemoteVersion>)) {
        let mut set = KindSet {
            generation: self.set.load().generation + 1,
            remote: remote.clone(),
            ..KindSet::default()
        };
        let builtin = self.builtin.iter().map(Arc::clone).map(Served::builtin);
        for served in builtin.chain(custom.iter().cloned()) {
            set.add(served);
        }
        self.set.store(Arc::new(set));
    }

    /// True once the custom kinds have been read: before, an unknown path may only be not known yet.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// See [`Kinds::is_complete`].
    pub fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// One by path.
    #[must_use]
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<Served> {
        self.set.load().get(group, version, plural).cloned()
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
        self.set
            .load()
            .versions(group, plural)
            .first()?
            .target(cache, namespace, name)
    }
}
