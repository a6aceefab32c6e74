//! `x-kubernetes-validations`: CEL rules of a schema, compiled once and run on every write.
//!
//! Rules: KEP-2876, apiextensions-apiserver `apiserver/schema/cel/validation.go`.

use std::collections::HashMap;

use balsa_api::crd::schema::{Additional, ListType, Node, Rule};
use balsa_api::crd::validate::old_item;
use balsa_api::status::{ErrorKind, FieldError, FieldErrors};
use balsa_api::validation::Path;
use balsa_cel::{Bindings, Budget, Environment, EvalError, Program, Type};
use serde_json::Value;

/// A rule that a message expression may use at most this many bytes for.
const MAX_MESSAGE: usize = 5120;
/// What one rule may be estimated to cost (upstream `StaticEstimatedCostLimit`).
const COST_LIMIT: u64 = 10_000_000;
/// Estimates are of the worst case and differ a little from upstream's, so only what is far beyond is refused;
/// what a rule really costs is limited when it runs.
const TOLERANCE: u64 = 100;

/// The rules of a whole schema.
#[derive(Default)]
pub(super) struct Rules {
    nodes: HashMap<usize, Vec<Compiled>>,
}

struct Compiled {
    rule: Rule,
    type_: Type,
    program: Program,
    message: Option<Program>,
    /// Speaks of `oldSelf`.
    transition: bool,
}

/// What is around a schema, for compiling its rules.
#[derive(Clone, Copy)]
struct Around {
    root: bool,
    /// Values can be told from their earlier states.
    correlatable: bool,
    /// How many values of the schema one object may have.
    count: u64,
}

/// Compiles the rules of a schema; what does not compile is reported at its path.
pub(super) fn compile(schema: &Value, path: &Path, errors: &mut FieldErrors) -> Rules {
    let node = Node::parse(schema);
    let mut rules = Rules::default();
    let around = Around {
        root: true,
        correlatable: true,
        count: 1,
    };
    walk(&node, schema, around, path, &mut rules, errors);
    rules
}

fn walk(
    node: &Node,
    schema: &Value,
    around: Around,
    path: &Path,
    rules: &mut Rules,
    errors: &mut FieldErrors,
) {
    if !node.rules.is_empty() {
        let type_ = balsa_cel::schema::declared(schema, around.root || node.embedded);
        let mut compiled = Vec::new();
        for (index, rule) in node.rules.iter().enumerate() {
            let at = path.child("x-kubernetes-validations").index(index);
            compiled.extend(one(rule, &type_, around, &at, errors));
        }
        rules.nodes.insert(node.number, compiled);
    }
    let inner = |count: u64, correlatable: bool| Around {
        root: false,
        correlatable: around.correlatable && correlatable,
        count: around.count.saturating_mul(count.max(1)),
    };
    for (name, member) in &node.properties {
        let at = path.child("properties").key(name);
        walk(
            member,
            &schema["properties"][name],
            inner(1, true),
            &at,
            rules,
            errors,
        );
    }
    if let Some(Additional::Schema(member)) = &node.additional {
        let at = path.child("additionalProperties");
        let size = balsa_cel::schema::declared(schema, false).size().0;
        walk(
            member,
            &schema["additionalProperties"],
            inner(size, true),
            &at,
            rules,
            errors,
        );
    }
    if let Some(item) = &node.items {
        let at = path.child("items");
        let size = balsa_cel::schema::declared(schema, false).size().0;
        let correlatable = node.list_type == ListType::Map;
        walk(
            item,
            &schema["items"],
            inner(size, correlatable),
            &at,
            rules,
            errors,
        );
    }
}

fn one(
    rule: &Rule,
    type_: &Type,
    around: Around,
    path: &Path,
    errors: &mut FieldErrors,
) -> Option<Compiled> {
    let old_type = if rule.optional_old_self {
        Type::optional(type_.clone())
    } else {
        type_.clone()
    };
    let env = Environment::new()
        .with("self", type_.clone())
        .with("oldSelf", old_type);
    let program = match env.compile_to(&rule.rule, &[Type::Bool]) {
        Ok(program) => program,
        Err(error) => {
            errors.invalid(path.child("rule"), rule.rule.as_str(), error.complaint());
            return None;
        }
    };
    let transition = program.references("oldSelf");
    if transition && !around.correlatable {
        errors.invalid(
            path.child("rule"),
            rule.rule.as_str(),
            "oldSelf cannot be used on the uncorrelatable portion of the schema",
        );
    }
    if rule.optional_old_self && !transition {
        errors.invalid(
            path.child("optionalOldSelf"),
            true,
            "may not be set if oldSelf is not used in rule",
        );
    }
    let cost = program.estimated_cost().saturating_mul(around.count);
    if cost > COST_LIMIT.saturating_mul(TOLERANCE) {
        errors.forbidden(
            path.child("rule"),
            "estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
        );
    }
    let mut message = None;
    if !rule.message_expression.is_empty() {
        match env.compile_to(
            &rule.message_expression,
            &[Type::String(balsa_cel::Size(0))],
        ) {
            Ok(program) => message = Some(program),
            Err(error) => errors.invalid(
                path.child("messageExpression"),
                rule.message_expression.as_str(),
                format!("messageExpression {}", error.complaint()),
            ),
        }
    }
    Some(Compiled {
        rule: rule.clone(),
        type_: type_.clone(),
        program,
        message,
        transition,
    })
}

