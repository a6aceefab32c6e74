//! Server-side apply, and the record of who owns which field (`metadata.managedFields`).
//!
//! An applied configuration is the applier's whole opinion: what it says is set and owned, what it said last time
//! and says no longer is removed unless somebody else owns it, and a field that another manager owns with
//! another value is a conflict. Every other write is recorded as an `Update` of the fields it changed.
//!
//! Source: structured-merge-diff `merge.Updater` and apimachinery `managedfields`.

mod managed;
mod set;
mod walk;

#[cfg(test)]
mod tests;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::object;
use crate::schema::Type;
use crate::schema::conform::conform;
use crate::status::{Cause, Details, FieldErrors, Status};
use managed::{APPLY, Entry, Key, Managed, UPDATE};
use set::Set;

/// Annotation in which client-side apply remembers its configuration.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The field manager of `kubectl apply --server-side`, which takes over from client-side apply without conflict.
const KUBECTL: &str = "kubectl";
/// Bytes that annotations may have in all.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;
/// Bytes of a field manager's name.
const MAX_MANAGER_BYTES: usize = 128;

/// Fields of every object that nobody owns.
const STRIPPED: &[&str] = &["f:apiVersion", "f:kind", "f:metadata"];
/// The same below `metadata`.
const STRIPPED_METADATA: &[&str] = &[
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:selfLink",
    "f:uid",
    "f:clusterName",
    "f:generation",
    "f:managedFields",
    "f:resourceVersion",
];

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub struct Manager<'a> {
    /// The request's `fieldManager`, or [`manager_from_user_agent`].
    pub name: &'a str,
    /// Version of the object as written, for example `apps/v1`.
    pub api_version: &'a str,
    /// Subresource through which it is written, or empty.
    pub subresource: &'a str,
    /// Now.
    pub time: Timestamp,
}

/// The field manager of a request that names none: the User-Agent up to its first slash.
#[must_use]
pub fn manager_from_user_agent(user_agent: &str) -> String {
    let prefix = user_agent.split('/').next().unwrap_or_default();
    let mut name: String = prefix.chars().filter(|c| !c.is_control()).collect();
    while name.len() > MAX_MANAGER_BYTES {
        name.pop();
    }
    if name.is_empty() {
        "unknown".to_owned()
    } else {
        name
    }
}

/// Checks the `fieldManager` and `force` parameters of a patch.
///
/// # Errors
/// 422 when an apply patch names no manager, another patch forces, or the name is too long or unprintable.
pub fn check_options(
    field_manager: &str,
    force: Option<bool>,
    is_apply: bool,
) -> Result<(), Status> {
    let mut errors = FieldErrors::default();
    if is_apply && field_manager.is_empty() {
        errors.required("fieldManager", "is required for apply patch");
    }
    if !is_apply && force.is_some() {
        errors.forbidden("force", "may not be specified for non-apply patch");
    }
    if field_manager.len() > MAX_MANAGER_BYTES {
        errors.too_long("fieldManager", MAX_MANAGER_BYTES);
    } else if field_manager.chars().any(char::is_control) {
        errors.invalid(
            "fieldManager",
            field_manager,
            "should only contain printable characters",
        );
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid("PatchOptions", "meta.k8s.io", "", &errors))
    }
}

/// Records a write that is not an apply: `manager` now owns what differs between `old` (absent on create) and
/// `new`. Writes `metadata.managedFields` of `new`. Through a subresource the client's own opinion of them is
/// ignored. `reset` as in [`apply`].
pub fn update_managed_fields(
    type_: Type<'_>,
    new: &mut Value,
    old: Option<&Value>,
    manager: &Manager<'_>,
    reset: &[&str],
) {
    let mut managed = match old {
        Some(old) if !manager.subresource.is_empty() => Managed::read(old),
        _ => Managed::read_sent(new, old),
    };
    // The managed fields themselves are compared too; `strip` takes them out.
    let nothing = Value::Object(Map::new());
    let comparison = walk::compare(Some(type_), old.unwrap_or(&nothing), new);
    let mut changed = strip(comparison.added.union(comparison.modified));
    for name in reset {
        changed.remove_tree(&set::field_element(name));
    }
    for entry in managed.0.values_mut() {
        let left = std::mem::take(&mut entry.set).difference(&changed);
        entry.set = left.difference(&comparison.removed);
    }
    if !changed.is_empty() {
        let key = Key {
            operation: UPDATE,
            manager: manager.name.to_owned(),
            version: manager.api_version.to_owned(),
            subresource: manager.subresource.to_owned(),
        };
        let entry = managed.0.entry(key).or_default();
        entry.set = std::mem::take(&mut entry.set).union(changed);
        entry.api_version = manager.api_version.to_owned();
        entry.time = object::format_time(manager.time);
    }
    managed.drop_empty();
    managed.cap();
    managed.write(new);
}

