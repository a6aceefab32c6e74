//! Checks of Jobs.

use serde_json::Value;

use super::{NAME_LABEL, UID_LABEL, failure_policy, indexes};
use crate::kinds::pod::validate::validate_pod_template;
use crate::kinds::walk::{Walk, carry_over, get_mut, remove, same};
use crate::status::FieldErrors;
use crate::validation::selector::{selector_matches, validate_label_selector};
use crate::validation::{Path, immutable, names, non_negative, one_of, one_of_or_none};

const MAX_INDEXED_PARALLELISM: i64 = 100_000;

pub(super) fn job(object: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (spec, path) = (&object["spec"], Path::new("spec"));
    spec_common(spec, &path, &mut errors);
    if spec["manualSelector"].is_true() {
        if spec["selector"].is_null() {
            errors.required(path.child("selector"), "");
        }
    } else {
        generated_selector(object, &path, &mut errors);
    }
    validate_label_selector(&spec["selector"], &path.child("selector"), &mut errors);
    let labels = &spec["template"]["metadata"]["labels"];
    if spec["selector"].present() && !selector_matches(&spec["selector"], labels) {
        errors.invalid(
            path.child("template").child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
    errors
}

/// What Jobs and the Jobs of CronJobs are both checked for.
pub(in crate::kinds) fn spec_common(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let numbers = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    for field in numbers {
        non_negative(&spec[field], &path.child(field), errors);
    }
    one_of_or_none(
        &spec["completionMode"],
        &["Indexed", "NonIndexed"],
        &path.child("completionMode"),
        errors,
    );
    if spec["completionMode"] == "Indexed" {
        indexed(spec, path, errors);
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if spec[field].present() {
                errors.invalid(
                    path.child(field),
                    spec[field].clone(),
                    "requires indexed completion mode",
                );
            }
        }
    }
    let template = path.child("template");
    validate_pod_template(&spec["template"], &template, errors);
    restart_policy(spec, &template.child("spec").child("restartPolicy"), errors);
    failure_policy::validate(spec, &path.child("podFailurePolicy"), errors);
    replacement_policy(spec, &path.child("podReplacementPolicy"), errors);
    success_policy(spec, &path.child("successPolicy"), errors);
    managed_by(spec["managedBy"].as_str(), &path.child("managedBy"), errors);
}

/// Which indexes have to succeed for the Job to have (KEP-3998).
fn success_policy(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    const RULES_LIMIT: usize = 20;
    let policy = &spec["successPolicy"];
    if policy.is_null() {
        return;
    }
    if spec["completionMode"] != "Indexed" {
        errors.invalid(path, policy.clone(), "requires indexed completion mode");
    }
    let (rules, list) = (policy["rules"].items(), path.child("rules"));
    if rules.is_empty() {
        errors.required(
            &list,
            "at least one rules must be specified when the successPolicy is specified",
        );
    }
    if rules.len() > RULES_LIMIT {
        errors.too_long(&list, RULES_LIMIT);
    }
    let completions = spec["completions"].int().unwrap_or_default();
    for (i, rule) in rules.iter().enumerate() {
        success_rule(rule, completions, &list.index(i), errors);
    }
}

fn success_rule(rule: &Value, completions: i64, path: &Path, errors: &mut FieldErrors) {
    let (named, count) = (&rule["succeededIndexes"], rule["succeededCount"].int());
    if named.is_null() && count.is_none() {
        errors.required(
            path,
            "at least one of succeededCount or succeededIndexes must be specified",
        );
    }
    let total = named.as_str().map(|text| {
        indexes::count(text, completions).unwrap_or_else(|why| {
            errors.invalid(
                path.child("succeededIndexes"),
                text,
                format!("error parsing succeededIndexes: {why}"),
            );
            0
        })
    });
    let path = path.child("succeededCount");
    non_negative(&rule["succeededCount"], &path, errors);
    for (limit, what) in [
        (Some(completions), "specified completions"),
        (total, "indexes in the specified succeededIndexes field"),
    ] {
        if let (Some(count), Some(limit)) = (count, limit)
            && count > limit
        {
            let detail = format!("must be less than or equal to {limit} (the number of {what})");
            errors.invalid(&path, count, detail);
        }
    }
}

/// Another controller's name: a domain and a path (KEP-4368).
fn managed_by(name: Option<&str>, path: &Path, errors: &mut FieldErrors) {
    const LIMIT: usize = 63;
    let Some(name) = name else {
        return;
    };
    if name.len() > LIMIT {
        errors.too_long(path, LIMIT);
    }
    match name.split_once('/') {
        Some((domain, rest)) if !rest.is_empty() => {
            for message in names::dns1123_subdomain(domain) {
                errors.invalid(path, domain, message);
            }
        }
        _ => errors.invalid(
            path,
            name,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        ),
    }
}

fn indexed(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    if spec["completions"].is_null() {
        errors.required(path.child("completions"), "when completion mode is Indexed");
    }
    if let Some(count) = spec["parallelism"]
        .int()
        .filter(|p| *p > MAX_INDEXED_PARALLELISM)
    {
        let detail = format!(
            "must be less than or equal to {MAX_INDEXED_PARALLELISM} when completion mode is Indexed"
        );
        errors.invalid(path.child("parallelism"), count, detail);
    }
    if spec["maxFailedIndexes"].present() && spec["backoffLimitPerIndex"].is_null() {
        errors.required(
            path.child("backoffLimitPerIndex"),
            "when maxFailedIndexes is specified",
        );
    }
    let (failed, wanted) = (spec["maxFailedIndexes"].int(), spec["completions"].int());
    if let (Some(failed), Some(wanted)) = (failed, wanted)
        && failed > wanted
    {
        errors.invalid(
            path.child("maxFailedIndexes"),
            failed,
            "must be less than or equal to completions",
        );
    }
    many_indexes(spec, path, errors);
}

/// What a Job may remember of its indexes one by one.
fn many_indexes(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    const MANY: i64 = 100_000;
    const AT_MANY: i64 = 10_000;
    let failed = spec["maxFailedIndexes"].int();
    if let Some(failed) = failed.filter(|f| *f > MANY) {
        let detail = format!("must be less than or equal to {MANY}");
        errors.invalid(path.child("maxFailedIndexes"), failed, detail);
    }
    let many = spec["completions"].int().is_some_and(|c| c > MANY);
    if !many || spec["backoffLimitPerIndex"].is_null() {
        return;
    }
    if failed.is_none() {
        let detail = format!("must be specified when completions is above {MANY}");
        errors.required(path.child("maxFailedIndexes"), detail);
    }
    for field in ["parallelism", "maxFailedIndexes"] {
        if let Some(number) = spec[field].int().filter(|n| *n > AT_MANY) {
            let detail = format!(
                "must be less than or equal to {AT_MANY} when completions are above {MANY} and used with backoff limit per index"
            );
            errors.invalid(path.child(field), number, detail);
        }
    }
}

fn restart_policy(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    match spec["template"]["spec"]["restartPolicy"].text() {
        "Always" | "" => errors.required(path, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec["podFailurePolicy"].present() => {
            errors.invalid(
                path,
                "OnFailure",
                "only \"Never\" is supported when podFailurePolicy is specified",
            );
        }
        "OnFailure" | "Never" => {}
        other => errors.not_supported(path, other, &["OnFailure", "Never"]),
    }
}

fn replacement_policy(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    if spec["podReplacementPolicy"].is_null() {
        return;
    }
    let supported: &[&str] = if spec["podFailurePolicy"].present() {
        &["Failed"]
    } else {
        &["Failed", "TerminatingOrFailed"]
    };
    one_of(&spec["podReplacementPolicy"], supported, path, errors);
}

fn generated_selector(object: &Value, path: &Path, errors: &mut FieldErrors) {
    let spec = &object["spec"];
    let selector = &spec["selector"];
    let uid = &object["metadata"]["uid"];
    let labels_path = path.child("template").child("metadata").child("labels");
    let labels = &spec["template"]["metadata"]["labels"];
    let old_key = &selector["matchLabels"]["controller-uid"];
    let selected = &selector["matchLabels"][UID_LABEL];
    let ours = (selected == uid || (selected.is_null() && old_key == uid))
        && selector["matchExpressions"].is_empty();
    if !ours {
        errors.invalid(
            path.child("selector"),
            selector.clone(),
            "`selector` not auto-generated",
        );
        return;
    }
    for (key, want) in [(UID_LABEL, uid), (NAME_LABEL, &object["metadata"]["name"])] {
        let label = &labels[key];
        if label.is_null() && old_key.is_null() {
            errors.required(labels_path.key(key), format!("must be '{}'", want.text()));
        } else if label.present() && label != want {
            errors.invalid(
                labels_path.key(key),
                label.clone(),
                format!("must be '{}'", want.text()),
            );
        }
    }
}

pub(super) fn job_update(object: &Value, old: &Value) -> FieldErrors {
    let mut errors = job(object);
    let (spec, before, path) = (&object["spec"], &old["spec"], Path::new("spec"));
    if !elastic(spec, before) {
        immutable(
            &spec["completions"],
            &before["completions"],
            &path.child("completions"),
            &mut errors,
        );
    }
    immutable(
        &spec["selector"],
        &before["selector"],
        &path.child("selector"),
        &mut errors,
    );
    template_kept(object, old, &path.child("template"), &mut errors);
    for field in [
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        immutable(
            &spec[field],
            &before[field],
            &path.child(field),
            &mut errors,
        );
    }
    errors
}

/// Indexed Jobs may change completions together with an equal parallelism.
fn elastic(new: &Value, old: &Value) -> bool {
    old["completionMode"] == "Indexed"
        && new["completions"] == new["parallelism"]
        && old["completions"] == old["parallelism"]
}

/// The template stays; while a Job is suspended and has not started, what steers scheduling may change.
fn template_kept(object: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut template = object["spec"]["template"].clone();
    let before = &old["spec"]["template"];
    let suspended = object["spec"]["suspend"].is_true() || old["spec"]["suspend"].is_true();
    if suspended && old["status"]["startTime"].is_null() {
        if let Some(metadata) = get_mut(&mut template, "metadata") {
            carry_over(metadata, &before["metadata"], "labels");
            carry_over(metadata, &before["metadata"], "annotations");
        }
        if let Some(spec) = get_mut(&mut template, "spec") {
            for field in ["nodeSelector", "tolerations", "schedulingGates"] {
                carry_over(spec, &before["spec"], field);
            }
            if beside_nodes(&spec["affinity"]) == beside_nodes(&before["spec"]["affinity"]) {
                carry_over(spec, &before["spec"], "affinity");
            }
        }
    }
    if !same(&template, before) {
        errors.invalid(path, template, "field is immutable");
    }
}

/// An affinity without the part about nodes, which alone may change; nothing when that was all.
fn beside_nodes(affinity: &Value) -> Option<Value> {
    let mut rest = affinity.clone();
    remove(&mut rest, "nodeAffinity");
    let some = rest
        .as_object()
        .is_some_and(|parts| parts.values().any(|part| !part.is_null()));
    some.then_some(rest)
}
