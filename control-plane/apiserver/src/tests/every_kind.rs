//! Every kind that discovery shows answers every verb that discovery says.

pub(super) mod samples;

use samples::{name_of, sample};

use super::*;

/// A resource as discovery describes it.
struct Served {
    group: String,
    version: String,
    kind: String,
    plural: String,
    namespaced: bool,
    verbs: Vec<String>,
    subresources: Vec<(String, Vec<String>)>,
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

impl Served {
    fn api_version(&self) -> String {
        balsa_api::object::join_api_version(&self.group, &self.version)
    }

    fn collection(&self) -> String {
        let root = if self.group.is_empty() {
            "/api".to_owned()
        } else {
            format!("/apis/{}", self.group)
        };
        let place = if self.namespaced { "/namespaces/d" } else { "" };
        format!("{root}/{}{place}/{}", self.version, self.plural)
    }

    fn object(&self, name: &str) -> Value {
        let mut object = sample(&self.group, &self.kind)
            .unwrap_or_else(|| panic!("no sample of {}/{}", self.group, self.kind));
        object["apiVersion"] = self.api_version().into();
        object["kind"] = self.kind.clone().into();
        object["metadata"]["name"] = name.into();
        object
    }

    fn has(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    fn verbs_of(&self, subresource: &str) -> &[String] {
        let found = self
            .subresources
            .iter()
            .find(|(name, _)| name == subresource);
        found.map_or(&[], |(_, verbs)| verbs)
    }
}

/// All stored resources, from the aggregated documents.
async fn discover(h: &Harness) -> Vec<Served> {
    let mut found = Vec::new();
    for root in ["/api", "/apis"] {
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let answer = h
            .ask(Method::GET, root)
            .header("accept", accept)
            .send()
            .await;
        let document = answer.expect(200);
        for group in document["items"].as_array().unwrap() {
            for version in group["versions"].as_array().unwrap() {
                for resource in version["resources"].as_array().unwrap() {
                    found.push(served(group, version, resource));
                }
            }
        }
    }
    found.retain(|s| s.has("list") && s.has("create"));
    found
}

fn served(group: &Value, version: &Value, resource: &Value) -> Served {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let subresources = resource["subresources"].as_array().into_iter().flatten();
    Served {
        group: text(&group["metadata"]["name"]),
        version: text(&version["version"]),
        kind: text(&resource["responseKind"]["kind"]),
        plural: text(&resource["resource"]),
        namespaced: resource["scope"] == "Namespaced",
        verbs: texts(&resource["verbs"]),
        subresources: subresources
            .map(|s| (text(&s["subresource"]), texts(&s["verbs"])))
            .collect(),
    }
}

/// What went wrong with one kind, by step.
struct Steps<'a> {
    kind: &'a Served,
    problems: &'a mut Vec<String>,
}

impl Steps<'_> {
    fn check(&mut self, step: &str, answer: Answer, codes: &[u16]) -> Option<Value> {
        if codes.contains(&answer.code) {
            return Some(answer.body);
        }
        let (kind, code) = (self.kind, answer.code);
        let text = String::from_utf8_lossy(&answer.raw).into_owned();
        self.problems
            .push(format!("{} {step}: {code} {text}", kind.collection()));
        None
    }

    fn expect(&mut self, step: &str, holds: bool, seen: &Value) {
        if !holds {
            self.problems
                .push(format!("{} {step}: {seen}", self.kind.collection()));
        }
    }
}