fn strip(mut set: Set) -> Set {
    set.forget_below("f:metadata", STRIPPED_METADATA);
    set.forget(STRIPPED);
    set
}

/// Applies a configuration to the live object (absent when the object is to be created) and returns the object
/// as it should become, managed fields included. When nothing changes, the live object comes back as it was.
///
/// `reset` names top-level fields that cannot be set through this resource (`status` for the main resource) and
/// are therefore neither set nor owned.
///
/// # Errors
/// 400 for a configuration that does not fit the type, 409 with one cause per field for conflicts.
pub fn apply(
    type_: Type<'_>,
    live: Option<&Value>,
    patch: &Value,
    manager: &Manager<'_>,
    force: bool,
    reset: &[&str],
) -> Result<Value, Status> {
    let config = check_config(type_, patch, manager)?;
    let empty = Value::Object(Map::new());
    let applier = Applier {
        type_,
        live: live.unwrap_or(&empty),
        manager,
        reset,
    };
    let (mut object, managed) = match applier.run(&config, force) {
        Err(conflicts) if manager.name == KUBECTL && !force => {
            let allowed = applier.owned_by_client_side_apply();
            let left: Vec<Conflict> = conflicts
                .into_iter()
                .filter(|c| !contains(&allowed, &c.path))
                .collect();
            if !left.is_empty() {
                return Err(conflict_status(&left));
            }
            applier
                .run(&config, true)
                .map_err(|c| conflict_status(&c))?
        }
        other => other.map_err(|c| conflict_status(&c))?,
    };
    if manager.name == KUBECTL
        && live.is_some_and(|l| object::annotation(l, LAST_APPLIED).is_some())
    {
        remember_configuration(&mut object, patch);
    }
    managed.write(&mut object);
    Ok(object)
}

/// Checks an apply patch and brings its values into canonical form.
fn check_config(type_: Type<'_>, patch: &Value, manager: &Manager<'_>) -> Result<Value, Status> {
    let version = object::api_version(patch);
    if version != manager.api_version {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {}",
            manager.api_version
        )));
    }
    if object::metadata(patch)
        .and_then(|m| m.get("managedFields"))
        .is_some_and(|v| !v.is_null())
    {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let untyped = |why: String| {
        let (namespace, name, kind) = (
            object::namespace(patch),
            object::name(patch),
            object::kind(patch),
        );
        let message = format!(
            "failed to create typed patch object ({namespace}/{name}; {version}, Kind={kind}): {why}"
        );
        Status::bad_request(message)
    };
    let mut config = patch.clone();
    let unknown = conform(type_, &mut config).map_err(untyped)?;
    let mut problems: Vec<String> = unknown
        .iter()
        .map(|text| {
            let path = text.trim_start_matches("unknown field ").trim_matches('"');
            format!(".{path}: field not declared in schema")
        })
        .collect();
    problems.extend(walk::check_lists(Some(type_), &config));
    match problems.as_slice() {
        [] => Ok(config),
        [one] => Err(untyped(one.clone())),
        many => Err(untyped(format!("errors:\n  {}", many.join("\n  ")))),
    }
}

struct Conflict {
    manager: String,
    path: set::Path,
}

struct Applier<'a> {
    type_: Type<'a>,
    live: &'a Value,
    manager: &'a Manager<'a>,
    reset: &'a [&'a str],
}

