//! Checks of a Job's status when it is written. Clients rely on how it moves (a finished Job stays finished, its
//! counts never fall), whoever manages the Job.
//!
//! Most rules are only asked when one of the fields they are about has changed, so that a status that is already
//! wrong, or that a change of the spec made wrong, does not block updates of something else.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::Value;

use super::{has, indexes};
use crate::kinds::walk::{Walk, same};
use crate::status::FieldErrors;
use crate::validation::{Path, non_negative};

/// A status to check, beside the one it replaces.
struct Update<'a> {
    new: &'a Value,
    old: &'a Value,
    path: Path,
}

pub(super) fn job_status_update(object: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let update = Update {
        new: object,
        old,
        path: Path::new("status"),
    };
    update.numbers(&mut errors);
    update.uncounted(&mut errors);
    update.exclusive(&mut errors);
    update.decided_before_ended(&mut errors);
    update.completion_time(&mut errors);
    update.finished(&mut errors);
    update.indexes(&mut errors);
    update.disabled(&mut errors);
    update.counters(&mut errors);
    update.start_time(&mut errors);
    errors
}

impl Update<'_> {
    fn field(&self, name: &str) -> &Value {
        &self.new["status"][name]
    }

    fn number(&self, name: &str) -> i64 {
        self.field(name).int().unwrap_or_default()
    }

    fn has(&self, condition: &str) -> bool {
        has(self.new, condition)
    }

    fn had(&self, condition: &str) -> bool {
        has(self.old, condition)
    }

    /// Whether one of the conditions went on or off.
    fn turned(&self, conditions: &[&str]) -> bool {
        conditions.iter().any(|c| self.has(c) != self.had(c))
    }

    /// Whether one of the counts became another; a missing one is 0.
    fn counts_changed(&self, fields: &[&str]) -> bool {
        let count = |job: &Value, field: &str| job["status"][field].int().unwrap_or_default();
        fields
            .iter()
            .any(|field| count(self.new, field) != count(self.old, field))
    }

    fn time_changed(&self, field: &str) -> bool {
        time(self.new, field) != time(self.old, field)
    }

    fn text_changed(&self, field: &str) -> bool {
        self.field(field) != &self.old["status"][field]
    }

    fn is_finished(&self) -> bool {
        self.has("Complete") || self.has("Failed")
    }

    fn finished_changed(&self) -> bool {
        self.is_finished() != (self.had("Complete") || self.had("Failed"))
    }

    fn numbers(&self, errors: &mut FieldErrors) {
        for field in ["active", "succeeded", "failed", "ready", "terminating"] {
            non_negative(self.field(field), &self.path.child(field), errors);
        }
        if self.counts_changed(&["ready", "active"]) && self.number("ready") > self.number("active")
        {
            errors.invalid(
                self.path.child("ready"),
                self.number("ready"),
                "cannot set more ready pods than active",
            );
        }
    }

    /// Each pod that waits to be counted stands in one place only.
    fn uncounted(&self, errors: &mut FieldErrors) {
        let mut seen = HashSet::new();
        for list in ["succeeded", "failed"] {
            let path = self.path.child("uncountedTerminatedPods").child(list);
            let uids = self.field("uncountedTerminatedPods")[list].items();
            for (i, uid) in uids.iter().map(Walk::text).enumerate() {
                if uid.is_empty() {
                    errors.invalid(path.index(i), uid, "must not be empty");
                } else if !seen.insert(uid) {
                    errors.duplicate(path.index(i), uid);
                }
            }
        }
    }

    /// Success and failure, decided or reached, exclude each other.
    fn exclusive(&self, errors: &mut FieldErrors) {
        let conditions = self.path.child("conditions");
        for (one, other, always) in [
            ("Complete", "Failed", false),
            ("Complete", "FailureTarget", false),
            ("SuccessCriteriaMet", "Failed", true),
            ("SuccessCriteriaMet", "FailureTarget", true),
        ] {
            if self.has(one) && self.has(other) && (always || self.turned(&[one, other])) {
                errors.invalid_unshown(
                    &conditions,
                    format!("cannot set {one}=True and {other}=true conditions"),
                );
            }
        }
    }

    /// A Job says how it will end before it has ended.
    fn decided_before_ended(&self, errors: &mut FieldErrors) {
        let conditions = self.path.child("conditions");
        for (end, decision) in [
            ("Failed", "FailureTarget"),
            ("Complete", "SuccessCriteriaMet"),
        ] {
            if self.turned(&[end, decision]) && self.has(end) && !self.has(decision) {
                errors.invalid_unshown(
                    &conditions,
                    format!(
                        "cannot set {end}=True condition without the {decision}=true condition"
                    ),
                );
            }
        }
        let by_policy = self.new["spec"]["successPolicy"].present();
        if by_policy && self.has("Complete") && !self.has("SuccessCriteriaMet") {
            errors.invalid_unshown(
                &conditions,
                "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
            );
        }
    }

    fn completion_time(&self, errors: &mut FieldErrors) {
        let (path, given) = (
            self.path.child("completionTime"),
            self.field("completionTime"),
        );
        let complete = self.has("Complete");
        if self.turned(&["Complete"]) || self.time_changed("completionTime") {
            if given.present() && !complete {
                errors.invalid(
                    &path,
                    given.clone(),
                    "cannot set completionTime when there is no Complete=True condition",
                );
            }
            if given.is_null() && complete {
                errors.required(&path, "completionTime is required for Complete jobs");
            }
        }
        let (start, end) = (
            time(self.new, "startTime"),
            time(self.new, "completionTime"),
        );
        let moved = self.time_changed("startTime") || self.time_changed("completionTime");
        if let (true, Some(start), Some(end)) = (moved, start, end)
            && end < start
        {
            errors.invalid(
                &path,
                given.clone(),
                "completionTime cannot be set before startTime",
            );
        }
        let before = &self.old["status"]["completionTime"];
        if given.present() && before.present() && self.time_changed("completionTime") {
            errors.invalid(&path, given.clone(), "completionTime cannot be mutated");
        }
    }

    /// A finished Job has started, and none of its pods is still on its way.
    fn finished(&self, errors: &mut FieldErrors) {
        if !self.is_finished() {
            return;
        }
        let now = self.finished_changed();
        for field in ["active", "terminating"] {
            if (now || self.counts_changed(&[field])) && self.number(field) > 0 {
                errors.invalid(
                    self.path.child(field),
                    self.number(field),
                    format!("{field}>0 is invalid for finished job"),
                );
            }
        }
        let spec = &self.new["spec"];
        // It ends without ever having been started.
        let empty = spec["suspend"].is_true() && spec["completions"].int() == Some(0);
        let due = (now || self.time_changed("startTime")) && !empty;
        if due && self.field("startTime").is_null() {
            errors.required(
                self.path.child("startTime"),
                "startTime is required for finished job",
            );
        }
        let uncounted = self.field("uncountedTerminatedPods");
        let left = ["succeeded", "failed"]
            .iter()
            .any(|list| !uncounted[*list].is_empty());
        let changed = !same(uncounted, &self.old["status"]["uncountedTerminatedPods"]);
        if left && (now || changed) {
            errors.invalid(
                self.path.child("uncountedTerminatedPods"),
                uncounted.clone(),
                "uncountedTerminatedPods needs to be empty for finished job",
            );
        }
    }

    /// The texts that name indexes.
    fn indexes(&self, errors: &mut FieldErrors) {
        let spec = &self.new["spec"];
        let wanted = spec["completions"].int();
        let (completed, failed) = ("completedIndexes", "failedIndexes");
        let mut problem = |field: &str, detail: String| {
            errors.invalid(self.path.child(field), self.field(field).clone(), detail);
        };
        let read = |field: &str| {
            let text = self.field(field).text();
            wanted.map_or(Ok(Vec::new()), |wanted| indexes::intervals(text, wanted))
        };
        let (completed_read, failed_read) = (read(completed), read(failed));
        let (completed_changed, failed_changed) =
            (self.text_changed(completed), self.text_changed(failed));
        let per_index = spec["backoffLimitPerIndex"].present();
        if let (true, Err(why)) = (completed_changed, &completed_read) {
            problem(completed, format!("error parsing {completed}: {why}"));
        }
        if let (true, true, Err(why)) = (failed_changed, per_index, &failed_read) {
            problem(failed, format!("error parsing {failed}: {why}"));
        }
        let indexed = spec["completionMode"] == "Indexed";
        if completed_changed && !indexed && !self.field(completed).is_empty() {
            problem(
                completed,
                format!("cannot set non-empty {completed} when non-indexed completion mode"),
            );
        }
        if failed_changed && !per_index && self.field(failed).present() {
            problem(
                failed,
                format!("cannot set non-null {failed} when backoffLimitPerIndex is null"),
            );
        }
        if let (true, Ok(one), Ok(other)) = (
            completed_changed || failed_changed,
            &completed_read,
            &failed_read,
        ) && let Some(index) = indexes::shared(one, other)
        {
            problem(
                failed,
                format!("{failed} and {completed} overlap at index: {index}"),
            );
        }
    }

    /// What was decided or reached stays so.
    fn disabled(&self, errors: &mut FieldErrors) {
        let conditions = self.path.child("conditions");
        let cannot = "cannot disable the";
        for end in ["Failed", "Complete", "FailureTarget"] {
            if self.had(end) && !self.has(end) {
                errors.invalid_unshown(
                    &conditions,
                    format!("{cannot} terminal {end}=True condition"),
                );
            }
        }
        let decision = "SuccessCriteriaMet";
        if self.had(decision) && !self.has(decision) {
            errors.invalid_unshown(&conditions, format!("{cannot} {decision}=True condition"));
        }
        if self.had("Complete") && !self.had(decision) && self.has(decision) {
            errors.invalid_unshown(
                &conditions,
                format!("cannot set {decision}=True for Job already has Complete=true conditions"),
            );
        }
    }

    /// Counts of finished pods only rise, but for indexed Jobs made smaller, whose highest indexes are gone.
    fn counters(&self, errors: &mut FieldErrors) {
        let spec = &self.new["spec"];
        let before = |field: &str| self.old["status"][field].int().unwrap_or_default();
        let beyond = spec["completions"]
            .int()
            .is_some_and(|wanted| before("succeeded") > wanted);
        let elastic = spec["completions"] == spec["parallelism"];
        let may_fall = spec["completionMode"] == "Indexed" && (elastic || beyond);
        for (field, may_fall) in [("failed", false), ("succeeded", may_fall)] {
            if !may_fall && self.number(field) < before(field) {
                errors.invalid(
                    self.path.child(field),
                    self.number(field),
                    format!("cannot decrease the {field} counter"),
                );
            }
        }
    }

    /// The start stays, unless the Job is suspended or has just been resumed.
    fn start_time(&self, errors: &mut FieldErrors) {
        let running = !self.new["spec"]["suspend"].is_true();
        let resumed = self.had("Suspended") && !self.has("Suspended");
        let known = self.old["status"]["startTime"].present();
        if known && running && !resumed && self.time_changed("startTime") {
            errors.required(
                self.path.child("startTime"),
                "startTime cannot be removed for unsuspended job",
            );
        }
    }
}

fn time(job: &Value, field: &str) -> Option<Timestamp> {
    job["status"][field].text().parse().ok()
}

#[cfg(test)]
mod tests;
