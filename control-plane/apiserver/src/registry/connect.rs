//! Admission of streaming subresources: what a client asks of a pod, service or node is, to admission, an object
//! made from the query (`PodExecOptions` and its like).

use balsa_api::status::Status;
use serde_json::{Map, Value, json};

use super::admit::Question;
use super::{Registry, Target};
use crate::http::query::Query;
use crate::seam::{Operation, User};

/// Kind of the options of a streaming subresource; `None` for one that admission is not asked about.
fn kind_of(plural: &str, subresource: &str) -> Option<&'static str> {
    Some(match (plural, subresource) {
        ("pods", "exec") => "PodExecOptions",
        ("pods", "attach") => "PodAttachOptions",
        ("pods", "portforward") => "PodPortForwardOptions",
        ("pods", "proxy") => "PodProxyOptions",
        ("services", "proxy") => "ServiceProxyOptions",
        ("nodes", "proxy") => "NodeProxyOptions",
        _ => return None,
    })
}

/// The options object of a query.
fn options(kind: &str, query: &Query, tail: &str) -> Value {
    let mut map = Map::new();
    map.insert("kind".into(), kind.into());
    map.insert("apiVersion".into(), "v1".into());
    match kind {
        "PodExecOptions" | "PodAttachOptions" => {
            for field in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(field) {
                    map.insert(field.into(), true.into());
                }
            }
            if let Some(container) = query.some("container") {
                map.insert("container".into(), container.into());
            }
            if kind == "PodExecOptions" {
                let command: Vec<&str> = query.all("command").collect();
                map.insert("command".into(), command.into());
            }
        }
        "PodPortForwardOptions" => {
            let ports: Vec<i64> = query
                .all("ports")
                .flat_map(|list| list.split(','))
                .filter_map(|port| port.trim().parse().ok())
                .collect();
            if !ports.is_empty() {
                map.insert("ports".into(), json!(ports));
            }
        }
        _ if !tail.is_empty() => {
            map.insert("path".into(), tail.into());
        }
        _ => {}
    }
    Value::Object(map)
}

impl Registry {
    /// Asks admission whether a stream may be opened.
    ///
    /// # Errors
    /// Whatever a plugin answers.
    pub async fn admit_connect(
        &self,
        target: &Target,
        subresource: &str,
        user: &User,
        (query, tail): (&Query, &str),
    ) -> Result<(), Status> {
        let Some(kind) = kind_of(&target.kind.plural, subresource) else {
            return Ok(());
        };
        let mut object = options(kind, query, tail);
        let question = Question {
            operation: Operation::Connect,
            target,
            subresource,
            user,
            dry_run: false,
            cx: None,
            object_kind: Some(("", "v1", kind)),
            options: None,
        };
        self.mutate(question, Some(&mut object), None).await?;
        self.validate_admission(question, Some(&mut object), None)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_of_an_exec_becomes_its_options() {
        let query = Query::parse("command=sh&command=-c&stdin=true&tty=1&container=a");
        assert_eq!(
            options("PodExecOptions", &query, ""),
            json!({"kind": "PodExecOptions", "apiVersion": "v1", "stdin": true, "tty": true,
                "container": "a", "command": ["sh", "-c"]})
        );
        let query = Query::parse("ports=80,81");
        assert_eq!(
            options("PodPortForwardOptions", &query, "")["ports"],
            json!([80, 81])
        );
    }
}