impl Applier<'_> {
    fn key(&self) -> Key {
        Key {
            operation: APPLY,
            manager: self.manager.name.to_owned(),
            version: String::new(),
            subresource: self.manager.subresource.to_owned(),
        }
    }

    /// The object and its managers after the apply.
    fn run(&self, config: &Value, force: bool) -> Result<(Value, Managed), Vec<Conflict>> {
        let type_ = Some(self.type_);
        let live = managed::without(self.live);
        let mut config = config.clone();
        if let Value::Object(map) = &mut config {
            map.retain(|name, _| !self.reset.contains(&name.as_str()));
        }
        let mut managed = Managed::read(self.live);
        let key = self.key();
        let last = managed.0.remove(&key);
        let set = strip(walk::field_set(type_, &config));
        let merged = walk::merge(type_, &live, &config);
        let mut everyone = managed.clone();
        everyone.0.insert(
            key.clone(),
            Entry {
                set: set.clone(),
                ..Entry::default()
            },
        );
        let merged = match &last {
            Some(last) => self.prune(merged, &everyone, &last.set),
            None => merged,
        };
        let comparison = walk::compare(type_, &live, &merged);
        let changed = comparison.added.union(comparison.modified);
        let conflicts = conflicts_of(&managed, &changed);
        if !force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        for entry in managed.0.values_mut() {
            let left = std::mem::take(&mut entry.set).difference(&changed);
            entry.set = left.difference(&comparison.removed);
        }
        let changed_nothing = live == merged && last.as_ref().is_some_and(|l| l.set == set);
        let time = match last {
            Some(last) if changed_nothing => last.time,
            _ => object::format_time(self.manager.time),
        };
        managed.0.insert(
            key,
            Entry {
                api_version: self.manager.api_version.to_owned(),
                time,
                set,
            },
        );
        managed.drop_empty();
        Ok((merged, managed))
    }

    /// Removes what this manager applied last time and no longer applies, unless another manager owns it.
    fn prune(&self, merged: Value, everyone: &Managed, last: &Set) -> Value {
        let type_ = Some(self.type_);
        let last = last.clone().with_named_fields(type_);
        let whole = walk::field_set(type_, &merged).with_named_fields(type_);
        let kept = |set: &Set| {
            let left =
                walk::remove(type_, &merged, set).unwrap_or_else(|| Value::Object(Map::new()));
            walk::field_set(type_, &left).with_named_fields(type_)
        };
        let owned = everyone
            .0
            .values()
            .fold(Set::default(), |all, entry| all.union(entry.set.clone()));
        let wanted = kept(&last).union(owned.with_named_fields(type_));
        let wanted = kept(&whole.clone().difference(&wanted));
        let gone = whole.difference(&wanted).intersection(&last);
        walk::remove(type_, &merged, &gone).unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// Fields that the live object still has as client-side apply set them.
    fn owned_by_client_side_apply(&self) -> Set {
        let type_ = Some(self.type_);
        let text = object::annotation(self.live, LAST_APPLIED).unwrap_or_default();
        let Ok(mut applied) = serde_json::from_str::<Value>(text) else {
            return Set::default();
        };
        if object::api_version(&applied) != self.manager.api_version
            || conform(self.type_, &mut applied).is_err()
        {
            return Set::default();
        }
        let comparison = walk::compare(type_, &applied, &managed::without(self.live));
        let changed = comparison
            .added
            .union(comparison.modified)
            .union(comparison.removed);
        walk::field_set(type_, &applied).difference(&changed)
    }
}

fn contains(set: &Set, path: &[String]) -> bool {
    let mut one = Set::default();
    one.insert(path);
    !one.intersection(set).is_empty()
}

fn conflicts_of(managed: &Managed, changed: &Set) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    for (key, entry) in &managed.0 {
        for path in entry.set.clone().intersection(changed).paths() {
            conflicts.push(Conflict {
                manager: key.display(),
                path,
            });
        }
    }
    conflicts
}

/// The 409 with its causes.
fn conflict_status(conflicts: &[Conflict]) -> Status {
    let causes = conflicts
        .iter()
        .map(|c| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {}", c.manager),
            field: set::display(&c.path),
        })
        .collect();
    let message = match conflicts {
        [one] => {
            format!(
                "Apply failed with 1 conflict: conflict with {}: {}",
                one.manager,
                set::display(&one.path)
            )
        }
        many => {
            let mut by_manager: std::collections::BTreeMap<&str, Vec<String>> = Default::default();
            for conflict in many {
                by_manager
                    .entry(&conflict.manager)
                    .or_default()
                    .push(format!("- {}", set::display(&conflict.path)));
            }
            let parts: Vec<String> = by_manager
                .into_iter()
                .map(|(manager, paths)| format!("conflicts with {manager}:\n{}", paths.join("\n")))
                .collect();
            format!(
                "Apply failed with {} conflicts: {}",
                many.len(),
                parts.join("\n")
            )
        }
    };
    let details = Details {
        causes,
        ..Details::default()
    };
    Status {
        code: 409,
        reason: "Conflict",
        message,
        details: Some(details),
    }
}

/// Keeps the annotation of client-side apply true, so that users may go back to it.
fn remember_configuration(object: &mut Value, patch: &Value) {
    let mut configuration = patch.clone();
    if let Some(Value::Object(annotations)) = configuration.pointer_mut("/metadata/annotations") {
        annotations.remove(LAST_APPLIED);
    }
    let text = format!("{configuration}\n");
    let others: usize = object::annotations(object)
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != LAST_APPLIED)
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if others + LAST_APPLIED.len() + text.len() > MAX_ANNOTATION_BYTES {
        object::child_mut(object::metadata_mut(object), "annotations").remove(LAST_APPLIED);
    } else {
        object::set_annotation(object, LAST_APPLIED, &text);
    }
}
