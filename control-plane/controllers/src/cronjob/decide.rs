//! What a CronJob does at a moment: start a Job, or wait. Pure.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use balsa_client::EventType;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use super::schedule::{self, MANY_MISSED, Schedule};
use crate::support::owner;

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Added to waits, so that the minute has surely begun.
const SLACK: Duration = Duration::from_millis(100);

/// An event to write: type, reason, message.
pub(super) type Event = (EventType, &'static str, String);

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Start the Job of this time.
    pub(super) start: Option<Timestamp>,
    /// Delete these running Jobs first (`Replace`).
    pub(super) replace: Vec<ObjectReference>,
    pub(super) events: Vec<Event>,
    /// When to look again.
    pub(super) again: Option<Duration>,
}

/// How a Job ended, if it has.
pub(super) fn conclusion(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let ended = conditions.iter().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    })?;
    Some(ended.type_.as_str())
}

/// Decides on the CronJob; its status must already say which Jobs are active.
pub(super) fn plan(cron: &CronJob, spec: &CronJobSpec, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if spec.suspend == Some(true) {
        return plan;
    }
    let schedule = match schedule::parse(&spec.schedule, spec.time_zone.as_deref()) {
        Ok(schedule) => schedule,
        Err(error) => {
            let (reason, message) = unparseable(spec, &error);
            plan.events.push((EventType::Warning, reason, message));
            return plan;
        }
    };
    plan.again = wait(&schedule, now);
    let Some(due) = due(cron, spec, &schedule, now, &mut plan.events) else {
        return plan;
    };
    if is_too_late(spec, due, now) {
        let message = format!("Missed scheduled time to start a job: {}", rfc1123(due));
        plan.events
            .push((EventType::Warning, "MissSchedule", message));
        return plan;
    }
    let active = active(cron);
    let name = job_name(cron, due);
    if active.iter().any(|job| job.name.as_ref() == Some(&name)) {
        return plan;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events
                .push((EventType::Normal, "JobAlreadyActive", message.into()));
            return plan;
        }
        Some("Replace") => plan.replace = active.to_vec(),
        _ => {}
    }
    plan.start = Some(due);
    plan
}

fn unparseable(spec: &CronJobSpec, error: &schedule::Invalid) -> (&'static str, String) {
    match &spec.time_zone {
        Some(zone) if TimeZone::get(zone).is_err() => (
            "UnknownTimeZone",
            format!("invalid timeZone: {zone:?}: {error}"),
        ),
        _ => (
            "UnparseableSchedule",
            format!("unparseable schedule: {:?} : {error}", spec.schedule),
        ),
    }
}

pub(super) fn active(cron: &CronJob) -> &[ObjectReference] {
    let status = cron.status.as_ref();
    status
        .and_then(|status| status.active.as_deref())
        .unwrap_or_default()
}

fn wait(schedule: &Schedule, now: Timestamp) -> Option<Duration> {
    let left = schedule.next(now)?.duration_since(now);
    Some(left.max(SignedDuration::ZERO).unsigned_abs() + SLACK)
}

/// The latest time that has come and was not used.
fn due(
    cron: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    now: Timestamp,
    events: &mut Vec<Event>,
) -> Option<Timestamp> {
    let used = cron
        .status
        .as_ref()
        .and_then(|status| status.last_schedule_time.as_ref());
    let created = cron.metadata.creation_timestamp.as_ref();
    let mut earliest = used.or(created).map(|time| time.0)?;
    let deadline = spec
        .starting_deadline_seconds
        .map(SignedDuration::from_secs);
    if let Some(deadline) = deadline.and_then(|deadline| now.checked_sub(deadline).ok()) {
        earliest = earliest.max(deadline);
    }
    let last = schedule.last(earliest, now)?;
    if last.missed > MANY_MISSED {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        events.push((EventType::Warning, "TooManyMissedTimes", message.into()));
    }
    Some(last.at)
}

fn is_too_late(spec: &CronJobSpec, due: Timestamp, now: Timestamp) -> bool {
    let deadline = spec
        .starting_deadline_seconds
        .map(SignedDuration::from_secs);
    let until = deadline.and_then(|deadline| due.checked_add(deadline).ok());
    until.is_some_and(|until| until < now)
}

fn rfc1123(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%a, %d %b %Y %H:%M:%S %z")
        .to_string()
}

fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.name_any(), at.as_second() / 60)
}

