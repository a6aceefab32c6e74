//! Volumes of CSI drivers are attached to the nodes whose pods use them: a VolumeAttachment asks the driver's
//! attacher to do it, and its deletion to undo it, once the node no longer has the volume mounted.

mod decide;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_client::{EventRecorder, EventType, Index, Key, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::{
    VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec,
};
use kube::ResourceExt;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Shared;
use crate::error::{ApiError, Result, unless_gone};
use crate::informers::claims_of;
use crate::support::pods;
use decide::{Attachment, Consent, Step};

/// How long a node that is not heard of keeps what it had mounted, as upstream.
const FORCE_AFTER: Duration = Duration::from_secs(6 * 60);

/// How soon a volume is looked at again that its node still has mounted.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

struct Controller {
    context: Shared,
    recorder: EventRecorder,
    /// Persistent volumes by name.
    volumes: WorkQueue<Key>,
    /// Nodes whose list of attached volumes may be wrong.
    nodes: WorkQueue<Key>,
    /// By the persistent volume's name.
    by_volume: Index<VolumeAttachment, String>,
    by_node: Index<VolumeAttachment, String>,
    /// Since when attachments are unwanted while their nodes are silent.
    silent: Mutex<HashMap<String, Instant>>,
    /// Volumes and nodes that were told to wait for another node.
    told: Mutex<BTreeSet<(String, String)>>,
}

pub(crate) async fn run(context: Shared) {
    let informers = &context.informers;
    let controller = Arc::new(Controller {
        recorder: context.recorder("attachdetach-controller"),
        volumes: WorkQueue::default(),
        nodes: WorkQueue::default(),
        by_volume: informers.attachments.index(|attachment| {
            volume_of(attachment)
                .map(str::to_owned)
                .into_iter()
                .collect()
        }),
        by_node: informers
            .attachments
            .index(|attachment| vec![attachment.spec.node_name.clone()]),
        silent: Mutex::default(),
        told: Mutex::default(),
        context: Arc::clone(&context),
    });
    follow(&controller);
    tokio::join!(
        informers.attachments.synced(),
        informers.drivers.synced(),
        informers.claims.synced(),
        informers.volumes.synced(),
        informers.pods.synced(),
        informers.nodes.synced(),
    );
    let (this, that) = (Arc::clone(&controller), Arc::clone(&controller));
    let volumes = context.work("attachdetach", controller.volumes.clone(), move |key| {
        let this = Arc::clone(&this);
        async move { this.sync_volume(key).await }
    });
    let nodes = context.work("attachdetach-nodes", controller.nodes.clone(), move |key| {
        let this = Arc::clone(&that);
        async move { this.sync_node(key).await }
    });
    tokio::join!(volumes, nodes);
}

fn follow(controller: &Arc<Controller>) {
    let informers = &controller.context.informers;
    let this = Arc::clone(controller);
    informers.pods.on_change(move |delta| {
        let pod = &**delta.object();
        if !pods::node_name(pod).is_empty() {
            this.look_at_claims(&pod.namespace().unwrap_or_default(), claims_of(pod));
        }
    });
    let this = Arc::clone(controller);
    informers.claims.on_change(move |delta| {
        let claim = &**delta.object();
        let namespace = claim.namespace().unwrap_or_default();
        this.look_at_claims(&namespace, [claim.name_any()].into_iter());
    });
    let this = Arc::clone(controller);
    informers.volumes.on_change(move |delta| {
        let volume = &**delta.object();
        if source(volume).is_some() {
            this.volumes.add(Key::new("", volume.name_any()));
        }
    });
    let this = Arc::clone(controller);
    informers.attachments.on_change(move |delta| {
        let attachment = &**delta.object();
        if let Some(volume) = volume_of(attachment) {
            this.volumes.add(Key::new("", volume));
        }
        this.nodes.add(Key::new("", &*attachment.spec.node_name));
        if let Some(old) = delta.old() {
            this.tell_progress(old, attachment);
        }
    });
    let this = Arc::clone(controller);
    informers.nodes.on_change(move |delta| {
        let node = &**delta.object();
        let in_use = |node: &Node| node.status.as_ref()?.volumes_in_use.clone();
        let changed = delta.old().is_none_or(|old| in_use(old) != in_use(node));
        if changed || delta.is_delete() {
            for attachment in this.by_node.get(&node.name_any()) {
                if let Some(volume) = volume_of(&attachment) {
                    this.volumes.add(Key::new("", volume));
                }
            }
            this.nodes.add(Key::new("", node.name_any()));
        }
    });
}

/// The volume that an attachment is of.
fn volume_of(attachment: &VolumeAttachment) -> Option<&str> {
    let source = &attachment.spec.source;
    source.persistent_volume_name.as_deref()
}

fn source(volume: &PersistentVolume) -> Option<&CSIPersistentVolumeSource> {
    volume.spec.as_ref()?.csi.as_ref()
}

fn seen(attachment: &VolumeAttachment) -> Attachment {
    Attachment {
        name: attachment.name_any(),
        node: attachment.spec.node_name.clone(),
        leaving: attachment.metadata.deletion_timestamp.is_some(),
    }
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|s| s.attached)
}

