//! CronJobs: Jobs made by the clock.

mod schedule;

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZoneDatabase;
use serde_json::Value;

use super::declare::{Declaration, with_status};
use super::job::{self, validate::spec_common};
use super::walk::{Walk, child, fill, fill_zero};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{
    age, age_column, column, name, name_column, or_none, since, workload_cells, workload_columns,
};
use crate::validation::{Path, non_negative, one_of};

/// A Job's name has the time appended (11 letters) and has to stay a label.
const NAME_LIMIT: usize = 52;

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("batch", "v1", "CronJob", "cronjobs", CronJobs)
        .short_names(&["cj"])
        .categories(&["all"])
        .status()
        .build()
}

struct CronJobs;

impl Strategy for CronJobs {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        fill_zero(spec, "concurrencyPolicy", "Allow");
        fill(spec, "suspend", false);
        fill(spec, "successfulJobsHistoryLimit", 3);
        fill(spec, "failedJobsHistoryLimit", 1);
        if let Some(job) = child(spec, "jobTemplate").and_then(|t| child(t, "spec")) {
            job::default_template(job);
        }
    }

    with_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        validate_schedule(spec, &path, &mut errors);
        for field in [
            "startingDeadlineSeconds",
            "successfulJobsHistoryLimit",
            "failedJobsHistoryLimit",
        ] {
            non_negative(&spec[field], &path.child(field), &mut errors);
        }
        one_of(
            &spec["concurrencyPolicy"],
            &["Allow", "Forbid", "Replace"],
            &path.child("concurrencyPolicy"),
            &mut errors,
        );
        let path = path.child("jobTemplate").child("spec");
        let job = &spec["jobTemplate"]["spec"];
        spec_common(job, &path, &mut errors);
        if job["manualSelector"].is_true() {
            errors.0.push(crate::status::FieldError {
                kind: crate::status::ErrorKind::NotSupported,
                field: path.child("manualSelector").into(),
                value: Some(true.into()),
                detail: "supported values: \"nil\", \"false\"".into(),
            });
        }
        if job["selector"].present() {
            errors.invalid(
                path.child("selector"),
                job["selector"].clone(),
                "`selector` will be auto-generated",
            );
        }
        let name = object["metadata"]["name"].text();
        if name.len() > NAME_LIMIT {
            errors.invalid(
                "metadata.name",
                name,
                format!("must be no more than {NAME_LIMIT} characters"),
            );
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![
            name_column(),
            column(
                "Schedule",
                "string",
                "When Jobs are made, as cron writes it.",
            ),
            column("Timezone", "string", "Time zone of the schedule."),
            column("Suspend", "boolean", "Whether no Jobs are made for now."),
            column("Active", "integer", "How many Jobs run."),
            column("Last Schedule", "string", "When a Job was made last."),
            age_column(),
        ];
        columns.extend(workload_columns());
        columns
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let last = match status["lastScheduleTime"].text() {
            "" => "<none>".to_owned(),
            time => since(time, now),
        };
        let job = &spec["jobTemplate"]["spec"];
        let mut cells = vec![
            name(object),
            spec["schedule"].text().into(),
            or_none(spec["timeZone"].text()),
            spec["suspend"].is_true().into(),
            status["active"].items().len().into(),
            last.into(),
            age(object, now),
        ];
        cells.extend(workload_cells(&job["template"], &job["selector"]));
        cells
    }
}

fn validate_schedule(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let text = spec["schedule"].text();
    let schedule_path = path.child("schedule");
    if text.is_empty() {
        errors.required(schedule_path, "");
    } else if text.contains("TZ") {
        errors.invalid(
            schedule_path,
            text,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        );
    } else if let Err(problem) = schedule::check(text) {
        errors.invalid(schedule_path, text, problem);
    }
    let zone = &spec["timeZone"];
    if zone.present() {
        let path = path.child("timeZone");
        match zone.text() {
            "" => errors.invalid(path, "", "timeZone must be nil or non-empty string"),
            text if text.eq_ignore_ascii_case("local") => {
                errors.invalid(path, text, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
            }
            text if TimeZoneDatabase::bundled().get(text).is_err() => {
                errors.invalid(path, text, format!("unknown time zone {text}"));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::workload::fixture::{texts, workload};
    use serde_json::json;

    fn cron_job(schedule: &str) -> Value {
        let mut job = workload(json!({}));
        job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        let mut object = json!({"metadata": {"name": "c"}, "spec": {"schedule": schedule, "jobTemplate": {"spec": job["spec"]}}});
        CronJobs.default(&mut object);
        object
    }

    #[test]
    fn a_minimal_cron_job_keeps_three_successes_and_a_failure() {
        let object = cron_job("*/5 * * * *");
        assert_eq!(object["spec"]["successfulJobsHistoryLimit"], 3);
        assert_eq!(object["spec"]["failedJobsHistoryLimit"], 1);
        assert_eq!(
            texts(&CronJobs.validate_create(&object)),
            Vec::<String>::new()
        );
        let row = CronJobs.row(&object, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(
            Value::from(row),
            json!([
                "c",
                "*/5 * * * *",
                "<none>",
                false,
                0,
                "<none>",
                "<unknown>",
                "c",
                "nginx:1",
                "<none>"
            ])
        );
    }

    #[test]
    fn conditions_that_a_failure_policy_waits_for_are_true_ones() {
        let mut object = cron_job("@daily");
        let policy = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]});
        object["spec"]["jobTemplate"]["spec"]["podFailurePolicy"] = policy;
        CronJobs.default(&mut object);
        assert_eq!(
            texts(&CronJobs.validate_create(&object)),
            Vec::<String>::new()
        );
        let spec = &object["spec"]["jobTemplate"]["spec"];
        assert!(
            spec["backoffLimit"].is_null(),
            "the Job's own defaults come later"
        );
    }

    #[test]
    fn a_broken_schedule_is_explained() {
        assert_eq!(
            texts(&CronJobs.validate_create(&cron_job("* *"))),
            ["spec.schedule: Invalid value: \"* *\": expected exactly 5 fields, found 2: [* *]"]
        );
    }
}
