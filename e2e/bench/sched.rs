//! How fast pods get a node: nodes that exist as objects only, and pods that nobody runs.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;

use crate::drive::{Outcome, drive};
use crate::events::{Events, find, number_after, version, version_of};
use crate::http::{JSON, Lines, MERGE_PATCH};
use crate::scratch::Scratch;

/// How many pods on how many nodes.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Scheduling {
    /// Pods to create
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub pods: u32,
    /// Nodes to pretend
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub nodes: u32,
    /// Creates in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub in_flight: u32,
    /// Seconds between the last node and the first pod
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=600))]
    pub settle: u32,
}

/// What it came to.
#[derive(Debug, Clone)]
pub struct Scheduled {
    /// Pods with a node.
    pub bound: usize,
    /// From the first pod's request to the event that told of the last binding.
    pub took: Duration,
    /// The creates alone.
    pub creates: Outcome,
}

impl Scheduled {
    /// Pods a second.
    pub fn rate(&self) -> f64 {
        self.bound as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

impl fmt::Display for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bound, took) = (self.bound, self.took.as_secs_f64());
        write!(
            f,
            "{bound} pods bound in {took:.2} s, {:.0}/s; creating them: {}",
            self.rate(),
            self.creates
        )
    }
}

/// All must be bound within this.
const PATIENCE: Duration = Duration::from_secs(300);
const MARKER: &str = "bench-pod-";
/// Tells the pretended nodes from real ones.
const LABEL: &str = "balsa-bench=pretended";

/// Makes the nodes and pods and waits until each pod has a node.
///
/// # Errors
/// When nodes cannot be made, or not all pods get one in five minutes.
pub async fn measure(scratch: &Scratch, scheduling: Scheduling) -> anyhow::Result<Scheduled> {
    let in_flight = scheduling.in_flight as usize;
    let lines = scratch.lines.clone();
    drive(scheduling.nodes as usize, in_flight, move |index| {
        pretend(lines.clone(), index)
    })
    .await?
    .whole()?;
    tokio::time::sleep(Duration::from_secs(scheduling.settle.into())).await;
    let (path, pods) = (scratch.path("pods"), scheduling.pods as usize);
    let from = version(scratch.lines.next(), &path).await?;
    let seen = tokio::spawn(bindings(scratch.lines.clone(), path.clone(), from, pods));
    let (began, lines) = (Instant::now(), scratch.lines.clone());
    let creates = drive(pods, in_flight, move |index| {
        let (lines, path) = (lines.clone(), path.clone());
        async move { lines.next().post(&path, pod(index)).await.map(drop) }
    })
    .await?
    .whole()?;
    let seen = tokio::time::timeout(PATIENCE, seen).await;
    let (bound, ended) = seen.context("not all pods got a node in five minutes")???;
    Ok(Scheduled {
        bound,
        took: ended - began,
        creates,
    })
}

/// Takes the pretended nodes away.
pub async fn forget_nodes(lines: &Lines) {
    let path = format!("/api/v1/nodes?labelSelector={LABEL}");
    if let Err(error) = lines
        .next()
        .call(Method::DELETE, &path, JSON, Bytes::new())
        .await
    {
        eprintln!("cannot remove the pretended nodes: {error:#}");
    }
}

/// Watches until that many pods have a node; watches on where a server ends a watch, as clients do.
async fn bindings(
    lines: Lines,
    path: String,
    from: String,
    pods: usize,
) -> anyhow::Result<(usize, Instant)> {
    let (mut from, mut bound) = (from, HashSet::new());
    loop {
        let mut events = Events::open(lines.next(), &path, &from).await?;
        let mut last = Bytes::new();
        while let Ok(Some(event)) = events.next().await {
            if find(&event, br#""nodeName":"#).is_some() {
                bound.extend(number_after(&event, MARKER.as_bytes()));
            }
            if bound.len() >= pods {
                return Ok((bound.len(), Instant::now()));
            }
            last = event;
        }
        from = version_of(&last).unwrap_or(from);
    }
}

async fn pretend(lines: Lines, index: usize) -> anyhow::Result<()> {
    let (name, zone) = (format!("pretended-{index:05}"), index % 3);
    let (key, value) = LABEL.split_once('=').unwrap_or((LABEL, ""));
    let node = format!(
        r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{name}","labels":{{"kubernetes.io/hostname":"{name}","{key}":"{value}","topology.kubernetes.io/zone":"z{zone}"}}}}}}"#
    );
    let room = r#"{"cpu":"32","memory":"256Gi","pods":"250","ephemeral-storage":"100Gi"}"#;
    let status = format!(
        r#"{{"status":{{"capacity":{room},"allocatable":{room},"conditions":[{{"type":"Ready","status":"True","reason":"KubeletReady","message":"","lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:00:00Z"}}]}}}}"#
    );
    let (line, path) = (lines.next(), format!("/api/v1/nodes/{name}"));
    line.post("/api/v1/nodes", node.into()).await?;
    line.call(
        Method::PATCH,
        &format!("{path}/status"),
        MERGE_PATCH,
        status.into(),
    )
    .await?;
    Ok(())
}

/// A pod for pretended nodes only; it tolerates that nobody vouches for them.
fn pod(index: usize) -> Bytes {
    let (key, value) = LABEL.split_once('=').unwrap_or((LABEL, ""));
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{MARKER}{index:07}","labels":{{"app":"a{}"}}}},"spec":{{"containers":[{{"name":"c","image":"none","resources":{{"requests":{{"cpu":"50m","memory":"64Mi"}}}}}}],"automountServiceAccountToken":false,"terminationGracePeriodSeconds":0,"nodeSelector":{{"{key}":"{value}"}},"tolerations":[{{"operator":"Exists"}}]}}}}"#,
        index % 20
    )
    .into()
}
