//! CREATE.

use balsa_api::object;
use balsa_api::status::Status;
use balsa_api::validation::validate_metadata_create;
use bytes::Bytes;
use http::Response;
use serde_json::Value;

use super::admit::{self, Question};
use super::{Plan, Registry, Target, csr, metadata, shape};
use crate::adapter;
use crate::backend::{BackendError, Compare, Op, Txn, TxnOutcome};
use crate::cache::stored::{encode_for_store, splice};
use crate::http::context::Context;
use crate::seam::{Operation, ResponseBody};

/// Names tried for `generateName`, and plans tried for allocations.
const ATTEMPTS: usize = 16;

/// How a write of one object ended.
pub(super) enum Commit {
    /// The object as clients see it.
    Done(Bytes),
    /// The object was not in the state that the write was made for.
    Moved,
}

/// One write of one object, with its condition.
pub(super) struct Write<'a> {
    pub target: &'a Target,
    /// Object to put; `None` deletes.
    pub object: Option<&'a Value>,
    /// The revision it must be at; `None`: it must not exist.
    pub at: Option<u64>,
    pub plan: Plan,
    pub fence: Option<u64>,
}

impl Registry {
    /// POST to a resource.
    pub async fn create(
        &self,
        cx: &Context,
        target: &Target,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        let object = admit::object_of(cx, target, body)?;
        if !object::resource_version(&object).is_empty() {
            return Err(Status::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let bytes = self.create_object(cx, target, object, None).await?;
        shape::object(201, &target.kind, bytes, accepted, &cx.query)
    }

    /// Creates an object that has been decoded. `applied` has the managed fields of a server-side apply.
    pub(super) async fn create_object(
        &self,
        cx: &Context,
        target: &Target,
        mut object: Value,
        applied: Option<Value>,
    ) -> Result<Bytes, Status> {
        let dry_run = cx.dry_run()?;
        if target.is_namespaced() && target.namespace.is_empty() {
            return Err(Status::bad_request(
                "an empty namespace may not be set during creation",
            ));
        }
        metadata::check_namespace(&target.kind, &mut object, &target.namespace)?;
        if !target.name.is_empty() {
            metadata::check_name(&mut object, &target.name)?;
        }
        let generated =
            object::name(&object).is_empty() && !object::generate_name_base(&object).is_empty();
        let changing = self.allocators_of(target).any(|a| a.changes_objects());
        let mut ready = None;
        for attempt in 0..ATTEMPTS {
            // Another name makes another object, since some kinds repeat it in labels: that starts from what was sent.
            let prepared = match ready.take().filter(|_| !generated) {
                Some(prepared) => prepared,
                None => {
                    let sent = if generated {
                        object.clone()
                    } else {
                        object.take()
                    };
                    self.prepare(cx, target, sent, applied.as_ref(), dry_run)
                        .await?
                }
            };
            let named = target.named(object::name(&prepared));
            let unchanged = changing.then(|| prepared.clone());
            let mut candidate = prepared;
            let _turns = self.turns(target).await;
            let plan = self.plan((&named, ""), Some(&mut candidate), None, attempt)?;
            if dry_run {
                if named.resource.get(&named.key()).is_some() {
                    return Err(already_exists(&named));
                }
                return plain(&candidate);
            }
            let write = Write {
                target: &named,
                object: Some(&candidate),
                at: None,
                plan,
                fence: cx.fence,
            };
            match self.commit(write).await? {
                Commit::Done(bytes) => return Ok(bytes),
                Commit::Moved if generated => {}
                Commit::Moved if named.resource.get(&named.key()).is_some() => {
                    return Err(already_exists(&named));
                }
                Commit::Moved => {}
            }
            ready = Some(unchanged.unwrap_or(candidate));
        }
        Err(server_timeout(target))
    }

    /// Names, defaults, admits, prepares and checks a new object.
    async fn prepare(
        &self,
        cx: &Context,
        target: &Target,
        mut object: Value,
        applied: Option<&Value>,
        dry_run: bool,
    ) -> Result<Value, Status> {
        let strategy = &target.kind.strategy;
        if object::name(&object).is_empty() && !object::generate_name_base(&object).is_empty() {
            let name = object::generate_name(object::generate_name_base(&object));
            object::set_name(&mut object, &name);
        }
        strategy.default(&mut object);
        metadata::before_create(&mut object, jiff::Timestamp::now());
        let named = target.named(object::name(&object));
        let question = Question::new(cx, &named, Operation::Create, dry_run);
        self.mutate(question, Some(&mut object), None).await?;
        strategy.default(&mut object);
        strategy.prepare_create(&mut object);
        if target.is(csr::GROUP, csr::RESOURCE) {
            csr::set_requester(&mut object, &cx.user);
        }
        match applied {
            Some(fields) => {
                object::metadata_mut(&mut object).insert("managedFields".into(), fields.clone());
            }
            None => adapter::track(target, None, &mut object, &cx.field_manager(), ""),
        }
        let mut errors = validate_metadata_create(&target.kind, &object);
        errors.extend(strategy.validate_create(&object));
        admit::valid(target, object::name(&object), &errors)?;
        for warning in strategy.warnings(&object, None) {
            cx.warn(warning);
        }
        self.validate_admission(question, Some(&mut object), None)
            .await?;
        Ok(object)
    }

    /// Waits for the turn to write what many may want to write at once.
    pub(super) async fn turns(&self, target: &Target) -> Vec<tokio::sync::OwnedMutexGuard<()>> {
        let mut held = Vec::new();
        for allocator in self.allocators_of(target) {
            if let Some(turn) = allocator.turn(target) {
                held.push(turn.lock_owned().await);
            }
        }
        held
    }

    /// What the allocators add to a write.
    pub(super) fn plan(
        &self,
        (target, subresource): (&Target, &str),
        mut new: Option<&mut Value>,
        old: Option<&Value>,
        attempt: usize,
    ) -> Result<Plan, Status> {
        let mut whole = Plan::default();
        for allocator in self.allocators_of(target) {
            let plan = allocator.plan((target, subresource), new.as_deref_mut(), old, attempt)?;
            whole.compares.extend(plan.compares);
            whole.ops.extend(plan.ops);
        }
        Ok(whole)
    }

    /// Writes one object in one transaction.
    pub(super) async fn commit(&self, write: Write<'_>) -> Result<Commit, Status> {
        let key = write.target.store_key();
        let own = write.at.map_or_else(
            || Compare::Absent(key.clone()),
            |r| Compare::ModRevision(key.clone(), r),
        );
        let (planned, errors): (Vec<Compare>, Vec<Option<Status>>) =
            write.plan.compares.into_iter().unzip();
        let compares: Vec<Compare> = std::iter::once(own).chain(planned).collect();
        // What the client sees, and what is stored: two versions of a custom resource, else the same.
        let raw = write.object.map(|object| write.target.encode(object));
        let stored = match (&raw, write.object, &write.target.custom) {
            (Some(raw), Some(object), Some(custom)) => match custom.to_storage(object).await? {
                Some(other) => Some(Bytes::from(encode_for_store(&other))),
                None => Some(raw.clone()),
            },
            _ => raw.clone(),
        };
        loop {
            let lease = match &raw {
                Some(_) => self.leases.lease_for(write.target, &*self.backend).await?,
                None => None,
            };
            let first = match &stored {
                Some(stored) => Op::Put {
                    key: key.clone(),
                    value: stored.clone(),
                    lease,
                },
                None => Op::Delete { key: key.clone() },
            };
            let ops = std::iter::once(first)
                .chain(write.plan.ops.iter().cloned())
                .collect();
            let txn = Txn {
                compares: compares.clone(),
                ops,
                fence: write.fence,
            };
            return match self.backend.txn(txn).await {
                Ok(TxnOutcome::Committed { revision }) => Ok(Commit::Done(match &raw {
                    Some(raw) => write.target.view(
                        splice(raw, revision)
                            .map(|(bytes, _)| bytes)
                            .unwrap_or_default(),
                    ),
                    None => revision.to_string().into(),
                })),
                Ok(TxnOutcome::Refused { found, .. }) => refused(&compares, &found, errors),
                Err(BackendError::LeaseNotFound) if lease.is_some() => {
                    self.leases.forget(lease);
                    continue;
                }
                Err(error) => Err(error.into()),
            };
        }
    }
}

/// Which condition did not hold decides what the client hears.
fn refused(
    compares: &[Compare],
    found: &[Option<crate::backend::KeyValue>],
    errors: Vec<Option<Status>>,
) -> Result<Commit, Status> {
    let holds = |i: usize| {
        compares[i].holds(
            found
                .get(i)
                .and_then(Option::as_ref)
                .map(|kv| kv.mod_revision),
        )
    };
    if !holds(0) {
        return Ok(Commit::Moved);
    }
    for (i, error) in errors.into_iter().enumerate() {
        if let Some(status) = error
            && !holds(i + 1)
        {
            return Err(status);
        }
    }
    Ok(Commit::Moved)
}

fn already_exists(target: &Target) -> Status {
    Status::already_exists(&target.kind.group, &target.kind.plural, &target.name)
}

/// An object that was not written, as clients see it.
pub(super) fn plain(object: &Value) -> Result<Bytes, Status> {
    serde_json::to_vec(object)
        .map(Bytes::from)
        .map_err(Status::internal)
}

/// 500 with `ServerTimeout`: trying again may help.
pub(super) fn server_timeout(target: &Target) -> Status {
    let mut status = Status::new(
        500,
        "ServerTimeout",
        format!(
            "The write operation on {} could not be completed at this time, please try again.",
            target.kind.plural
        ),
    );
    status.details = Some(balsa_api::status::Details {
        retry_after_seconds: Some(1),
        ..balsa_api::status::Details::default()
    });
    status
}
