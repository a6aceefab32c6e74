//! DELETE and DELETECOLLECTION.

use balsa_api::object;
use balsa_api::status::Status;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};
use http::Response;
use serde_json::{Value, json};

use super::admit::Question;
use super::create::{Commit, Write, plain};
use super::deletion::{DeleteOptions, Verdict, decide};
use super::options::{Freshness, ListOptions};
use super::read::ListError;
use super::select::Filter;
use super::update::MODIFIED;
use super::{Registry, Target, namespace, rules, shape};
use crate::extensions::crd;
use crate::http::context::Context;
use crate::http::{decode, negotiate, respond};
use crate::seam::{Operation, ResponseBody};

const ATTEMPTS: usize = 16;
/// Objects of a collection that are deleted at once.
const PARALLEL: usize = 16;

/// How a delete ended.
pub(super) struct Deleted {
    /// Last state, or the state that says it is being deleted.
    pub object: Bytes,
    /// The object is gone.
    pub gone: bool,
    /// Its UID.
    pub uid: String,
}

/// Reads DeleteOptions from body and query.
///
/// # Errors
/// 400, 415, 422.
pub(super) fn options(cx: &Context, body: &Bytes) -> Result<DeleteOptions, Status> {
    if body.is_empty() {
        return DeleteOptions::read(None, &cx.query);
    }
    let format = negotiate::body_format(&cx.headers)?;
    DeleteOptions::read(Some(decode::parse(body, format)?.value), &cx.query)
}

impl Registry {
    /// DELETE of one object.
    pub async fn delete(
        &self,
        cx: &Context,
        target: &Target,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        let options = options(cx, body)?;
        warn_of_orphans(cx, target, &options);
        let deleted = self.delete_object(cx, target, &options).await?;
        if !deleted.gone || rules::returns_deleted(target) {
            let code = if !deleted.gone && options.orphan_dependents == Some(false) {
                202
            } else {
                200
            };
            return shape::object(code, &target.kind, deleted.object, accepted, &cx.query);
        }
        let details = json!({"name": target.name, "group": target.kind.group, "kind": target.kind.plural, "uid": deleted.uid});
        Ok(respond::json(200, &success(&details)))
    }

    /// Deletes one object by the rules of grace and finalizers.
    pub(super) async fn delete_object(
        &self,
        cx: &Context,
        target: &Target,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let mut fresh = false;
        for attempt in 0..ATTEMPTS {
            let current = target.resource.get(&target.key());
            let tried = current.as_ref().map(|s| s.revision);
            let result = match current {
                Some(stored) => {
                    let shown = target.present(&stored).await?;
                    self.attempt_delete(
                        cx,
                        target,
                        options,
                        (&target.decode(&shown), stored.revision),
                        attempt,
                    )
                    .await
                }
                None => Err(target.not_found()),
            };
            match result {
                Ok(Some(deleted)) => return Ok(deleted),
                Ok(None) => fresh = true,
                Err(status) if fresh => return Err(status),
                Err(status) => {
                    self.freshen(Freshness::Latest).await?;
                    fresh = true;
                    if target.resource.get(&target.key()).map(|s| s.revision) == tried {
                        return Err(status);
                    }
                }
            }
        }
        Err(target.conflict(MODIFIED))
    }

    async fn attempt_delete(
        &self,
        cx: &Context,
        target: &Target,
        options: &DeleteOptions,
        (old, revision): (&Value, u64),
        attempt: usize,
    ) -> Result<Option<Deleted>, Status> {
        if let Some(why) = options.violated(old) {
            return Err(target.conflict(&why));
        }
        let dry_run = options.is_dry_run();
        let shown = options.to_json();
        let question = Question {
            options: Some(&shown),
            ..Question::new(cx, target, Operation::Delete, dry_run)
        };
        self.mutate(question, None, Some(old)).await?;
        self.validate_admission(question, None, Some(old)).await?;
        let now = jiff::Timestamp::now();
        let marked = crd::is_definition(target).then(|| crd::begin_deletion(old, now));
        let old = marked.as_ref().unwrap_or(old);
        let verdict = if target.is("", "namespaces") {
            namespace::decide(old, now)
        } else {
            decide(&target.kind, old, options, now)
        };
        let uid = object::uid(old).to_owned();
        let (object, gone) = match &verdict {
            Verdict::Pending => {
                return Ok(Some(Deleted {
                    object: plain(old)?,
                    gone: false,
                    uid,
                }));
            }
            Verdict::Remove => (None, true),
            Verdict::Begin(new) => (Some(new), false),
        };
        if dry_run {
            return Ok(Some(Deleted {
                object: plain(object.unwrap_or(old))?,
                gone,
                uid,
            }));
        }
        let plan = if gone {
            self.plan((target, ""), None, Some(old), attempt)?
        } else {
            super::Plan::default()
        };
        let write = Write {
            target,
            object,
            at: Some(revision),
            plan,
            fence: cx.fence,
        };
        Ok(match self.commit(write).await? {
            Commit::Moved => None,
            Commit::Done(bytes) => Some(Deleted {
                object: if gone { plain(old)? } else { bytes },
                gone,
                uid,
            }),
        })
    }

    fn delete_one<'a>(
        &'a self,
        cx: &'a Context,
        target: Target,
        options: &'a DeleteOptions,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            match self.delete_object(cx, &target, options).await {
                // Somebody else was faster, which is as good.
                Err(status) if status.code == 404 => Ok(()),
                other => other.map(|_| ()),
            }
        })
    }

    /// DELETE of all objects that match.
    pub async fn delete_collection(
        &self,
        cx: &Context,
        target: &Target,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        let options = options(cx, body)?;
        warn_of_orphans(cx, target, &options);
        let filter = Filter::parse(&cx.query, target)?;
        let list = ListOptions::parse(&cx.query)?;
        let listed = match self.select(target, &filter, &list).await {
            Ok(listed) => listed,
            Err(ListError::Status(status)) => return Err(status),
            Err(ListError::ContinueExpired(_)) => {
                return Err(Status::new(
                    410,
                    "Expired",
                    "the continue token has expired",
                ));
            }
        };
        let mut deletions = Vec::with_capacity(listed.objects.len());
        for stored in &listed.objects {
            let mut one = target.named(stored.name());
            one.namespace = stored.namespace().to_owned();
            deletions.push(self.delete_one(cx, one, &options));
        }
        stream::iter(deletions)
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        shape::list(target, listed.objects, &listed.meta, accepted, &cx.query)
    }
}

/// Tells a client what becomes of dependents that it did not mention.
fn warn_of_orphans(cx: &Context, target: &Target, options: &DeleteOptions) {
    let warning = target.kind.strategy.unsaid_propagation_warning();
    if let Some(warning) = warning.filter(|_| !options.says_propagation()) {
        cx.warn(warning);
    }
}

/// A Status that says Success.
pub(super) fn success(details: &Value) -> Value {
    let mut details = details.clone();
    if let Some(map) = details.as_object_mut() {
        map.retain(|_, v| v.as_str() != Some(""));
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
