//! `authorizer`: asking, within an expression, what the user of a request may do.

use std::sync::Arc;

use super::{Builtin, Outcome, text};
use crate::budget::Budget;
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
authorizer.path(string): pathcheck
authorizer.group(string): groupcheck
authorizer.serviceAccount(string, string): authorizer
groupcheck.resource(string): resourcecheck
resourcecheck.subresource(string): resourcecheck
resourcecheck.namespace(string): resourcecheck
resourcecheck.name(string): resourcecheck
resourcecheck.fieldSelector(string): resourcecheck
resourcecheck.labelSelector(string): resourcecheck
resourcecheck.check(string): decision
pathcheck.check(string): decision
decision.allowed(): bool
decision.reason(): string
decision.errored(): bool
decision.error(): string
";

/// What a check costs: two fit into one evaluation (upstream's figure).
const CHECK_COST: u64 = 350_000;

/// What is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    /// Ask for this ServiceAccount (namespace, name) instead of the request's user.
    pub service_account: Option<(String, String)>,
    /// Verb.
    pub verb: String,
    /// Path, when it is about no resource.
    pub path: Option<String>,
    /// API group.
    pub group: String,
    /// Resource.
    pub resource: String,
    /// Subresource or empty.
    pub subresource: String,
    /// Namespace or empty.
    pub namespace: String,
    /// Name or empty.
    pub name: String,
    /// Field selector or empty.
    pub field_selector: String,
    /// Label selector or empty.
    pub label_selector: String,
}

/// What is answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Allowed.
    pub allowed: bool,
    /// Why, or why not.
    pub reason: String,
    /// The check itself failed.
    pub error: Option<String>,
}

/// Answers checks.
pub trait Authorizer: Send + Sync {
    /// Whether the request's user, or the named ServiceAccount, may do that.
    fn check(&self, check: &Check) -> Decision;
}

/// `authorizer`, and a check in the making.
#[derive(Clone)]
pub struct Authorization<'a> {
    authorizer: &'a dyn Authorizer,
    state: State,
}

#[derive(Clone)]
enum State {
    Start(Arc<Check>),
    Path(Arc<Check>),
    Group(Arc<Check>),
    Resource(Arc<Check>),
    Decided(Arc<Decision>),
}

impl Authorization<'_> {
    /// The type's name.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self.state {
            State::Start(_) => "kubernetes.authorization.Authorizer",
            State::Path(_) => "kubernetes.authorization.PathCheck",
            State::Group(_) => "kubernetes.authorization.GroupCheck",
            State::Resource(_) => "kubernetes.authorization.ResourceCheck",
            State::Decided(_) => "kubernetes.authorization.Decision",
        }
    }
}

impl<'a> Val<'a> {
    /// The value of the variable `authorizer`.
    #[must_use]
    pub fn authorizer(authorizer: &'a dyn Authorizer) -> Self {
        Self::Authorization(Authorization {
            authorizer,
            state: State::Start(Arc::default()),
        })
    }

    /// The value of the variable `authorizer.requestResource`: a check of the request's resource.
    #[must_use]
    pub fn resource_check(authorizer: &'a dyn Authorizer, check: Check) -> Self {
        Self::Authorization(Authorization {
            authorizer,
            state: State::Resource(Arc::new(check)),
        })
    }
}

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "path" => |args, _| {
            step(args, |state, check, text| {
                check.path = Some(text);
                matches!(state, State::Start(_)).then_some(State::Path)
            })
        },
        "group" => |args, _| {
            step(args, |state, check, text| {
                check.group = text;
                matches!(state, State::Start(_)).then_some(State::Group)
            })
        },
        "resource" => |args, _| {
            step(args, |state, check, text| {
                check.resource = text;
                matches!(state, State::Group(_)).then_some(State::Resource)
            })
        },
        "subresource" => |args, _| refine(args, |check, text| check.subresource = text),
        "namespace" => |args, _| refine(args, |check, text| check.namespace = text),
        "name" => |args, _| refine(args, |check, text| check.name = text),
        "fieldSelector" => |args, _| refine(args, |check, text| check.field_selector = text),
        "labelSelector" => |args, _| refine(args, |check, text| check.label_selector = text),
        "serviceAccount" => service_account,
        "check" => check,
        "allowed" => |args, _| Ok(Val::Bool(decision(args)?.allowed)),
        "reason" => |args, _| Ok(Val::string(decision(args)?.reason.as_str())),
        "errored" => |args, _| Ok(Val::Bool(decision(args)?.error.is_some())),
        "error" => |args, _| {
            Ok(Val::string(
                decision(args)?.error.as_deref().unwrap_or_default(),
            ))
        },
        _ => return None,
    })
}

fn subject<'v, 'a>(args: &'v [Val<'a>]) -> Result<&'v Authorization<'a>, EvalError> {
    match args.first() {
        Some(Val::Authorization(value)) => Ok(value),
        _ => Err(EvalError::NoSuchOverload),
    }
}

type Next = fn(Arc<Check>) -> State;

/// The next stage of a check, with one more text.
fn step<'a>(
    args: &[Val<'a>],
    set: impl Fn(&State, &mut Check, String) -> Option<Next>,
) -> Outcome<'a> {
    let value = subject(args)?;
    let (State::Start(check) | State::Path(check) | State::Group(check) | State::Resource(check)) =
        &value.state
    else {
        return Err(EvalError::NoSuchOverload);
    };
    let mut check = (**check).clone();
    let next = set(&value.state, &mut check, text(args, 1)?.to_owned())
        .ok_or(EvalError::NoSuchOverload)?;
    Ok(Val::Authorization(Authorization {
        authorizer: value.authorizer,
        state: next(Arc::new(check)),
    }))
}

fn refine<'a>(args: &[Val<'a>], set: fn(&mut Check, String)) -> Outcome<'a> {
    step(args, |state, check, text| {
        set(check, text);
        matches!(state, State::Resource(_)).then_some(State::Resource as Next)
    })
}

fn service_account<'a>(args: &[Val<'a>], _budget: &mut Budget) -> Outcome<'a> {
    let value = subject(args)?;
    let State::Start(check) = &value.state else {
        return Err(EvalError::NoSuchOverload);
    };
    let mut check = (**check).clone();
    check.service_account = Some((text(args, 1)?.to_owned(), text(args, 2)?.to_owned()));
    Ok(Val::Authorization(Authorization {
        authorizer: value.authorizer,
        state: State::Start(Arc::new(check)),
    }))
}

fn check<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let value = subject(args)?;
    let (State::Resource(check) | State::Path(check)) = &value.state else {
        return Err(EvalError::NoSuchOverload);
    };
    budget.charge(CHECK_COST)?;
    let mut check = (**check).clone();
    check.verb = text(args, 1)?.to_owned();
    Ok(Val::Authorization(Authorization {
        authorizer: value.authorizer,
        state: State::Decided(Arc::new(value.authorizer.check(&check))),
    }))
}

fn decision<'v>(args: &'v [Val<'_>]) -> Result<&'v Decision, EvalError> {
    match &subject(args)?.state {
        State::Decided(decision) => Ok(decision),
        _ => Err(EvalError::NoSuchOverload),
    }
}
