//! DefaultIngressClass: an Ingress that names no class gets the one that is marked as default.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::object;
use balsa_api::status::Status;

use super::{is, newest_default};
use crate::seam::{Admission, AdmissionRequest, ObjectReader, Operation};

const GROUP: &str = "networking.k8s.io";
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// Older form of `ingressClassName`.
const OLD_CLASS: &str = "kubernetes.io/ingress.class";

/// See the module.
pub struct DefaultIngressClass {
    reader: Arc<dyn ObjectReader>,
}

impl DefaultIngressClass {
    /// Over the classes of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }
}

#[async_trait]
impl Admission for DefaultIngressClass {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if request.operation != Operation::Create || !is(request, GROUP, "ingresses") {
            return Ok(());
        }
        let Some(ingress) = request.object.as_deref_mut() else {
            return Ok(());
        };
        if !ingress["spec"]["ingressClassName"].is_null()
            || object::annotation(ingress, OLD_CLASS).is_some()
        {
            return Ok(());
        }
        let classes = self.reader.list(GROUP, "ingressclasses", None);
        if let Some(default) = newest_default(&classes, &[IS_DEFAULT]) {
            ingress["spec"]["ingressClassName"] = object::name(default).into();
        }
        Ok(())
    }

    async fn validate(&self, _request: &AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
}
