//! Admission webhooks: servers that are asked about writes, and may change or refuse them.
//!
//! Mutating ones run one after another, each seeing what those before it made, and some a second time when the
//! object changed after them. Validating ones run at once.

pub mod config;
pub mod review;
pub mod rules;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::patch;
use balsa_api::status::Status;
use serde_json::Value;

use self::config::{Hook, Source};
use self::review::{Answer, Seen};
use self::rules::{Resource, convert};
use crate::admission::policy::check::ExpressionCheck;
use crate::admission::policy::conditions::{Asked, Outcome};
use crate::admission::policy::mutating::MutatingPolicies;
use crate::admission::policy::validating::ValidatingPolicies;
use crate::kinds::{KindSet, Kinds};
use crate::seam::{Admission, AdmissionRequest, Authorizer, ObjectReader};
use crate::webhook_client::WebhookClient;

/// Group of the configurations.
pub const GROUP: &str = "admissionregistration.k8s.io";

/// Kinds that configure admission; it is never asked about them, or nobody could mend it.
const CONFIGURATIONS: [&str; 6] = [
    "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
];

/// All admission that is configured by objects, to come behind a chain of plugins: policies that mutate, checks of
/// expressions, policies that validate, webhooks of both kinds.
#[must_use]
pub fn configured(
    chain: &Arc<dyn Admission>,
    client: &Arc<WebhookClient>,
    kinds: &Arc<Kinds>,
    reader: &Arc<dyn ObjectReader>,
    authz: &Arc<dyn Authorizer>,
) -> Vec<Arc<dyn Admission>> {
    let (kinds, reader, authz) = (
        || Arc::clone(kinds),
        || Arc::clone(reader),
        || Arc::clone(authz),
    );
    let webhooks = Webhooks::new(Arc::clone(client), kinds(), reader(), authz());
    vec![
        Arc::new(MutatingPolicies::new(kinds(), reader(), authz())),
        Arc::new(ExpressionCheck),
        Arc::new(ValidatingPolicies::new(kinds(), reader(), authz())),
        Arc::new(webhooks.rerunning(Arc::clone(chain))),
    ]
}

/// Whether a request is about the configuration of admission itself.
#[must_use]
pub fn is_exempt(request: &AdmissionRequest<'_>) -> bool {
    request.kind.group == GROUP && CONFIGURATIONS.contains(&request.kind.plural.as_ref())
}

/// See the module.
pub struct Webhooks {
    mutating: Source,
    validating: Source,
    client: Arc<WebhookClient>,
    kinds: Arc<Kinds>,
    reader: Arc<dyn ObjectReader>,
    authz: Arc<dyn Authorizer>,
    /// Plugins that mutate before, and again after a webhook has changed something.
    before: Option<Arc<dyn Admission>>,
}

impl Webhooks {
    /// Over the configurations of a reader.
    #[must_use]
    pub fn new(
        client: Arc<WebhookClient>,
        kinds: Arc<Kinds>,
        reader: Arc<dyn ObjectReader>,
        authz: Arc<dyn Authorizer>,
    ) -> Self {
        Self {
            mutating: Source::new("mutatingwebhookconfigurations", Arc::clone(&reader)),
            validating: Source::new("validatingwebhookconfigurations", Arc::clone(&reader)),
            client,
            kinds,
            reader,
            authz,
            before: None,
        }
    }

    /// Plugins to run again when a webhook has changed the object.
    #[must_use]
    pub fn rerunning(mut self, before: Arc<dyn Admission>) -> Self {
        self.before = Some(before);
        self
    }

    /// The request as a webhook that wants it sees it; `None` when the webhook does not.
    async fn wanted(
        &self,
        hook: &Hook,
        request: &AdmissionRequest<'_>,
        kinds: &KindSet,
    ) -> Result<Option<View>, Status> {
        let Some(resource) = hook.scope.matches(request, kinds, &*self.reader)? else {
            return Ok(None);
        };
        let view = View::of(request, resource, kinds).await?;
        if hook.conditions.is_empty() {
            return Ok(Some(view));
        }
        let asked = Asked {
            request,
            seen: &view.seen(request),
            authz: &*self.authz,
            params: None,
        };
        match hook.conditions.evaluate(&asked) {
            Outcome::Matches => Ok(Some(view)),
            Outcome::Differs => Ok(None),
            Outcome::Failed(why) => Err(super::refuse(request, &why)),
        }
    }

