//! One reconcile of one volume.

use balsa_client::{EventType, Key, Outcome};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use super::provision::{PROVISIONED_BY, PROVISIONER};
use super::{BOUND_BY_US, Controller, is_unbound};
use crate::error::{Result, unless_gone};

/// What a volume's claim has to do with it.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Nobody's, or kept for a claim that need not exist yet.
    Available,
    /// The claim exists and is about to be bound.
    Binding,
    Bound,
    /// The claim has another volume.
    Misbound,
    /// The claim is gone.
    Released,
}

fn standing(
    volume: &PersistentVolume,
    reference: Option<&ObjectReference>,
    claim: Option<&PersistentVolumeClaim>,
) -> Standing {
    let Some(reference) = reference else {
        return Standing::Available;
    };
    let uid = reference.uid.as_deref().unwrap_or_default();
    if uid.is_empty() {
        return if claim.is_some() {
            Standing::Binding
        } else {
            Standing::Available
        };
    }
    match claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid)) {
        None => Standing::Released,
        Some(claim) if is_unbound(claim) => Standing::Binding,
        Some(claim) => {
            let named = claim
                .spec
                .as_ref()
                .and_then(|spec| spec.volume_name.as_ref());
            if named == volume.metadata.name.as_ref() {
                Standing::Bound
            } else {
                Standing::Misbound
            }
        }
    }
}