impl Rules {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.values().all(Vec::is_empty)
    }

    /// Runs the rules on an object. What has not changed is only looked at by rules about changes.
    pub fn check(&self, node: &Node, object: &Value, old: Option<&Value>) -> FieldErrors {
        let mut run = Run {
            rules: self,
            budget: Budget::new(Budget::PER_OBJECT),
            errors: FieldErrors::default(),
            over: false,
        };
        run.value(node, object, old, None);
        run.errors
    }
}

struct Run<'r> {
    rules: &'r Rules,
    budget: Budget,
    errors: FieldErrors,
    over: bool,
}

impl Run<'_> {
    fn value(&mut self, node: &Node, value: &Value, old: Option<&Value>, path: Option<&Path>) {
        if self.over || (value.is_null() && node.nullable) {
            return;
        }
        let rules = self.rules;
        let unchanged = old == Some(value);
        for compiled in rules.nodes.get(&node.number).into_iter().flatten() {
            if !unchanged || compiled.transition {
                self.rule(node, compiled, value, old, path);
            }
            if self.over {
                return;
            }
        }
        match value {
            Value::Object(map) => {
                for (name, member) in map {
                    let at = path.map_or_else(|| Path::new(name), |path| path.child(name));
                    let old = old.and_then(|old| old.get(name));
                    match (node.properties.get(name), &node.additional) {
                        (Some(node), _) => self.value(node, member, old, Some(&at)),
                        (None, Some(Additional::Schema(node))) => {
                            let at = path.map_or_else(|| Path::new(name), |path| path.key(name));
                            self.value(node, member, old, Some(&at));
                        }
                        _ => {}
                    }
                }
            }
            Value::Array(items) => {
                let root = path.cloned().unwrap_or_else(|| Path::new(""));
                if let Some(item) = &node.items {
                    for (index, value) in items.iter().enumerate() {
                        let old = old.and_then(|old| old_item(node, value, old));
                        self.value(item, value, old, Some(&root.index(index)));
                    }
                }
            }
            _ => {}
        }
    }

    fn rule(
        &mut self,
        node: &Node,
        compiled: &Compiled,
        value: &Value,
        old: Option<&Value>,
        path: Option<&Path>,
    ) {
        if compiled.transition && old.is_none() && !compiled.rule.optional_old_self {
            return;
        }
        let type_ = &compiled.type_;
        let mut bindings = Bindings::new().json("self", value, type_);
        if compiled.rule.optional_old_self {
            bindings = bindings.optional_json("oldSelf", old, type_);
        } else if let Some(old) = old {
            bindings = bindings.json("oldSelf", old, type_);
        }
        let outcome = compiled.program.evaluate(&bindings, &mut self.budget);
        let field = path.map_or_else(|| "<nil>".to_owned(), ToString::to_string);
        let kind = Value::from(if node.kind.name().is_empty() {
            balsa_api::crd::validate::type_name(value)
        } else {
            node.kind.name()
        });
        match outcome.map(|v| v.as_bool()) {
            Ok(Some(true)) => {}
            Ok(_) => {
                let text = self.message(compiled, &bindings);
                let at = match (path, compiled.rule.field_path.as_str()) {
                    (_, "") => field,
                    (Some(path), below) => format!("{path}{below}"),
                    (None, below) => below.trim_start_matches('.').to_owned(),
                };
                self.errors.0.push(FieldError {
                    kind: reason(&compiled.rule.reason),
                    field: at,
                    value: Some(kind),
                    detail: text,
                });
            }
            Err(EvalError::CostExceeded) if self.budget.remaining() == 0 => {
                self.errors.invalid(
                    field,
                    kind,
                    "validation failed due to running out of cost budget, no further validation rules will be run",
                );
                self.over = true;
            }
            Err(EvalError::CostExceeded) => {
                let text = format!(
                    "call cost exceeds limit for rule: {}, no further validation rules will be run",
                    compiled.rule.rule
                );
                self.errors.invalid(field, kind, text);
                self.over = true;
            }
            Err(error) => {
                let text = format!("{error} evaluating rule: {}", said(&compiled.rule));
                self.errors.invalid(field, kind, text);
            }
        }
    }

    fn message(&mut self, compiled: &Compiled, bindings: &Bindings<'_>) -> String {
        if let Some(program) = &compiled.message
            && let Ok(value) = program.evaluate(bindings, &mut self.budget)
            && let Some(text) = value.as_str()
        {
            let text = text.trim();
            if !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n') {
                return text.to_owned();
            }
        }
        if compiled.rule.message.is_empty() {
            format!("failed rule: {}", compiled.rule.rule.trim())
        } else {
            compiled.rule.message.trim().to_owned()
        }
    }
}

/// The message of a rule, or the rule.
fn said(rule: &Rule) -> &str {
    if rule.message.is_empty() {
        &rule.rule
    } else {
        &rule.message
    }
}

fn reason(reason: &str) -> ErrorKind {
    match reason {
        "FieldValueForbidden" => ErrorKind::Forbidden,
        "FieldValueRequired" => ErrorKind::Required,
        "FieldValueDuplicate" => ErrorKind::Duplicate,
        _ => ErrorKind::Invalid,
    }
}

/// Problems that leave an object in a state that rules cannot be run on.
#[must_use]
pub(super) fn blocks(errors: &FieldErrors) -> bool {
    errors.0.iter().any(|error| {
        matches!(
            error.kind,
            ErrorKind::NotSupported
                | ErrorKind::Required
                | ErrorKind::TooLong
                | ErrorKind::TooMany
                | ErrorKind::TypeInvalid
        )
    })
}
