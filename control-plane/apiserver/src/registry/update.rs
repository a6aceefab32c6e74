//! UPDATE, and the read-modify-write that all changes of stored objects go through.
//!
//! A change starts from the cache, which may be behind. That is safe, because the transaction is conditional
//! on the revision it started from; when a change fails on cached state, it is tried once more on fresh state
//! before the client hears of it.

use std::sync::Arc;

use balsa_api::object;
use balsa_api::status::{FieldErrors, Status};
use balsa_api::validation::validate_metadata_update;
use bytes::Bytes;
use http::Response;
use serde_json::Value;

use super::admit::{self, Question};
use super::create::{Commit, Write, plain};
use super::options::Freshness;
use super::{Registry, Target, csr, metadata, rules, shape};
use crate::adapter;
use crate::cache::Stored;
use crate::http::context::Context;
use crate::seam::{Operation, ResponseBody};

/// How often a change without a resourceVersion is tried again when others were faster.
const ATTEMPTS: usize = 16;

/// What somebody sees whose update comes too late.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Which rules a change follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// The kind's rules for its main resource.
    Main,
    /// The kind's rules for its status.
    Status,
    /// The registry's own changes (binding, deletion, finalization).
    Own,
}

/// Makes the new state from the old one.
pub(super) type Produce<'a> = dyn Fn(&Value) -> Result<Value, Status> + Send + Sync + 'a;

/// How admission sees an object of which a subresource shows another kind (`Scale`).
pub(super) struct Lens<'a> {
    /// Group, version and kind of what is shown.
    pub kind: (&'static str, &'static str, &'static str),
    /// What is shown of an object.
    pub show: &'a (dyn Fn(&Value) -> Value + Send + Sync),
    /// The object with what is shown put back.
    pub put: &'a (dyn Fn(&Value, &Value) -> Result<Value, Status> + Send + Sync),
}

/// A change of one object.
pub(super) struct Change<'a> {
    pub how: How,
    /// See [`Lens`]; `None` when admission sees the object itself.
    pub lens: Option<Lens<'a>>,
    pub subresource: &'a str,
    pub produce: &'a Produce<'a>,
    /// Record who changed which fields. Off for what records it itself (apply) and for the registry's changes.
    pub track: bool,
}

impl Registry {
    /// PUT to an object or its status.
    pub async fn update(
        &self,
        cx: &Context,
        target: &Target,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        let mut object = admit::object_of(cx, target, body)?;
        metadata::check_name(&mut object, &target.name)?;
        metadata::check_namespace(&target.kind, &mut object, &target.namespace)?;
        let subresource = cx.info.subresource.as_str();
        let how = if subresource.is_empty() {
            How::Main
        } else {
            How::Status
        };
        let blind = object::resource_version(&object).is_empty() && rules::needs_version(target);
        let produce = |_: &Value| {
            if blind && how == How::Main {
                let mut errors = FieldErrors::default();
                errors.invalid(
                    "metadata.resourceVersion",
                    "",
                    "must be specified for an update",
                );
                admit::valid(target, &target.name, &errors)?;
            }
            Ok(object.clone())
        };
        let change = Change {
            how,
            lens: None,
            subresource,
            produce: &produce,
            track: true,
        };
        match self.modify(cx, target, &change).await {
            Err(status)
                if status.code == 404 && how == How::Main && rules::creates_on_update(target) =>
            {
                let bytes = self.create_object(cx, target, object, None).await?;
                shape::object(201, &target.kind, bytes, accepted, &cx.query)
            }
            Err(status) => Err(status),
            Ok(bytes) => shape::object(200, &target.kind, bytes, accepted, &cx.query),
        }
    }

    /// Changes an object; answers with it as clients see it.
    pub(super) async fn modify(
        &self,
        cx: &Context,
        target: &Target,
        change: &Change<'_>,
    ) -> Result<Bytes, Status> {
        let dry_run = cx.dry_run()?;
        let mut fresh = false;
        let mut current = target.resource.get(&target.key());
        for attempt in 0..ATTEMPTS {
            let tried = current.as_ref().map(|stored| stored.revision);
            match self
                .attempt(cx, target, change, current.as_ref(), (attempt, dry_run))
                .await
            {
                Ok(Some(bytes)) => return Ok(bytes),
                // Refused by the store, which means that its state here is newer than what we had.
                Ok(None) => fresh = true,
                Err(status) if fresh => return Err(status),
                Err(status) => {
                    self.freshen(Freshness::Latest).await?;
                    fresh = true;
                    if target
                        .resource
                        .get(&target.key())
                        .map(|stored| stored.revision)
                        == tried
                    {
                        return Err(status);
                    }
                }
            }
            current = target.resource.get(&target.key());
        }
        Err(target.conflict(MODIFIED))
    }