    async fn ask(
        &self,
        hook: &Hook,
        request: &AdmissionRequest<'_>,
        view: &View,
        mutating: bool,
    ) -> Result<Answer, Failure> {
        if request.dry_run && !hook.dry_run {
            return Err(Failure::Refused(Status::bad_request(format!(
                "admission webhook {:?} does not support dry run",
                hook.name
            ))));
        }
        let client = hook
            .client
            .as_ref()
            .map_err(|why| Failure::Call(why.clone()))?;
        let seen = view.seen(request);
        let (question, uid) = review::question(request, &seen, hook.review_version);
        let reply = self
            .client
            .call(client, &question, hook.timeout)
            .await
            .map_err(|error| Failure::Call(error.to_string()))?;
        let how = (mutating, hook.review_version);
        review::answer(&reply, &uid, &hook.name, how)
            .map_err(|why| Failure::Call(format!("received invalid webhook response: {why}")))
    }

    /// Passes on what came with an answer; a refusal is an error.
    fn take(
        hook: &Hook,
        request: &AdmissionRequest<'_>,
        answer: Result<Answer, Failure>,
    ) -> Result<Vec<u8>, Status> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(Failure::Refused(status)) => return Err(status),
            Err(Failure::Call(why)) if hook.fail_open => {
                tracing::warn!(
                    webhook = hook.name,
                    configuration = hook.configuration,
                    why,
                    "failed calling webhook, failing open"
                );
                return Ok(Vec::new());
            }
            Err(Failure::Call(why)) => {
                let message = format!(
                    "Internal error occurred: failed calling webhook {:?}: {why}",
                    hook.name
                );
                return Err(Status::new(500, "InternalError", message));
            }
        };
        for (key, value) in answer.annotations {
            (request.annotate)(key, value);
        }
        for warning in answer.warnings {
            (request.warn)(warning);
        }
        match answer.denied {
            Some(status) => Err(status),
            None => Ok(answer.patch),
        }
    }

    /// Asks one mutating webhook; true when it changed the object. `None`: it does not want the request.
    async fn mutate_by(
        &self,
        hook: &Hook,
        request: &mut AdmissionRequest<'_>,
        kinds: &KindSet,
    ) -> Result<Option<bool>, Status> {
        let Some(view) = self.wanted(hook, request, kinds).await? else {
            return Ok(None);
        };
        let answer = self.ask(hook, request, &view, true).await;
        let patch = Self::take(hook, request, answer)?;
        if patch.is_empty() || patch == b"[]" {
            return Ok(Some(false));
        }
        let Some(object) = request.object.as_deref_mut() else {
            return Err(Status::internal(format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                hook.name
            )));
        };
        let before = object.clone();
        let source = view.object.clone().unwrap_or_else(|| before.clone());
        let patched = patch::json(source, &patch).map_err(|s| Status::internal(s.message))?;
        let mut changed = view.back(patched, kinds).await?;
        (request.renormalise)(&mut changed)?;
        *object = changed;
        Ok(Some(*object != before))
    }

    async fn first_round(
        &self,
        hooks: &[Hook],
        request: &mut AdmissionRequest<'_>,
        kinds: &KindSet,
    ) -> Result<Round, Status> {
        let mut round = Round::default();
        for (index, hook) in hooks.iter().enumerate() {
            let Some(changed) = self.mutate_by(hook, request, kinds).await? else {
                continue;
            };
            if changed {
                round.changed = true;
                // Those before it have not seen the change.
                round.again.extend(&round.asked);
            }
            if hook.reinvoke {
                round.asked.insert(index);
            }
        }
        Ok(round)
    }
}

/// Why there is no answer.
enum Failure {
    /// The webhook could not be asked; its failure policy decides.
    Call(String),
    /// It may not be asked.
    Refused(Status),
}

/// What the first round of mutating webhooks came to.
#[derive(Default)]
struct Round {
    changed: bool,
    /// Webhooks that were asked and want to be asked again after changes.
    asked: BTreeSet<usize>,
    /// Those of them after which something changed.
    again: BTreeSet<usize>,
}

/// A request in the version that a webhook or policy asked for.
pub(in crate::admission) struct View {
    resource: Resource,
    /// The objects' kind, where it is not the request's own.
    kind: Option<(String, String, String)>,
    /// Converted objects, likewise.
    object: Option<Value>,
    old: Option<Value>,
    own: Resource,
}

impl View {
    /// The resource that is asked about.
    pub(in crate::admission) fn resource(&self) -> &Resource {
        &self.resource
    }

