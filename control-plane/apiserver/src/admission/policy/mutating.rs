//! MutatingAdmissionPolicies: expressions that make an apply configuration or a JSON patch.
//!
//! KEP-3962. They run before mutating webhooks, by name; those with `reinvocationPolicy: IfNeeded` run again when
//! one behind them has changed the object.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::apply::{self, Manager};
use balsa_api::object;
use balsa_api::patch;
use balsa_api::status::Status;
use balsa_cel::{Bindings, Budget, Program, Type};
use serde_json::Value;

use super::conditions::Outcome;
use super::config::{Bound, Common, Source};
use super::environment::{Asked, Documents};
use super::validating::namespace_of;
use super::{is_excluded, params};
use crate::admission::refuse;
use crate::admission::webhook::View;
use crate::kinds::{KindSet, Kinds};
use crate::seam::{Admission, AdmissionRequest, Authorizer, ObjectReader};

/// A policy.
pub struct Policy {
    common: Common,
    mutations: Vec<Mutation>,
    reinvoke: bool,
}

enum Mutation {
    Apply(Program),
    Patch(Program),
}

/// Types of struct literals in mutations: `Object` and its fields' types are open, `JSONPatch` is an operation.
#[must_use]
pub fn struct_types(name: &str) -> Option<Type> {
    if name == "JSONPatch" {
        return Some(Type::object(
            "JSONPatch",
            vec![
                ("op", Type::STRING),
                ("path", Type::STRING),
                ("from", Type::STRING),
                ("value", Type::Dyn),
            ],
        ));
    }
    let object = name == "Object" || name.starts_with("Object.");
    object.then_some(Type::Dyn)
}

/// What an expression of a mutation has to give: a whole object, or a list of operations.
#[must_use]
pub fn result_type(patch_type: &str) -> Type {
    match patch_type {
        "JSONPatch" => Type::list(struct_types("JSONPatch").unwrap_or(Type::Dyn)),
        _ => Type::Dyn,
    }
}

impl Policy {
    fn from_json(policy: &Value) -> Result<Self, String> {
        let common = Common::from_json(policy)?;
        let environment = common.environment.clone().with_structs(struct_types);
        let mut mutations = Vec::new();
        for mutation in policy["spec"]["mutations"].as_array().into_iter().flatten() {
            let patch_type = mutation["patchType"].as_str().unwrap_or_default();
            let field = match patch_type {
                "JSONPatch" => "jsonPatch",
                _ => "applyConfiguration",
            };
            let expression = mutation[field]["expression"].as_str().unwrap_or_default();
            let program = environment
                .compile_to(expression, &[result_type(patch_type)])
                .map_err(|error| error.complaint())?;
            mutations.push(match patch_type {
                "JSONPatch" => Mutation::Patch(program),
                _ => Mutation::Apply(program),
            });
        }
        Ok(Self {
            common,
            mutations,
            reinvoke: policy["spec"]["reinvocationPolicy"] == "IfNeeded",
        })
    }
}

/// What a mutation does to an object.
enum Change {
    Merge(Value),
    Operations(Value),
}

impl Mutation {
    fn evaluate(&self, bindings: &Bindings<'_>, budget: &mut Budget) -> Result<Change, String> {
        let program = match self {
            Self::Apply(program) | Self::Patch(program) => program,
        };
        let made = program
            .evaluate(bindings, budget)
            .and_then(|value| value.to_json())
            .map_err(|error| {
                format!(
                    "expression '{}' resulted in error: {error}",
                    program.source()
                )
            })?;
        Ok(match self {
            Self::Apply(_) => Change::Merge(made),
            Self::Patch(_) => Change::Operations(made),
        })
    }
}

impl Change {
    fn make(self, object: Value, kinds: &KindSet, view: &View) -> Result<Value, String> {
        match self {
            Self::Operations(operations) => {
                patch::json(object, operations.to_string().as_bytes()).map_err(|s| s.message)
            }
            Self::Merge(configuration) => merge(object, configuration, kinds, view),
        }
    }
}

/// Merges an apply configuration, by the lists' and maps' types; nobody's ownership changes.
fn merge(
    object: Value,
    mut configuration: Value,
    kinds: &KindSet,
    view: &View,
) -> Result<Value, String> {
    if !configuration.is_object() {
        return Err("the apply configuration is not an object".to_owned());
    }
    let resource = view.resource();
    let served = kinds.get(&resource.group, &resource.version, &resource.plural);
    let type_ = served.and_then(|served| {
        let kind = &served.kind;
        served.schema().kind(&kind.group, &kind.version, &kind.kind)
    });
    let Some(type_) = type_ else {
        return Ok(patch::merge(object, &configuration));
    };
    for field in ["apiVersion", "kind"] {
        configuration[field] = object[field].clone();
    }
    object::set_name(&mut configuration, object::name(&object));
    let api_version = object::api_version(&object).to_owned();
    let manager = Manager {
        name: "mutating-admission-policy",
        api_version: &api_version,
        subresource: "",
        time: jiff::Timestamp::now(),
    };
    let mut merged = apply::apply(type_, Some(&object), &configuration, &manager, true, &[])
        .map_err(|status| status.message)?;
    let metadata = object::metadata_mut(&mut merged);
    match object["metadata"].get("managedFields") {
        Some(fields) => metadata.insert("managedFields".into(), fields.clone()),
        None => metadata.remove("managedFields"),
    };
    Ok(merged)
}

