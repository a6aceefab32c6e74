#![allow(clippy::unwrap_used)]
use super::*;

fn opening(verb: &'static str) -> Opening {
    Opening {
        id: "id".into(),
        uri: "/api/v1/namespaces/d/configmaps".into(),
        info: RequestInfo {
            is_resource: true,
            verb,
            version: "v1".into(),
            resource: "configmaps".into(),
            namespace: "d".into(),
            ..RequestInfo::default()
        },
        source: Some([127, 0, 0, 1].into()),
        agent: "kubectl".into(),
        received: Timestamp::now(),
    }
}

fn audit(folder: &std::path::Path, rules: &str) -> Arc<Audit> {
    let policy = format!("kind: Policy\napiVersion: audit.k8s.io/v1\nrules:\n{rules}\n");
    let config = AuditConfig {
        policy: Policy::parse(&policy).unwrap(),
        log: LogConfig {
            path: folder.join("audit.log"),
            max_size: 1 << 20,
            max_backups: 1,
        },
    };
    Arc::new(Audit::new(config, &Metrics::default()).unwrap())
}

/// The log's events, once `count` of them are written.
async fn events(folder: &std::path::Path, count: usize) -> Vec<Value> {
    loop {
        let text = std::fs::read_to_string(folder.join("audit.log")).unwrap();
        let lines: Vec<_> = text
            .split_inclusive('\n')
            .filter(|l| l.ends_with('\n'))
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        if lines.len() >= count {
            return lines;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_create_is_recorded_with_its_objects_and_without_managed_fields() {
    let folder = tempfile::tempdir().unwrap();
    let audit = audit(
        folder.path(),
        "- level: RequestResponse\n  omitManagedFields: true",
    );
    let notes = Notes::new(true);
    notes.user(&User {
        name: "ann".into(),
        groups: vec!["g".into()],
        ..User::default()
    });
    notes.annotate("authorization.k8s.io/decision", "allow".into());
    audit.received(&opening("create"), &notes);
    let body = br#"{"metadata":{"name":"a","managedFields":[1]},"data":{"k":"v"}}"#;
    notes.request(&Bytes::from_static(body), Some(BodyFormat::Json));
    let response = respond_with(201, &json!({"kind": "ConfigMap", "metadata": {"uid": "u"}}));
    let response = audit.answered(opening("create"), &notes, response).await;
    assert_eq!(response.status(), 201);
    let events = events(folder.path(), 2).await;
    assert_eq!(events[0]["stage"], "RequestReceived");
    assert!(events[0].get("requestObject").is_none());
    let done = &events[1];
    assert_eq!(done["stage"], "ResponseComplete");
    assert_eq!(done["user"], json!({"username": "ann", "groups": ["g"]}));
    assert_eq!(done["objectRef"]["resource"], "configmaps");
    assert_eq!(
        done["requestObject"],
        json!({"metadata": {"name": "a"}, "data": {"k": "v"}})
    );
    assert_eq!(done["responseObject"]["metadata"]["uid"], "u");
    assert_eq!(done["responseStatus"]["code"], 201);
    assert_eq!(
        done["annotations"]["authorization.k8s.io/decision"],
        "allow"
    );
}

fn respond_with(code: u16, body: &Value) -> Response<ResponseBody> {
    crate::http::respond::json(code, body)
}

#[tokio::test]
async fn a_watch_is_recorded_at_its_beginning_and_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let audit = audit(folder.path(), "- level: Metadata");
    let notes = Notes::new(true);
    let response = respond_with(200, &json!({}));
    let response = audit.answered(opening("watch"), &notes, response).await;
    assert_eq!(
        events(folder.path(), 1).await[0]["stage"],
        "ResponseStarted"
    );
    drop(response);
    assert_eq!(
        events(folder.path(), 2).await[1]["stage"],
        "ResponseComplete"
    );
}

#[tokio::test]
async fn what_the_policy_leaves_out_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let audit = audit(
        folder.path(),
        "- level: None\n  verbs: [get]\n- level: Metadata",
    );
    let notes = Notes::new(true);
    let _ = audit
        .answered(opening("get"), &notes, respond_with(200, &json!({})))
        .await;
    let _ = audit
        .answered(opening("list"), &notes, respond_with(403, &json!({})))
        .await;
    let events = events(folder.path(), 1).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["verb"], "list");
}
