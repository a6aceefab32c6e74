//! PersistentVolumes and the claims on them: binding, provisioning on the node's own disk, and what becomes of a
//! volume when its claim is gone.
//!
//! A claim is bound in four writes (the volume's claim, its phase, the claim's volume, its phase); each one is
//! repeated until it shows, so any leader can go on where another one stopped.

mod claims;
mod class;
mod matching;
mod protection;
mod provision;
mod volume;

use std::sync::Arc;

use balsa_client::{EventRecorder, Key, WorkQueue};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;

use crate::context::Shared;

pub(crate) use protection::run as run_protection;

/// Set on both sides of a finished binding.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Set on sides whose partner was chosen by us and not by people.
const BOUND_BY_US: &str = "pv.kubernetes.io/bound-by-controller";

struct Controller {
    context: Shared,
    recorder: EventRecorder,
    claims: WorkQueue<Key>,
    volumes: WorkQueue<Key>,
}

pub(crate) async fn run(context: Shared) {
    let controller = Arc::new(Controller {
        recorder: context.recorder("persistentvolume-controller"),
        claims: WorkQueue::default(),
        volumes: WorkQueue::default(),
        context: Arc::clone(&context),
    });
    follow(&controller);
    context.informers.claims.synced().await;
    context.informers.volumes.synced().await;
    context.informers.storage_classes.synced().await;
    context.informers.pods.synced().await;
    context.informers.nodes.synced().await;
    let (this, that) = (Arc::clone(&controller), Arc::clone(&controller));
    let claims = context.work(
        "persistentvolumeclaim",
        controller.claims.clone(),
        move |key| {
            let this = Arc::clone(&this);
            async move { this.sync_claim(key).await }
        },
    );
    let volumes = context.work("persistentvolume", controller.volumes.clone(), move |key| {
        let this = Arc::clone(&that);
        async move { this.sync_volume(key).await }
    });
    tokio::join!(claims, volumes, class::ensure_default(&context));
}

fn follow(controller: &Arc<Controller>) {
    let informers = &controller.context.informers;
    let this = Arc::clone(controller);
    informers.claims.on_change(move |delta| {
        let claim = &**delta.object();
        this.claims.add(Key::of(claim));
        for volume in this.context.informers.volumes.list() {
            let reference = volume
                .spec
                .as_ref()
                .and_then(|spec| spec.claim_ref.as_ref());
            if reference.is_some_and(|reference| matching::refers_to(reference, claim)) {
                this.volumes.add(Key::of(&*volume));
            }
        }
    });
    let this = Arc::clone(controller);
    informers.volumes.on_change(move |delta| {
        let volume = &**delta.object();
        this.volumes.add(Key::of(volume));
        match volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref())
        {
            Some(reference) => this.claims.add(Key::new(
                reference.namespace.clone().unwrap_or_default(),
                reference.name.clone().unwrap_or_default(),
            )),
            None => this.look_again(matching::class_of_volume(volume)),
        }
    });
    let this = Arc::clone(controller);
    informers.storage_classes.on_change(move |delta| {
        this.look_again(&delta.object().name_any());
        // It may be the default that claims wait for.
        this.look_again("");
    });
}

fn is_unbound(claim: &PersistentVolumeClaim) -> bool {
    let volume = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.as_deref());
    volume.unwrap_or_default().is_empty()
}

impl Controller {
    /// Queues claims of a class that still want a volume.
    fn look_again(&self, class: &str) {
        for claim in self.context.informers.claims.list() {
            if is_unbound(&claim) && matching::class_of_claim(&claim) == class {
                self.claims.add(Key::of(&*claim));
            }
        }
    }
}
