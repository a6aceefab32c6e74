//! Admission of claims and volumes: the finalizers that keep them while they are used (StorageObjectInUseProtection),
//! the class of claims that name none (DefaultStorageClass), and who may grow (PersistentVolumeClaimResize).

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::kinds::amounts::amounts;
use balsa_api::kinds::walk::Walk;
use balsa_api::object;
use balsa_api::status::Status;
use serde_json::Value;

use super::{is, newest_default, refuse};
use crate::seam::{Admission, AdmissionRequest, ObjectReader, Operation};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const ATTRIBUTES_FINALIZER: &str = "kubernetes.io/vac-protection";
/// Older form of `storageClassName`.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const IS_DEFAULT: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// See the module.
pub struct Storage {
    reader: Arc<dyn ObjectReader>,
}

impl Storage {
    /// Over the classes of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    fn may_grow(&self, claim: &Value) -> bool {
        let class = class_of(claim);
        !class.is_empty()
            && self
                .reader
                .get("storage.k8s.io", "storageclasses", "", class)
                .is_some_and(|c| c["allowVolumeExpansion"] == true)
    }
}

fn class_of(claim: &Value) -> &str {
    match object::annotation(claim, OLD_CLASS) {
        Some(class) => class,
        None => claim["spec"]["storageClassName"].text(),
    }
}

#[async_trait]
impl Admission for Storage {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if request.operation != Operation::Create {
            return Ok(());
        }
        let claim = is(request, "", "persistentvolumeclaims");
        let finalizer = if claim {
            CLAIM_FINALIZER
        } else if is(request, "", "persistentvolumes") {
            VOLUME_FINALIZER
        } else if is(request, "storage.k8s.io", "volumeattributesclasses") {
            ATTRIBUTES_FINALIZER
        } else {
            return Ok(());
        };
        let Some(object) = request.object.as_deref_mut() else {
            return Ok(());
        };
        object::add_finalizer(object, finalizer);
        // An empty name is a choice (no class); none at all asks for the default.
        let names_none = object["spec"]["storageClassName"].is_null()
            && object::annotation(object, OLD_CLASS).is_none();
        if claim && names_none {
            let classes = self.reader.list("storage.k8s.io", "storageclasses", None);
            if let Some(default) = newest_default(&classes, &IS_DEFAULT) {
                object["spec"]["storageClassName"] = object::name(default).into();
            }
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let (Operation::Update, Some(new), Some(old)) =
            (request.operation, request.object.as_deref(), request.old)
        else {
            return Ok(());
        };
        if !is(request, "", "persistentvolumeclaims") {
            return Ok(());
        }
        let storage = |claim: &Value| {
            amounts(&claim["spec"]["resources"]["requests"])
                .get("storage")
                .copied()
                .unwrap_or_default()
        };
        if storage(new) <= storage(old) {
            return Ok(());
        }
        if old["status"]["phase"] != "Bound" {
            return Err(refuse(
                request,
                "Only bound persistent volume claims can be expanded",
            ));
        }
        if !self.may_grow(new) {
            return Err(refuse(
                request,
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            ));
        }
        Ok(())
    }
}