/// The Job of a time. Its name says which: a second leader cannot start it again.
pub(super) fn new_job(cron: &CronJob, spec: &CronJobSpec, at: Timestamp) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let zone = spec
        .time_zone
        .as_deref()
        .and_then(|zone| TimeZone::get(zone).ok());
    let shown = at.to_zoned(zone.unwrap_or(TimeZone::UTC));
    let format = if shown.offset().is_zero() {
        "%Y-%m-%dT%H:%M:%SZ"
    } else {
        "%Y-%m-%dT%H:%M:%S%:z"
    };
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.into(), shown.strftime(format).to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, at)),
            namespace: cron.namespace(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner::controller_ref(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// Finished Jobs beyond the history limits, the oldest.
pub(super) fn surplus(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let beyond = |conclusion_: &str, limit: Option<i32>| {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else {
            return Vec::new();
        };
        let mut all: Vec<_> = jobs
            .iter()
            .filter(|job| conclusion(job) == Some(conclusion_))
            .cloned()
            .collect();
        all.sort_by_cached_key(|job| {
            let started = job
                .status
                .as_ref()
                .and_then(|status| status.start_time.as_ref());
            Reverse((started.map(|time| time.0), job.name_any()))
        });
        all.split_off(limit.min(all.len()))
    };
    let mut surplus = beyond("Complete", spec.successful_jobs_history_limit);
    surplus.extend(beyond("Failed", spec.failed_jobs_history_limit));
    surplus
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::batch::v1::{CronJobStatus, JobCondition, JobStatus};

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn cron(policy: &str, last: Option<&str>) -> CronJob {
        let mut cron = CronJob {
            spec: Some(CronJobSpec {
                schedule: "* * * * *".into(),
                concurrency_policy: Some(policy.into()),
                ..CronJobSpec::default()
            }),
            status: Some(CronJobStatus {
                last_schedule_time: last.map(|last| balsa_client::time::time(at(last))),
                ..CronJobStatus::default()
            }),
            ..CronJob::default()
        };
        cron.metadata.name = Some("tick".into());
        cron.metadata.creation_timestamp =
            Some(balsa_client::time::time(at("2024-01-01T00:00:30Z")));
        cron
    }

    fn running(mut cron: CronJob) -> CronJob {
        let job = ObjectReference {
            name: Some("tick-1".into()),
            ..ObjectReference::default()
        };
        cron.status.as_mut().unwrap().active = Some(vec![job]);
        cron
    }

    fn at_time(cron: &CronJob, now: &str) -> Plan {
        plan(cron, cron.spec.as_ref().unwrap(), at(now))
    }

    #[test]
    fn a_job_starts_each_minute_once() {
        let fresh = cron("Allow", None);
        let early = at_time(&fresh, "2024-01-01T00:00:59Z");
        assert_eq!(early.start, None);
        assert_eq!(early.again, Some(Duration::from_millis(1100)));
        assert_eq!(
            at_time(&fresh, "2024-01-01T00:01:00.2Z").start,
            Some(at("2024-01-01T00:01:00Z"))
        );
        let used = cron("Allow", Some("2024-01-01T00:01:00Z"));
        assert_eq!(at_time(&used, "2024-01-01T00:01:30Z").start, None);
    }

    #[test]
    fn concurrency_policy_decides_while_a_job_runs() {
        let now = "2024-01-01T00:01:01Z";
        assert!(at_time(&running(cron("Allow", None)), now).start.is_some());
        let forbidden = at_time(&running(cron("Forbid", None)), now);
        assert_eq!(forbidden.start, None);
        assert_eq!(forbidden.events[0].1, "JobAlreadyActive");
        let replaced = at_time(&running(cron("Replace", None)), now);
        assert!(replaced.start.is_some());
        assert_eq!(replaced.replace.len(), 1);
    }

    #[test]
    fn after_a_long_pause_only_the_latest_is_made_up_for() {
        let old = cron("Allow", Some("2024-01-01T00:01:00Z"));
        let plan = at_time(&old, "2024-01-03T00:00:20Z");
        assert_eq!(plan.start, Some(at("2024-01-03T00:00:00Z")));
        assert_eq!(plan.events[0].1, "TooManyMissedTimes");
        let mut strict = old;
        strict.spec.as_mut().unwrap().starting_deadline_seconds = Some(10);
        assert_eq!(at_time(&strict, "2024-01-03T00:00:20Z").start, None);
    }

    #[test]
    fn suspended_and_unreadable_schedules_start_nothing() {
        let mut cron = cron("Allow", None);
        cron.spec.as_mut().unwrap().suspend = Some(true);
        assert_eq!(at_time(&cron, "2024-01-01T00:05:00Z").start, None);
        cron.spec.as_mut().unwrap().suspend = None;
        cron.spec.as_mut().unwrap().schedule = "tomorrow".into();
        let plan = at_time(&cron, "2024-01-01T00:05:00Z");
        assert_eq!(plan.events[0].1, "UnparseableSchedule");
    }

    #[test]
    fn a_jobs_name_and_annotation_say_its_time() {
        let mut cron = cron("Allow", None);
        cron.spec.as_mut().unwrap().time_zone = Some("Europe/Berlin".into());
        let job = new_job(
            &cron,
            cron.spec.as_ref().unwrap(),
            at("2024-01-01T00:01:00Z"),
        );
        assert_eq!(
            job.name_any(),
            format!("tick-{}", at("2024-01-01T00:01:00Z").as_second() / 60)
        );
        assert_eq!(job.annotations()[SCHEDULED_AT], "2024-01-01T01:01:00+01:00");
    }

    #[test]
    fn the_oldest_finished_jobs_go() {
        let job = |name: &str, conclusion: &str, second| {
            let condition = JobCondition {
                type_: conclusion.into(),
                status: "True".into(),
                ..JobCondition::default()
            };
            let mut job = Job {
                status: Some(JobStatus {
                    start_time: Some(balsa_client::time::time(
                        Timestamp::from_second(second).unwrap(),
                    )),
                    conditions: Some(vec![condition]),
                    ..JobStatus::default()
                }),
                ..Job::default()
            };
            job.metadata.name = Some(name.into());
            Arc::new(job)
        };
        let jobs = [
            job("a", "Complete", 1),
            job("b", "Complete", 3),
            job("c", "Complete", 2),
            job("d", "Failed", 1),
            job("e", "Running", 0),
        ];
        let spec = CronJobSpec {
            successful_jobs_history_limit: Some(1),
            failed_jobs_history_limit: Some(0),
            ..CronJobSpec::default()
        };
        let names: Vec<_> = surplus(&spec, &jobs)
            .iter()
            .map(|job| job.name_any())
            .collect();
        assert_eq!(names, ["c", "a", "d"]);
    }
}