/// See the module.
pub struct MutatingPolicies {
    source: Source<Policy>,
    kinds: Arc<Kinds>,
    reader: Arc<dyn ObjectReader>,
    authz: Arc<dyn Authorizer>,
}

impl MutatingPolicies {
    /// Over the policies of a reader.
    #[must_use]
    pub fn new(
        kinds: Arc<Kinds>,
        reader: Arc<dyn ObjectReader>,
        authz: Arc<dyn Authorizer>,
    ) -> Self {
        let resources = (
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
        );
        Self {
            source: Source::new(resources, Policy::from_json, Arc::clone(&reader)),
            kinds,
            reader,
            authz,
        }
    }

    /// Runs one policy with all its bindings and parameters; true when it changed the object.
    async fn run(
        &self,
        bound: &Bound<Policy>,
        request: &mut AdmissionRequest<'_>,
        kinds: &KindSet,
    ) -> Result<bool, Status> {
        let policy = &bound.policy;
        let common = &policy.common;
        let mut changed = false;
        for binding in &bound.bindings {
            let Some(resource) = common.scope.matches(request, kinds, &*self.reader)? else {
                return Ok(changed);
            };
            if binding
                .scope
                .matches(request, kinds, &*self.reader)?
                .is_none()
            {
                continue;
            }
            let tools = (kinds, &*self.reader);
            let found = params::collect(common, binding, request.namespace, tools);
            let all = match found {
                Ok(all) => all,
                Err(_) if common.fail_open => continue,
                Err(why) => return Err(failed(request, common, &binding.name, &why)),
            };
            for params in all {
                for mutation in &policy.mutations {
                    let view = View::of(request, resource.clone(), kinds).await?;
                    let change = self.evaluate(policy, mutation, request, &view, params.as_deref());
                    let made = match change {
                        Ok(Some(change)) => {
                            let source = view.seen(request).object.cloned();
                            change.make(source.unwrap_or_default(), kinds, &view)
                        }
                        Ok(None) => break,
                        Err(why) => Err(why),
                    };
                    match made {
                        Ok(made) => changed |= replace(request, &view, made, kinds).await?,
                        Err(_) if common.fail_open => {}
                        Err(why) => return Err(failed(request, common, &binding.name, &why)),
                    }
                }
            }
        }
        Ok(changed)
    }

    /// What one mutation wants; `None` when the policy's conditions are not met.
    fn evaluate(
        &self,
        policy: &Policy,
        mutation: &Mutation,
        request: &AdmissionRequest<'_>,
        view: &View,
        params: Option<&Value>,
    ) -> Result<Option<Change>, String> {
        let seen = view.seen(request);
        let asked = Asked {
            request,
            seen: &seen,
            authz: &*self.authz,
            params,
        };
        let documents = Documents::new(&asked, namespace_of(request, &*self.reader));
        let bindings = documents.bindings(&policy.common.variables);
        let mut budget = Budget::new(Budget::PER_OBJECT);
        match policy
            .common
            .conditions
            .evaluate_with(&bindings, &mut budget)
        {
            Outcome::Matches => mutation.evaluate(&bindings, &mut budget).map(Some),
            Outcome::Differs => Ok(None),
            Outcome::Failed(why) => Err(why),
        }
    }
}

/// Puts a changed object in the request's place; true when it is another one.
async fn replace(
    request: &mut AdmissionRequest<'_>,
    view: &View,
    made: Value,
    kinds: &KindSet,
) -> Result<bool, Status> {
    let mut made = view.back(made, kinds).await?;
    (request.renormalise)(&mut made)?;
    let Some(object) = request.object.as_deref_mut() else {
        return Ok(false);
    };
    let differs = *object != made;
    *object = made;
    Ok(differs)
}

fn failed(request: &AdmissionRequest<'_>, policy: &Common, binding: &str, why: &str) -> Status {
    let message = format!(
        "policy '{}' with binding '{binding}' denied request: {why}",
        policy.name
    );
    refuse(request, &message)
}

#[async_trait]
impl Admission for MutatingPolicies {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let policies = self.source.policies();
        if policies.is_empty() || is_excluded(request) || request.object.is_none() {
            return Ok(());
        }
        Box::pin(self.run_all(&policies, request)).await
    }

    async fn validate(&self, _request: &AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl MutatingPolicies {
    async fn run_all(
        &self,
        policies: &[Bound<Policy>],
        request: &mut AdmissionRequest<'_>,
    ) -> Result<(), Status> {
        let kinds = self.kinds.set();
        let mut last_change = None;
        for (index, bound) in policies.iter().enumerate() {
            if self.run(bound, request, &kinds).await? {
                last_change = Some(index);
            }
        }
        let earlier = &policies[..last_change.unwrap_or(0)];
        for bound in earlier.iter().filter(|b| b.policy.reinvoke) {
            self.run(bound, request, &kinds).await?;
        }
        Ok(())
    }
}
