//! CertificateSigningRequests: who may have a certificate is decided under `/approval`, what it is under `/status`.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, keep_generation};
use super::walk::{Walk, carry_over, child, set};
use crate::duration::human;
use crate::kind::{Column, Kind, Name, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, names, pem};

/// What a certificate may be used for (certificates.k8s.io/v1 KeyUsage).
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// What v1beta1 called a signer that nobody named.
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
/// Conditions that only `/approval` sets.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];
/// Shortest life that may be asked for, in seconds.
const SHORTEST: i64 = 600;

pub(super) fn kind() -> Arc<Kind> {
    let verbs = &["get", "patch", "update"];
    Declaration::cluster(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        Requests,
    )
    .short_names(&["csr"])
    .own_sub("approval", verbs)
    .status()
    .build()
}

struct Requests;

impl Strategy for Requests {
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
        carry_over(object, old, "status");
        keep_generation(object, old);
    }

    /// The signer's part: everything but the decision.
    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
        keep_generation(object, old);
        keep_decisions(object, &old["status"]);
    }

    /// The approver's part: nothing but the conditions.
    fn prepare_subresource_update(&self, subresource: &str, object: &mut Value, old: &Value) {
        if subresource != "approval" {
            return self.prepare_status_update(object, old);
        }
        let conditions = object["status"]["conditions"].items().to_vec();
        carry_over(object, old, "spec");
        carry_over(object, old, "status");
        keep_generation(object, old);
        set_conditions(object, conditions);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        if let Err(problem) = pem::certificate_request(spec["request"].text()) {
            errors.invalid(path.child("request"), spec["request"].text(), problem);
        }
        validate_usages(&spec["usages"], &path.child("usages"), &mut errors);
        validate_signer_name(
            spec["signerName"].text(),
            &path.child("signerName"),
            &mut errors,
        );
        if let Some(seconds) = spec["expirationSeconds"].int().filter(|s| *s < SHORTEST) {
            errors.invalid(
                path.child("expirationSeconds"),
                seconds,
                "may not specify a duration less than 600 seconds (10 minutes)",
            );
        }
        errors.extend(validate_conditions(&object["status"]["conditions"]));
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        self.validate_status_update(object, old)
    }

    fn validate_subresource_update(
        &self,
        subresource: &str,
        object: &Value,
        old: &Value,
    ) -> FieldErrors {
        let mut errors = self.validate_status_update(object, old);
        let count = |from: &Value, type_| of_type(&from["status"], type_).count();
        for type_ in DECISIONS {
            if subresource == "status" && count(object, type_) > count(old, type_) {
                errors.forbidden(
                    Path::new("status").child("conditions"),
                    format!("updates may not add a condition of type {type_:?}"),
                );
            }
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = validate_conditions(&object["status"]["conditions"]);
        let path = Path::new("status");
        for type_ in ["Approved", "Denied", "Failed"] {
            if has(&old["status"], type_) && !has(&object["status"], type_) {
                errors.forbidden(
                    path.child("conditions"),
                    format!("updates may not remove a condition of type {type_:?}"),
                );
            }
        }
        let path = path.child("certificate");
        let (new, before) = (
            &object["status"]["certificate"],
            &old["status"]["certificate"],
        );
        if new.text() == before.text() {
            return errors;
        }
        if !new.is_empty()
            && let Err(problem) = pem::certificates(new.text())
        {
            errors.invalid(&path, "<certificate data>", problem);
        }
        if !before.is_empty() {
            errors.forbidden(&path, "updates may not modify existing certificate content");
        }
        errors
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        vec![(
            "spec.signerName".into(),
            object["spec"]["signerName"].text().to_owned(),
        )]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            age_column(),
            column("SignerName", "string", "Who is to sign."),
            column("Requestor", "string", "Who asked."),
            column("RequestedDuration", "string", "For how long."),
            column("Condition", "string", "What has been decided and done."),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let duration = spec["expirationSeconds"]
            .int()
            .map_or_else(|| "<none>".to_owned(), human);
        let signer = match spec["signerName"].text() {
            "" => "<none>",
            text => text,
        };
        vec![
            name(object),
            age(object, now),
            signer.into(),
            spec["username"].text().into(),
            duration.into(),
            state(&object["status"]).into(),
        ]
    }
}

