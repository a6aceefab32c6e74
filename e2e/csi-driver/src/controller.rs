//! What the usual sidecars do for a driver: volumes are made, attached, grown and deleted as the API has it.

mod decide;

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::volumes::Volumes;

/// How often the API is looked at. Real sidecars watch; a test's driver may be slow.
const LOOK: Duration = Duration::from_millis(500);

struct Controller {
    driver: String,
    volumes: Volumes,
    client: Client,
}

/// Works until stopped.
pub(crate) async fn run(driver: String, volumes: Volumes) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("no API server")?;
    let controller = Controller {
        driver,
        volumes,
        client,
    };
    let work = async {
        loop {
            if let Err(error) = Box::pin(controller.round()).await {
                eprintln!("{error:#}");
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = crate::stopped() => {}
    }
    Ok(())
}

impl Controller {
    async fn round(&self) -> anyhow::Result<()> {
        let all = ListParams::default();
        let claims: Api<PersistentVolumeClaim> = Api::all(self.client.clone());
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let attachments: Api<VolumeAttachment> = Api::all(self.client.clone());
        let classes = classes.list(&all).await?.items;
        for claim in claims.list(&all).await?.items {
            let named = claim
                .spec
                .as_ref()
                .and_then(|spec| spec.storage_class_name.clone());
            let class = classes.iter().find(|class| class.metadata.name == named);
            if let Some(volume) = decide::to_provision(&claim, class, &self.driver) {
                self.provision(&volumes, &volume).await?;
            }
        }
        for attachment in attachments.list(&all).await?.items {
            if attachment.spec.attacher == self.driver {
                self.attach(&attachments, &attachment).await?;
            }
        }
        let held = attachments.list(&all).await?.items;
        for volume in volumes.list(&all).await?.items {
            if decide::is_to_delete(&volume, &held, &self.driver) {
                self.delete(&volumes, &volume).await?;
            } else {
                self.resize(&volumes, &volume).await?;
            }
        }
        Ok(())
    }

    async fn provision(
        &self,
        volumes: &Api<PersistentVolume>,
        volume: &PersistentVolume,
    ) -> anyhow::Result<()> {
        let name = volume.name_any();
        self.volumes.create(&name)?;
        self.volumes.set_size(&name, decide::capacity(volume))?;
        match volumes.create(&PostParams::default(), volume).await {
            Ok(_) => self.volumes.note(&format!("controller provision {name}")),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn attach(
        &self,
        attachments: &Api<VolumeAttachment>,
        attachment: &VolumeAttachment,
    ) -> anyhow::Result<()> {
        let name = attachment.name_any();
        let params = PatchParams::default();
        if attachment.metadata.deletion_timestamp.is_some() {
            if attachment
                .finalizers()
                .contains(&decide::FINALIZER.to_owned())
            {
                let patch = json!({"metadata": {"finalizers": null}});
                attachments
                    .patch(&name, &params, &Patch::Merge(&patch))
                    .await?;
                self.volumes
                    .note(&format!("controller detach {}", attachment.spec.node_name));
            }
            return Ok(());
        }
        if attachment
            .status
            .as_ref()
            .is_some_and(|status| status.attached)
        {
            return Ok(());
        }
        let patch = json!({"metadata": {"finalizers": [decide::FINALIZER]}});
        attachments
            .patch(&name, &params, &Patch::Merge(&patch))
            .await?;
        let patch =
            json!({"status": {"attached": true, "attachmentMetadata": {"by": self.driver}}});
        attachments
            .patch_status(&name, &params, &Patch::Merge(&patch))
            .await?;
        self.volumes
            .note(&format!("controller attach {}", attachment.spec.node_name));
        Ok(())
    }

    async fn delete(
        &self,
        volumes: &Api<PersistentVolume>,
        volume: &PersistentVolume,
    ) -> anyhow::Result<()> {
        let name = volume.name_any();
        self.volumes.delete(&name)?;
        volumes.delete(&name, &DeleteParams::default()).await?;
        self.volumes.note(&format!("controller delete {name}"));
        Ok(())
    }

    /// Gives a volume the size that its claim asks for; the node is to do the rest.
    async fn resize(
        &self,
        volumes: &Api<PersistentVolume>,
        volume: &PersistentVolume,
    ) -> anyhow::Result<()> {
        let spec = volume.spec.as_ref();
        let csi = spec.and_then(|spec| spec.csi.as_ref());
        let reference = spec.and_then(|spec| spec.claim_ref.as_ref());
        let (Some(csi), Some(reference)) = (csi, reference) else {
            return Ok(());
        };
        if csi.driver != self.driver {
            return Ok(());
        }
        let namespace = reference.namespace.clone().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let name = reference.name.clone().unwrap_or_default();
        let Some(claim) = claims.get_opt(&name).await? else {
            return Ok(());
        };
        let Some(size) = decide::to_grow_to(&claim, volume) else {
            return Ok(());
        };
        let params = PatchParams::default();
        let patch = json!({"spec": {"capacity": {"storage": size}}});
        volumes
            .patch(&volume.name_any(), &params, &Patch::Merge(&patch))
            .await?;
        let pending = json!({"type": "FileSystemResizePending", "status": "True",
            "message": "Waiting for the node to grow the file system"});
        let patch = json!({"status": {"conditions": [pending]}});
        claims
            .patch_status(&name, &params, &Patch::Merge(&patch))
            .await?;
        self.volumes
            .note(&format!("controller resize {}", volume.name_any()));
        Ok(())
    }
}