    /// Converts a request's objects where that is necessary.
    pub(in crate::admission) async fn of(
        request: &AdmissionRequest<'_>,
        resource: Resource,
        kinds: &KindSet,
    ) -> Result<Self, Status> {
        let own = Resource::of(request);
        let mut view = Self {
            kind: None,
            object: None,
            old: None,
            own,
            resource,
        };
        let (group, version, kind) = request.object_kind;
        let is_own_kind = request.kind.group == group
            && request.kind.version == version
            && request.kind.kind == kind;
        if view.resource == view.own || !is_own_kind {
            // The body of a subresource is of the same kind in all versions.
            return Ok(view);
        }
        let (from, to) = (served(kinds, &view.own)?, served(kinds, &view.resource)?);
        view.kind = Some((
            to.kind.group.to_string(),
            to.kind.version.to_string(),
            to.kind.kind.to_string(),
        ));
        if let Some(object) = request.object.as_deref() {
            view.object = Some(convert(object, from, to).await?);
        }
        if let Some(old) = request.old {
            view.old = Some(convert(old, from, to).await?);
        }
        Ok(view)
    }

    /// The request as it is seen.
    pub(in crate::admission) fn seen<'a>(&'a self, request: &'a AdmissionRequest<'_>) -> Seen<'a> {
        let kind = self.kind.as_ref();
        Seen {
            resource: &self.resource,
            kind: kind.map_or(request.object_kind, |(g, v, k)| (g, v, k)),
            object: self.object.as_ref().or(request.object.as_deref()),
            old: self.old.as_ref().or(request.old),
        }
    }

    /// A changed object in the request's own version.
    pub(in crate::admission) async fn back(
        &self,
        object: Value,
        kinds: &KindSet,
    ) -> Result<Value, Status> {
        if self.kind.is_none() {
            return Ok(object);
        }
        convert(
            &object,
            served(kinds, &self.resource)?,
            served(kinds, &self.own)?,
        )
        .await
    }
}

fn served<'k>(kinds: &'k KindSet, resource: &Resource) -> Result<&'k crate::kinds::Served, Status> {
    kinds
        .get(&resource.group, &resource.version, &resource.plural)
        .ok_or_else(|| {
            Status::internal(format!(
                "unable to convert to {}/{}, Resource={}: unknown kind",
                resource.group, resource.version, resource.plural
            ))
        })
}

#[async_trait]
impl Admission for Webhooks {
    // Asking webhooks takes a future of more than 100 KB: it is made only where there is one to ask.
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let hooks = self.mutating.hooks();
        if hooks.is_empty() || is_exempt(request) {
            return Ok(());
        }
        Box::pin(self.mutate_by_all(&hooks, request)).await
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let hooks = self.validating.hooks();
        if hooks.is_empty() || is_exempt(request) {
            return Ok(());
        }
        Box::pin(self.validate_by_all(&hooks, request)).await
    }
}

impl Webhooks {
    async fn mutate_by_all(
        &self,
        hooks: &[Hook],
        request: &mut AdmissionRequest<'_>,
    ) -> Result<(), Status> {
        let kinds = self.kinds.set();
        let mut round = self.first_round(hooks, request, &kinds).await?;
        if !round.changed {
            return Ok(());
        }
        if let Some(before) = &self.before {
            let made = request.object.as_deref().cloned();
            before.mutate(request).await?;
            if request.object.as_deref() != made.as_ref() {
                round.again = round.asked;
            }
        }
        for index in round.again {
            self.mutate_by(&hooks[index], request, &kinds).await?;
        }
        Ok(())
    }

    async fn validate_by_all(
        &self,
        hooks: &[Hook],
        request: &AdmissionRequest<'_>,
    ) -> Result<(), Status> {
        let kinds = self.kinds.set();
        let mut wanted = Vec::new();
        for hook in hooks {
            if let Some(view) = self.wanted(hook, request, &kinds).await? {
                wanted.push((hook, view));
            }
        }
        let asking = wanted
            .iter()
            .map(|(hook, view)| self.ask(hook, request, view, false));
        let answers = futures::future::join_all(asking).await;
        let mut refused = None;
        // All are read: warnings of the others count too.
        for ((hook, _), answer) in wanted.iter().zip(answers) {
            if let Err(status) = Self::take(hook, request, answer) {
                refused.get_or_insert(status);
            }
        }
        refused.map_or(Ok(()), Err)
    }
}
