//! How objects get from one version of a definition to another.

use serde_json::Value;

use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::Path;

pub(super) fn check(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let conversion = &spec["conversion"];
    let webhook = &conversion["webhook"];
    match conversion["strategy"].text() {
        "" if conversion.is_null() => {}
        "" => errors.required(path.child("strategy"), ""),
        "None" => {
            if webhook.present() {
                errors.forbidden(
                    path.child("webhook"),
                    "should not be set when strategy is not set to Webhook",
                );
            }
        }
        "Webhook" => webhook_conversion(webhook, &path.child("webhook"), errors),
        other => errors.not_supported(path.child("strategy"), other, &["None", "Webhook"]),
    }
}

fn webhook_conversion(webhook: &Value, path: &Path, errors: &mut FieldErrors) {
    let client = &webhook["clientConfig"];
    let at = path.child("clientConfig");
    if client.is_null() {
        errors.required(at, "required when strategy is set to Webhook");
    } else {
        match (client["url"].present(), client["service"].present()) {
            (true, true) | (false, false) => {
                errors.required(at, "exactly one of url or service is required");
            }
            (true, false) => {
                let url = client["url"].text();
                if !url.starts_with("https://") {
                    errors.invalid(
                        at.child("url"),
                        url,
                        "'https' is the only allowed URL scheme; desired format: https://host[/path]",
                    );
                }
            }
            (false, true) => {
                for key in ["name", "namespace"] {
                    if client["service"][key].text().is_empty() {
                        errors.required(
                            at.child("service").child(key),
                            format!("service {key} is required"),
                        );
                    }
                }
            }
        }
    }
    let at = path.child("conversionReviewVersions");
    let versions = webhook["conversionReviewVersions"].items();
    if versions.is_empty() {
        errors.required(at, "");
    } else if !versions
        .iter()
        .any(|v| matches!(v.text(), "v1" | "v1beta1"))
    {
        errors.invalid(
            at,
            webhook["conversionReviewVersions"].clone(),
            "must include at least one of v1, v1beta1",
        );
    }
}
