#![allow(clippy::unwrap_used)]
use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn ending(success: bool) -> Ending {
    Ending {
        success,
        reason: "Because".into(),
        message: String::new(),
    }
}

fn suspended() -> JobSpec {
    JobSpec {
        suspend: Some(true),
        ..JobSpec::default()
    }
}

#[test]
fn a_finished_job_has_a_start_that_is_not_after_its_end() {
    let mut never_started = JobStatus::default();
    end(&mut never_started, &ending(false), true, at(50));
    assert_eq!(never_started.start_time.unwrap().0, at(50));
    let mut ahead = JobStatus {
        start_time: Some(time(at(60))),
        ..JobStatus::default()
    };
    end(&mut ahead, &ending(true), true, at(50));
    assert_eq!(ahead.completion_time.unwrap().0, at(60));
}

#[test]
fn a_decision_that_was_taken_back_is_written_again_with_the_end() {
    let mut status = JobStatus::default();
    set(&mut status, "FailureTarget", "False", "", "", at(1));
    end(&mut status, &ending(false), true, at(50));
    let conditions = status.conditions.unwrap();
    assert!(conditions.iter().all(|c| c.status == "True"));
    assert_eq!(conditions.len(), 2);
}

#[test]
fn suspending_a_job_whose_end_is_decided_leaves_its_start() {
    let mut job = Job::default();
    let status = job.status.get_or_insert_default();
    status.start_time = Some(time(at(10)));
    assert!(note_suspension(&mut job.clone(), &suspended(), at(20)).is_some());
    end(job.status.as_mut().unwrap(), &ending(false), false, at(15));
    assert_eq!(note_suspension(&mut job, &suspended(), at(20)), None);
    assert_eq!(job.status.unwrap().start_time.unwrap().0, at(10));
}

#[test]
fn a_pod_noted_as_failed_is_not_noted_again_when_it_succeeds() {
    let pod = crate::support::pods::tests::pod("a", "Succeeded", "node", false);
    let mut finished = Finished {
        pod: Arc::new(pod),
        uid: "a".into(),
        succeeded: false,
        counts: true,
        held: false,
    };
    let (mut status, spec) = (JobStatus::default(), JobSpec::default());
    assert!(note_finished(&mut status, &spec, &[finished.clone()]));
    finished.succeeded = true;
    assert!(!note_finished(&mut status, &spec, &[finished]));
    assert_eq!(
        status.uncounted_terminated_pods.unwrap().failed.unwrap(),
        ["a"]
    );
}
