//! What expressions of admission can name: the request, its objects, parameters, variables, the authorizer.

use std::sync::{Arc, LazyLock};

use balsa_api::schema::Schema;
use balsa_api::selector::FieldSelector;
use balsa_cel::{
    Authorizer as CelAuthorizer, Bindings, Check, Decision as CelDecision, Environment, Program,
    Type, Val, schema,
};
use futures::FutureExt as _;
use serde_json::Value;

use crate::admission::webhook::review::{self, Seen};
use crate::seam::{AdmissionRequest, Attributes, Authorizer, Decision, User};

static NULL: Value = Value::Null;

/// Type of `request`.
static REQUEST: LazyLock<Type> = LazyLock::new(|| {
    let text = || Type::STRING;
    let kind = || {
        Type::object(
            "kubernetes.GroupVersionKind",
            vec![("group", text()), ("version", text()), ("kind", text())],
        )
    };
    let resource = || {
        Type::object(
            "kubernetes.GroupVersionResource",
            vec![("group", text()), ("version", text()), ("resource", text())],
        )
    };
    let user = Type::object(
        "kubernetes.UserInfo",
        vec![
            ("username", text()),
            ("uid", text()),
            ("groups", Type::list(text())),
            ("extra", Type::map(text(), Type::list(text()))),
        ],
    );
    Type::object(
        "kubernetes.AdmissionRequest",
        vec![
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", text()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
});

/// Type of `namespaceObject`.
static NAMESPACE: LazyLock<Type> = LazyLock::new(|| {
    Schema::builtin()
        .kind("", "v1", "Namespace")
        .map_or(Type::Dyn, schema::builtin)
});

/// The names that all expressions of admission know.
#[must_use]
pub fn webhook() -> Environment {
    Environment::new()
        .with("object", Type::Dyn)
        .with("oldObject", Type::Dyn)
        .with("request", REQUEST.clone())
        .with(
            "authorizer",
            Type::Opaque("kubernetes.authorization.Authorizer"),
        )
        .with(
            "authorizer.requestResource",
            Type::Opaque("kubernetes.authorization.ResourceCheck"),
        )
}

/// Those and what policies know besides; `params` only where the policy has parameters.
#[must_use]
pub fn policy(params: bool) -> Environment {
    let environment = webhook().with("namespaceObject", NAMESPACE.clone());
    if params {
        environment.with("params", Type::Dyn)
    } else {
        environment
    }
}

/// With `variables`, whose types are known.
#[must_use]
pub fn with_variables(environment: &Environment, variables: &[(String, Type)]) -> Environment {
    let fields = variables
        .iter()
        .map(|(name, type_)| (name.as_str(), type_.clone()))
        .collect();
    environment
        .clone()
        .with("variables", Type::object("kubernetes.variables", fields))
}

/// A request that expressions are asked about.
pub struct Asked<'a> {
    /// The request.
    pub request: &'a AdmissionRequest<'a>,
    /// As the webhook or policy sees it.
    pub seen: &'a Seen<'a>,
    /// Answers checks.
    pub authz: &'a dyn Authorizer,
    /// The parameters.
    pub params: Option<&'a Value>,
}

/// The documents that variables are bound to.
pub struct Documents<'a> {
    asked: &'a Asked<'a>,
    request: Value,
    namespace: Option<Arc<Value>>,
    authorizer: Asker<'a>,
}

impl<'a> Documents<'a> {
    /// Of a request; with the namespace that its object is in.
    #[must_use]
    pub fn new(asked: &'a Asked<'a>, namespace: Option<Arc<Value>>) -> Self {
        let request = review::attributes(asked.request, asked.seen);
        Self {
            request: Value::Object(request),
            namespace,
            authorizer: Asker {
                authz: asked.authz,
                user: asked.request.user,
            },
            asked,
        }
    }

    /// Bindings for expressions that use some variables.
    #[must_use]
    pub fn bindings<'d>(&'d self, variables: &'d [(String, Program)]) -> Bindings<'d> {
        let (asked, request) = (self.asked, self.asked.request);
        let check = Check {
            group: request.kind.group.to_string(),
            resource: request.kind.plural.to_string(),
            subresource: request.subresource.to_owned(),
            namespace: request.namespace.to_owned(),
            name: request.name.to_owned(),
            ..Check::default()
        };
        let namespace = self.namespace.as_deref().unwrap_or(&NULL);
        let mut bindings = Bindings::new()
            .json("object", asked.seen.object.unwrap_or(&NULL), &Type::Dyn)
            .json("oldObject", asked.seen.old.unwrap_or(&NULL), &Type::Dyn)
            .json("request", &self.request, &REQUEST)
            .json("params", asked.params.unwrap_or(&NULL), &Type::Dyn)
            .json("namespaceObject", namespace, &NAMESPACE)
            .value("authorizer", Val::authorizer(&self.authorizer))
            .value(
                "authorizer.requestResource",
                Val::resource_check(&self.authorizer, check),
            );
        for (name, program) in variables {
            bindings = bindings.composed(name, program);
        }
        bindings
    }
}

/// Asks the server's authorizer on behalf of the request's user.
struct Asker<'a> {
    authz: &'a dyn Authorizer,
    user: &'a User,
}

impl CelAuthorizer for Asker<'_> {
    fn check(&self, check: &Check) -> CelDecision {
        let user = match &check.service_account {
            Some((namespace, name)) => User {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups: vec![
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".to_owned(),
                ],
                ..User::default()
            },
            None => self.user.clone(),
        };
        let attributes = Attributes {
            user: Arc::new(user),
            verb: check.verb.clone(),
            namespace: check.namespace.clone(),
            group: check.group.clone(),
            version: "*".to_owned(),
            resource: check.resource.clone(),
            subresource: check.subresource.clone(),
            name: check.name.clone(),
            path: check.path.clone().unwrap_or_default(),
            fields: FieldSelector::parse(&check.field_selector).unwrap_or_default(),
        };
        // Ours decides from the cache, without waiting; one that waits cannot be asked in an expression.
        match self.authz.authorize(&attributes).now_or_never() {
            Some(Decision::Allow(reason)) => CelDecision {
                allowed: true,
                reason,
                error: None,
            },
            Some(Decision::NoOpinion(reason)) => CelDecision {
                reason,
                ..CelDecision::default()
            },
            None => CelDecision {
                error: Some("the authorizer cannot decide at once".to_owned()),
                ..CelDecision::default()
            },
        }
    }
}
