//! What validating and mutating webhooks share.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::rules::{default_rules, validate_match_conditions, validate_rule};
use crate::kind::{Column, Strategy};
use crate::kinds::declare::{advance_generation, set_generation};
use crate::kinds::walk::{Walk, fill, get_mut, list_mut, same};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::selector::validate_label_selector;
use crate::validation::{Path, names};

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];

/// The kind of configuration.
pub(super) struct Hooks {
    /// Whether the webhooks may change objects.
    pub mutating: bool,
}

impl Strategy for Hooks {
    fn default(&self, object: &mut Value) {
        for hook in list_mut(object, "webhooks") {
            fill(hook, "failurePolicy", "Fail");
            fill(hook, "matchPolicy", "Equivalent");
            fill(hook, "namespaceSelector", json!({}));
            fill(hook, "objectSelector", json!({}));
            fill(hook, "timeoutSeconds", 10);
            if self.mutating {
                fill(hook, "reinvocationPolicy", "Never");
            }
            default_rules(hook, "rules");
            if let Some(service) = get_mut(hook, "clientConfig").and_then(|c| get_mut(c, "service"))
            {
                fill(service, "port", 443);
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let changed = !same(&object["webhooks"], &old["webhooks"]);
        advance_generation(object, old, changed);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        *object = old.clone();
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let mut seen = BTreeSet::new();
        for (i, hook) in object["webhooks"].items().iter().enumerate() {
            let path = Path::new("webhooks").index(i);
            self.validate_hook(hook, &path, &mut errors);
            let name = hook["name"].text();
            if !name.is_empty() && !seen.insert(name) {
                errors.duplicate(path.child("name"), name);
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Webhooks", "integer", "Number of webhooks."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            object["webhooks"].items().len().into(),
            age(object, now),
        ]
    }
}

impl Hooks {
    fn validate_hook(&self, hook: &Value, path: &Path, errors: &mut FieldErrors) {
        validate_hook_name(hook["name"].text(), &path.child("name"), errors);
        for (i, rule) in hook["rules"].items().iter().enumerate() {
            validate_rule(rule, &path.child("rules").index(i), errors);
        }
        let mut known = |field: &str, supported: &[&str]| {
            if hook[field].present() && !supported.contains(&hook[field].text()) {
                errors.not_supported(path.child(field), hook[field].text(), supported);
            }
        };
        known("failurePolicy", &["Fail", "Ignore"]);
        known("matchPolicy", &["Equivalent", "Exact"]);
        if self.mutating {
            known("reinvocationPolicy", &["IfNeeded", "Never"]);
        }
        match hook["sideEffects"].text() {
            "" => errors.required(
                path.child("sideEffects"),
                format!("must specify one of {}", SIDE_EFFECTS.join(", ")),
            ),
            text if !SIDE_EFFECTS.contains(&text) => {
                errors.not_supported(path.child("sideEffects"), text, &SIDE_EFFECTS);
            }
            _ => {}
        }
        if let Some(seconds) = hook["timeoutSeconds"]
            .int()
            .filter(|s| !(1..=30).contains(s))
        {
            errors.invalid(
                path.child("timeoutSeconds"),
                seconds,
                "the timeout value must be between 1 and 30 seconds",
            );
        }
        for field in ["namespaceSelector", "objectSelector"] {
            validate_label_selector(&hook[field], &path.child(field), errors);
        }
        validate_client(&hook["clientConfig"], &path.child("clientConfig"), errors);
        validate_match_conditions(
            &hook["matchConditions"],
            &path.child("matchConditions"),
            errors,
        );
        validate_review_versions(
            &hook["admissionReviewVersions"],
            &path.child("admissionReviewVersions"),
            errors,
        );
    }
}

fn validate_hook_name(name: &str, path: &Path, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    for message in names::dns1123_subdomain(name) {
        errors.invalid(path, name, message);
    }
    if name.split('.').count() < 3 {
        errors.invalid(
            path,
            name,
            "should be a domain with at least three segments separated by dots",
        );
    }
}

fn validate_client(client: &Value, path: &Path, errors: &mut FieldErrors) {
    let (url, service) = (&client["url"], &client["service"]);
    if url.is_null() == service.is_null() {
        errors.required(path, "exactly one of url or service is required");
    } else if url.present() {
        validate_url(url.text(), &path.child("url"), errors);
    } else {
        validate_service(service, &path.child("service"), errors);
    }
}

/// The URL of a webhook: https, a host, and no user, query or fragment.
pub(super) fn validate_url(url: &str, path: &Path, errors: &mut FieldErrors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let Some((scheme, rest)) = url.split_once("://") else {
        errors.required(path, format!("url must be a valid URL{FORM}"));
        return;
    };
    if scheme != "https" {
        errors.invalid(
            path,
            scheme,
            format!("'https' is the only allowed URL scheme{FORM}"),
        );
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() {
        errors.invalid(path, authority, format!("host must be specified{FORM}"));
    }
    if authority.contains('@') {
        errors.invalid(
            path,
            authority,
            "user information is not permitted in the URL",
        );
    }
    if let Some((_, fragment)) = rest.split_once('#') {
        errors.invalid(path, fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = rest.split_once('?') {
        errors.invalid(path, query, "query parameters are not permitted in the URL");
    }
}

fn validate_service(service: &Value, path: &Path, errors: &mut FieldErrors) {
    for field in ["name", "namespace"] {
        if service[field].is_empty() {
            errors.required(path.child(field), format!("service {field} is required"));
        }
    }
    if let Some(port) = service["port"].int() {
        for message in names::port_number(port) {
            errors.invalid(
                path.child("port"),
                port,
                format!("port is not valid: {message}"),
            );
        }
    }
    let url_path = service["path"].text();
    if url_path.is_empty() || url_path == "/" {
        return;
    }
    let at = path.child("path");
    if !url_path.starts_with('/') {
        errors.invalid(&at, url_path, "must start with a '/'");
        return;
    }
    let steps: Vec<&str> = url_path[1..].split('/').collect();
    for (i, step) in steps.iter().enumerate() {
        if step.is_empty() && i + 1 == steps.len() {
            break;
        }
        if step.is_empty() {
            errors.invalid(&at, url_path, format!("segment[{i}] may not be empty"));
            continue;
        }
        for message in names::dns1123_subdomain(step) {
            errors.invalid(&at, url_path, format!("segment[{i}]: {message}"));
        }
    }
}

fn validate_review_versions(versions: &Value, path: &Path, errors: &mut FieldErrors) {
    let list = versions.items();
    if list.is_empty() {
        errors.required(
            path,
            format!("must specify one of {}", REVIEW_VERSIONS.join(", ")),
        );
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, version) in list.iter().map(Walk::text).enumerate() {
        if !seen.insert(version) {
            errors.invalid(path.index(i), version, "duplicate version");
            continue;
        }
        for message in names::dns1035_label(version) {
            errors.invalid(path.index(i), version, message);
        }
    }
    if !list.iter().any(|v| REVIEW_VERSIONS.contains(&v.text())) {
        errors.invalid(
            path,
            versions.clone(),
            format!(
                "must include at least one of {}",
                REVIEW_VERSIONS.join(", ")
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_needs_a_name_an_address_and_its_versions() {
        let hooks = Hooks { mutating: true };
        let mut good = json!({"webhooks": [{
            "name": "a.b.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"namespace": "n", "name": "s", "path": "/mutate"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        }]});
        hooks.default(&mut good);
        assert!(hooks.validate_create(&good).is_empty());
        assert_eq!(good["webhooks"][0]["reinvocationPolicy"], "Never");
        assert_eq!(good["webhooks"][0]["clientConfig"]["service"]["port"], 443);
        let bad = json!({"webhooks": [{"name": "a", "clientConfig": {"url": "http://x?y"}, "timeoutSeconds": 40}]});
        let texts: Vec<String> = hooks
            .validate_create(&bad)
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "webhooks[0].name: Invalid value: \"a\": should be a domain with at least three segments separated by dots",
                "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
                "webhooks[0].timeoutSeconds: Invalid value: 40: the timeout value must be between 1 and 30 seconds",
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
                "webhooks[0].clientConfig.url: Invalid value: \"y\": query parameters are not permitted in the URL",
                "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
            ]
        );
    }
}