impl Controller {
    pub(super) async fn sync_volume(&self, key: Key) -> Result<Outcome> {
        let Some(volume) = self.context.informers.volumes.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        let reference = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref());
        let claim = match reference {
            Some(reference) => self.claim_of(reference).await?,
            None => None,
        };
        match standing(&volume, reference, claim.as_ref()) {
            Standing::Available => self.ensure_phase(&volume, "Available").await?,
            Standing::Bound => self.ensure_phase(&volume, "Bound").await?,
            Standing::Binding => {
                if let Some(claim) = &claim {
                    self.claims.add(Key::of(claim));
                }
            }
            Standing::Misbound => self.unbind(&volume).await?,
            Standing::Released => return self.reclaim(&volume).await,
        }
        Ok(Outcome::Done)
    }

    /// The claim a volume speaks of. Before one is taken for gone, the server is asked: its data depend on it.
    async fn claim_of(&self, reference: &ObjectReference) -> Result<Option<PersistentVolumeClaim>> {
        let namespace = reference.namespace.as_deref().unwrap_or_default();
        let name = reference.name.as_deref().unwrap_or_default();
        let cached = self.context.informers.claims.get(namespace, name);
        if let Some(cached) = cached.filter(|cached| cached.metadata.uid == reference.uid) {
            return Ok(Some((*cached).clone()));
        }
        Ok(self
            .context
            .api::<PersistentVolumeClaim>(namespace)
            .get_opt(name)
            .await?)
    }

    async fn ensure_phase(&self, volume: &PersistentVolume, phase: &str) -> Result<()> {
        let current = volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if current != Some(phase) {
            self.set_phase(volume, phase, None).await?;
        }
        Ok(())
    }

    pub(super) async fn set_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<PersistentVolume> {
        let patch = json!({
            "metadata": {"resourceVersion": volume.resource_version()},
            "status": {
                "phase": phase,
                "message": message,
                "lastPhaseTransitionTime": balsa_client::time::now(),
            },
        });
        let api = self.context.cluster_api::<PersistentVolume>();
        let patch = Patch::Merge(&patch);
        Ok(api
            .patch_status(&volume.name_any(), &PatchParams::default(), &patch)
            .await?)
    }

    /// The claim took another volume: what we gave it is free again; what people gave it, they must take back.
    async fn unbind(&self, volume: &PersistentVolume) -> Result<()> {
        if volume
            .annotations()
            .get(PROVISIONED_BY)
            .is_some_and(|by| by == PROVISIONER)
        {
            return self.delete(volume).await;
        }
        if !volume.annotations().contains_key(BOUND_BY_US) {
            return self.ensure_phase(volume, "Available").await;
        }
        let patch = json!({
            "metadata": {
                "resourceVersion": volume.resource_version(),
                "annotations": {BOUND_BY_US: Value::Null},
            },
            "spec": {"claimRef": Value::Null},
        });
        let api = self.context.cluster_api::<PersistentVolume>();
        let patch = Patch::Merge(&patch);
        unless_gone(
            api.patch(&volume.name_any(), &PatchParams::default(), &patch)
                .await,
        )?;
        Ok(())
    }

    async fn reclaim(&self, volume: &PersistentVolume) -> Result<Outcome> {
        let phase = volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if !matches!(phase, Some("Released" | "Failed")) {
            // The change brings the volume back here.
            self.set_phase(volume, "Released", None).await?;
            return Ok(Outcome::Done);
        }
        let spec = volume.spec.as_ref();
        let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        let provisioner = volume.annotations().get(PROVISIONED_BY).map(String::as_str);
        match (policy, provisioner) {
            (Some("Delete"), Some(PROVISIONER)) => self.delete(volume).await?,
            // Its provisioner deletes it.
            (Some("Delete"), Some(_)) => {}
            (Some("Delete"), None) => {
                let csi = spec.is_some_and(|spec| spec.csi.is_some());
                if !csi && phase != Some("Failed") {
                    self.fail(volume, "VolumeFailedDelete", "no volume plugin matched")
                        .await?;
                }
            }
            (Some("Recycle"), _) if phase != Some("Failed") => {
                self.fail(
                    volume,
                    "VolumeRecycleFailed",
                    "recycling is not supported; use Retain or Delete",
                )
                .await?;
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    async fn fail(&self, volume: &PersistentVolume, reason: &str, problem: &str) -> Result<()> {
        self.recorder
            .event(volume, EventType::Warning, reason, problem);
        self.set_phase(volume, "Failed", Some(problem)).await?;
        Ok(())
    }

    /// The node's agent removes the folder when the volume is gone.
    async fn delete(&self, volume: &PersistentVolume) -> Result<()> {
        if volume.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: volume.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = self.context.cluster_api::<PersistentVolume>();
        unless_gone(api.delete(&volume.name_any(), &params).await)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::from_value;

    use super::*;

    #[test]
    fn the_claim_decides_where_a_volume_stands() {
        let volume = |reference: Value| -> PersistentVolume {
            from_value(json!({"metadata": {"name": "v"}, "spec": {"claimRef": reference}})).unwrap()
        };
        let claim = |uid: &str, named: Value| -> PersistentVolumeClaim {
            let meta = json!({"name": "c", "namespace": "n", "uid": uid});
            from_value(json!({"metadata": meta, "spec": {"volumeName": named}})).unwrap()
        };
        let stands = |reference: Value, claim: Option<PersistentVolumeClaim>| {
            let volume = volume(reference);
            let reference = volume.spec.as_ref().unwrap().claim_ref.clone();
            standing(&volume, reference.as_ref(), claim.as_ref())
        };
        let meant = |uid: &str| json!({"name": "c", "namespace": "n", "uid": uid});
        assert_eq!(stands(Value::Null, None), Standing::Available);
        assert_eq!(stands(meant(""), None), Standing::Available);
        assert_eq!(
            stands(meant(""), Some(claim("1", Value::Null))),
            Standing::Binding
        );
        assert_eq!(
            stands(meant("1"), Some(claim("1", json!("v")))),
            Standing::Bound
        );
        assert_eq!(
            stands(meant("1"), Some(claim("1", json!("w")))),
            Standing::Misbound
        );
        // Another claim of the same name.
        assert_eq!(
            stands(meant("1"), Some(claim("2", json!("v")))),
            Standing::Released
        );
        assert_eq!(stands(meant("1"), None), Standing::Released);
    }
}