fn has(status: &Value, type_: &str) -> bool {
    status["conditions"]
        .items()
        .iter()
        .any(|c| c["type"] == type_)
}

fn of_type<'a>(status: &'a Value, type_: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = status["conditions"].items().iter();
    all.filter(move |c| c["type"] == type_)
}

/// Puts the decisions of before in the place of the signer's. Ones that it added or left out are left for
/// validation to refuse.
fn keep_decisions(object: &mut Value, before: &Value) {
    for type_ in DECISIONS {
        let old: Vec<Value> = of_type(before, type_).cloned().collect();
        if of_type(&object["status"], type_).count() != old.len() {
            continue;
        }
        let conditions = object
            .pointer_mut("/status/conditions")
            .and_then(Value::as_array_mut);
        let places = conditions
            .into_iter()
            .flatten()
            .filter(|c| c["type"] == type_);
        for (place, old) in places.zip(old) {
            *place = old;
        }
    }
}

fn set_conditions(object: &mut Value, conditions: Vec<Value>) {
    if let Some(status) = child(object, "status") {
        if conditions.is_empty() {
            super::walk::remove(status, "conditions");
        } else {
            set(status, "conditions", conditions);
        }
    }
}

/// `Approved,Issued` and the like.
fn state(status: &Value) -> String {
    let mut text = if has(status, "Denied") {
        "Denied"
    } else if has(status, "Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has(status, "Failed") {
        text.push_str(",Failed");
    }
    if !status["certificate"].is_empty() {
        text.push_str(",Issued");
    }
    text
}

fn validate_usages(usages: &Value, path: &Path, errors: &mut FieldErrors) {
    if usages.is_empty() {
        errors.required(path, "");
    }
    let mut seen = BTreeSet::new();
    for (i, usage) in usages.items().iter().map(Walk::text).enumerate() {
        if !USAGES.contains(&usage) {
            errors.not_supported(path.index(i), usage, USAGES);
        }
        if !seen.insert(usage) {
            errors.duplicate(path.index(i), usage);
        }
    }
}

