//! `kubectl get pods`: what a pod is doing, in one word.
//!
//! Source of rules: `pkg/printers/internalversion/printers.go`.

use jiff::Timestamp;
use serde_json::Value;

use super::resources::{condition, is_sidecar};
use crate::kind::Column;
use crate::kinds::walk::Walk;
use crate::table::{age, age_column, column, name, name_column, or_none, since, wide};

pub(super) fn columns() -> Vec<Column> {
    vec![
        name_column(),
        column(
            "Ready",
            "string",
            "The aggregate readiness state of this pod for accepting traffic.",
        ),
        column(
            "Status",
            "string",
            "The aggregate status of the containers in this pod.",
        ),
        column(
            "Restarts",
            "string",
            "How often containers of this pod were restarted, and when last.",
        ),
        age_column(),
        wide("IP", "string", "Address of the pod."),
        wide("Node", "string", "Node that the pod was assigned to."),
        wide(
            "Nominated Node",
            "string",
            "Node on which room is being made for the pod.",
        ),
        wide(
            "Readiness Gates",
            "string",
            "Conditions from outside that count for readiness: met and wanted.",
        ),
    ]
}

pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match &summary.last_restart {
        Some(time) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, since(time, now))
        }
        _ => summary.restarts.to_string(),
    };
    let status = &pod["status"];
    let address = status["podIPs"]
        .items()
        .first()
        .map_or(&status["podIP"], |a| &a["ip"]);
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        or_none(address.text()),
        or_none(pod["spec"]["nodeName"].text()),
        or_none(status["nominatedNodeName"].text()),
        gates(pod).into(),
    ]
}

fn gates(pod: &Value) -> String {
    let wanted = pod["spec"]["readinessGates"].items();
    if wanted.is_empty() {
        return "<none>".into();
    }
    let met = wanted
        .iter()
        .filter(|g| {
            condition(pod, g["conditionType"].text()).is_some_and(|c| c["status"] == "True")
        })
        .count();
    format!("{met}/{}", wanted.len())
}

/// What the columns say of a pod's containers.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<String>,
}

/// A count of restarts and the time of the last one.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<String>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status["restartCount"].int().unwrap_or_default();
        let finished = status["lastState"]["terminated"]["finishedAt"].text();
        // RFC 3339 times in UTC with whole seconds sort as text.
        if !finished.is_empty() && self.last.as_deref().is_none_or(|last| last < finished) {
            self.last = Some(finished.to_owned());
        }
    }
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let phase = status["phase"].text();
        let mut reason = match status["reason"].text() {
            "" => phase.to_owned(),
            reason => reason.to_owned(),
        };
        if condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
            reason = "SchedulingGated".into();
        }
        let sidecars = spec["initContainers"]
            .items()
            .iter()
            .filter(|c| is_sidecar(c))
            .count();
        let mut summary = Self {
            reason,
            ready: 0,
            total: spec["containers"].items().len() + sidecars,
            restarts: 0,
            last_restart: None,
        };
        let (all, of_sidecars, initializing) = summary.init_containers(pod);
        let initialized = condition(pod, "Initialized").is_some_and(|c| c["status"] == "True");
        let mut restarts = all;
        if !initializing || initialized {
            restarts = of_sidecars;
            summary.containers(pod, &mut restarts);
        }
        summary.restarts = restarts.count;
        summary.last_restart = restarts.last;
        if pod["metadata"]["deletionTimestamp"].present() {
            if status["reason"] == "NodeLost" {
                summary.reason = "Unknown".into();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                summary.reason = "Terminating".into();
            }
        }
        summary
    }

    /// Restarts of all init containers up to the one that is not done, those of sidecars, and whether one is
    /// not done.
    fn init_containers(&mut self, pod: &Value) -> (Restarts, Restarts, bool) {
        let specs = pod["spec"]["initContainers"].items();
        let (mut all, mut of_sidecars) = (Restarts::default(), Restarts::default());
        for (i, status) in pod["status"]["initContainerStatuses"]
            .items()
            .iter()
            .enumerate()
        {
            all.add(status);
            let sidecar = specs
                .iter()
                .any(|c| c["name"] == status["name"] && is_sidecar(c));
            if sidecar {
                of_sidecars.add(status);
            }
            let state = &status["state"];
            let (ended, waiting) = (&state["terminated"], state["waiting"]["reason"].text());
            if ended.present() && ended["exitCode"].int().unwrap_or_default() == 0 {
                continue;
            }
            if sidecar && status["started"].is_true() {
                self.ready += usize::from(status["ready"].is_true());
                continue;
            }
            self.reason = if ended.present() {
                format!("Init:{}", end_reason(ended))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{i}/{}", specs.len())
            };
            return (all, of_sidecars, true);
        }
        (all, of_sidecars, false)
    }

    fn containers(&mut self, pod: &Value, restarts: &mut Restarts) {
        let mut running = false;
        for status in pod["status"]["containerStatuses"].items().iter().rev() {
            restarts.add(status);
            let state = &status["state"];
            let waiting = state["waiting"]["reason"].text();
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if state["terminated"].present() {
                self.reason = end_reason(&state["terminated"]);
            } else if status["ready"].is_true() && state["running"].present() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|c| c["status"] == "True");
            self.reason = if ready { "Running" } else { "NotReady" }.into();
        }
    }
}

