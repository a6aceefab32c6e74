//! The namespace that a measurement works in, and the objects it makes.

use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use crate::drive::{Outcome, drive};
use crate::http::{Endpoint, JSON, Lines};
use crate::sched;

/// A namespace of this run; [`Scratch::remove`] takes it away with all that is in it, as does [`sweep`].
#[derive(Clone)]
pub struct Scratch {
    /// Connections to the servers.
    pub lines: Lines,
    /// Name of the namespace.
    pub name: String,
}

impl Scratch {
    /// Makes the namespace `balsa-bench-PID-PART`.
    ///
    /// # Errors
    /// When the servers refuse.
    pub async fn make(lines: &Lines, part: &str) -> anyhow::Result<Self> {
        let name = format!("{}{part}", prefix());
        let body =
            format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{name}"}}}}"#);
        lines.next().post("/api/v1/namespaces", body.into()).await?;
        Ok(Self {
            lines: lines.clone(),
            name,
        })
    }

    /// Path of a collection in it.
    pub fn path(&self, resource: &str) -> String {
        format!("/api/v1/namespaces/{}/{resource}", self.name)
    }

    /// Creates ConfigMaps `cm-0000000` and on.
    ///
    /// # Errors
    /// Only when the client itself fails; refusals are counted.
    pub async fn fill(
        &self,
        count: usize,
        in_flight: usize,
        size: usize,
    ) -> anyhow::Result<Outcome> {
        let (lines, path) = (self.lines.clone(), self.path("configmaps"));
        drive(count, in_flight, move |index| {
            let (lines, path) = (lines.clone(), path.clone());
            async move {
                lines
                    .next()
                    .post(&path, config_map(&numbered(index), size))
                    .await
                    .map(drop)
            }
        })
        .await
    }

    /// Removes the namespace; pods in it go at once. What goes wrong is told and no more: the measurement
    /// is over.
    pub async fn remove(&self) {
        let at_once = Bytes::from_static(
            br#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0}"#,
        );
        let namespace = format!("/api/v1/namespaces/{}", self.name);
        for (path, body) in [(self.path("pods"), at_once), (namespace, Bytes::new())] {
            if let Err(error) = self
                .lines
                .next()
                .call(Method::DELETE, &path, JSON, body)
                .await
            {
                eprintln!("cannot remove {path}: {error:#}");
            }
        }
    }
}

fn prefix() -> String {
    format!("balsa-bench-{}-", std::process::id())
}

/// Removes every namespace that this process made, and the nodes that it pretended.
///
/// # Errors
/// When no server can be asked.
pub async fn sweep(endpoints: &[Endpoint]) -> anyhow::Result<()> {
    let mut reached = Err(anyhow::anyhow!("there is no server"));
    for endpoint in endpoints {
        // Any server will do: one may be down, perhaps because of this benchmark.
        reached = Lines::open(std::slice::from_ref(endpoint), 1).await;
        if reached.is_ok() {
            break;
        }
    }
    let lines = reached?;
    let all: Value = serde_json::from_slice(&lines.next().get("/api/v1/namespaces").await?)?;
    let items = all["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for item in items {
        let name = item["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if name.starts_with(&prefix()) && item["metadata"]["deletionTimestamp"].is_null() {
            Scratch {
                lines: lines.clone(),
                name,
            }
            .remove()
            .await;
        }
    }
    sched::forget_nodes(&lines).await;
    Ok(())
}

/// Name of the numbered ConfigMap.
pub fn numbered(index: usize) -> String {
    format!("cm-{index:07}")
}

/// A ConfigMap whose one value has `size` bytes.
pub fn config_map(name: &str, size: usize) -> Bytes {
    let value = "x".repeat(size);
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","labels":{{"load":"bench"}}}},"data":{{"k":"{value}"}}}}"#
    )
    .into()
}
