//! What a DELETE does to an object, decided purely.
//!
//! Rules: apiserver `registry/rest.BeforeDelete`, `generic/registry.deletionFinalizersForGarbageCollection`.

use balsa_api::kind::Kind;
use balsa_api::object;
use balsa_api::status::{FieldErrors, Status};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::query::Query;

/// Finalizer that makes the garbage collector leave dependents alone.
pub const ORPHAN: &str = "orphan";
/// Finalizer that makes the garbage collector delete dependents first.
pub const FOREGROUND: &str = "foregroundDeletion";

/// `DeleteOptions`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeleteOptions {
    /// Seconds until the object is removed; 0 at once.
    pub grace_period_seconds: Option<i64>,
    /// What must hold.
    pub preconditions: Option<Preconditions>,
    /// Older form of `propagation_policy`.
    pub orphan_dependents: Option<bool>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation_policy: Option<String>,
    /// `All`: only try.
    pub dry_run: Vec<String>,
}

/// What must hold for a delete to be done.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Preconditions {
    /// UID of the object.
    pub uid: Option<String>,
    /// Its resourceVersion.
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// From the body where there is one, else from the query.
    ///
    /// # Errors
    /// 400 for a body that is none, 422 for options that contradict each other.
    pub fn read(body: Option<Value>, query: &Query) -> Result<Self, Status> {
        let mut options = match body {
            Some(body) => serde_json::from_value(body)
                .map_err(|e| Status::bad_request(format!("the body is no DeleteOptions: {e}")))?,
            None => Self {
                grace_period_seconds: query.integer("gracePeriodSeconds")?,
                orphan_dependents: query.tristate("orphanDependents"),
                propagation_policy: query.some("propagationPolicy").map(str::to_owned),
                ..Self::default()
            },
        };
        options.dry_run.extend(
            query
                .all("dryRun")
                .filter(|v| !v.is_empty())
                .map(str::to_owned),
        );
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<(), Status> {
        let mut errors = FieldErrors::default();
        if self.orphan_dependents.is_some() && self.propagation_policy.is_some() {
            errors.invalid(
                "propagationPolicy",
                self.propagation_policy.clone().unwrap_or_default(),
                "orphanDependents and deletionPropagation cannot be both set",
            );
        }
        if let Some(policy) = self.propagation_policy.as_deref()
            && !matches!(policy, "Foreground" | "Background" | "Orphan")
        {
            errors.not_supported(
                "propagationPolicy",
                policy,
                &["Foreground", "Background", "Orphan", "nil"],
            );
        }
        if let Some(other) = self.dry_run.iter().find(|v| *v != "All") {
            errors.not_supported("dryRun", other.as_str(), &["All"]);
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Status::invalid("DeleteOptions", "meta.k8s.io", "", &errors))
        }
    }

    /// As a `DeleteOptions` object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        let mut set = |field: &str, value: Value| {
            if !value.is_null() {
                options[field] = value;
            }
        };
        set("gracePeriodSeconds", json!(self.grace_period_seconds));
        set("orphanDependents", json!(self.orphan_dependents));
        set("propagationPolicy", json!(self.propagation_policy));
        if !self.dry_run.is_empty() {
            set("dryRun", json!(self.dry_run));
        }
        if let Some(wanted) = &self.preconditions {
            let mut preconditions = json!({});
            if let Some(uid) = &wanted.uid {
                preconditions["uid"] = uid.as_str().into();
            }
            if let Some(version) = &wanted.resource_version {
                preconditions["resourceVersion"] = version.as_str().into();
            }
            set("preconditions", preconditions);
        }
        options
    }

    /// It is said what becomes of the dependents.
    #[must_use]
    pub fn says_propagation(&self) -> bool {
        self.orphan_dependents.is_some() || self.propagation_policy.is_some()
    }

    /// Nothing shall be written.
    #[must_use]
    pub fn is_dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }

    /// The preconditions that do not hold, in words.
    #[must_use]
    pub fn violated(&self, object: &Value) -> Option<String> {
        let wanted = self.preconditions.as_ref()?;
        let (uid, version) = (object::uid(object), object::resource_version(object));
        if let Some(want) = wanted.uid.as_deref().filter(|want| *want != uid) {
            return Some(format!(
                "Precondition failed: UID in precondition: {want}, UID in object meta: {uid}"
            ));
        }
        let want = wanted
            .resource_version
            .as_deref()
            .filter(|want| *want != version)?;
        Some(format!(
            "Precondition failed: ResourceVersion in precondition: {want}, ResourceVersion in object meta: {version}"
        ))
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Remove the object now.
    Remove,
    /// Write this state: deletion has begun.
    Begin(Value),
    /// Deletion is under way already; nothing to write.
    Pending,
}