#[tokio::test]
async fn every_kind_answers_every_verb() {
    let h = Harness::new();
    let mut problems = Vec::new();
    let kinds = discover(&h).await;
    assert!(kinds.len() > 50, "{}", kinds.len());
    for kind in &kinds {
        let mut steps = Steps {
            kind,
            problems: &mut problems,
        };
        let name = name_of(&kind.kind, "first");
        if make(&h, kind, &name, &mut steps).await.is_some() {
            read(&h, kind, &name, &mut steps).await;
            change(&h, kind, &name, &mut steps).await;
            subresources(&h, kind, &name, &mut steps).await;
            remove(&h, kind, &name, &mut steps).await;
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

async fn make(h: &Harness, kind: &Served, name: &str, steps: &mut Steps<'_>) -> Option<Value> {
    let path = format!("{}?fieldValidation=Strict", kind.collection());
    let dry = h
        .post(&format!("{path}&dryRun=All"), kind.object(name))
        .await;
    steps.check("dry create", dry, &[201])?;
    let made = h.post(&path, kind.object(name)).await;
    let made = steps.check("create", made, &[201])?;
    let metadata = &made["metadata"];
    let named = made["kind"] == kind.kind.as_str() && metadata["name"] == name;
    steps.expect("create: kind and name", named, &made);
    let stamped = ["uid", "creationTimestamp", "resourceVersion"]
        .iter()
        .all(|f| metadata[*f].is_string());
    steps.expect("create: metadata", stamped, metadata);
    Some(made)
}

async fn read(h: &Harness, kind: &Served, name: &str, steps: &mut Steps<'_>) {
    let object = format!("{}/{name}", kind.collection());
    let got = h.get(&object).await;
    let got = steps.check("get", got, &[200]).unwrap_or_default();
    let list = h.get(&kind.collection()).await;
    let list = steps.check("list", list, &[200]).unwrap_or_default();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let there = items.iter().any(|i| i["metadata"]["name"] == name);
    steps.expect("list: item", there, &list);
    let kind_of_list = format!("{}List", kind.kind);
    steps.expect("list: kind", list["kind"] == kind_of_list.as_str(), &list);

    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let table = h
        .ask(Method::GET, &object)
        .header("accept", accept)
        .send()
        .await;
    let table = steps.check("table", table, &[200]).unwrap_or_default();
    let columns = table["columnDefinitions"].as_array().map(Vec::len);
    let cells = table["rows"][0]["cells"].as_array().map(Vec::len);
    steps.expect(
        "table: cells",
        columns.is_some() && columns == cells,
        &table,
    );

    let path = format!(
        "{}?watch=true&fieldSelector=metadata.name%3D{name}",
        kind.collection()
    );
    let mut lines = h.watch(&path).await;
    let event = lines.next().await.unwrap_or_default();
    let same = event["type"] == "ADDED" && event["object"]["metadata"] == got["metadata"];
    steps.expect("watch", same, &event);
}

async fn change(h: &Harness, kind: &Served, name: &str, steps: &mut Steps<'_>) {
    let object = format!("{}/{name}", kind.collection());
    if kind.has("update") {
        let mut body = h.get(&object).await.body;
        body["metadata"]["labels"]["step"] = "update".into();
        let answer = h.put(&object, body).await;
        let seen = steps.check("update", answer, &[200]).unwrap_or_default();
        steps.expect(
            "update: label",
            seen["metadata"]["labels"]["step"] == "update",
            &seen,
        );
    }
    let label = |value: &str| json!({"metadata": {"labels": {"step": value}}});
    let forms = [
        ("application/merge-patch+json", label("merge"), "merge"),
        (
            "application/strategic-merge-patch+json",
            label("strategic"),
            "strategic",
        ),
        (
            "application/json-patch+json",
            json!([{"op": "replace", "path": "/metadata/labels/step", "value": "json"}]),
            "json",
        ),
    ];
    for (type_, body, step) in forms {
        let answer = h.patch(&object, type_, body).await;
        let seen = steps.check(step, answer, &[200]).unwrap_or_default();
        steps.expect(step, seen["metadata"]["labels"]["step"] == step, &seen);
    }
    let mut body = kind.object(name);
    body["metadata"]["labels"] = json!({"step": "apply"});
    let path = format!("{object}?fieldManager=test&force=true");
    let answer = h
        .patch(&path, "application/apply-patch+yaml", body.clone())
        .await;
    let seen = steps.check("apply", answer, &[200]).unwrap_or_default();
    let managers = seen["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mine = managers
        .iter()
        .find(|m| m["manager"] == "test" && m["operation"] == "Apply");
    steps.expect("apply: managed fields", mine.is_some(), &seen);
    let again = h.patch(&path, "application/apply-patch+yaml", body).await;
    let again = steps
        .check("apply twice", again, &[200])
        .unwrap_or_default();
    let (before, after) = (
        &seen["metadata"]["resourceVersion"],
        &again["metadata"]["resourceVersion"],
    );
    steps.expect("apply twice: nothing changes", before == after, &again);
}

async fn subresources(h: &Harness, kind: &Served, name: &str, steps: &mut Steps<'_>) {
    for (sub, _) in &kind.subresources {
        let path = format!("{}/{name}/{sub}", kind.collection());
        let verbs = kind.verbs_of(sub);
        let own = matches!(
            sub.as_str(),
            "status" | "scale" | "approval" | "ephemeralcontainers" | "resize"
        );
        if !own {
            continue;
        }
        assert_eq!(verbs, ["get", "patch", "update"], "{path}");
        let got = h.get(&path).await;
        let Some(body) = steps.check(&format!("{sub} get"), got, &[200]) else {
            continue;
        };
        let answer = h.put(&path, body).await;
        steps.check(&format!("{sub} update"), answer, &[200]);
        let patch = if sub == "scale" {
            json!({"spec": {"replicas": 3}})
        } else {
            json!({"metadata": {"annotations": {"sub": "patched"}}})
        };
        let answer = h.patch(&path, "application/merge-patch+json", patch).await;
        let seen = steps
            .check(&format!("{sub} patch"), answer, &[200])
            .unwrap_or_default();
        if sub == "scale" {
            steps.expect("scale: replicas", seen["spec"]["replicas"] == 3, &seen);
            let selects = seen["status"]["selector"] == "app=web";
            steps.expect("scale: selector", selects, &seen);
        } else if sub == "status" {
            let kept = seen["metadata"]["annotations"]["sub"] == "patched";
            steps.expect("status: annotations", kept, &seen);
        }
    }
}

async fn remove(h: &Harness, kind: &Served, name: &str, steps: &mut Steps<'_>) {
    let object = format!("{}/{name}", kind.collection());
    let deleted = h.delete(&with_dependents(&object)).await;
    steps.check("delete", deleted, &[200]);
    if matches!(kind.kind.as_str(), "Namespace" | "CustomResourceDefinition") {
        // Waits for the controller that clears what it holds.
        return;
    }
    let gone = h.get(&object).await;
    steps.check("get after delete", gone, &[404]);
    if !kind.has("deletecollection") {
        return;
    }
    let second = name_of(&kind.kind, "second");
    let made = h.post(&kind.collection(), kind.object(&second)).await;
    steps.check("create again", made, &[201]);
    let collection = format!(
        "{}?fieldSelector=metadata.name%3D{second}",
        kind.collection()
    );
    let deleted = h.delete(&with_dependents(&collection)).await;
    steps.check("deletecollection", deleted, &[200]);
    let gone = h.get(&format!("{}/{second}", kind.collection())).await;
    steps.check("get after deletecollection", gone, &[404]);
}

/// Jobs and ReplicationControllers would wait for the controller that lets go of their pods.
fn with_dependents(path: &str) -> String {
    let mark = if path.contains('?') { '&' } else { '?' };
    format!("{path}{mark}propagationPolicy=Background")
}
