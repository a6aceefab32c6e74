//! How long a pod takes from its creation to Ready, and from its deletion to gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::drive::{Outcome, drive};
use crate::events::{Events, version};
use crate::http::{JSON, Lines};
use crate::scratch::Scratch;

/// Which pods, and how many at a time.
#[derive(Debug, Clone, clap::Args)]
pub struct Starting {
    /// Pods to start
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pods: u32,
    /// Pods started at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub in_flight: u32,
    /// An image with `sleep` that is on the nodes already
    #[arg(long, default_value = "docker.io/library/busybox:latest")]
    pub image: String,
    /// The node for all of them; otherwise the scheduler chooses
    #[arg(long)]
    pub node: Option<String>,
}

/// Each pod has this long, so that a broken node does not hold the benchmark up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Ready,
    Gone,
}

/// Who waits for which pod's stage.
#[derive(Default)]
struct Waiting(Mutex<HashMap<(String, Stage), oneshot::Sender<()>>>);

impl Waiting {
    fn expect(&self, name: &str, stage: Stage) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((name.to_owned(), stage), sender);
        receiver
    }

    fn reached(&self, name: &str, stage: Stage) {
        let key = (name.to_owned(), stage);
        if let Some(sender) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key)
        {
            // Whoever waited may have lost patience.
            let _ = sender.send(());
        }
    }
}

/// Starts the pods, then deletes them; how long each took to be Ready, and to be gone.
///
/// # Errors
/// When the pods cannot be watched.
pub async fn measure(scratch: &Scratch, starting: &Starting) -> anyhow::Result<(Outcome, Outcome)> {
    let pods = Pods::watch(scratch, starting).await?;
    let started = pods.start().await?;
    let removed = pods.remove().await?;
    Ok((started, removed))
}

/// The pods of a measurement, watched until this is dropped.
pub struct Pods {
    starting: Starting,
    lines: Lines,
    path: String,
    waiting: Arc<Waiting>,
    watch: JoinHandle<()>,
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Pods {
    /// Begins to watch; no pod is made yet.
    ///
    /// # Errors
    /// When the pods cannot be watched.
    pub async fn watch(scratch: &Scratch, starting: &Starting) -> anyhow::Result<Self> {
        let waiting = Arc::new(Waiting::default());
        let path = scratch.path("pods");
        let from = version(scratch.lines.next(), &path).await?;
        let watch = observe(scratch.lines.clone(), path.clone(), from, waiting.clone()).await?;
        Ok(Self {
            starting: starting.clone(),
            lines: scratch.lines.clone(),
            path,
            waiting,
            watch,
        })
    }

    /// Makes them; how long each took to be Ready.
    ///
    /// # Errors
    /// When one cannot be made.
    pub async fn start(&self) -> anyhow::Result<Outcome> {
        let (pods, in_flight) = self.numbers();
        let (lines, waiting) = (self.lines.clone(), self.waiting.clone());
        let (path, template) = (self.path.clone(), self.starting.clone());
        drive(pods, in_flight, move |index| {
            let (lines, path, waiting) = (lines.clone(), path.clone(), waiting.clone());
            let body = pod(index, &template);
            async move {
                let ready = waiting.expect(&name(index), Stage::Ready);
                lines.next().post(&path, body).await?;
                reached(ready, "Ready").await
            }
        })
        .await
    }

    /// Deletes them; how long each took to be gone.
    ///
    /// # Errors
    /// When one cannot be deleted.
    pub async fn remove(&self) -> anyhow::Result<Outcome> {
        let (pods, in_flight) = self.numbers();
        let (lines, waiting, path) = (self.lines.clone(), self.waiting.clone(), self.path.clone());
        drive(pods, in_flight, move |index| {
            let (lines, waiting) = (lines.clone(), waiting.clone());
            let path = format!("{path}/{}", name(index));
            async move {
                let gone = waiting.expect(&name(index), Stage::Gone);
                lines
                    .next()
                    .call(Method::DELETE, &path, JSON, Bytes::new())
                    .await?;
                reached(gone, "gone").await
            }
        })
        .await
    }

    fn numbers(&self) -> (usize, usize) {
        (
            self.starting.pods as usize,
            self.starting.in_flight as usize,
        )
    }
}

async fn reached(stage: oneshot::Receiver<()>, what: &str) -> anyhow::Result<()> {
    let waited = tokio::time::timeout(PATIENCE, stage).await;
    waited
        .with_context(|| format!("not {what} in {} s", PATIENCE.as_secs()))?
        .context("the watch ended")
}

async fn observe(
    lines: Lines,
    path: String,
    from: String,
    waiting: Arc<Waiting>,
) -> anyhow::Result<JoinHandle<()>> {
    let mut events = Events::open(lines.next(), &path, &from).await?;
    Ok(tokio::spawn(async move {
        let mut from = from;
        loop {
            while let Ok(Some(event)) = events.next().await {
                let Ok(event) = serde_json::from_slice::<Value>(&event) else {
                    continue;
                };
                let object = &event["object"];
                from = object["metadata"]["resourceVersion"]
                    .as_str()
                    .map_or(from, str::to_owned);
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                if event["type"] == "DELETED" {
                    waiting.reached(name, Stage::Gone);
                } else if is_ready(object) {
                    waiting.reached(name, Stage::Ready);
                }
            }
            match Events::open(lines.next(), &path, &from).await {
                Ok(again) => events = again,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}

fn name(index: usize) -> String {
    format!("started-{index:07}")
}

fn pod(index: usize, starting: &Starting) -> Bytes {
    let mut spec = json!({
        "containers": [{
            "name": "c",
            "image": starting.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "100000"],
        }],
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 0,
    });
    if let Some(node) = &starting.node {
        spec["nodeName"] = json!(node);
    }
    let pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name(index)}, "spec": spec});
    pod.to_string().into()
}
