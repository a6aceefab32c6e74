//! One reconcile of one claim.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use balsa_api::quantity::Quantity as Amount;
use balsa_client::{EventType, Key, Outcome};
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::provision::{self, PROVISIONER};
use super::{BIND_COMPLETED, BOUND_BY_US, Controller, class, is_unbound, matching};
use crate::error::{ApiError, Result, message, unless_gone};

/// Set by the scheduler on claims whose volume is to be made on a node.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Tells provisioners outside which claims are theirs.
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const OLD_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// Nobody but CSI drivers outside make volumes of other classes.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// True for a bound claim that asks for more than it has, before anybody has taken that on.
fn wants_to_grow(claim: &PersistentVolumeClaim) -> bool {
    let storage = |amounts: Option<&BTreeMap<String, Quantity>>| {
        let amount = amounts?.get("storage")?.0.parse::<Amount>().ok()?;
        Some(amount.value())
    };
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let asked = storage(resources.and_then(|resources| resources.requests.as_ref()));
    let Some(status) = &claim.status else {
        return false;
    };
    let has = storage(status.capacity.as_ref());
    let mut under_way = status.conditions.iter().flatten();
    has.is_some()
        && asked > has
        && !under_way.any(|c| c.type_ == "Resizing" || c.type_ == "FileSystemResizePending")
}

/// How often a claim that waits says so.
const REMIND: Duration = Duration::from_secs(15);

impl Controller {
    pub(super) async fn sync_claim(&self, key: Key) -> Result<Outcome> {
        let Some(claim) = self.context.informers.claims.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        if is_unbound(&claim) {
            if claim.metadata.deletion_timestamp.is_some() {
                return Ok(Outcome::Done);
            }
            return Box::pin(self.find_volume(&claim)).await;
        }
        Box::pin(self.sync_bound(&claim)).await
    }

