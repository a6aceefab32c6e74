//! `pods/NAME/eviction`: a delete that the pod's disruption budget may refuse.
//!
//! Rules: upstream `registry/core/pod/storage/eviction.go`.

use balsa_api::kinds::pod_ready;
use balsa_api::kinds::walk::Walk;
use balsa_api::object;
use balsa_api::selector::Selector;
use balsa_api::status::{Cause, Details, Status};
use bytes::Bytes;
use http::Response;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::admit::{self, Question};
use super::deletion::{DeleteOptions, Preconditions};
use super::options::Freshness;
use super::update::{Change, How};
use super::{Registry, Target};
use crate::http::context::Context;
use crate::http::query::Query;
use crate::http::{decode, negotiate, respond};
use crate::seam::{Operation, ResponseBody};

const GROUP: &str = "policy";
/// Evictions that the disruption controller has not seen yet, per budget.
const MOST_PENDING: usize = 2000;
/// The body of a 429 tells clients to come back after as many seconds.
const RETRY_AFTER: u32 = 10;
const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

impl Registry {
    /// POST of an Eviction.
    pub async fn evict(
        &self,
        cx: &Context,
        pod: &Target,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        cx.accepted(false)?;
        let mut eviction = read(cx, body)?;
        let given = object::name(&eviction);
        if !given.is_empty() && given != pod.name {
            return Err(Status::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        let asked = eviction
            .get("deleteOptions")
            .cloned()
            .filter(Value::is_object);
        let mut options = DeleteOptions::read(asked, &Query::default())?;
        if cx.dry_run()? {
            options.dry_run = vec!["All".into()];
        }
        let question = Question::new(cx, pod, Operation::Create, options.is_dry_run())
            .on("eviction")
            .of_kind(GROUP, "v1", "Eviction");
        self.mutate(question, Some(&mut eviction), None).await?;
        self.validate_admission(question, Some(&mut eviction), None)
            .await?;
        self.evict_within_budget(cx, pod, options).await?;
        let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(respond::json(201, &body))
    }

    async fn evict_within_budget(
        &self,
        cx: &Context,
        target: &Target,
        mut options: DeleteOptions,
    ) -> Result<(), Status> {
        self.freshen(Freshness::Latest).await?;
        let stored = target
            .resource
            .get(&target.key())
            .ok_or_else(|| target.not_found())?;
        let pod = target.decode(&stored);
        if let Some(why) = options.violated(&pod) {
            return Err(target.conflict(&why));
        }
        match self.verdict(target, &pod)? {
            Verdict::Free => {}
            // The pod was judged by its state; another state may be judged otherwise.
            Verdict::FreeInThisState => {
                let version = object::resource_version(&pod).to_owned();
                options
                    .preconditions
                    .get_or_insert_with(Preconditions::default)
                    .resource_version = Some(version);
            }
            Verdict::Charge(budget) => {
                self.charge(cx, &budget, &target.name, options.is_dry_run())
                    .await?;
            }
        }
        if !options.is_dry_run() && !is_done(&pod) {
            let version = self.mark(cx, target).await?;
            if let Some(wanted) = &mut options.preconditions
                && wanted.resource_version.is_some()
            {
                wanted.resource_version = Some(version);
            }
        }
        self.delete_object(cx, target, &options).await.map(|_| ())
    }

    fn verdict(&self, target: &Target, pod: &Value) -> Result<Verdict, Status> {
        if is_done(pod)
            || pod["status"]["phase"] == "Pending"
            || pod["status"]["phase"].is_empty()
            || object::is_deleting(pod)
        {
            return Ok(Verdict::Free);
        }
        let all = self.target(GROUP, "poddisruptionbudgets", &target.namespace, "")?;
        let budgets: Vec<Value> = all
            .resource
            .snapshot(&target.namespace, None)
            .objects
            .iter()
            .map(|stored| stored.decode())
            .filter(|budget| selects(budget, pod))
            .collect();
        let budget = match budgets.as_slice() {
            [] => return Ok(Verdict::Free),
            [one] => one,
            _ => {
                return Err(Status::new(
                    500,
                    "",
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        if !pod_ready(pod) {
            let status = &budget["status"];
            let healthy = status["currentHealthy"].int().unwrap_or(0);
            let desired = status["desiredHealthy"].int().unwrap_or(0);
            let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
            if always || (healthy >= desired && desired > 0) {
                return Ok(Verdict::FreeInThisState);
            }
        }
        Ok(Verdict::Charge(Box::new(all.named(object::name(budget)))))
    }

    /// Takes one disruption from the budget.
    async fn charge(
        &self,
        cx: &Context,
        budget: &Target,
        pod: &str,
        dry_run: bool,
    ) -> Result<(), Status> {
        let now = Timestamp::now();
        let produce = |old: &Value| charged(budget, old, pod, now);
        if dry_run {
            let stored = budget
                .resource
                .get(&budget.key())
                .ok_or_else(|| budget.not_found())?;
            return produce(&budget.decode(&stored)).map(|_| ());
        }
        let change = Change {
            how: How::Own,
            lens: None,
            subresource: "status",
            produce: &produce,
            track: true,
        };
        match self.modify(cx, budget, &change).await {
            Ok(_) => Ok(()),
            Err(status) if status.reason == "Conflict" => Err(Status {
                details: Some(Details {
                    retry_after_seconds: Some(RETRY_AFTER),
                    ..Details::default()
                }),
                ..Status::new(
                    504,
                    "Timeout",
                    format!(
                        "Timeout: couldn't update PodDisruptionBudget {:?} due to conflicts",
                        budget.name
                    ),
                )
            }),
            Err(status) => Err(status),
        }
    }

    /// Says on the pod why it goes; returns its resourceVersion then.
    async fn mark(&self, cx: &Context, target: &Target) -> Result<String, Status> {
        let now = object::format_time(Timestamp::now());
        let produce = |old: &Value| Ok(marked(old, &now));
        let change = Change {
            how: How::Own,
            lens: None,
            subresource: "status",
            produce: &produce,
            track: true,
        };
        let bytes = self.modify(cx, target, &change).await?;
        let pod: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
        Ok(object::resource_version(&pod).to_owned())
    }
}

/// What a budget has to say.
enum Verdict {
    /// Nothing.
    Free,
    /// Nothing, while the pod is as it is.
    FreeInThisState,
    /// This one has to be asked.
    Charge(Box<Target>),
}

fn is_done(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].text(), "Succeeded" | "Failed")
}

/// A selector that is missing selects nothing, an empty one all.
fn selects(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    let empty = Map::new();
    !selector.is_null()
        && Selector::from_label_selector(Some(selector))
            .is_ok_and(|s| s.matches(object::labels(pod).unwrap_or(&empty)))
}

/// Reads the body; clients of before v1.22 send it as `policy/v1beta1`, which has the same fields.
fn read(cx: &Context, body: &Bytes) -> Result<Value, Status> {
    if body.is_empty() {
        return Ok(json!({"metadata": {}}));
    }
    let mut parsed = decode::parse(body, negotiate::body_format(&cx.headers)?)?;
    if parsed.value["apiVersion"] == "policy/v1beta1" {
        parsed.value["apiVersion"] = "policy/v1".into();
    }
    admit::conform_body(cx, (GROUP, "v1", "Eviction"), parsed)
}

/// The refusal of an eviction that may be asked for again, after so many seconds if they can be told: clients wait
/// by themselves then, so they must not where a person or a controller has to decide.
fn too_many(why: String, retry_after_seconds: Option<u32>) -> Status {
    Status {
        details: Some(Details {
            retry_after_seconds,
            causes: vec![Cause {
                reason: "DisruptionBudget".into(),
                message: why,
                field: String::new(),
            }],
            ..Details::default()
        }),
        ..Status::new(429, "TooManyRequests", VIOLATES)
    }
}

/// The budget with one disruption less and the pod noted.
fn charged(target: &Target, budget: &Value, pod: &str, now: Timestamp) -> Result<Value, Status> {
    let (status, name) = (&budget["status"], object::name(budget));
    let number = |field: &str| status[field].int().unwrap_or(0);
    if number("observedGeneration") < object::generation(budget) {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(too_many(why, Some(RETRY_AFTER)));
    }
    let allowed = number("disruptionsAllowed");
    let forbidden = |why: &str| Status::forbidden(GROUP, &target.kind.plural, name, why);
    if allowed < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    if status["disruptedPods"].entries().count() > MOST_PENDING {
        return Err(forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if allowed == 0 {
        let why = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        );
        return Err(too_many(why, None));
    }
    let mut new = budget.clone();
    let at = object::format_time(now);
    new["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if !new["status"]["disruptedPods"].is_object() {
        new["status"]["disruptedPods"] = json!({});
    }
    new["status"]["disruptedPods"][pod] = at.as_str().into();
    if allowed == 1 {
        let generation = object::generation(budget);
        let conditions = new["status"]["conditions"].as_array_mut();
        for condition in conditions.into_iter().flatten() {
            if condition["type"] == "DisruptionAllowed" && condition["status"] != "False" {
                condition["status"] = "False".into();
                condition["reason"] = "InsufficientPods".into();
                condition["observedGeneration"] = generation.into();
                condition["lastTransitionTime"] = at.as_str().into();
            }
        }
    }
    Ok(new)
}

/// The pod with the condition `DisruptionTarget`.
fn marked(pod: &Value, now: &str) -> Value {
    let mut new = pod.clone();
    let conditions = pod["status"]["conditions"].items();
    if conditions
        .iter()
        .any(|c| c["type"] == "DisruptionTarget" && c["status"] == "True")
    {
        return new;
    }
    let mut all: Vec<Value> = conditions
        .iter()
        .filter(|c| c["type"] != "DisruptionTarget")
        .cloned()
        .collect();
    let mut condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now,
    });
    let generation = object::generation(pod);
    if generation > 0 {
        condition["observedGeneration"] = generation.into();
    }
    all.push(condition);
    if !new["status"].is_object() {
        new["status"] = json!({});
    }
    new["status"]["conditions"] = all.into();
    new
}
