//! What validating and mutating policies and their bindings share.

use jiff::Timestamp;
use serde_json::Value;

use super::rules::{default_match_resources, validate_match_resources};
use crate::kind::Column;
use crate::kinds::walk::{Walk, fill, get_mut};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column, or_none};
use crate::validation::selector::validate_label_selector;
use crate::validation::{Path, names, one_of};

/// Defaults of a policy.
pub(super) fn default_policy(object: &mut Value) {
    let Some(spec) = get_mut(object, "spec") else {
        return;
    };
    fill(spec, "failurePolicy", "Fail");
    if let Some(resources) = get_mut(spec, "matchConstraints") {
        default_match_resources(resources);
    }
}

/// Defaults of a binding.
pub(super) fn default_binding(object: &mut Value) {
    if let Some(resources) = get_mut(object, "spec").and_then(|s| get_mut(s, "matchResources")) {
        default_match_resources(resources);
    }
}

/// Failure policy, parameters' kind, match constraints and conditions, variables.
pub(super) fn validate_common(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    one_of(
        &spec["failurePolicy"],
        &["Fail", "Ignore"],
        &path.child("failurePolicy"),
        errors,
    );
    if spec["paramKind"].present() {
        validate_param_kind(&spec["paramKind"], &path.child("paramKind"), errors);
    }
    let at = path.child("matchConstraints");
    if spec["matchConstraints"].is_null() {
        errors.required(&at, "");
    } else {
        validate_match_resources(&spec["matchConstraints"], &at, errors);
        if spec["matchConstraints"]["resourceRules"].is_empty() {
            errors.required(at.child("resourceRules"), "");
        }
    }
    super::rules::validate_match_conditions(
        &spec["matchConditions"],
        &path.child("matchConditions"),
        errors,
    );
    validate_variables(&spec["variables"], &path.child("variables"), errors);
}

fn validate_param_kind(kind: &Value, path: &Path, errors: &mut FieldErrors) {
    let api_version = kind["apiVersion"].text();
    if api_version.is_empty() {
        errors.required(path.child("apiVersion"), "");
    } else if api_version.matches('/').count() > 1 {
        errors.invalid(
            path.child("apiVersion"),
            api_version,
            format!("unexpected GroupVersion string: {api_version}"),
        );
    } else {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        if !group.is_empty() {
            for message in names::dns1123_subdomain(group) {
                errors.invalid(path.child("apiVersion"), group, message);
            }
        }
        for message in names::dns1035_label(version) {
            errors.invalid(path.child("apiVersion"), version, message);
        }
    }
    let text = kind["kind"].text();
    if text.is_empty() {
        errors.required(path.child("kind"), "");
    } else {
        for message in names::dns1035_label(&text.to_lowercase()) {
            errors.invalid(path.child("kind"), text, message);
        }
    }
}

fn validate_variables(variables: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, variable) in variables.items().iter().enumerate() {
        let (path, name) = (path.index(i), variable["name"].text());
        let identifier = name
            .bytes()
            .enumerate()
            .all(|(i, b)| b == b'_' || b.is_ascii_alphabetic() || (i > 0 && b.is_ascii_digit()));
        if name.is_empty() {
            errors.required(path.child("name"), "name is not specified");
        } else if !identifier {
            errors.invalid(
                path.child("name"),
                name,
                "name is not a valid CEL identifier",
            );
        }
        if variable["expression"].text().trim().is_empty() {
            errors.required(path.child("expression"), "expression is not specified");
        }
    }
}

/// Policy name, parameters and resources of a binding.
pub(super) fn validate_binding(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let policy = spec["policyName"].text();
    if policy.is_empty() {
        errors.required(path.child("policyName"), "");
    } else {
        for message in names::dns1123_subdomain(policy) {
            errors.invalid(path.child("policyName"), policy, message);
        }
    }
    if spec["paramRef"].present() {
        validate_param_ref(&spec["paramRef"], &path.child("paramRef"), errors);
    }
    if spec["matchResources"].present() {
        validate_match_resources(
            &spec["matchResources"],
            &path.child("matchResources"),
            errors,
        );
    }
}

fn validate_param_ref(reference: &Value, path: &Path, errors: &mut FieldErrors) {
    let (name, selector) = (reference["name"].text(), &reference["selector"]);
    if !name.is_empty() {
        for message in names::path_segment(name, false) {
            errors.invalid(path.child("name"), name, message);
        }
        if selector.present() {
            errors.forbidden(
                path.child("name"),
                "name and selector are mutually exclusive",
            );
        }
    }
    if selector.present() {
        validate_label_selector(selector, &path.child("selector"), errors);
    } else if name.is_empty() {
        errors.required(path, "one of name or selector must be specified");
    }
    one_of(
        &reference["parameterNotFoundAction"],
        &["Allow", "Deny"],
        &path.child("parameterNotFoundAction"),
        errors,
    );
}

/// Columns of a policy; `what` is the header of the number of things that it does.
pub(super) fn policy_columns(what: &'static str) -> Vec<Column> {
    vec![
        name_column(),
        column(what, "integer", "Number of expressions."),
        column("ParamKind", "string", "Kind of the parameters."),
        age_column(),
    ]
}

/// The cells of [`policy_columns`].
pub(super) fn policy_row(object: &Value, list: &str, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let kind = &spec["paramKind"];
    let kind = if kind.is_null() {
        "<unset>".to_owned()
    } else {
        format!("{}/{}", kind["apiVersion"].text(), kind["kind"].text())
    };
    vec![
        name(object),
        spec[list].items().len().into(),
        kind.into(),
        age(object, now),
    ]
}

/// Columns of a binding.
pub(super) fn binding_columns() -> Vec<Column> {
    vec![
        name_column(),
        column("PolicyName", "string", "The policy that it puts to use."),
        column("ParamRef", "string", "The parameters."),
        age_column(),
    ]
}

/// The cells of [`binding_columns`].
pub(super) fn binding_row(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let reference = &spec["paramRef"];
    let shown = if reference.is_null() {
        "<unset>".to_owned()
    } else if reference["selector"].present() {
        crate::validation::selector::format_label_selector(&reference["selector"])
    } else {
        match reference["namespace"].text() {
            "" => format!("*/{}", reference["name"].text()),
            namespace => format!("{namespace}/{}", reference["name"].text()),
        }
    };
    vec![
        name(object),
        or_none(spec["policyName"].text()),
        shown.into(),
        age(object, now),
    ]
}