impl Controller {
    fn look_at_claims(&self, namespace: &str, claims: impl Iterator<Item = String>) {
        for name in claims {
            let claim = self.context.informers.claims.get(namespace, &name);
            let spec = claim.as_ref().and_then(|claim| claim.spec.as_ref());
            let volume = spec.and_then(|spec| spec.volume_name.as_deref());
            if let Some(volume) = volume.filter(|volume| !volume.is_empty()) {
                self.volumes.add(Key::new("", volume));
            }
        }
    }

    /// The pods that use a volume, by the claim that it is bound to; those that have ended use nothing.
    fn users(&self, volume: &PersistentVolume) -> Vec<Arc<Pod>> {
        let spec = volume.spec.as_ref();
        let Some(claim) = spec.and_then(|spec| spec.claim_ref.as_ref()) else {
            return Vec::new();
        };
        let namespace = claim.namespace.as_deref().unwrap_or_default();
        let name = claim.name.as_deref().unwrap_or_default();
        let informers = &self.context.informers;
        let known = informers.claims.get(namespace, name);
        let bound = known.filter(|known| {
            let named = known.spec.as_ref().and_then(|s| s.volume_name.as_ref());
            known.metadata.uid == claim.uid && named == volume.metadata.name.as_ref()
        });
        if bound.is_none() {
            return Vec::new();
        }
        let mut users = informers.pods_by_claim.get(&format!("{namespace}/{name}"));
        users.retain(|pod| !pods::node_name(pod).is_empty() && !pods::is_terminal(pod));
        users.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref();
            (created.map(|time| time.0), pod.name_any())
        });
        users
    }

    async fn sync_volume(&self, key: Key) -> Result<Outcome> {
        let volume = self.context.informers.volumes.get("", &key.name);
        let source = volume.as_deref().and_then(source);
        let users = volume.as_deref().map(|volume| self.users(volume));
        let users = users.unwrap_or_default();
        let mut wanted: Vec<String> = Vec::new();
        if source.is_some_and(|source| self.wants_attaching(&source.driver)) {
            for node in users.iter().map(|pod| pods::node_name(pod)) {
                if !wanted.iter().any(|known| known == node) {
                    wanted.push(node.to_owned());
                }
            }
        }
        let mut known = self.by_volume.get(&key.name);
        // Others are somebody else's.
        known.retain(|attachment| attachment.name_any().starts_with("csi-"));
        let attachments: Vec<_> = known.iter().map(|known| seen(known)).collect();
        let exclusive = volume.as_deref().is_some_and(decide::is_exclusive);
        let mut outcome = Outcome::Done;
        let mut blocked = BTreeSet::new();
        for step in decide::steps(&wanted, exclusive, &attachments) {
            match step {
                Step::Attach { node } => {
                    if let Some(source) = source {
                        self.attach(&key.name, source, &node).await?;
                    }
                }
                Step::Detach { name, node } => {
                    let attachment = known.iter().find(|known| known.name_any() == name);
                    if let Some(attachment) = attachment
                        && !self.detach(attachment, source, &node).await?
                    {
                        outcome = Outcome::After(LOOK_AGAIN);
                    }
                }
                Step::Blocked { node } => {
                    self.tell_blocked(&key.name, &node, &users);
                    blocked.insert((key.name.clone(), node));
                }
            }
        }
        self.told
            .lock()
            .retain(|told| told.0 != key.name || blocked.contains(told));
        Ok(outcome)
    }

    /// Whoever does not say otherwise wants to be asked to attach.
    fn wants_attaching(&self, driver: &str) -> bool {
        let driver = self.context.informers.drivers.get("", driver);
        driver.is_none_or(|driver| driver.spec.attach_required != Some(false))
    }

    async fn attach(
        &self,
        volume: &str,
        source: &CSIPersistentVolumeSource,
        node: &str,
    ) -> Result<()> {
        let name = decide::attachment_name(&source.volume_handle, &source.driver, node);
        let attachment = VolumeAttachment {
            metadata: ObjectMeta {
                name: Some(name),
                ..ObjectMeta::default()
            },
            spec: VolumeAttachmentSpec {
                attacher: source.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(volume.to_owned()),
                    inline_volume_spec: None,
                },
            },
            status: None,
        };
        let api = self.context.cluster_api::<VolumeAttachment>();
        match api.create(&PostParams::default(), &attachment).await {
            Err(error) if !error.is_already_exists() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Has a volume taken from a node; false if the node does not let go of it yet.
    async fn detach(
        &self,
        attachment: &VolumeAttachment,
        source: Option<&CSIPersistentVolumeSource>,
        node: &str,
    ) -> Result<bool> {
        let name = attachment.name_any();
        // What the node said last, and not what it said when this was cached: data depend on it.
        let node = self.context.cluster_api::<Node>().get_opt(node).await?;
        let consent = match source {
            Some(source) => {
                let volume = decide::unique_name(&source.driver, &source.volume_handle);
                decide::consent(node.as_ref(), &volume)
            }
            // Its volume is no more, so nobody can say under which name it might be in use.
            None => Consent::Given,
        };
        match consent {
            Consent::Withheld => {
                self.silent.lock().remove(&name);
                return Ok(false);
            }
            Consent::Silent => {
                let mut silent = self.silent.lock();
                let since = *silent.entry(name.clone()).or_insert_with(Instant::now);
                if since.elapsed() < FORCE_AFTER {
                    return Ok(false);
                }
                tracing::warn!(
                    attachment = name,
                    "taking a volume from a node that is not heard of"
                );
            }
            Consent::Given => {}
        }
        self.silent.lock().remove(&name);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: attachment.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = self.context.cluster_api::<VolumeAttachment>();
        unless_gone(api.delete(&name, &params).await)?;
        Ok(true)
    }

    /// Says once that a volume is elsewhere.
    fn tell_blocked(&self, volume: &str, node: &str, users: &[Arc<Pod>]) {
        let new = self
            .told
            .lock()
            .insert((volume.to_owned(), node.to_owned()));
        if !new {
            return;
        }
        let (waiting, others): (Vec<_>, Vec<_>) =
            users.iter().partition(|pod| pods::node_name(pod) == node);
        for pod in waiting {
            let same = |other: &&&Arc<Pod>| other.namespace() == pod.namespace();
            let names: Vec<_> = others.iter().filter(same).map(|p| p.name_any()).collect();
            let why = if names.is_empty() {
                "Volume is already exclusively attached to one node and can't be attached to another"
                    .to_owned()
            } else {
                format!("Volume is already used by pod(s) {}", names.join(", "))
            };
            let text = format!("Multi-Attach error for volume \"{volume}\" {why}");
            self.recorder
                .event(&**pod, EventType::Warning, "FailedAttachVolume", text);
        }
    }

    /// Tells the pods of a volume how its attacher gets on.
    fn tell_progress(&self, old: &VolumeAttachment, new: &VolumeAttachment) {
        let failure = |attachment: &VolumeAttachment| {
            let error = attachment.status.as_ref()?.attach_error.as_ref()?;
            error.message.clone()
        };
        let Some(name) = volume_of(new) else { return };
        let (kind, reason, text) = if is_attached(new) && !is_attached(old) {
            let text = format!("AttachVolume.Attach succeeded for volume \"{name}\" ");
            (EventType::Normal, "SuccessfulAttachVolume", text)
        } else if let Some(why) = failure(new).filter(|_| failure(old) != failure(new)) {
            let text = format!("AttachVolume.Attach failed for volume \"{name}\" : {why}");
            (EventType::Warning, "FailedAttachVolume", text)
        } else {
            return;
        };
        let volume = self.context.informers.volumes.get("", name);
        let users = volume.map(|volume| self.users(&volume));
        for pod in users.unwrap_or_default() {
            if pods::node_name(&pod) == new.spec.node_name {
                self.recorder.event(&*pod, kind, reason, text.clone());
            }
        }
    }

    /// Keeps the list of what is attached in a Node's status.
    async fn sync_node(&self, key: Key) -> Result<Outcome> {
        let informers = &self.context.informers;
        let Some(node) = informers.nodes.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        let mut names = BTreeSet::new();
        for attachment in self.by_node.get(&key.name) {
            let volume = volume_of(&attachment);
            let volume = volume.and_then(|name| informers.volumes.get("", name));
            let leaving = attachment.metadata.deletion_timestamp.is_some();
            if let Some(source) = volume.as_deref().and_then(source)
                && is_attached(&attachment)
                && !leaving
            {
                names.insert(decide::unique_name(&source.driver, &source.volume_handle));
            }
        }
        let status = node.status.as_ref();
        let told = status.and_then(|status| status.volumes_attached.as_deref());
        let told: BTreeSet<_> = told.unwrap_or_default().iter().map(|v| &v.name).collect();
        if told.into_iter().eq(&names) {
            return Ok(Outcome::Done);
        }
        let list: Vec<_> = names
            .iter()
            .map(|name| json!({"name": name, "devicePath": ""}))
            .collect();
        let patch = json!({"status": {"volumesAttached": list}});
        let api = self.context.cluster_api::<Node>();
        let patch = Patch::Merge(&patch);
        unless_gone(
            api.patch_status(&key.name, &PatchParams::default(), &patch)
                .await,
        )?;
        Ok(Outcome::Done)
    }
}