    /// The claim names its volume: people chose it, or we did.
    async fn sync_bound(&self, claim: &PersistentVolumeClaim) -> Result<Outcome> {
        let named = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.clone());
        let name = named.unwrap_or_default();
        let done = claim.annotations().contains_key(BIND_COMPLETED);
        let Some(volume) = self.volume(&name, done).await? else {
            if done {
                let message =
                    "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                return self.lost(claim, message).await;
            }
            self.set_pending(claim).await?;
            return Ok(Outcome::Done);
        };
        let reference = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref());
        match reference {
            Some(reference) if matching::refers_to(reference, claim) => {
                Box::pin(self.bind(claim, &volume)).await?;
                if done && wants_to_grow(claim) {
                    let text = "waiting for an external controller to expand this PVC";
                    self.tell(claim, EventType::Normal, "ExternalExpanding", text.into());
                }
            }
            None if done => {
                let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
                return self.lost(claim, message).await;
            }
            None => {
                if let Some(problem) = matching::mismatch(&volume, claim) {
                    let text = format!("Cannot bind to requested volume {name:?}: {problem}");
                    self.tell(claim, EventType::Warning, "VolumeMismatch", text);
                    self.set_pending(claim).await?;
                } else {
                    Box::pin(self.bind(claim, &volume)).await?;
                }
            }
            Some(_) if done => {
                let message =
                    "Two claims are bound to the same volume, this one is bound incorrectly";
                return self.lost(claim, message).await;
            }
            Some(reference) => {
                let text = format!(
                    "volume {name:?} already bound to a different claim. ({}/{})",
                    reference.namespace.as_deref().unwrap_or_default(),
                    reference.name.as_deref().unwrap_or_default()
                );
                self.tell(claim, EventType::Warning, "FailedBinding", text);
                self.set_pending(claim).await?;
            }
        }
        Ok(Outcome::Done)
    }

    /// The volume; asked from the server when much depends on its absence.
    async fn volume(&self, name: &str, surely: bool) -> Result<Option<Arc<PersistentVolume>>> {
        if let Some(volume) = self.context.informers.volumes.get("", name) {
            return Ok(Some(volume));
        }
        if !surely {
            return Ok(None);
        }
        let found = self
            .context
            .cluster_api::<PersistentVolume>()
            .get_opt(name)
            .await?;
        Ok(found.map(Arc::new))
    }

    async fn find_volume(&self, claim: &PersistentVolumeClaim) -> Result<Outcome> {
        let informers = &self.context.informers;
        let classes = informers.storage_classes.list();
        if matching::leaves_class_open(claim)
            && let Some(default) = class::default_class(&classes)
        {
            // Made before there was a default: it gets it now (KEP-3333).
            let patch = json!({"spec": {"storageClassName": default.name_any()}});
            return self.patch_claim(claim, &patch).await;
        }
        let name = matching::class_of_claim(claim);
        let class = informers.storage_classes.get("", name);
        let waits = class.as_ref().is_some_and(|class| class::waits(class));
        let selected = claim.annotations().get(SELECTED_NODE);
        let volumes = informers.volumes.list();
        if let Some(volume) = matching::find(claim, &volumes, !waits) {
            Box::pin(self.bind(claim, volume)).await?;
            return Ok(Outcome::Done);
        }
        self.set_pending(claim).await?;
        if waits && selected.is_none() {
            let text = "waiting for first consumer to be created before binding";
            self.tell(
                claim,
                EventType::Normal,
                "WaitForFirstConsumer",
                text.into(),
            );
            return Ok(Outcome::Done);
        }
        match class {
            Some(class) => Box::pin(self.provision(claim, &class, selected)).await,
            None if name.is_empty() => {
                let text =
                    "no persistent volumes available for this claim and no storage class is set";
                self.tell(claim, EventType::Normal, "FailedBinding", text.into());
                Ok(Outcome::Done)
            }
            None => {
                let text = format!("storageclass.storage.k8s.io {name:?} not found");
                self.tell(claim, EventType::Warning, "ProvisioningFailed", text);
                Ok(Outcome::After(REMIND))
            }
        }
    }

    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        selected: Option<&String>,
    ) -> Result<Outcome> {
        let provisioner = &class.provisioner;
        if provisioner == NO_PROVISIONER {
            return Ok(Outcome::Done);
        }
        if claim.annotations().get(STORAGE_PROVISIONER) != Some(provisioner) {
            let patch = json!({"metadata": {"annotations": {
                STORAGE_PROVISIONER: provisioner, OLD_STORAGE_PROVISIONER: provisioner,
            }}});
            return self.patch_claim(claim, &patch).await;
        }
        if provisioner != PROVISIONER {
            let text = format!(
                "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
            );
            self.tell(claim, EventType::Normal, "ExternalProvisioning", text);
            return Ok(Outcome::After(REMIND));
        }
        let Some(selected) = selected else {
            let text =
                "a folder needs a node: the class must have volumeBindingMode WaitForFirstConsumer";
            self.tell(claim, EventType::Warning, "ProvisioningFailed", text.into());
            return Ok(Outcome::Done);
        };
        let Some(node) = self.context.informers.nodes.get("", selected) else {
            return self
                .give_back(claim, &format!("node {selected:?} not found"))
                .await;
        };
        let root = &self.context.config.local_path_root;
        let volume = match provision::new_volume(claim, class, &node, root) {
            Ok(volume) => volume,
            Err(problem) => return self.give_back(claim, problem).await,
        };
        let api = self.context.cluster_api::<PersistentVolume>();
        match api.create(&PostParams::default(), &volume).await {
            Ok(created) => {
                let text = format!(
                    "Successfully provisioned volume {} using {PROVISIONER}",
                    created.name_any()
                );
                self.tell(claim, EventType::Normal, "ProvisioningSucceeded", text);
                Box::pin(self.bind(claim, &created)).await?;
            }
            Err(error) if error.is_already_exists() => {}
            Err(error) => {
                let text = format!("failed to provision volume: {}", message(&error));
                self.tell(claim, EventType::Warning, "ProvisioningFailed", text);
                return Err(error.into());
            }
        }
        Ok(Outcome::Done)
    }

    /// Lets the scheduler choose another node.
    async fn give_back(&self, claim: &PersistentVolumeClaim, problem: &str) -> Result<Outcome> {
        let text = format!("failed to provision volume: {problem}");
        self.tell(claim, EventType::Warning, "ProvisioningFailed", text);
        let patch = json!({"metadata": {"annotations": {SELECTED_NODE: Value::Null}}});
        self.patch_claim(claim, &patch).await
    }

    /// Does what is still to be done of the four writes.
    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<()> {
        let volume = self.bind_volume(volume, claim).await?;
        let claim = self.bind_claim(claim, &volume).await?;
        let spec = volume.spec.clone().unwrap_or_default();
        let before = claim.status.clone().unwrap_or_default();
        // Later the claim's capacity follows only once the node has let the file system grow.
        let capacity = match before.phase.as_deref() {
            Some("Bound") => before.capacity.clone(),
            _ => spec.capacity,
        };
        let status = PersistentVolumeClaimStatus {
            phase: Some("Bound".into()),
            access_modes: spec.access_modes,
            capacity,
            ..before.clone()
        };
        if status != before {
            let updated = PersistentVolumeClaim {
                status: Some(status),
                ..claim
            };
            let api = self
                .context
                .api::<PersistentVolumeClaim>(&updated.namespace().unwrap_or_default());
            let name = updated.name_any();
            unless_gone(
                api.replace_status(&name, &PostParams::default(), &updated)
                    .await,
            )?;
        }
        Ok(())
    }

    /// The volume's side.
    async fn bind_volume(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<PersistentVolume> {
        let api = self.context.cluster_api::<PersistentVolume>();
        let name = volume.name_any();
        let current = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref());
        let mut volume = volume.clone();
        if current.and_then(|current| current.uid.clone()) != claim.uid() {
            let mut metadata = json!({"resourceVersion": volume.resource_version()});
            if current.is_none()
                && let Some(fields) = metadata.as_object_mut()
            {
                fields.insert("annotations".into(), json!({BOUND_BY_US: "yes"}));
            }
            let patch = json!({
                "metadata": metadata,
                "spec": {"claimRef": provision::reference(claim)},
            });
            volume = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
        }
        let phase = volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase != Some("Bound") {
            volume = self.set_phase(&volume, "Bound", None).await?;
        }
        Ok(volume)
    }

    /// The claim's side, without its status.
    async fn bind_claim(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<PersistentVolumeClaim> {
        let chosen = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.as_ref());
        let mut annotations = serde_json::Map::new();
        if is_unbound(claim) {
            annotations.insert(BOUND_BY_US.into(), json!("yes"));
        }
        if !claim.annotations().contains_key(BIND_COMPLETED) {
            annotations.insert(BIND_COMPLETED.into(), json!("yes"));
        }
        if annotations.is_empty() && chosen == volume.metadata.name.as_ref() {
            return Ok(claim.clone());
        }
        let patch = json!({
            "metadata": {"resourceVersion": claim.resource_version(), "annotations": annotations},
            "spec": {"volumeName": volume.name_any()},
        });
        let api = self
            .context
            .api::<PersistentVolumeClaim>(&claim.namespace().unwrap_or_default());
        let patch = Patch::Merge(&patch);
        Ok(api
            .patch(&claim.name_any(), &PatchParams::default(), &patch)
            .await?)
    }

    async fn lost(&self, claim: &PersistentVolumeClaim, text: &str) -> Result<Outcome> {
        let reason = if text.starts_with("Two") {
            "ClaimMisbound"
        } else {
            "ClaimLost"
        };
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase != Some("Lost") {
            self.tell(claim, EventType::Warning, reason, text.to_owned());
            self.set_claim_phase(claim, "Lost").await?;
        }
        Ok(Outcome::Done)
    }

    async fn set_pending(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase == Some("Pending") {
            return Ok(());
        }
        self.set_claim_phase(claim, "Pending").await
    }

    async fn set_claim_phase(&self, claim: &PersistentVolumeClaim, phase: &str) -> Result<()> {
        let patch = json!({
            "metadata": {"resourceVersion": claim.resource_version()},
            "status": {"phase": phase},
        });
        let api = self
            .context
            .api::<PersistentVolumeClaim>(&claim.namespace().unwrap_or_default());
        let patch = Patch::Merge(&patch);
        unless_gone(
            api.patch_status(&claim.name_any(), &PatchParams::default(), &patch)
                .await,
        )?;
        Ok(())
    }

    async fn patch_claim(&self, claim: &PersistentVolumeClaim, patch: &Value) -> Result<Outcome> {
        let api = self
            .context
            .api::<PersistentVolumeClaim>(&claim.namespace().unwrap_or_default());
        let patch = Patch::Merge(patch);
        unless_gone(
            api.patch(&claim.name_any(), &PatchParams::default(), &patch)
                .await,
        )?;
        // The change brings the claim back.
        Ok(Outcome::Done)
    }

    fn tell(&self, claim: &PersistentVolumeClaim, type_: EventType, reason: &str, text: String) {
        self.recorder.event(claim, type_, reason, text);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_claim_that_asks_for_more_than_it_has_waits_for_its_driver() {
        let claim = |asked: &str, conditions: Value| -> PersistentVolumeClaim {
            let claim = json!({"spec": {"resources": {"requests": {"storage": asked}}},
                "status": {"capacity": {"storage": "1Gi"}, "conditions": conditions}});
            serde_json::from_value(claim).unwrap()
        };
        assert!(wants_to_grow(&claim("2Gi", json!([]))));
        assert!(!wants_to_grow(&claim("1Gi", json!([]))));
        let resizing = json!([{"type": "Resizing", "status": "True"}]);
        assert!(!wants_to_grow(&claim("2Gi", resizing)));
        assert!(!wants_to_grow(&PersistentVolumeClaim::default()));
    }
}