/// Why a container ended: the runtime's reason, else signal or exit code.
fn end_reason(ended: &Value) -> String {
    match (
        ended["reason"].text(),
        ended["signal"].int().unwrap_or_default(),
    ) {
        ("", 0) => format!("ExitCode:{}", ended["exitCode"].int().unwrap_or_default()),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn cells(mut pod: Value) -> Vec<String> {
        pod["metadata"]["name"] = json!("web");
        pod["metadata"]["creationTimestamp"] = json!("2026-01-01T00:58:27Z");
        row(&pod, now())
            .iter()
            .map(|c| c.as_str().unwrap().to_owned())
            .collect()
    }

    fn status(pod: Value) -> String {
        cells(pod).remove(2)
    }

    #[test]
    fn a_running_pod_shows_readiness_restarts_and_address() {
        let pod = json!({
            "spec": {"nodeName": "a1", "containers": [{"name": "c"}, {"name": "d"}]},
            "status": {"phase": "Running", "podIP": "10.244.1.2", "podIPs": [{"ip": "10.244.1.2"}], "containerStatuses": [
                {"name": "c", "ready": true, "restartCount": 4, "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:57:38Z"}}},
                {"name": "d", "ready": false, "restartCount": 0, "state": {"running": {}}},
            ]},
        });
        assert_eq!(
            cells(pod),
            [
                "web",
                "1/2",
                "Running",
                "4 (2m22s ago)",
                "93s",
                "10.244.1.2",
                "a1",
                "<none>",
                "<none>"
            ]
        );
    }

    #[test]
    fn init_containers_show_their_progress_and_failure() {
        let pod = |state: Value| {
            json!({
                "spec": {"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "c"}]},
                "status": {"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": state}], "containerStatuses": [
                    {"name": "c", "state": {"waiting": {"reason": "PodInitializing"}}},
                ]},
            })
        };
        assert_eq!(status(pod(json!({"running": {}}))), "Init:0/2");
        assert_eq!(
            status(pod(
                json!({"terminated": {"exitCode": 1, "reason": "Error"}})
            )),
            "Init:Error"
        );
        assert_eq!(
            status(pod(json!({"terminated": {"exitCode": 3}}))),
            "Init:ExitCode:3"
        );
        assert_eq!(
            status(pod(json!({"waiting": {"reason": "CrashLoopBackOff"}}))),
            "Init:CrashLoopBackOff"
        );
        assert_eq!(
            status(pod(
                json!({"terminated": {"exitCode": 0, "reason": "Completed"}})
            )),
            "PodInitializing"
        );
    }

    #[test]
    fn the_containers_reason_wins_over_the_phase() {
        let pod = |state: Value| json!({"spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running", "containerStatuses": [{"name": "c", "state": state}]}});
        assert_eq!(
            status(pod(json!({"waiting": {"reason": "ContainerCreating"}}))),
            "ContainerCreating"
        );
        assert_eq!(
            status(pod(
                json!({"terminated": {"reason": "Completed", "exitCode": 0}})
            )),
            "Completed"
        );
        assert_eq!(
            status(pod(json!({"terminated": {"signal": 9, "exitCode": 137}}))),
            "Signal:9"
        );
    }

    #[test]
    fn a_pod_being_deleted_is_terminating_until_it_ended() {
        let pod = |phase: &str| json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": phase}});
        assert_eq!(status(pod("Running")), "Terminating");
        assert_eq!(status(pod("Failed")), "Failed");
    }

    #[test]
    fn a_started_sidecar_counts_as_a_container() {
        let pod = json!({
            "spec": {"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c"}]},
            "status": {"phase": "Running",
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
                "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {}}}]},
        });
        assert_eq!(cells(pod)[1..3], ["2/2", "Running"]);
    }

    #[test]
    fn evicted_and_gated_pods_say_so() {
        assert_eq!(
            status(json!({"status": {"phase": "Failed", "reason": "Evicted"}})),
            "Evicted"
        );
        let gated = json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}});
        assert_eq!(status(gated), "SchedulingGated");
    }
}