fn validate_signer_name(signer: &str, path: &Path, errors: &mut FieldErrors) {
    if signer.is_empty() {
        errors.required(path, "");
        return;
    }
    if signer == LEGACY_SIGNER {
        errors.invalid(
            path,
            signer,
            "the legacy signerName is not allowed via this API version",
        );
        return;
    }
    let Some((domain, signer_path)) = signer.split_once('/') else {
        errors.invalid(
            path,
            signer,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
        return;
    };
    for message in names::dns1123_subdomain(domain) {
        errors.invalid(path, domain, message);
    }
    if domain.split('.').count() < 2 {
        errors.invalid(
            path,
            domain,
            "should be a domain with at least two segments separated by dots",
        );
    }
    for message in names::dns1123_subdomain(signer_path) {
        errors.invalid(path, signer_path, message);
    }
}

fn validate_conditions(conditions: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let path = Path::new("status").child("conditions");
    let mut seen = BTreeSet::new();
    let mut decided = None;
    for (i, condition) in conditions.items().iter().enumerate() {
        let (all, path, type_) = (&path, path.index(i), condition["type"].text());
        if type_.is_empty() {
            errors.required(path.child("type"), "");
        }
        let allowed: &[&str] = if matches!(type_, "Approved" | "Denied" | "Failed") {
            &["True"]
        } else {
            &["False", "True", "Unknown"]
        };
        match condition["status"].text() {
            "" => errors.required(path.child("status"), ""),
            status if !allowed.contains(&status) => {
                errors.not_supported(path.child("status"), status, allowed);
            }
            _ => {}
        }
        if !seen.insert(type_) {
            errors.duplicate(path.child("type"), type_);
        }
        if DECISIONS.contains(&type_) {
            match decided {
                Some(other) if other != type_ => errors.invalid(
                    all,
                    type_,
                    "Approved and Denied conditions are mutually exclusive",
                ),
                _ => decided = Some(type_),
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::pem::tests::{ANNS_CERTIFICATE, ANNS_REQUEST, field};

    fn request() -> Value {
        json!({
            "metadata": {"name": "ann"},
            "spec": {"request": field(ANNS_REQUEST), "signerName": "example.com/own", "usages": ["client auth"]},
        })
    }

    #[test]
    fn a_request_names_signer_and_usages() {
        assert!(Requests.validate_create(&request()).is_empty());
        let mut bad = request();
        bad["spec"]["signerName"] = json!("own");
        bad["spec"]["usages"] = json!(["flying"]);
        let fields: Vec<String> = Requests
            .validate_create(&bad)
            .0
            .into_iter()
            .map(|e| e.field)
            .collect();
        assert_eq!(fields, ["spec.usages[0]", "spec.signerName"]);
    }

    #[test]
    fn approvers_and_signers_each_write_their_part() {
        let mut old = request();
        old["status"] = json!({});
        let mut new = old.clone();
        new["status"] = json!({"certificate": field(ANNS_CERTIFICATE), "conditions": [{"type": "Approved", "status": "True"}]});
        let mut approved = new.clone();
        Requests.prepare_subresource_update("approval", &mut approved, &old);
        assert_eq!(
            approved["status"],
            json!({"conditions": [{"type": "Approved", "status": "True"}]})
        );
        let errors = Requests.validate_subresource_update("status", &new, &old);
        assert_eq!(
            errors.0[0].text(),
            "status.conditions: Forbidden: updates may not add a condition of type \"Approved\""
        );
    }

    #[test]
    fn conditions_keep_their_order_whoever_writes_them() {
        let condition =
            |type_: &str, reason: &str| json!({"type": type_, "status": "True", "reason": reason});
        let mut old = request();
        old["status"] = json!({"conditions": [condition("Other", "a")]});
        let mut approved = old.clone();
        approved["status"]["conditions"] =
            json!([condition("Other", "a"), condition("Approved", "a")]);
        let wanted = approved.clone();
        Requests.prepare_subresource_update("approval", &mut approved, &old);
        assert_eq!(approved["status"], wanted["status"]);
        let mut signed = approved.clone();
        signed["status"]["conditions"] = json!([
            condition("Other", "b"),
            condition("Approved", "b"),
            condition("Failed", "b")
        ]);
        Requests.prepare_subresource_update("status", &mut signed, &approved);
        assert_eq!(
            signed["status"]["conditions"],
            json!([
                condition("Other", "b"),
                condition("Approved", "a"),
                condition("Failed", "b")
            ])
        );
    }

    #[test]
    fn a_decision_is_final() {
        let old = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
        let new = json!({"status": {"conditions": [{"type": "Denied", "status": "True"}]}});
        assert_eq!(
            Requests.validate_status_update(&new, &old).0[0].text(),
            "status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""
        );
    }

    #[test]
    fn what_a_signer_writes_is_a_certificate_and_stays() {
        let status = |certificate: &str| json!({"status": {"certificate": certificate}});
        let texts = |new: &Value, old: &Value| -> Vec<String> {
            let errors = Requests.validate_status_update(new, old);
            errors
                .0
                .iter()
                .map(crate::status::FieldError::text)
                .collect()
        };
        let good = status(&field(ANNS_CERTIFICATE));
        assert!(texts(&good, &status("")).is_empty());
        assert!(texts(&good, &good).is_empty());
        assert_eq!(
            texts(&status("QQ=="), &status("")),
            [
                "status.certificate: Invalid value: \"<certificate data>\": must contain at least one CERTIFICATE PEM block"
            ]
        );
        assert_eq!(
            texts(&status(""), &good),
            ["status.certificate: Forbidden: updates may not modify existing certificate content"]
        );
    }

    #[test]
    fn nobody_is_approved_and_denied() {
        let conditions = json!([
            {"type": "Approved", "status": "True"},
            {"type": "Denied", "status": "True"},
        ]);
        assert_eq!(
            validate_conditions(&conditions).0[0].text(),
            "status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive"
        );
    }
}
