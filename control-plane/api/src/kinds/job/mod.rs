//! Jobs: pods that run to completion.

mod failure_policy;
mod indexes;
mod status;
pub(super) mod validate;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, create_with_status, update_only_status, update_with_status};
use super::pod::resources::condition;
use super::walk::{Walk, child, fill, fill_zero, get_mut, list_mut, set};
use super::workload;
use crate::duration::human;
use crate::kind::{Column, Kind, Name, Strategy};
use crate::status::FieldErrors;
use crate::table::{
    age, age_column, column, name, name_column, seconds_between, workload_cells, workload_columns,
};

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("batch", "v1", "Job", "jobs", Jobs)
        .categories(&["all"])
        .status()
        .build()
}

/// Defaults of a Job's spec.
fn default_spec(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        set(spec, "completions", 1);
    }
    fill(spec, "parallelism", 1);
    let per_index = spec["backoffLimitPerIndex"].present();
    fill(
        spec,
        "backoffLimit",
        if per_index { i64::from(i32::MAX) } else { 6 },
    );
    fill(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    fill(spec, "manualSelector", false);
    let replacement = if spec["podFailurePolicy"].present() {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    fill(spec, "podReplacementPolicy", replacement);
    default_template(spec);
}

/// What is filled in for the Jobs of CronJobs as well; all else is filled in when such a Job is made.
pub(super) fn default_template(spec: &mut Value) {
    if let Some(policy) = get_mut(spec, "podFailurePolicy") {
        for rule in list_mut(policy, "rules") {
            for pattern in list_mut(rule, "onPodConditions") {
                fill_zero(pattern, "status", "True");
            }
        }
    }
    workload::default_template(spec);
}

struct Jobs;

impl Strategy for Jobs {
    fn orphans_by_default(&self) -> bool {
        true
    }

    fn unsaid_propagation_warning(&self) -> Option<&'static str> {
        Some(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them \
             or set propagationPolicy=Orphan to suppress this warning",
        )
    }

    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        default_spec(spec);
        let labels = spec["template"]["metadata"]["labels"].clone();
        if !labels.is_empty()
            && object["metadata"]["labels"].is_empty()
            && let Some(metadata) = child(object, "metadata")
        {
            set(metadata, "labels", labels);
        }
    }

    /// Needs `metadata.uid` and `metadata.name`: the selector is made of them.
    fn prepare_create(&self, object: &mut Value) {
        create_with_status(object);
        if !object["spec"]["manualSelector"].is_true() {
            generate_selector(object);
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        update_with_status(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        update_only_status(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        validate::job(object)
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        validate::job_update(object, old)
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> FieldErrors {
        status::job_status_update(object, old)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        let succeeded = object["status"]["succeeded"].int().unwrap_or_default();
        vec![("status.successful".into(), succeeded.to_string())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::warnings(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![
            name_column(),
            column(
                "Status",
                "string",
                "Whether the Job runs, is done, or failed.",
            ),
            column(
                "Completions",
                "string",
                "How many pods have succeeded, of those wanted.",
            ),
            column("Duration", "string", "How long the Job has run, or ran."),
            age_column(),
        ];
        columns.extend(workload_columns());
        columns
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut cells = vec![
            name(object),
            status(object).into(),
            completions(object).into(),
            duration(object, now).into(),
            age(object, now),
        ];
        cells.extend(workload_cells(
            &object["spec"]["template"],
            &object["spec"]["selector"],
        ));
        cells
    }
}

/// Labels the pods with the Job's UID and name (old and new label keys) and selects them by the UID.
fn generate_selector(object: &mut Value) {
    let uid = object["metadata"]["uid"].text().to_owned();
    let name = object["metadata"]["name"].text().to_owned();
    let Some(spec) = child(object, "spec") else {
        return;
    };
    if let Some(labels) = child(spec, "template")
        .and_then(|t| child(t, "metadata"))
        .and_then(|m| child(m, "labels"))
    {
        for (key, value) in [
            ("controller-uid", &uid),
            ("job-name", &name),
            (UID_LABEL, &uid),
            (NAME_LABEL, &name),
        ] {
            set(labels, key, value.as_str());
        }
    }
    let given = spec["selector"]["matchLabels"].clone();
    if spec["selector"].is_null() || given.is_empty() {
        let mut selector = spec["selector"].clone();
        if selector.is_null() {
            selector = json!({});
        }
        set(&mut selector, "matchLabels", json!({ UID_LABEL: uid }));
        set(spec, "selector", selector);
    }
}

fn has(job: &Value, type_: &str) -> bool {
    condition(job, type_).is_some_and(|c| c["status"] == "True")
}

fn status(job: &Value) -> &'static str {
    if has(job, "Complete") {
        "Complete"
    } else if has(job, "Failed") {
        "Failed"
    } else if job["metadata"]["deletionTimestamp"].present() {
        "Terminating"
    } else if has(job, "Suspended") {
        "Suspended"
    } else if has(job, "FailureTarget") {
        "FailureTarget"
    } else if has(job, "SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Value) -> String {
    let spec = &job["spec"];
    let done = job["status"]["succeeded"].int().unwrap_or_default();
    match (
        spec["completions"].int(),
        spec["parallelism"].int().unwrap_or_default(),
    ) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{done}/1 of {parallelism}"),
        (None, _) => format!("{done}/1"),
    }
}

fn duration(job: &Value, now: Timestamp) -> String {
    let time = |field: &str| job["status"][field].text().parse::<Timestamp>().ok();
    match time("startTime") {
        None => String::new(),
        Some(start) => human(seconds_between(
            start,
            time("completionTime").unwrap_or(now),
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::workload::fixture::{texts, workload};

    fn job(spec: Value) -> Value {
        let mut job = workload(spec);
        job["metadata"]["uid"] = json!("u-1");
        set(
            &mut job["spec"]["template"]["spec"],
            "restartPolicy",
            "Never",
        );
        Jobs.default(&mut job);
        Jobs.prepare_create(&mut job);
        job
    }

    #[test]
    fn a_minimal_job_runs_one_pod_that_it_finds_by_uid() {
        let object = job(json!({}));
        let spec = &object["spec"];
        assert_eq!(
            (
                &spec["completions"],
                &spec["parallelism"],
                &spec["backoffLimit"],
                &spec["completionMode"]
            ),
            (&json!(1), &json!(1), &json!(6), &json!("NonIndexed"))
        );
        assert_eq!(
            spec["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}})
        );
        assert_eq!(spec["template"]["metadata"]["labels"]["job-name"], "web");
        assert_eq!(object["metadata"]["labels"], json!({"app": "web"}));
        assert_eq!(texts(&Jobs.validate_create(&object)), Vec::<String>::new());
    }

    #[test]
    fn pods_of_a_job_are_not_always_restarted() {
        let mut object = job(json!({}));
        object["spec"]["template"]["spec"]["restartPolicy"] = json!("Always");
        assert_eq!(
            texts(&Jobs.validate_create(&object)),
            [
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
            ]
        );
    }

    #[test]
    fn the_template_and_completions_stay() {
        let old = job(json!({}));
        let mut new = old.clone();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = json!("other:1");
        new["spec"]["completions"] = json!(2);
        let fields: Vec<String> = Jobs
            .validate_update(&new, &old)
            .0
            .into_iter()
            .map(|e| e.field)
            .collect();
        assert_eq!(fields, ["spec.completions", "spec.template"]);
        new = old.clone();
        new["spec"]["parallelism"] = json!(3);
        new["spec"]["suspend"] = json!(true);
        assert!(Jobs.validate_update(&new, &old).is_empty());
    }

    #[test]
    fn where_a_suspended_job_may_run_may_change_but_not_beside_whom() {
        let changed = |from: Value, to: Value| {
            let mut old = job(json!({"suspend": true}));
            old["spec"]["template"]["spec"]["affinity"] = from;
            let mut new = old.clone();
            new["spec"]["template"]["spec"]["affinity"] = to;
            new["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
            Jobs.validate_update(&new, &old).is_empty()
        };
        let terms = |key: &str| {
            json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": key, "operator": "Exists"}]},
            ]}})
        };
        let beside = json!({"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}},
        ]});
        let nodes = |key: &str| json!({"nodeAffinity": terms(key)});
        let both = |key: &str| json!({"nodeAffinity": terms(key), "podAffinity": beside.clone()});
        assert!(changed(Value::Null, nodes("x")));
        assert!(changed(nodes("x"), Value::Null));
        assert!(changed(both("x"), both("y")));
        assert!(!changed(nodes("x"), both("x")));
        assert!(!changed(both("x"), Value::Null));
    }

    #[test]
    fn the_row_shows_progress_and_duration() {
        let now = "2026-01-01T00:01:33Z".parse().unwrap();
        let mut object = job(json!({"completions": 3}));
        object["status"] = json!({"succeeded": 1, "startTime": "2026-01-01T00:00:30Z"});
        assert_eq!(
            Jobs.row(&object, now)[1..5],
            ["Running", "1/3", "63s", "93s"]
        );
        object["status"]["conditions"] = json!([{"type": "Complete", "status": "True"}]);
        object["status"]["completionTime"] = json!("2026-01-01T00:00:40Z");
        assert_eq!(Jobs.row(&object, now)[1..4], ["Complete", "1/3", "10s"]);
    }
}
