//! Policies and their bindings, compiled once and kept until one of them changes.

use std::sync::Arc;

use balsa_api::object;
use balsa_api::selector::Selector;
use balsa_cel::{Environment, Program, Type};
use parking_lot::Mutex;
use serde_json::Value;

use super::conditions::Conditions;
use super::environment;
use crate::admission::webhook::GROUP;
use crate::admission::webhook::rules::Scope;
use crate::seam::ObjectReader;

/// What validating and mutating policies share.
pub struct Common {
    /// Its name.
    pub name: String,
    /// What it is about.
    pub scope: Scope,
    /// apiVersion and kind of the parameters.
    pub param_kind: Option<(String, String)>,
    /// Failures to evaluate it are ignored.
    pub fail_open: bool,
    /// Further conditions.
    pub conditions: Conditions,
    /// Variables, each may use those before it.
    pub variables: Vec<(String, Program)>,
    /// What its expressions are compiled in.
    pub environment: Environment,
}

impl Common {
    /// Reads and compiles what a policy of either kind has.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn from_json(policy: &Value) -> Result<Self, String> {
        let spec = &policy["spec"];
        let kind = &spec["paramKind"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let param_kind = kind
            .is_object()
            .then(|| (text(&kind["apiVersion"]), text(&kind["kind"])));
        let fail_open = spec["failurePolicy"] == "Ignore";
        let base = environment::policy(param_kind.is_some());
        let mut types: Vec<(String, Type)> = Vec::new();
        let mut variables = Vec::new();
        let mut environment = environment::with_variables(&base, &types);
        for variable in spec["variables"].as_array().into_iter().flatten() {
            let name = text(&variable["name"]);
            let program = environment
                .compile(&text(&variable["expression"]))
                .map_err(|error| format!("variable {name:?}: compilation failed: {error}"))?;
            types.push((name.clone(), program.result_type().clone()));
            variables.push((name, program));
            environment = environment::with_variables(&base, &types);
        }
        Ok(Self {
            name: object::name(policy).to_owned(),
            scope: Scope::of_match_resources(&spec["matchConstraints"], false)?,
            conditions: Conditions::compile(&spec["matchConditions"], fail_open, &environment),
            param_kind,
            fail_open,
            variables,
            environment,
        })
    }
}

/// Where a binding's parameters are.
pub struct ParamRef {
    /// Name; empty with a selector.
    pub name: String,
    /// Namespace; empty for that of the request.
    pub namespace: String,
    /// Selects by label.
    pub selector: Option<Selector>,
    /// Without parameters nothing is allowed.
    pub deny_missing: bool,
}

/// A binding.
pub struct Binding {
    /// Its name.
    pub name: String,
    /// What it is about, within what the policy is about.
    pub scope: Scope,
    /// Parameters.
    pub params: Option<ParamRef>,
    /// What happens when a validation fails: `Deny`, `Warn`, `Audit`.
    pub actions: Vec<String>,
}

impl Binding {
    fn from_json(binding: &Value) -> Result<Self, String> {
        let spec = &binding["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let reference = &spec["paramRef"];
        let selector = &reference["selector"];
        let params = if reference.is_object() {
            Some(ParamRef {
                name: text(&reference["name"]),
                namespace: text(&reference["namespace"]),
                selector: match selector.is_object() {
                    true => Some(
                        Selector::from_label_selector(Some(selector)).map_err(|e| e.to_string())?,
                    ),
                    false => None,
                },
                deny_missing: reference["parameterNotFoundAction"] != "Allow",
            })
        } else {
            None
        };
        let actions = spec["validationActions"].as_array().into_iter().flatten();
        Ok(Self {
            name: object::name(binding).to_owned(),
            scope: Scope::of_match_resources(&spec["matchResources"], true)?,
            params,
            actions: actions.map(text).collect(),
        })
    }
}

/// A policy with its bindings; without bindings it does nothing.
pub struct Bound<P> {
    /// The policy.
    pub policy: P,
    /// Its bindings, by name.
    pub bindings: Vec<Binding>,
}

/// All policies of a kind.
pub type AllBound<P> = Arc<Vec<Bound<P>>>;

/// What was made at which generations of policies and bindings.
type Made<P> = ((u64, u64), AllBound<P>);

/// Makes a policy from JSON.
type Make<P> = fn(&Value) -> Result<P, String>;

/// The policies of one kind, made anew when one or a binding changes.
pub struct Source<P> {
    policies: &'static str,
    bindings: &'static str,
    make: Make<P>,
    reader: Arc<dyn ObjectReader>,
    made: Mutex<Option<Made<P>>>,
}

impl<P> Source<P> {
    /// Of two resources.
    #[must_use]
    pub fn new(
        (policies, bindings): (&'static str, &'static str),
        make: Make<P>,
        reader: Arc<dyn ObjectReader>,
    ) -> Self {
        Self {
            policies,
            bindings,
            make,
            reader,
            made: Mutex::new(None),
        }
    }

    /// All that are bound, by name.
    #[must_use]
    pub fn policies(&self) -> AllBound<P> {
        let generation = |resource| self.reader.generation(GROUP, resource);
        // Read before the objects: a change in between is seen by the next call.
        let now = (generation(self.policies), generation(self.bindings));
        if let Some((made, policies)) = &*self.made.lock()
            && *made == now
        {
            return Arc::clone(policies);
        }
        let policies: AllBound<P> = Arc::new(self.compile());
        *self.made.lock() = Some((now, Arc::clone(&policies)));
        policies
    }

    fn sorted(&self, resource: &str) -> Vec<Arc<Value>> {
        let mut all = self.reader.list(GROUP, resource, None);
        all.sort_by_key(|o| object::name(o).to_owned());
        all
    }

    fn compile(&self) -> Vec<Bound<P>> {
        let bindings = self.sorted(self.bindings);
        let mut all = Vec::new();
        for policy in self.sorted(self.policies) {
            let name = object::name(&policy);
            let own = bindings.iter().filter(|b| b["spec"]["policyName"] == name);
            let bound: Result<Vec<Binding>, String> = own.map(|b| Binding::from_json(b)).collect();
            if matches!(&bound, Ok(bound) if bound.is_empty()) {
                continue;
            }
            match (self.make)(&policy).and_then(|policy| Ok((policy, bound?))) {
                Ok((policy, bindings)) => all.push(Bound { policy, bindings }),
                // Writes of these are refused; one from before must not stop all writes.
                Err(error) => tracing::warn!(policy = name, error, "a policy cannot be used"),
            }
        }
        all
    }
}