    /// One try. `None` when the object had moved on.
    async fn attempt(
        &self,
        cx: &Context,
        target: &Target,
        change: &Change<'_>,
        current: Option<&Arc<Stored>>,
        (attempt, dry_run): (usize, bool),
    ) -> Result<Option<Bytes>, Status> {
        let stored = current.ok_or_else(|| target.not_found())?;
        let shown = target.present(stored).await?;
        let old = target.decode(&shown);
        let mut new = (change.produce)(&old)?;
        check_preconditions(target, &new, &old)?;
        metadata::before_update(&mut new, &old);
        self.process(cx, target, change, &mut new, &old, dry_run)
            .await?;
        if change.track {
            adapter::track(
                target,
                Some(&old),
                &mut new,
                &cx.field_manager(),
                change.subresource,
            );
        }
        if metadata::same(&new, &old) {
            return Ok(Some(target.view(shown.bytes.clone())));
        }
        let gone = is_finished(&new, &old, target);
        let about = (target, change.subresource);
        let _turns = self.turns(target).await;
        let plan = if gone {
            self.plan(about, None, Some(&old), attempt)?
        } else {
            self.plan(about, Some(&mut new), Some(&old), attempt)?
        };
        if dry_run {
            return plain(&new).map(Some);
        }
        let object = (!gone).then_some(&new);
        let write = Write {
            target,
            object,
            at: Some(stored.revision),
            plan,
            fence: cx.fence,
        };
        match self.commit(write).await? {
            Commit::Moved => Ok(None),
            Commit::Done(_) if gone => plain(&new).map(Some),
            Commit::Done(bytes) => Ok(Some(bytes)),
        }
    }

    /// Defaults, admission, the kind's rules, validation.
    async fn process(
        &self,
        cx: &Context,
        target: &Target,
        change: &Change<'_>,
        new: &mut Value,
        old: &Value,
        dry_run: bool,
    ) -> Result<(), Status> {
        if change.how == How::Own {
            return Ok(());
        }
        let strategy = &target.kind.strategy;
        let question = Question::new(cx, target, Operation::Update, dry_run).on(change.subresource);
        strategy.default(new);
        self.mutate_through(change, question, new, old).await?;
        strategy.default(new);
        let mut errors = validate_metadata_update(&target.kind, new, old);
        if change.how == How::Main {
            strategy.prepare_update(new, old);
            errors.extend(strategy.validate_update(new, old));
        } else {
            let subresource = change.subresource;
            strategy.prepare_subresource_update(subresource, new, old);
            if target.is(csr::GROUP, csr::RESOURCE) {
                let now = object::format_time(jiff::Timestamp::now());
                csr::stamp_conditions(new, old, &now);
            }
            errors.extend(strategy.validate_subresource_update(subresource, new, old));
        }
        admit::valid(target, &target.name, &errors)?;
        if matches!(change.how, How::Main) && change.subresource.is_empty() {
            for warning in strategy.warnings(new, Some(old)) {
                cx.warn(warning);
            }
        }
        let Some(lens) = &change.lens else {
            return self
                .validate_admission(question, Some(new), Some(old))
                .await;
        };
        let (group, version, kind) = lens.kind;
        let mut shown = (lens.show)(new);
        let question = question.of_kind(group, version, kind);
        self.validate_admission(question, Some(&mut shown), Some(&(lens.show)(old)))
            .await
    }

    /// The mutating half of admission, on the object or on what the subresource shows of it.
    async fn mutate_through(
        &self,
        change: &Change<'_>,
        question: Question<'_>,
        new: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        let Some(lens) = &change.lens else {
            return self.mutate(question, Some(new), Some(old)).await;
        };
        let (group, version, kind) = lens.kind;
        let mut shown = (lens.show)(new);
        let before = shown.clone();
        let question = question.of_kind(group, version, kind);
        self.mutate(question, Some(&mut shown), Some(&(lens.show)(old)))
            .await?;
        if shown != before {
            *new = (lens.put)(new, &shown)?;
        }
        Ok(())
    }
}

/// resourceVersion and uid of a body, where given, must be those of the object.
fn check_preconditions(target: &Target, new: &Value, old: &Value) -> Result<(), Status> {
    let wanted = object::resource_version(new);
    if !wanted.is_empty() && wanted != "0" && wanted != object::resource_version(old) {
        return Err(target.conflict(MODIFIED));
    }
    let (wanted, uid) = (object::uid(new), object::uid(old));
    if !wanted.is_empty() && wanted != uid {
        return Err(target.conflict(&format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
        )));
    }
    Ok(())
}

/// An object that waits for its finalizers goes with the last of them.
fn is_finished(new: &Value, old: &Value, target: &Target) -> bool {
    if !object::is_deleting(old) || !object::finalizers(new).is_empty() {
        return false;
    }
    if target.is("", "namespaces") {
        return new
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty);
    }
    object::deletion_grace_period_seconds(old) == Some(0)
}