/// Decides. `object` is the current state.
#[must_use]
pub fn decide(kind: &Kind, object: &Value, options: &DeleteOptions, now: Timestamp) -> Verdict {
    let mut new = object.clone();
    let finalizers_changed = set_finalizers(&mut new, kind, options);
    let grace = grace(kind, object, options);
    if object::is_deleting(object) {
        return decide_again(object, new, grace, options, finalizers_changed);
    }
    let has_finalizers = !object::finalizers(&new).is_empty();
    match grace {
        Some(seconds) if seconds > 0 => {
            begin(&mut new, seconds, now);
            Verdict::Begin(new)
        }
        _ if has_finalizers => {
            begin(&mut new, 0, now);
            Verdict::Begin(new)
        }
        _ => Verdict::Remove,
    }
}

/// A delete of what is being deleted may only shorten the grace period.
fn decide_again(
    object: &Value,
    mut new: Value,
    grace: Option<i64>,
    options: &DeleteOptions,
    changed: bool,
) -> Verdict {
    let current = object::deletion_grace_period_seconds(object).unwrap_or(0);
    let has_finalizers = !object::finalizers(&new).is_empty();
    if current == 0 {
        return match (has_finalizers, changed) {
            (false, _) => Verdict::Remove,
            (true, true) => Verdict::Begin(new),
            (true, false) => Verdict::Pending,
        };
    }
    let shorter = options
        .grace_period_seconds
        .and(grace)
        .filter(|seconds| *seconds < current);
    match shorter {
        Some(0) if !has_finalizers => Verdict::Remove,
        Some(seconds) => {
            shorten(&mut new, current, seconds);
            Verdict::Begin(new)
        }
        None if changed => Verdict::Begin(new),
        None => Verdict::Pending,
    }
}

/// Seconds of grace; `None` for kinds that have none.
fn grace(kind: &Kind, object: &Value, options: &DeleteOptions) -> Option<i64> {
    let default = kind.strategy.grace_period_seconds(object)?;
    // A kind that answers 0 for an object (a pod that no node runs) means it whatever was asked.
    if default == 0 {
        return Some(0);
    }
    let asked = options.grace_period_seconds.unwrap_or(default);
    Some(if asked < 0 { 1 } else { asked })
}

fn begin(object: &mut Value, seconds: i64, now: Timestamp) {
    let at = now
        .checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(now);
    let generation = object::generation(object);
    let metadata = object::metadata_mut(object);
    metadata.insert("deletionTimestamp".into(), object::format_time(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), seconds.into());
    if generation > 0 {
        metadata.insert("generation".into(), (generation + 1).into());
    }
}

fn shorten(object: &mut Value, current: i64, seconds: i64) {
    let at = object::deletion_timestamp(object)
        .and_then(object::parse_time)
        .and_then(|t| {
            t.checked_add(SignedDuration::from_secs(seconds - current))
                .ok()
        });
    let metadata = object::metadata_mut(object);
    if let Some(at) = at {
        metadata.insert("deletionTimestamp".into(), object::format_time(at).into());
    }
    metadata.insert("deletionGracePeriodSeconds".into(), seconds.into());
}

/// Sets the garbage collector's finalizers as asked; without a wish those that are there stay, and where there are none
/// the kind decides.
fn set_finalizers(object: &mut Value, kind: &Kind, options: &DeleteOptions) -> bool {
    let wish = match (
        options.orphan_dependents,
        options.propagation_policy.as_deref(),
    ) {
        (Some(true), _) | (_, Some("Orphan")) => Some(ORPHAN),
        (_, Some("Foreground")) => Some(FOREGROUND),
        (Some(false), _) | (_, Some("Background")) => None,
        _ => {
            let said = object::finalizers(object);
            let said = said.iter().any(|one| [ORPHAN, FOREGROUND].contains(one));
            let orphan = !said && kind.strategy.orphans_by_default();
            return orphan && object::add_finalizer(object, ORPHAN);
        }
    };
    let mut changed = false;
    for finalizer in [ORPHAN, FOREGROUND] {
        changed |= if wish == Some(finalizer) {
            object::add_finalizer(object, finalizer)
        } else {
            object::remove_finalizer(object, finalizer)
        };
    }
    changed
}

#[cfg(test)]
mod tests;
