//! `nodes/NAME/proxy`: what a kubelet serves under its port, and any other port of the node's address.
//!
//! The agent answers what is read (`/metrics`, `/pods`, `/stats/summary`). The sessions that a kubelet serves are
//! those of the pod's own subresources, and are handed on to them with their query in the pod's words.

use balsa_api::status::Status;
use form_urlencoded::Serializer;
use http::uri::PathAndQuery;
use http::{Method, Request, Uri};
use serde_json::Value;

use crate::seam::{ConnectContext, RequestBody};

/// The port that a kubelet has; our agents listen on none, they are reached over the node link.
const KUBELET: u16 = 10_250;

/// Where a port of a node leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// The agent itself.
    Agent,
    /// `ip:port` of something else on the node.
    Address(String),
}

/// Where `nodes/[scheme:]name[:port]` leads.
///
/// # Errors
/// 400 for what is no port, 503 for a node without an address.
pub(super) fn door(node: &Value, name: &str, port: &str) -> Result<Door, Status> {
    if port.is_empty() {
        return Ok(Door::Agent);
    }
    let number: u16 = port
        .parse()
        .map_err(|_| Status::bad_request(format!("invalid port {port:?} in proxy request")))?;
    if number == KUBELET {
        return Ok(Door::Agent);
    }
    let addresses = node["status"]["addresses"].as_array();
    let ip = addresses.into_iter().flatten().find_map(|a| {
        (a["type"] == "InternalIP")
            .then(|| a["address"].as_str())
            .flatten()
    });
    match ip {
        Some(ip) => Ok(Door::Address(super::proxy::join_address(ip, number))),
        None => Err(Status::new(
            503,
            "ServiceUnavailable",
            format!("no address of node {name:?} is known yet"),
        )),
    }
}

/// A session or log of a pod, asked for by the kubelet's path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Session<'a> {
    namespace: &'a str,
    pod: &'a str,
    uid: Option<&'a str>,
    container: Option<&'a str>,
    subresource: &'static str,
}

/// Reads `/exec/NAMESPACE/POD[/UID]/CONTAINER` and its like (`attach`, `portForward`, `containerLogs`).
pub(super) fn session(tail: &str) -> Option<Session<'_>> {
    let mut parts = tail.split('/').filter(|part| !part.is_empty());
    let subresource = match parts.next()? {
        "exec" => "exec",
        "attach" => "attach",
        "portForward" => "portforward",
        "containerLogs" => "log",
        _ => return None,
    };
    let rest: Vec<&str> = parts.collect();
    let (namespace, pod, uid, container) = match (subresource, rest.as_slice()) {
        ("portforward", [namespace, pod]) => (*namespace, *pod, None, None),
        ("portforward", [namespace, pod, uid]) => (*namespace, *pod, Some(*uid), None),
        ("portforward", _) => return None,
        (_, [namespace, pod, container]) => (*namespace, *pod, None, Some(*container)),
        ("exec" | "attach", [namespace, pod, uid, container]) => {
            (*namespace, *pod, Some(*uid), Some(*container))
        }
        _ => return None,
    };
    Some(Session {
        namespace,
        pod,
        uid,
        container,
        subresource,
    })
}

/// Whether a kubelet's path changes something on the node, whatever method asks for it: a WebSocket is opened by GET.
pub(crate) fn acts(tail: &str) -> bool {
    session(tail).is_some_and(|session| session.subresource != "log")
}

impl Session<'_> {
    /// Whether the pod is the one that is meant, on this node.
    pub(super) fn is_of(&self, pod: &Value, node: &str) -> bool {
        pod["spec"]["nodeName"] == node && self.uid.is_none_or(|uid| pod["metadata"]["uid"] == uid)
    }

    /// Namespace and name of the pod.
    pub(super) fn pod(&self) -> (&str, &str) {
        (self.namespace, self.pod)
    }

    /// The same request in the words of the pod's subresource.
    ///
    /// # Errors
    /// 405 for a method that the kubelet does not take, 400 for a query that cannot be written anew.
    pub(super) fn of_pod(
        &self,
        context: &ConnectContext,
        mut request: Request<RequestBody>,
    ) -> Result<(ConnectContext, Request<RequestBody>), Status> {
        let method = request.method();
        let taken = match self.subresource {
            "log" => method == Method::GET,
            _ => method == Method::GET || method == Method::POST,
        };
        if !taken {
            return Err(crate::handle::not_allowed());
        }
        let query = self.query(request.uri().query().unwrap_or_default());
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/{}?{query}",
            self.namespace, self.pod, self.subresource
        );
        let path = PathAndQuery::try_from(path)
            .map_err(|e| Status::bad_request(format!("invalid path: {e}")))?;
        *request.uri_mut() = Uri::from(path);
        let context = ConnectContext {
            user: context.user.clone(),
            namespace: self.namespace.to_owned(),
            resource: "pods".to_owned(),
            name: self.pod.to_owned(),
            subresource: self.subresource.to_owned(),
            tail: String::new(),
        };
        Ok((context, request))
    }

    /// The kubelet calls the streams of a session `input`, `output` and `error`.
    fn query(&self, query: &str) -> String {
        let mut out = Serializer::new(String::new());
        if let Some(container) = self.container {
            out.append_pair("container", container);
        }
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let name = match name.as_ref() {
                "input" => "stdin",
                "output" => "stdout",
                "error" => "stderr",
                "container" => continue,
                other => other,
            };
            out.append_pair(name, &value);
        }
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_kubelets_port_leads_to_the_agent() {
        let node = json!({"status": {"addresses": [{"type": "Hostname", "address": "a1"}, {"type": "InternalIP", "address": "10.0.0.5"}]}});
        assert_eq!(door(&node, "a1", "").unwrap(), Door::Agent);
        assert_eq!(door(&node, "a1", "10250").unwrap(), Door::Agent);
        let other = Door::Address("10.0.0.5:9100".into());
        assert_eq!(door(&node, "a1", "9100").unwrap(), other);
        assert_eq!(door(&node, "a1", "x").unwrap_err().code, 400);
        assert_eq!(door(&json!({}), "a1", "9100").unwrap_err().code, 503);
    }

    #[test]
    fn the_kubelets_sessions_are_those_of_the_pod() {
        let exec = session("/exec/d/p/c").unwrap();
        assert_eq!(exec.pod(), ("d", "p"));
        assert_eq!(
            exec.query("command=a&command=b&output=1&error=1&tty=0"),
            "container=c&command=a&command=b&stdout=1&stderr=1&tty=0"
        );
        let with_uid = session("/attach/d/p/u-1/c").unwrap();
        let pod = json!({"metadata": {"uid": "u-1"}, "spec": {"nodeName": "a1"}});
        assert!(with_uid.is_of(&pod, "a1") && !with_uid.is_of(&pod, "a2"));
        assert_eq!(
            session("/portForward/d/p").unwrap().query("port=80"),
            "port=80"
        );
        assert_eq!(session("/containerLogs/d/p/c").unwrap().subresource, "log");
        for other in ["/metrics", "/exec/d/p", "/pods", "/exec", ""] {
            assert_eq!(session(other), None, "{other}");
        }
        assert!(acts("/exec/d/p/c") && !acts("/containerLogs/d/p/c"));
    }
}
